"""Structured pruning: remove channels, attention heads, hidden units and residual branches from a model.

The steps are: group the channels that must go together (`groups`), rank them (`importance`), choose how many of each
group to remove (`allocation`, `target_search`), remove them and fit the remaining weights (`candidate_models`).
"""

"""Search for a goal: measure what each node costs in int8, and return nodes to float until the goal is met.

Start with `mixed_precision`; `goal` defines what can be asked, `workbench` measures candidates.
"""

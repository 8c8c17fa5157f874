"""Recipes: what the user asked for, as values (`Recipe`, `PruneStage`, `ShrinkStage`, `EmitStage`) and as YAML.

Start with `recipe`. `files` reads recipes from YAML and reports, and `keys` checks them key by key. Nothing here knows
what a model can do.
"""

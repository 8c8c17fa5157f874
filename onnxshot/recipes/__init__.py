"""Recipes: what the user asked for, as values (`Recipe`, `PruneStage`, `ShrinkStage`, `EmitStage`) and as YAML."""

"""Convert what a run leaves in float32 to float16 or bfloat16.

Start with `convert`. Which nodes are converted is decided in planning/precision16_plan.py and carried out by
passes/to_precision16.py.
"""

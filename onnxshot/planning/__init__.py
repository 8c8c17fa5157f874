"""Decide what happens to each node, tensor and weight. Nothing here changes the graph.

Where to look:
    make_plan: the entry point, which returns a `Plan` (plan.py).
    int8_or_float: why a node, for example a Conv, runs in int8 or stays in float. It lists the checks in order.
    node_mode, slow_convs, qdq_overhead, scales: the checks that int8_or_float and make_plan call.
    node_recipe, name_patterns, schemes: what the recipe asks of each node, and in which types.
    scales, trained_scales, keep_trained_scales: scales from statistics, and from the Q/DQ pairs of the input.
    precision16_plan, precision16_ops: the same decisions for float16 and bfloat16.
"""

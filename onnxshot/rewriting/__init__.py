"""Apply passes in order: before a plan is made (`prepare`), as the plan says (`apply_plan`), for a target (`retarget`).

One pass is one file of passes/. Which nodes are quantized is decided in planning/.
"""

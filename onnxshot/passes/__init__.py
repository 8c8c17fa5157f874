"""Rewrites of a model, one pass per file. Each pass counts its edits and lists the nodes it skipped, with reasons.

Start with `base`, which defines `Pass` and `Change`, and `insert_qdq`. Which nodes are
quantized is decided in planning/. The order in which passes run is in rewriting/.
"""

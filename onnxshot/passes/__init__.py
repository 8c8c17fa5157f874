"""Rewrites of a model, one pass per file. Each pass counts its edits and lists the nodes it skipped, with reasons."""

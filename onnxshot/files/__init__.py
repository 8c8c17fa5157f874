"""Files and paths: atomic writes, temporary folders, URLs, and the check that no input is overwritten.

Start with `conflicts` and `atomic_write`. Nothing here knows models.
"""

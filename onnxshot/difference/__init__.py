"""Compare two files of the same model layer by layer: types, scales, masks, shapes and values.

Start with `compare_layers`. The verb is api/diff.py.
"""

"""Recover accuracy: try equivalent models (equalized, smoothed), reconstruct layers, choose better ranges.

Start with `improver`. Every candidate is measured on calibration samples, and the most accurate one is kept.
"""

"""Floats of 16 bits."""

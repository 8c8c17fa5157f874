"""Zeros in weights: chosen, made up for, counted and proven."""

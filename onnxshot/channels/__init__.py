"""Whole channels, heads and hidden units cut out of a model: which belong together, which cost least, and the cut."""

"""Compare two files of a model layer by layer: what differs, and what the difference costs."""

"""A result against the float model."""

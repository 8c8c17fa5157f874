"""What layers of a model compute on samples, one after the other."""

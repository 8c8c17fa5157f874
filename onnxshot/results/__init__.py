"""What verbs return: a model, with the report that proves it."""

"""The public verbs, one a file: the only files that know an order of stages."""

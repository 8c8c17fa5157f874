"""A local page: drop a model and samples, compress, look at the report, download."""

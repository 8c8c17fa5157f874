"""A folder to deploy: all a run has made, samples with expected outputs, and a manifest of hashes."""

"""A bundle: a folder to deploy, with the model, samples with expected outputs, and a manifest of hashes.

This folder knows file formats only: `bundle_manifest` and `samples`. Nothing in a bundle is trusted when it is read.
The verbs that write and check a bundle are api/bundle.py and api/verify.py.
"""

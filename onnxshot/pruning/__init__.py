"""Unstructured and N:M pruning: set weights to zero and let the remaining weights compensate.

Start with `layerwise_pruning`. Removing whole channels is structured pruning, in channels/. The arithmetic is in
maths/.
"""

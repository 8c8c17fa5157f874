"""Unstructured and N:M pruning: set weights to zero and let the remaining weights compensate.

The steps are: choose the layers (`prunable_layers`), choose how many zeros each gets (`sparsity_per_layer`), prune and
refit them layer by layer (`layerwise_pruning`), and keep outputs finite (`keep_finite`). Start with `prune_model`.
Removing whole channels is structured pruning, in channels/. The arithmetic is in maths/.
"""

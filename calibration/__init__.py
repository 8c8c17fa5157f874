"""Calibration: read samples, preprocess them, observe tensors, choose ranges. Imports nothing of the graph.

Data flows through these modules in order:

    readers         open calibration data of any kind as a `Dataset` of samples (sources, stacks, arrays, pictures)
    preset          how a picture becomes a model's input; preprocess applies it
    observers       extremes and histograms of tensors, sample by sample (`Glimpse` -> `Observers`)
    stats           the statistics of one tensor (`TensorStats`), which merge exactly
    range_methods   a tensor's range from its statistics; range methods are added there
"""

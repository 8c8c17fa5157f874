"""Calibration: read samples, preprocess them, observe tensors, choose ranges. Imports nothing of the graph.

Data flows through these modules in order:

    readers         open calibration data of any kind as a `Dataset` of samples (sources, stacks, arrays, pictures)
    preset          how a picture becomes a model's input; preprocess applies it
    sound           windows of sound files; sound_preset says how they become a model's input
    text_files      texts, which tokenizer and token_windows cut into windows of ids; language_inputs makes feeds of ids
    observers       extremes and histograms of tensors, sample by sample (`Glimpse` -> `Observers`)
    stats           the statistics of one tensor (`TensorStats`), which merge exactly
    range_methods   a tensor's range from its statistics; range methods are added there
"""

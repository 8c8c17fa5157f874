"""Run a model over samples and gather statistics of its tensors.

Start with `observed_tensors`, which defines a calibration pass, and `collect`, which runs it. `statistics_cache` is the
calibration cache. Nothing here decides what is quantized.
"""

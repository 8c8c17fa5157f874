"""Compress many models for many targets from one manifest, and resume where an earlier run stopped.

Start with `run`. `manifest` reads the YAML, `resume` skips the cells that are finished, an engine (`local_engine` or
`ray_engine`) runs the others, `store` keeps their results, and `summary` applies the thresholds. How a model is
quantized is known only to api/.
"""

from onnxshot.batch.run import run

__all__ = ["run"]

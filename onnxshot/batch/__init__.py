"""Many models for many targets: a manifest, cells that are done once, and a summary for a gate."""

from onnxshot.batch.run import run

__all__ = ["run"]

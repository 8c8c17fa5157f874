"""Process several items at once in threads (see `onnxshot.runtimes.parallel`)."""

from onnxshot.runtimes.parallel import in_order, run_concurrently, split_threads

__all__ = ["in_order", "run_concurrently", "split_threads"]

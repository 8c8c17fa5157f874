"""onnxshot: compress exported ONNX models in one shot, without training code, with proof."""

__version__ = "0.1.0"

__all__ = [
    "Goal",
    "Preset",
    "PruneReport",
    "PruneResult",
    "Recipe",
    "Report",
    "Result",
    "Settings",
    "bench",
    "bundle",
    "calibrate",
    "compare",
    "compress",
    "diff",
    "doctor",
    "emit",
    "errors",
    "inspect",
    "prune",
    "quantize",
    "replay",
    "sensitivity",
    "shrink",
    "tune",
    "verify",
]

from onnxshot import starting as _starting  # noqa: F401  # isort: skip  # before what takes its time
from onnxshot import errors
from onnxshot import source_tree as _source_tree  # noqa: F401  # first: it makes a clone's calibration/ importable
from onnxshot.bundles.making import bundle
from onnxshot.bundles.verify import verify
from onnxshot.calibration.preprocess import Preset
from onnxshot.compress import compress
from onnxshot.convert import emit
from onnxshot.cutting.shrink import shrink
from onnxshot.difference.diff import diff
from onnxshot.doctor.doctor import doctor
from onnxshot.inspection import inspect
from onnxshot.observing.calibrating import calibrate
from onnxshot.pipeline import quantize
from onnxshot.proving.judge import bench_models as bench
from onnxshot.proving.judge import compare_models as compare
from onnxshot.pruning.prune import prune
from onnxshot.pruning.report import PruneReport, PruneResult
from onnxshot.recipes.recipe import Recipe
from onnxshot.replay import replay
from onnxshot.report import Report
from onnxshot.result import Result
from onnxshot.search.goal import Goal
from onnxshot.search.sensitivity import sensitivity
from onnxshot.search.tune import tune
from onnxshot.settings import Settings


def __getattr__(name: str) -> object:
    """Packages that are reached by their name, and imported only then."""
    if name in ("batch", "recipes"):
        import importlib

        return importlib.import_module(f"onnxshot.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

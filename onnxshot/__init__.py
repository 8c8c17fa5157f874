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
    "calibrate",
    "compare",
    "compress",
    "emit",
    "errors",
    "inspect",
    "prune",
    "quantize",
    "sensitivity",
    "shrink",
    "tune",
]

from onnxshot import errors
from onnxshot.calibrating import calibrate
from onnxshot.calibration.preprocess import Preset
from onnxshot.compress import compress
from onnxshot.convert import emit
from onnxshot.cutting.shrink import shrink
from onnxshot.goal import Goal
from onnxshot.inspection import inspect
from onnxshot.judge import bench_models as bench
from onnxshot.judge import compare_models as compare
from onnxshot.pipeline import Result, quantize
from onnxshot.prune_report import PruneReport, PruneResult
from onnxshot.pruning import prune
from onnxshot.recipe import Recipe
from onnxshot.report import Report
from onnxshot.sensitivity import sensitivity
from onnxshot.settings import Settings
from onnxshot.tune import tune

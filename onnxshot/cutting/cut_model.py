"""A model that is cut: which outputs of its layers are left, how it is stored, and how fast it is."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from onnx import TensorProto

from onnxshot.calibration.readers import Dataset
from onnxshot.cutting.allocation import Allocation
from onnxshot.cutting.axes import Axes
from onnxshot.cutting.refit import Kept
from onnxshot.graph import Model, edit, weights
from onnxshot.graph.load import copy_of
from onnxshot.output import Made
from onnxshot.passes.cut_channels import CutChannels
from onnxshot.passes.drop_branches import DropBranches
from onnxshot.passes.drop_identity import DropIdentity
from onnxshot.passes.store_half import StoreHalf
from onnxshot.settings import Settings
from onnxshot.targets.ort_bench import bench

_TIMED = 3  # how often a latency that decides is measured
_BENCH_FEEDS = 8


def cut_copy(model: Model, axes: Axes, allocation: Allocation) -> Model:
    """A copy of the model without the branches and the channels that are given up."""
    made = copy_of(model)
    if allocation.branches:
        DropBranches({k: v for branch in allocation.branches for k, v in branch.sums.items()}).run(made)
        DropIdentity().run(made)
    CutChannels(axes, allocation.removed).run(made)
    return made


def kept_outputs(model: Model, axes: Axes, allocation: Allocation) -> Kept:
    """Which outputs of each layer are left, where not all are."""
    found = {}
    for node in model.graph.nodes:
        if node.op in ("Conv", "Gemm", "MatMul"):
            held = axes.of.get(node.outputs[0].name, {})
            last = 1 if node.op == "Conv" else max(held, default=0)
            if last in held and not allocation.alive[held[last]].all():
                found[node.name] = allocation.alive[held[last]]
    return found


def store_as(model: Model, made: Model) -> None:
    """Store in float16 what the model stored so: weights that were fitted are rounded to it, a part in 2000."""
    half = {c.name for c in model.constants() if getattr(c, "stored_as", None) == TensorProto.FLOAT16}
    for constant in made.constants():
        if constant.name in half and weights.elem_type(constant) == TensorProto.FLOAT:
            constant.values = weights.read(constant).astype(np.float16).astype(np.float32)
            constant.stored_as = TensorProto.FLOAT16
    StoreHalf().run(made)
    edit.toposort(made)


def latency_share(model: Model, made: Model, data: Dataset, settings: Settings) -> float:
    """Share of the model's latency that is left: the median of a few, each timed in turns with it."""
    feeds = [data[i].feed for i in range(min(len(data), _BENCH_FEEDS))]
    with tempfile.TemporaryDirectory() as folder:
        both = [Made(model).save(Path(folder) / "float.onnx"), Made(made).save(Path(folder) / "cut.onnx")]
        ratios = [
            bench(both, feeds, threads=settings.threads, rounds=10_000, seconds=settings.bench_seconds)
            for _ in range(_TIMED)
        ]
    return 1 / float(np.median([rows[1].ratio for rows in ratios]))

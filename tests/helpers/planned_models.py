"""Small models that are planned or quantized, and accessors to the plan and to the nodes of the result."""

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import onnx
from handmade import Case
from handmade.core import Feed, feeds, model
from numpy.typing import NDArray

import onnxshot
from onnxshot.api.quantize import quantize
from onnxshot.calibration.readers import Sample
from onnxshot.calibration.stats import TensorStats
from onnxshot.execution.collect import collect
from onnxshot.graph import Model
from onnxshot.graph.load import load_model
from onnxshot.planning.make_plan import make_plan
from onnxshot.planning.plan import Plan
from onnxshot.recipes.recipe import Recipe
from onnxshot.results.quantized import Result
from onnxshot.rewriting.prepare import prepare
from onnxshot.settings import Settings
from onnxshot.targets import target_named

FAST = Settings(verify=False, use_cache=False, threads=1)
PROVEN = Settings(use_cache=False, threads=1, bench_seconds=0.01)


def small(text: str, constants: Feed, **shapes: tuple[int, ...]) -> Case:
    """A case from ONNX text, with four normal samples of these shapes."""
    return Case(model(text, constants), feeds(4, **shapes))


def normalized(proto: onnx.ModelProto, recipe: Recipe) -> Model:
    """The model as the planner gets it."""
    loaded = load_model(proto)
    prepare(loaded, target_named(recipe.target), recipe)
    return loaded


def statistics(
    ready: Model, names: Iterable[str], given: list[Feed], channels: Collection[str] = ()
) -> dict[str, TensorStats]:
    """Statistics of the named tensors over these feeds; by channel for those in `channels`."""
    samples = [Sample(f"#{i}", feed) for i, feed in enumerate(given)]
    return collect(ready, list(names), samples, channels=channels, threads=1).stats


def planned(case: Case, *, calibrate: bool = False, **options: Any) -> tuple[Model, Plan]:
    """The normalized model and its plan; with scales where `calibrate` is set."""
    recipe = Recipe.from_dict(options)
    target = target_named(recipe.target)
    ready = normalized(case.model, recipe)
    plan = make_plan(ready, target, recipe)
    if calibrate:
        plan = make_plan(ready, target, recipe, statistics(ready, plan.observe, case.feeds, plan.watched))
    return ready, plan


def treatment(ready: Model, plan: Plan) -> dict[str, str]:
    """Name of the first output of each planned node -> how it is treated."""
    made = {n.label: n.outputs[0].name for _, n in ready.walk() if n.outputs}
    return {made[n.node]: n.how for n in plan.nodes}


def reason(ready: Model, plan: Plan, output: str) -> str:
    """Why the node that makes this tensor is not quantized, or not fully."""
    label = next(n.label for _, n in ready.walk() if n.outputs and n.outputs[0].name == output)
    return next(n.reason for n in plan.nodes if n.node == label)


def quantized(case: Case, settings: Settings = FAST, **options: Any) -> tuple[Result, onnx.ModelProto]:
    """The result of `quantize` on a case, and its model; with no more effort than ranges, unless options say so."""
    options = {"effort": "fast", **options}
    given = case.feeds if options.get("mode", "static") == "static" or settings.verify else None
    result = quantize(case.model, given, settings=settings, **options)
    return result, result.model.to_proto()


def run(proto: onnx.ModelProto, feed: Feed, *, optimize: bool = True) -> list[NDArray[Any]]:
    """Outputs in ONNX Runtime, with its graph optimizations on or off."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[NDArray[Any]] = session.run(None, feed)
    return found


def sqnr(case: Case, proto: onnx.ModelProto, *, optimize: bool = True) -> float:
    """SQNR in dB of all outputs over all feeds of the case, in ONNX Runtime."""
    total = onnxshot.maths.sqnr.SqnrSum()
    for feed in case.feeds:
        for wanted, got in zip(run(case.model, feed), run(proto, feed, optimize=optimize), strict=True):
            assert wanted.shape == got.shape
            assert wanted.dtype == got.dtype
            total.add(wanted, got)
    return total.db


def initializers(proto: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Values of the initializers by name."""
    return {t.name: np.asarray(onnx.numpy_helper.to_array(t)) for t in proto.graph.initializer}


def nodes_of(proto: onnx.ModelProto, op: str) -> list[onnx.NodeProto]:
    """Top-level nodes of this operator."""
    return [n for n in proto.graph.node if n.op_type == op]


def maker(proto: onnx.ModelProto, tensor: str) -> onnx.NodeProto:
    """The top-level node that makes the tensor."""
    return next(n for n in proto.graph.node if tensor in n.output)

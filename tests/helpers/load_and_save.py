"""The shortest way through onnxshot: load, normalize, save. Used by tests of files, node cases and memory."""

from collections.abc import Callable
from pathlib import Path

from onnxshot.errors import UsageError
from onnxshot.graph import Model
from onnxshot.graph.load import load_model
from onnxshot.graph.save import draft
from onnxshot.passes.normalize import normalize
from onnxshot.passes.weight_only import QuantizeWeightsOnly
from onnxshot.planning.make_plan import already_quantized, make_plan
from onnxshot.recipes.recipe import Recipe
from onnxshot.rewriting.prepare import prepare
from onnxshot.targets.ort import ORT

Transform = Callable[[Model], object]


def weights_only(model: Model) -> None:
    """What `quantize(mode="weights")` does to the graph."""
    recipe = Recipe(mode="weights")
    if already_quantized(model):
        raise UsageError("the model is quantized already")
    prepare(model, ORT, recipe)
    QuantizeWeightsOnly(make_plan(model, ORT, recipe)).run(model)


TRANSFORMS: dict[str, Transform] = {"save": lambda model: None, "normalize": normalize, "weights": weights_only}


def load_and_save(path: Path, out: Path, transform: Transform = normalize) -> Path:
    """Load `path`, transform it, write `out`."""
    model = load_model(path)
    transform(model)
    with draft(model, out) as written:
        return written.publish()

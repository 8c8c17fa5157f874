"""The shortest way through onnxshot: load, normalize, save. Tests of files, node cases and memory all go through it."""

from collections.abc import Callable
from pathlib import Path

from onnxshot.graph import Model
from onnxshot.graph.load import load_model
from onnxshot.graph.save import draft
from onnxshot.passes.normalize import normalize

Transform = Callable[[Model], object]

TRANSFORMS: dict[str, Transform] = {"save": lambda model: None, "normalize": normalize}


def load_and_save(path: Path, out: Path, transform: Transform = normalize) -> Path:
    """Load `path`, transform it, write `out`."""
    model = load_model(path)
    transform(model)
    with draft(model, out) as written:
        return written.publish()

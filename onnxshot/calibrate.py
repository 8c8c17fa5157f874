"""Run the float model over calibration samples and keep statistics, not tensors: one pass, memory that stays flat."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from onnxshot.calibration.observers import Observer
from onnxshot.calibration.readers import Sample
from onnxshot.calibration.stats import TensorStats
from onnxshot.errors import CalibrationError
from onnxshot.graph import Model
from onnxshot.graph.save import write
from onnxshot.maths.scheme import NotFinite
from onnxshot.targets.ort_runtime import Runner, providers_for

IN_MEMORY = 1_500_000_000
"""Bytes of weights above which the model is run from a temporary file: one protobuf message ends at 2 GiB."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many samples are done, and how many there are."""


def collect(
    model: Model,
    names: Sequence[str],
    samples: Iterable[Sample],
    total: int,
    *,
    channels: Collection[str] = (),
    threads: int = 2,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, TensorStats]:
    """Statistics of the named tensors over all samples; of those in `channels` also by channel of the last axis.

    Held at any time: one sample's outputs and a histogram of 2048 bins per tensor, whatever the number of samples.

    Raises:
        CalibrationError: a tensor is NaN or infinite (tensor and sample are named), or no sample reached a tensor.
    """
    observers = {name: Observer(channels=name in channels) for name in names}
    with _runnable(model, names) as source:
        runner = Runner(source, threads=threads, providers=providers_for(device), outputs=names)
        for done, sample in enumerate(samples):
            _observe(runner.run(sample.feed), observers, sample.name)
            if progress is not None:
                progress("calibrating", done + 1, total)
    return {name: observer.stats() for name, observer in observers.items()}


@contextlib.contextmanager
def _runnable(model: Model, names: Sequence[str]) -> Iterator[Path | bytes]:
    """The model with these tensors among its outputs: as bytes, or as a temporary file with its weights beside it."""
    if model.weight_bytes() <= IN_MEMORY:
        yield _exposed(model.to_proto(), names)
        return
    with tempfile.TemporaryDirectory(prefix="onnxshot-") as folder:
        path = Path(folder) / "model.onnx"
        write(model, path, external=True)
        path.write_bytes(_exposed(onnx.load(str(path), load_external_data=False), names))
        yield path


def _exposed(proto: ModelProto, names: Sequence[str]) -> bytes:
    present = {o.name for o in proto.graph.output}
    for name in names:
        if name not in present:
            proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return bytes(proto.SerializeToString())


def _observe(values: Mapping[str, NDArray[Any]], observers: Mapping[str, Observer], sample: str) -> None:
    for name, observer in observers.items():
        try:
            observer.update(values[name])
        except NotFinite as e:
            raise CalibrationError(
                f"tensor {name!r} is NaN or infinite on sample {sample!r}",
                "look at that sample and its preprocessing; if the float model itself overflows there, leave it out",
            ) from e

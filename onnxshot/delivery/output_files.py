"""List the files that a run will write: the model and its external data, artifacts of runtimes, the record.

Nothing is written here. The lists are compared with those of `input_files` before the work; `write_results` writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from onnxshot.delivery.artifacts import ONNX, artifact_path
from onnxshot.delivery.overwrite_checks import foreign_artifact, foreign_data, foreign_model, foreign_weights, no_model
from onnxshot.delivery.record import beside
from onnxshot.files.conflicts import OUTPUT_OPTION, Write
from onnxshot.files.links import follow_link, named_file
from onnxshot.graph import Model
from onnxshot.graph.load import refuse_suffix
from onnxshot.graph.weights import EXTERNAL_LIMIT
from onnxshot.runtimes.base import EmitOptions

OUTPUT = "the output"


def of_result(
    output: str | Path,
    formats: Sequence[str] = (ONNX,),
    *,
    data: str,
    recorded: bool = True,
    named: bool = True,
) -> Iterator[Write]:
    """The files of a result.

    A file that the user named may replace a model, another only a file of onnxshot (see `overwrite_checks`).

    Args:
        output: path of the output.
        formats: to write.
        data: what is added to the name of the .onnx file to name its external data; "" where it has none.
        recorded: whether a record is written.
        named: whether the user gave the path of the output.
    """
    output = follow_link(named_file(output))
    for name in formats:
        place = artifact_path(output, name)
        role = OUTPUT if place == output else f"the {'model' if name == ONNX else f'{name} artifact'}"
        if name == ONNX:
            yield from of_model(place, role, data=data, named=named and place == output)
            continue
        yield Write(place, role, no_model if named and place == output else foreign_artifact)
        if place.suffix == ".xml":
            yield Write(place.with_suffix(".bin"), f"the weights file of {role}", foreign_weights(place))
    if recorded:
        yield Write(beside(artifact_path(output, ONNX)), "the record")


def of_model(
    place: str | Path, role: str = OUTPUT, *, data: str, named: bool = True, option: str = OUTPUT_OPTION
) -> Iterator[Write]:
    """An .onnx file and, with `data`, its data file. Raises UsageError for the suffix of another format."""
    place = follow_link(named_file(place))
    refuse_suffix(place)
    yield Write(place, role, no_model if named else foreign_model, option=option)
    if data:
        yield Write(place.with_name(place.name + data), f"the data file of {role}", foreign_data(place), option=option)


def of_bundle(folder: Path) -> Write:
    """The folder of a bundle, which contains samples. `refuse_folder` checks whether it may be replaced."""
    return Write(folder, "the bundle", folder=True, holds=("statistics.npz", "samples/0.npz"))


def of_options(options: EmitOptions | None) -> Iterator[Write]:
    """Other files that making an artifact writes: the timing cache of TensorRT, which is also read."""
    if options is not None and options.timing_cache is not None:
        yield Write(Path(options.timing_cache), "the timing cache")


def data_suffix(model: Model) -> str:
    """What is added to the name of the .onnx file to name its data file; "" where all weights are in the .onnx file.

    A model has a data file if it was read with one, or is too large for one file.
    """
    return model.data_suffix if model.external_data or model.weight_bytes() > EXTERNAL_LIMIT else ""

"""The files of a result: the model and its data, artifacts of runtimes, the record beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from onnxshot.delivery.artifacts import ONNX, place_of
from onnxshot.delivery.overwrite_checks import foreign_artifact, foreign_data, foreign_model, foreign_weights
from onnxshot.delivery.record import beside
from onnxshot.files.conflicts import OUTPUT_OPTION, Write
from onnxshot.files.links import follow_link
from onnxshot.graph import Model
from onnxshot.graph.load import refuse_suffix
from onnxshot.graph.weights import EXTERNAL_LIMIT
from onnxshot.runtimes.base import EmitOptions

OUTPUT = "the output"


def of_result(
    output: Path,
    formats: Sequence[str] = (ONNX,),
    *,
    external: bool,
    recorded: bool = True,
    named: bool = True,
) -> Iterator[Write]:
    """What a run writes whose output is called so; what only follows from its name was not named by the user.

    external: whether the model's weights go to a file of their own. recorded: whether a record is left beside it.
    named: whether the user has named the output.
    """
    output = follow_link(output)
    for name in formats:
        place = place_of(output, name)
        role = OUTPUT if place == output else f"the {'model' if name == ONNX else f'{name} artifact'}"
        if name == ONNX:
            yield from of_model(place, role, external=external, named=named and place == output)
            continue
        yield Write(place, role, None if named and place == output else foreign_artifact)
        if place.suffix == ".xml":
            yield Write(place.with_suffix(".bin"), f"the weights file of {role}", foreign_weights(place))
    if recorded:
        yield Write(beside(place_of(output, ONNX)), "the record")


def of_model(
    place: Path, role: str = OUTPUT, *, external: bool, named: bool = True, option: str = OUTPUT_OPTION
) -> Iterator[Write]:
    """An .onnx file, and that of its data where there is one. Raises UsageError for a suffix of another format."""
    place = follow_link(place)
    refuse_suffix(place)
    yield Write(place, role, None if named else foreign_model, option=option)
    if external:
        data = place.with_name(place.name + ".data")
        yield Write(data, f"the data file of {role}", foreign_data(place), option=option)


def of_bundle(folder: Path) -> Write:
    """A bundle, which holds samples; whether one may be put there is for `refuse_folder` to say."""
    return Write(folder, "the bundle", folder=True, holds=("statistics.npz", "samples/0.npz"))


def of_options(options: EmitOptions | None) -> Iterator[Write]:
    """What building an artifact writes besides it. It is read, too, by design."""
    if options is not None and options.timing_cache is not None:
        yield Write(Path(options.timing_cache), "the timing cache")


def is_external(model: Model) -> bool:
    """Whether a model like this is written with a data file: one of its size, or one that came with some."""
    return model.external_data or model.weight_bytes() > EXTERNAL_LIMIT

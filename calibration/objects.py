"""Open objects of the caller as samples: arrays, lists, loaders, data sets, tables, streams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.checks import InputSpec, as_array, only_input
from onnxshot.calibration.feeds import Feeds, Items, Spool
from onnxshot.calibration.given import TAKES, Mapped, Transform, called, is_indexed, stream_of
from onnxshot.calibration.item_batches import parts_of
from onnxshot.calibration.items import ItemReader
from onnxshot.calibration.pictures import Fitter
from onnxshot.calibration.sources import Source
from onnxshot.calibration.stacks import Stack
from onnxshot.calibration.tables import is_table, records, table_arrays
from onnxshot.calibration.tensors import is_tensor
from onnxshot.calibration.text_files import records_of_text
from onnxshot.calibration.texts import Texts
from onnxshot.calibration.user_functions import users_code
from onnxshot.errors import CalibrationError

_MOST_LABELS = 2  # arrays behind those of the inputs in a tuple, such as labels and weights of samples


def open_object(source: Any, label: str, fit: Fitter, limit: int | None, texts: Texts) -> Source:
    """Open an object of the caller as samples.

    Raises:
        CalibrationError: it gives no samples, or samples that do not fit the model.
    """
    specs = fit.specs
    if isinstance(source, np.ndarray) and source.ndim == 1 and source.dtype.kind in "OU" and not _takes_strings(specs):
        source = source.tolist()  # texts, or objects
    if is_tensor(source) and not is_table(source):
        name = only_input(specs, label, "give a dict of arrays, or a tuple of arrays in that order")
        return Stack(label, {name: as_array(source, name, label)}, specs)
    if is_table(source):
        return _table(source, label, fit, texts)
    if isinstance(source, Mapping) or isinstance(getattr(source, "column_names", None), Mapping):
        with users_code(label):
            splits = [str(key) for key, part in source.items() if hasattr(part, "column_names")]
        if splits:
            what = f"{label} holds data sets: {', '.join(map(repr, splits))}"
            raise CalibrationError(what, f"give one of them: data[{splits[0]!r}]")
        return Stack(label, _columns(source, label, specs), specs)
    if _is_columns(source, specs):
        names = [spec.name for spec in specs]
        arrays = {name: as_array(x, name, label) for name, x in zip(names, source, strict=False)}
        stack = Stack(label, arrays, specs)
        if len(names) == 1:
            said = f"the first array is the input {names[0]!r}"
        else:
            said = f"the first {len(names)} arrays are the inputs {', '.join(map(repr, names))}, in this order"
        dropped = "; what follows is dropped: not an input of the model" if len(source) > len(names) else ""
        stack.notes = (said + dropped, *stack.notes)
        return stack
    if is_indexed(source):
        return _indexed(source, label, fit, limit, texts)
    if callable(getattr(source, "get_next", None)) or isinstance(source, Iterable):
        with users_code(f"{label} at sample 0"):
            begun = list(islice(stream := stream_of(source), 1))
        rest = chain(begun, stream)
        if begun and texts.found(begun[0]):
            return texts.open(lambda field: records_of_text(label, rest, field))
        return Spool(label, rest, specs, fit, limit, whole=fit.whole)
    what = f"calibration data is of type {type(source).__name__}, which gives no samples"
    raise CalibrationError(what, f"[[calib]] takes {TAKES}")


def _takes_strings(specs: Sequence[InputSpec]) -> bool:
    return any(spec.dtype.kind in "OUST" for spec in specs)


def transformed(source: Any, by: Transform, label: str) -> Any:
    """The items of an object, each as a transform makes it: a sequence where the object is one, else a stream."""
    if is_table(source):
        return Mapped(records(source, label), by, label)
    if isinstance(source, Mapping):
        arrays = {str(name): as_array(value, str(name), label) for name, value in source.items()}
        count = min((len(x) for x in arrays.values() if x.ndim), default=0)
        return Mapped([{name: x[i] for name, x in arrays.items()} for i in range(count)], by, label)
    if is_tensor(source) or is_indexed(source):
        return Mapped(source, by, label)
    if callable(getattr(source, "get_next", None)) or isinstance(source, Iterable):
        return _mapped(source, by, label)
    return source


def _mapped(source: Any, by: Transform, label: str) -> Iterator[Any]:
    with users_code(label):
        stream = stream_of(source)
    end, count = object(), 0
    while True:
        with users_code(f"{label} at sample {count}"):
            item = next(stream, end)
        if item is end:
            return
        yield called(by, item, f"{label} #{count}")
        count += 1


def _indexed(source: Items, label: str, fit: Fitter, limit: int | None, texts: Texts) -> Source:
    """Samples of a sequence: one by one where its first item is one sample, else as a stream of batches."""
    with users_code(label):
        count = len(source)
    if not count:
        return Feeds(label, source, fit.specs, look=False, whole=fit.whole)
    with users_code(f"{label} #0"):
        first = source[0]
    if texts.found(first):
        return texts.open(lambda field: records_of_text(label, _all(source, count), field))
    if isinstance(source, list | tuple):  # its items are in memory
        return Feeds(label, source, fit.specs, look=True, whole=fit.whole)
    if parts_of(ItemReader(fit.specs)(first, f"{label} #0"), fit.specs, whole=fit.whole):
        return Spool(label, _all(source, count), fit.specs, fit, limit, whole=fit.whole)
    return Feeds(label, source, fit.specs, look=False, whole=fit.whole)


def _all(source: Items, count: int) -> Iterator[object]:
    return (source[index] for index in range(count))


def _is_columns(source: object, specs: Sequence[InputSpec]) -> bool:
    """Whether a tuple holds an array of all samples for each input, and then perhaps labels."""
    if not isinstance(source, tuple) or not all(is_tensor(one) for one in source) or len(source) < max(2, len(specs)):
        return False
    if len(source) == len(specs):
        return True
    lengths = {one.shape[0] if getattr(one, "shape", ()) else 0 for one in source}
    return len(source) <= len(specs) + _MOST_LABELS and len(lengths) == 1 and lengths.pop() > 1


def _table(source: Any, label: str, fit: Fitter, texts: Texts) -> Source:
    rows = records(source.head(1), label)
    if rows and texts.found(rows[0]):
        return texts.open(lambda field: records_of_text(label, records(source, label), field))
    arrays, notes = table_arrays(source, fit.specs, label)
    if arrays is None:
        return Feeds(label, records(source, label), fit.specs, look=True, whole=fit.whole)
    stack = Stack(label, arrays, fit.specs)
    stack.notes = notes
    return stack


def _columns(source: Any, label: str, specs: Sequence[InputSpec]) -> dict[str, NDArray[Any]]:
    """The values of a dict as arrays. Raises CalibrationError where one is not an array, or its samples differ."""
    with users_code(label):
        values = {str(name): value for name, value in source.items()}
    names = {spec.name for spec in specs}
    if names <= set(values):  # what is no input may hold anything
        values = {name: value if name in names else np.zeros(()) for name, value in values.items()}
    return {name: _column(value, name, label) for name, value in values.items()}


def _column(value: object, name: str, label: str) -> NDArray[Any]:
    try:
        return as_array(value, name, label)
    except CalibrationError:
        if not isinstance(value, list | tuple):
            raise
        shapes = {as_array(x, name, f"{label}[{i}]").shape: i for i, x in reversed(list(enumerate(value)))}
        if len(shapes) < 2:
            return np.stack([as_array(x, name, f"{label}[{i}]") for i, x in enumerate(value)])
        (one, i), (other, j) = sorted(shapes.items(), key=lambda pair: pair[1])[:2]
        what = f"input {name!r}: sample {label}[{j}] holds {list(other)}, sample {label}[{i}] {list(one)}"
        raise CalibrationError(what, "give a list of dicts, one for each sample") from None

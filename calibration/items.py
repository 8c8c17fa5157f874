"""Read an item of the caller's own data as named arrays: a dict, a tuple in the order of the inputs, one array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from onnxshot.calibration.checks import InputSpec, NamedFeed, Sample, as_array, check_names, only_input
from onnxshot.calibration.tensors import is_tensor
from onnxshot.calibration.user_functions import users_code
from onnxshot.errors import CalibrationError

_ORDINALS = ("first", "second", "third", "fourth", "fifth")
_SHOWN = 6  # most names in a note


class ItemReader:
    """Reads items for the inputs of a model, and remembers what was left out, for notes."""

    def __init__(self, specs: Sequence[InputSpec]) -> None:
        self._specs, self._names = tuple(specs), tuple(spec.name for spec in specs)
        self._extra: dict[str, None] = {}
        self._dropped: dict[int, None] = {}
        self._ordered = False
        self._renamed = ""

    def __call__(self, item: object, where: str) -> dict[str, NDArray[Any]]:
        """The arrays of an item by input name: a `NamedFeed` where it is known to be one sample.

        Raises:
            CalibrationError: the item is of no kind that is known, lacks an input, or holds something that is no array.
        """
        if isinstance(item, Sample):
            return NamedFeed(item.feed, item.name)
        if isinstance(item, Mapping):
            found = self._by_name(item, where)
            return NamedFeed(found, item.sample) if isinstance(item, NamedFeed) else found
        if isinstance(item, list | tuple) and _is_structure(item):
            return self._by_order(item, where)
        if is_tensor(item) or isinstance(item, list | tuple | int | float):
            name = only_input(self._specs, where, "give a dict, or a tuple in that order, for each sample")
            return {name: as_array(item, name, where)}
        what = f"{where} is of type {type(item).__name__}, which holds no arrays"
        raise CalibrationError(
            what, "give {input name: array} for each sample, or transform=, a function that makes one of it"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out of the items, and how they were understood."""
        notes = []
        if self._renamed:
            notes.append(f"{self._renamed!r} of each item is taken as input {self._names[0]!r}")
        if self._ordered:
            notes.append(f"elements of each item are taken in the order of the inputs: {_listed(self._names)}")
        if self._dropped:
            words = [_ORDINALS[i] if i < len(_ORDINALS) else f"{i + 1}th" for i in sorted(self._dropped)]
            notes.append(f"{' and '.join(words)} element of each item dropped: not an input of the model")
        if self._extra:
            kind = "it is not an input" if len(self._extra) == 1 else "they are not inputs"
            notes.append(f"{_listed(tuple(self._extra))} of each item dropped: {kind} of the model")
        return tuple(notes)

    def _by_name(self, item: Mapping[object, object], where: str) -> dict[str, NDArray[Any]]:
        with users_code(where):
            values = {str(name): value for name, value in item.items()}
        if len(self._names) == len(values) == 1 and self._names[0] not in values:
            ((self._renamed, value),) = values.items()
            values = {self._names[0]: value}
        try:
            check_names(values, self._specs, where)
        except CalibrationError as e:
            if len(self._names) == 1 and values:
                some = next((name for name in values if is_tensor(values[name])), next(iter(values)))
                e.hint = f"{e.hint}; or give transform=lambda item: item[{some!r}]"
            raise
        self._extra.update(dict.fromkeys(name for name in values if name not in self._names))
        return {name: as_array(values[name], name, where) for name in self._names}

    def _by_order(self, item: Sequence[object], where: str) -> dict[str, NDArray[Any]]:
        first, wanted = item[0], len(self._names)
        if isinstance(first, Mapping) or _is_structure(first):
            self._dropped.update(dict.fromkeys(range(1, len(item))))
            return self(first, where)
        if len(item) < wanted:
            what = f"{where} has {len(item)} elements; the model has {wanted} inputs: {_listed(self._names)}"
            raise CalibrationError(what, "give one array for each input, in that order, or a dict")
        self._ordered = wanted > 1
        self._dropped.update(dict.fromkeys(range(wanted, len(item))))
        return {name: as_array(value, name, where) for name, value in zip(self._names, item, strict=False)}


def _is_structure(item: object) -> bool:
    """Whether a list or tuple holds arrays, and is not itself an array of numbers."""
    if not isinstance(item, list | tuple) or not item:
        return False
    if any(is_tensor(one) or isinstance(one, Mapping) for one in item):
        return True
    return isinstance(item, tuple) and any(isinstance(one, list | tuple) for one in item)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more

"""Check the types of arguments before the work: a UsageError names the argument, where Python would fail later."""

from __future__ import annotations

import builtins
import dataclasses
import functools
import inspect
import numbers
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from onnxshot.errors import UsageError

_Asked = ParamSpec("_Asked")
_Result = TypeVar("_Result")

_KINDS: dict[str, type | tuple[type, ...]] = {
    "None": type(None), "Path": os.PathLike, "float": numbers.Real, "int": numbers.Integral,
}  # fmt: skip
"""The classes that a name in an annotation accepts, where there are more than the class itself (numpy's numbers)."""


def checked(call: Callable[_Asked, _Result]) -> Callable[_Asked, _Result]:
    """Decorator: raise UsageError, which names the parameter, for an argument whose type its annotation does not list.

    Parameters whose annotation is more than a list of plain classes are not checked.
    """
    signature, known = inspect.signature(call), vars(sys.modules[call.__module__])

    @functools.wraps(call)
    def called(*args: _Asked.args, **kwargs: _Asked.kwargs) -> _Result:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            check_value(name, value, signature.parameters[name].annotation, known)
        return call(*args, **kwargs)

    return called


def check_fields(values: Any) -> None:
    """Raise UsageError, which names the field, for a dataclass field whose type its annotation does not list."""
    known = vars(sys.modules[type(values).__module__])
    for field in dataclasses.fields(values):
        check_value(field.name, getattr(values, field.name), field.type, known)


def check_value(name: str, value: object, annotation: object, known: Mapping[str, Any]) -> None:
    """Raise UsageError for a value whose type an annotation such as "str | Path | None" does not list.

    Args:
        name: of the value, in messages.
        value: the value.
        annotation: as text. One that is not a list of plain classes accepts every value.
        known: the classes that names in the annotation stand for.
    """
    names = [part.strip() for part in annotation.split("|")] if isinstance(annotation, str) else []
    kinds = [_KINDS.get(part, known.get(part, getattr(builtins, part, None))) for part in names]
    if not kinds or Any in kinds or not all(isinstance(kind, type | tuple) for kind in kinds):
        return
    flat = tuple(one for kind in kinds for one in (kind if isinstance(kind, tuple) else (kind,)))
    if not isinstance(value, flat) and bool not in flat:
        said = repr(value) if isinstance(value, int | float | str) else ""
        found = f"{type(value).__name__} {said[:40]}".strip() if value is not None else "None"
        raise UsageError(f"{name} is {found}", f"give {' or '.join(names)}")

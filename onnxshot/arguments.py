"""Arguments of the wrong type are told by name, before the work, in place of a TypeError from somewhere inside."""

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
"""What a name in an annotation takes, where that is more than the class of that name: numpy's numbers are too."""


def checked(call: Callable[_Asked, _Result]) -> Callable[_Asked, _Result]:
    """Let a call raise UsageError, with the parameter, for a value that is of no type that its annotation lists.

    Parameters whose annotation names more than plain classes are left to the call.
    """
    signature, known = inspect.signature(call), vars(sys.modules[call.__module__])

    @functools.wraps(call)
    def called(*args: _Asked.args, **kwargs: _Asked.kwargs) -> _Result:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            check_value(name, value, signature.parameters[name].annotation, known)
        return call(*args, **kwargs)

    return called


def check_fields(values: Any) -> None:
    """Raise UsageError, with the field, for a value of a dataclass that is of no type that its annotation lists."""
    known = vars(sys.modules[type(values).__module__])
    for field in dataclasses.fields(values):
        check_value(field.name, getattr(values, field.name), field.type, known)


def check_value(name: str, value: object, annotation: object, known: Mapping[str, Any]) -> None:
    """Raise UsageError for a value that is of no type of an annotation such as "str | Path | None".

    known: what names in the annotation stand for. An annotation of anything else takes every value.
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

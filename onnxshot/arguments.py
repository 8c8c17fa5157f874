"""Check the types of arguments before the work: a UsageError names the argument, where Python would fail later."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from onnxshot.errors import UsageError

_Asked = ParamSpec("_Asked")
_Result = TypeVar("_Result")

_ACCEPTED: dict[type, tuple[type, ...]] = {Path: (os.PathLike,), float: (numbers.Real,), int: (numbers.Integral,)}
"""The classes that a class in an annotation accepts, where there are more than itself (numpy's numbers)."""
_NAMES = {type(None): "None"}


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
        annotation: as text. One that is not made of plain classes and literals accepts every value.
        known: what names in the annotation stand for: classes, or types made of them.
    """
    try:
        kinds = _classes(eval(annotation, dict(known))) if isinstance(annotation, str) else ()
    except (NameError, TypeError):  # a name that only type checkers import
        return
    flat = tuple(one for kind in kinds for one in _ACCEPTED.get(kind, (kind,)))
    if kinds and not isinstance(value, flat) and bool not in flat:
        said = repr(value) if isinstance(value, int | float | str) else ""
        found = f"{type(value).__name__} {said[:40]}".strip() if value is not None else "None"
        names = dict.fromkeys(_NAMES.get(kind) or getattr(kind, "called", kind.__name__) for kind in kinds)
        raise UsageError(f"{name} is {found}", f"give {' or '.join(names)}")


def _classes(annotation: Any) -> tuple[type, ...]:
    """The classes that a type is made of, those of its literals included; none where it says more than classes."""
    if annotation is None:
        return (type(None),)
    if get_origin(annotation) is Literal:
        return tuple(type(value) for value in get_args(annotation))
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    if not parts:
        plain = isinstance(annotation, type) and annotation is not Any and get_origin(annotation) is None
        return (annotation,) if plain else ()
    found = [_classes(part) for part in parts]
    return tuple(one for kinds in found for one in kinds) if all(found) else ()

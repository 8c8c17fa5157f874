"""Check the names and types of arguments before the work: a UsageError names the argument and what to give instead."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import numbers
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, ParamSpec, Protocol, TypeVar, Union, get_args, get_origin

from onnxshot.errors import UsageError
from onnxshot.wording import OWNERS

_Asked = ParamSpec("_Asked")
_Made = TypeVar("_Made")
_Result = TypeVar("_Result")

_ACCEPTED: dict[type, tuple[type, ...]] = {Path: (os.PathLike,), float: (numbers.Real,), int: (numbers.Integral,)}
"""The classes that a class in an annotation accepts, where there are more than itself (numpy's numbers)."""
_NAMES: dict[object, str] = {type(None): "None", Callable: "a function"}
_PARAMETERS = {
    "Settings": ("settings",), "Goal": ("goal",), "EmitOptions": ("options", "emit_options"), "TextPreset": ("preset",)
}  # fmt: skip
"""Parameters of functions that take a value of the class."""


@dataclasses.dataclass(frozen=True, slots=True)
class Advice:
    """In an annotation, as `Annotated[str | Path, Advice(function)]`: what to give in place of a value of other types.

    Attributes:
        of: makes the hint of the value; an empty one leaves the list of the types.
    """

    of: Callable[[object], str]


def checked(call: Callable[_Asked, _Result]) -> Callable[_Asked, _Result]:
    """Decorator: raise UsageError for arguments that the function does not take, or whose type its annotation lacks.

    Parameters whose annotation is more than a list of plain classes are not checked.
    """
    signature, known = inspect.signature(call), vars(sys.modules[call.__module__])

    @functools.wraps(call)
    def called(*args: _Asked.args, **kwargs: _Asked.kwargs) -> _Result:
        __tracebackhide__ = True  # pytest shows the caller's line
        _refuse_misfits(f"{call.__name__}()", signature, known, args, kwargs)
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            check_value(name, value, signature.parameters[name].annotation, known)
        return call(*args, **kwargs)

    return called


def named_fields(made: type[_Made]) -> type[_Made]:
    """Decorator of a dataclass: raise UsageError, which names the nearest field, for one that it does not have."""
    begin: Callable[..., None] = vars(made)["__init__"]
    signature, known = inspect.signature(begin), vars(sys.modules[made.__module__])

    @functools.wraps(begin)
    def begun(self: _Made, *args: Any, **kwargs: Any) -> None:
        _refuse_misfits(made.__name__, signature, known, (self, *args), kwargs)
        begin(self, *args, **kwargs)

    setattr(made, "__init__", begun)  # noqa: B010  # it has the same parameters, which mypy cannot know
    return made


def _refuse_misfits(
    name: str, signature: inspect.Signature, known: Mapping[str, Any], args: Sequence[object], kwargs: Iterable[str]
) -> None:
    """Raise UsageError for arguments that a signature does not take, and for those that it needs.

    Args:
        name: of the function or class, in messages.
        signature: its signature.
        known: what names in its annotations stand for.
        args: positional arguments.
        kwargs: names of the others.
    """
    places = [one for one in signature.parameters.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
    taken = [one for one in _taken(signature, known) if one != "self"]
    for unknown in (one for one in kwargs if one not in taken):
        raise UsageError(f"{name} takes no {unknown!r}", _instead(unknown, taken))
    if len(args) > len(places):
        given, most = (f"{len(some) - (places[0].name == 'self')}" for some in (args, places))
        raise UsageError(f"{name} takes {most} arguments without a name, and {given} were given", "name the others")
    given_by_place = [one.name for one in places[: len(args)]]
    for twice in (one for one in given_by_place if one in kwargs):
        raise UsageError(f"{name} was given {twice!r} twice", "give it once, by its place or by its name")
    every = signature.parameters.values()
    needed = [one for one in every if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
    for missing in (one.name for one in needed if one.name not in (*given_by_place, *kwargs)):
        shown = ", ".join(one.name if one in places else f"{one.name}=..." for one in needed if one.name != "self")
        raise UsageError(f"{name} needs {missing!r}", f"{name.removesuffix('()')}({shown})")


def _taken(signature: inspect.Signature, known: Mapping[str, Any]) -> list[str]:
    """Names of the arguments that a signature takes, with the keys of `**options: Unpack[SomeTypedDict]`."""
    found = list[str]()
    for one in signature.parameters.values():
        if one.kind is one.VAR_KEYWORD:
            found += (key for part in get_args(eval(str(one.annotation), dict(known))) for key in part.__annotations__)
        else:
            found.append(one.name)
    return found


def _instead(unknown: str, taken: Sequence[str]) -> str:
    """What to give in place of an argument that is not taken: where it belongs, or the one of the nearest name."""
    held = {name: place for name, owner in OWNERS.items() for place in _PARAMETERS[owner] if place in taken}
    if near := nearest(unknown, [*taken, *held]):
        given = f"{held[near]}={OWNERS[near]}({near}=...)" if near in held and near not in taken else repr(near)
        return f"give {given}" if near == unknown else f"did you mean {given}?"
    if unknown == "goal" or OWNERS.get(unknown) == "Goal":
        goal = "goal" if unknown == "goal" else f"Goal({unknown}=...)"
        return f"onnxshot.tune(model, calib, {goal}) searches for a result that reaches a goal"
    if unknown == "sparsity":
        return "onnxshot.compress(model, calib, sparsity=...) makes zeros and quantizes"
    return f"it is a field of {OWNERS[unknown]}" if unknown in OWNERS else f"it takes {', '.join(taken)}"


def nearest(name: str, names: Iterable[str]) -> str:
    """The name that was most likely meant: a similar one, a part of it, or its beginning; empty where none is near."""
    known = list(names)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    parts = [one for one in known if name in one.split("_") or one in name.split("_")]
    begun = [one for one in known if min(len(one), len(name)) > 3 and (one.startswith(name) or name.startswith(one))]
    return (close or parts or begun or [""])[0]


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
        asked = eval(annotation, dict(known)) if isinstance(annotation, str) else Any
    except (NameError, TypeError):  # a name that only type checkers import
        return
    kinds = _classes(asked)
    if kinds and not any(_is_one(value, kind) for kind in kinds):
        said = repr(value) if isinstance(value, int | float | str) else ""
        found = f"{type(value).__name__} {said[:40]}".strip() if value is not None else "None"
        names = dict.fromkeys(_NAMES.get(kind) or getattr(kind, "called", kind.__name__) for kind in kinds)
        advice = (one.of(value) for one in _advices(asked))
        raise UsageError(f"{name} is {found}", next(filter(None, advice), f"give {' or '.join(names)}"))


def _is_one(value: object, kind: Any) -> bool:
    """Whether a value is of a class. Protocols are met by having their members, and properties are not computed."""
    if Protocol in kind.__mro__:
        members = [name for name in vars(kind) if not name.startswith("_")]
        return all(hasattr(type(value), name) or hasattr(value, name) for name in members)
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        value = value.item()  # type: ignore[attr-defined]  # a number of numpy, or a truth value
    return isinstance(value, _ACCEPTED.get(kind, (kind,))) and not (isinstance(value, bool) and kind in (int, float))


def _classes(annotation: Any) -> tuple[Any, ...]:
    """The classes that a type is made of, those of its literals included; none where it says more than classes."""
    if annotation is None:
        return (type(None),)
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return tuple(type(value) for value in parts)
    if origin is Annotated:
        return _classes(parts[0])
    if origin is Callable or annotation is Callable:
        return (Callable,)
    if origin not in (Union, UnionType):
        return (annotation,) if isinstance(annotation, type) and annotation is not Any and origin is None else ()
    found = [_classes(part) for part in parts]
    return tuple(one for kinds in found for one in kinds) if all(found) else ()


def _advices(annotation: Any) -> list[Advice]:
    """The advices in a type."""
    own = [one for one in getattr(annotation, "__metadata__", ()) if isinstance(one, Advice)]
    return own + [one for part in get_args(annotation) for one in _advices(part)]

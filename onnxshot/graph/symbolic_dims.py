"""Sizes that are not known yet: sums of products of named ones, so that B * 12 / B is 12 whatever B is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNSIGNED_FROM = "?"
"""First letter of the names of what is no size: it may be negative."""
_MOST_TERMS = 16  # a longer sum gets a name of its own
_LONGEST = 200  # letters of a name that tells how it came to be


@dataclass(frozen=True, slots=True)
class Expr:
    """A polynomial with whole coefficients: ((names in order, coefficient), ...), terms in order; never a number.

    Names stand for whole numbers. All but those that begin with '?' are sizes, and 0 or more.
    """

    terms: tuple[tuple[tuple[str, ...], int], ...]

    def __add__(self, other: Any) -> Any:
        return _made(_sum(_terms(self), _terms(other))) if _fits(other) else unknown()

    def __sub__(self, other: Any) -> Any:
        return self + other * -1

    def __rsub__(self, other: Any) -> Any:
        return self * -1 + other

    def __mul__(self, other: Any) -> Any:
        return _made(_product(_terms(self), _terms(other))) if _fits(other) else unknown()

    def __neg__(self) -> Any:
        return self * -1

    def __floordiv__(self, other: Any) -> Any:
        exact = divided(self, other)
        if exact is not None:
            return exact
        return _quotient(self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return _quotient(other, self)

    def __truediv__(self, other: Any) -> Any:
        exact = divided(self, other)
        return unknown() if exact is None else exact

    def __rtruediv__(self, other: Any) -> Any:
        return unknown()

    __radd__, __rmul__ = __add__, __mul__

    def __str__(self) -> str:
        return "+".join("*".join((*(() if c == 1 and names else (str(c),)), *names)) for names, c in self.terms)


Dim = int | Expr
"""A size: known, or not yet."""
_counter = itertools.count()


def named(name: str, *, size: bool = True) -> Expr:
    """What this name stands for; size: it is never negative."""
    return Expr((((name if size else UNSIGNED_FROM + name,), 1),))


def unknown() -> Expr:
    """A number of which nothing is known, equal to no other."""
    return named(f"u{next(_counter)}", size=False)


def unknown_size() -> Expr:
    """A size of which nothing is known, equal to no other."""
    return named(f"s{next(_counter)}")


def steps(span: Dim, stride: int) -> Dim:
    """How often a window that may move so far moves by this much: the same for the same span, and never negative."""
    if not isinstance(span, Expr):
        return span // stride
    if stride == 1:
        return span
    exact = divided(span, stride)
    name = f"({span})//({stride})"
    return exact if exact is not None else named(name) if len(name) <= _LONGEST else unknown_size()


def either(a: Dim, b: Dim) -> Dim:
    """The size of two axes that are the same, or of which one is 1."""
    name = "|".join(sorted((f"({a})", f"({b})")))
    return named(name) if len(name) <= _LONGEST else unknown_size()


def is_size(value: Any) -> bool:
    """Whether the number is known not to be negative."""
    if isinstance(value, Expr):
        return all(c > 0 and not any(n.startswith(UNSIGNED_FROM) for n in names) for names, c in value.terms)
    return bool(value >= 0)


def divided(a: Any, b: Any) -> Any:
    """a / b where that is exact whatever the names stand for, but for 0; else None."""
    if isinstance(a, Expr) and a == b:
        return 1
    if not _fits(b) or len(_terms(b)) != 1:
        return None
    ((names, coefficient),) = _terms(b).items()
    found: dict[tuple[str, ...], int] = {}
    for held, c in _terms(a).items():
        left = list(held)
        for name in names:
            if name not in left:
                return None
            left.remove(name)
        if not coefficient or c % coefficient:
            return None
        found[tuple(left)] = c // coefficient
    return _made(found)


def equal(a: Any, b: Any) -> bool | None:
    """Whether two numbers are the same; None where that depends on what is not known."""
    difference = a - b
    if not isinstance(difference, Expr):
        return bool(difference == 0)
    constant = dict(difference.terms).get((), 0)
    others = _made({names: c for names, c in difference.terms if names})
    for sign in (1, -1):
        if constant * sign > 0 and is_size(others * sign):
            return False
    return None


def pack(values: Any) -> NDArray[Any]:
    """An array of numbers as int64, or as objects where not all are known."""
    array = np.asarray(values, dtype=object)
    if any(isinstance(v, Expr) for v in array.reshape(-1).tolist()):
        return array
    return array.astype(np.int64)


def is_known(values: NDArray[Any]) -> bool:
    """Whether every number of an array is known."""
    return values.dtype != object


def entries(values: NDArray[Any]) -> list[Any]:
    """The numbers of an array in one row."""
    found: list[Any] = values.reshape(-1).tolist()
    return found


# ---------------------------------------------------------------------- terms


def _quotient(a: Any, b: Any) -> Dim:
    """A name for a // b, the same for the same two sizes; what is negative is rounded another way."""
    name = f"({a})//({b})"
    sizes = _fits(a) and _fits(b) and is_size(a) and is_size(b)
    return named(name) if sizes and len(name) <= _LONGEST else unknown()


def _fits(value: Any) -> bool:
    """Whether a number is whole, so that it can stand in a polynomial."""
    return isinstance(value, Expr | int | np.integer) or (isinstance(value, float) and value.is_integer())


def _terms(value: Any) -> dict[tuple[str, ...], int]:
    return dict(value.terms) if isinstance(value, Expr) else {(): int(value)}


def _sum(a: dict[tuple[str, ...], int], b: dict[tuple[str, ...], int]) -> dict[tuple[str, ...], int]:
    return {names: a.get(names, 0) + b.get(names, 0) for names in (*a, *(n for n in b if n not in a))}


def _product(a: dict[tuple[str, ...], int], b: dict[tuple[str, ...], int]) -> dict[tuple[str, ...], int]:
    found: dict[tuple[str, ...], int] = {}
    for names, c in _pairs(a, b):
        found[names] = found.get(names, 0) + c
    return found


def _pairs(a: dict[tuple[str, ...], int], b: dict[tuple[str, ...], int]) -> Iterator[tuple[tuple[str, ...], int]]:
    for (one, c), (other, d) in itertools.product(a.items(), b.items()):
        yield tuple(sorted(one + other)), c * d


def _made(terms: dict[tuple[str, ...], int]) -> Dim:
    """The number that these terms add up to."""
    held = {names: c for names, c in terms.items() if c}
    if not held:
        return 0
    if list(held) == [()]:
        return held[()]
    if len(held) > _MOST_TERMS or max(map(len, held)) > _MOST_TERMS:
        return unknown_size() if is_size(Expr(tuple(held.items()))) else unknown()
    return Expr(tuple(sorted(held.items())))

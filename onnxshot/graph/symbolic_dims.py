"""Symbolic sizes: polynomials of named sizes with integer coefficients, so that B * 12 / B is 12 whatever B is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNSIGNED_FROM = "?"
"""First letter of names that stand for numbers which may be negative, and so are not sizes."""
_MOST_TERMS = 16  # a longer sum is replaced by a new name
_LONGEST = 200  # letters of a name that is built from an expression; a longer one is replaced by a new name


@dataclass(frozen=True, slots=True)
class Expr:
    """A symbolic integer: a polynomial of names with integer coefficients that is not a constant.

    Names stand for integers. Those that begin with '?' may be negative; all others are sizes, 0 or more.

    Attributes:
        terms: ((names of the product, sorted), coefficient), sorted.

    Example:
        >>> batch = named("B")
        >>> batch * 12 // batch, str(batch * 2 + 3)
        (12, '3+2*B')
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
"""A size: a number, or symbolic."""
_counter = itertools.count()


def named(name: str, *, size: bool = True) -> Expr:
    """Return the symbolic number of this name; `size` says that it is never negative."""
    return Expr((((name if size else UNSIGNED_FROM + name,), 1),))


def unknown() -> Expr:
    """Return a new unknown number, which equals no other."""
    return named(f"u{next(_counter)}", size=False)


def unknown_size() -> Expr:
    """Return a new unknown size, which equals no other."""
    return named(f"s{next(_counter)}")


def steps(span: Dim, stride: int) -> Dim:
    """Return span // stride: how many steps a sliding window makes; symbolic, and equal for equal spans."""
    if not isinstance(span, Expr):
        return span // stride
    if stride == 1:
        return span
    exact = divided(span, stride)
    name = f"({span})//({stride})"
    return exact if exact is not None else named(name) if len(name) <= _LONGEST else unknown_size()


def either(a: Dim, b: Dim) -> Dim:
    """Return the size that two sizes broadcast to, where neither is known: they are equal, or one is 1."""
    name = "|".join(sorted((f"({a})", f"({b})")))
    return named(name) if len(name) <= _LONGEST else unknown_size()


def is_size(value: Any) -> bool:
    """Return whether a number is known to be 0 or more."""
    if isinstance(value, Expr):
        return all(c > 0 and not any(n.startswith(UNSIGNED_FROM) for n in names) for names, c in value.terms)
    return bool(value >= 0)


def divided(a: Any, b: Any) -> Any:
    """Return a / b where the division is exact for all values of the names (other than 0); else None."""
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
    """Return whether two numbers are equal; None where that depends on the values of names."""
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
    """Return numbers as an int64 array, or as an object array where some are symbolic."""
    array = np.asarray(values, dtype=object)
    if any(isinstance(v, Expr) for v in array.reshape(-1).tolist()):
        return array
    return array.astype(np.int64)


def is_known(values: NDArray[Any]) -> bool:
    """Return whether no number of an array is symbolic."""
    return values.dtype != object


def entries(values: NDArray[Any]) -> list[Any]:
    """Return the numbers of an array as a flat list."""
    found: list[Any] = values.reshape(-1).tolist()
    return found


# ---------------------------------------------------------------------- terms


def _quotient(a: Any, b: Any) -> Dim:
    """A symbolic a // b, equal for equal sizes; unknown where a or b may be negative, which ONNX rounds differently."""
    name = f"({a})//({b})"
    sizes = _fits(a) and _fits(b) and is_size(a) and is_size(b)
    return named(name) if sizes and len(name) <= _LONGEST else unknown()


def _fits(value: Any) -> bool:
    """Whether a number is an integer, so that it can be part of a polynomial."""
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
    """The sum of these terms: a number, or symbolic."""
    held = {names: c for names, c in terms.items() if c}
    if not held:
        return 0
    if list(held) == [()]:
        return held[()]
    if len(held) > _MOST_TERMS or max(map(len, held)) > _MOST_TERMS:
        return unknown_size() if is_size(Expr(tuple(held.items()))) else unknown()
    return Expr(tuple(sorted(held.items())))

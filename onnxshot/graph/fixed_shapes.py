"""Fixed sizes for dynamic dimensions of a model's inputs: resolve a requested batch size and input shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnxshot.errors import UsageError

Dims = tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class FixedShapes:
    """The dimensions that get a fixed size.

    Attributes:
        inputs: input name -> all its dimensions, for inputs with at least one newly fixed dimension.
        symbols: name of a symbolic dimension -> its size, which holds wherever the name occurs.
    """

    inputs: Mapping[str, Dims] = field(default_factory=dict)
    symbols: Mapping[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.inputs)

    def dims(self, name: str, dims: Dims | None) -> Dims | None:
        """Return the new dimensions of an input or output, given its former ones."""
        if name in self.inputs:
            return self.inputs[name]
        return None if dims is None else tuple(self.symbols.get(d, d) if isinstance(d, str) else d for d in dims)


NO_FIXED_SHAPES = FixedShapes()
"""No dimension gets a fixed size."""


def resolve_fixed_shapes(
    inputs: Mapping[str, Dims | None], batch: int | None = None, shapes: Mapping[str, Sequence[int]] | None = None
) -> FixedShapes:
    """Resolve a requested batch size and requested input shapes.

    The batch dimension is the leading dimension of the first input whose leading dimension is dynamic, together with
    all dimensions of the same name and all leading dimensions without a name.

    Args:
        inputs: name -> dimensions of all inputs of the model, in order; None where the rank is unknown.
        batch: the batch size; None to leave it as it is.
        shapes: name -> sizes, for some inputs.

    Raises:
        UsageError: there is no such input, or sizes contradict each other or the model.

    Example:
        >>> resolve_fixed_shapes({"x": ("N", 3)}, batch=8).inputs
        {'x': (8, 3)}
    """
    found = _Sizes(inputs)
    for name, sizes in (shapes or {}).items():
        found.freeze(name, sizes)
    if batch is not None:
        found.freeze_batch(batch)
    return found.frozen()


@dataclass(slots=True)
class _Sizes:
    """The sizes so far, with the input that each comes from."""

    inputs: Mapping[str, Dims | None]
    places: dict[tuple[str, int], int] = field(default_factory=dict)
    symbols: dict[str, tuple[int, str]] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)  # of inputs whose rank the model does not state

    def freeze(self, name: str, sizes: Sequence[int]) -> None:
        if name not in self.inputs:
            raise UsageError(f"there is no input {name!r} to freeze", f"inputs: {', '.join(self.inputs)}")
        dims = self.inputs[name]
        if dims is None:
            self.ranks[name], dims = len(sizes), (None,) * len(sizes)
        if len(dims) != len(sizes):
            raise UsageError(f"input {name!r} has {len(dims)} dimensions, {len(sizes)} sizes are given", _shown(dims))
        for axis, size in enumerate(sizes):
            self._bind(name, axis, dims[axis], size)

    def freeze_batch(self, batch: int) -> None:
        leading = {name: dims[0] for name, dims in self.inputs.items() if dims}
        free = {name: dim for name, dim in leading.items() if not isinstance(dim, int)}
        if not free:
            fixed = {dim for dim in leading.values()}
            if fixed == {batch}:
                return
            what = ", ".join(f"{name!r} has {dim}" for name, dim in leading.items()) or "no input has one"
            raise UsageError(f"the batch cannot be {batch}: {what}", "export the model with a dynamic batch")
        symbol = next(iter(free.values()))
        for name, dim in free.items():
            if dim in (symbol, None):
                self._bind(name, 0, dim, batch)

    def _bind(self, name: str, axis: int, dim: int | str | None, size: int) -> None:
        known = dim if isinstance(dim, int) else self.places.get((name, axis))
        if known not in (None, size):
            raise UsageError(f"dimension {axis} of input {name!r} is {known}, it cannot be {size}", "leave it out")
        if isinstance(dim, str):
            before, of = self.symbols.setdefault(dim, (size, name))
            if before != size:
                raise UsageError(
                    f"dimension {dim!r} is {before} in input {of!r} and {size} in input {name!r}",
                    "a dimension of one name has one size",
                )
        if not isinstance(dim, int):
            self.places[name, axis] = size

    def frozen(self) -> FixedShapes:
        sizes = {symbol: size for symbol, (size, _) in self.symbols.items()}
        changed: dict[str, Dims] = {}
        for name, given in self.inputs.items():
            dims: Dims | None = (None,) * self.ranks[name] if name in self.ranks else given
            new = tuple(
                self.places.get((name, i), sizes.get(d, d) if isinstance(d, str) else d)
                for i, d in enumerate(dims or ())
            )
            if dims is not None and new != given:
                changed[name] = new
        return FixedShapes(changed, sizes)


def _shown(dims: Dims) -> str:
    return f"they are [{', '.join('?' if d is None else str(d) for d in dims)}]"

"""Layout changes of operators that list axes or have a value per axis, such as ReduceMean, Squeeze, Pad and Resize."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnxshot.graph import Model
from onnxshot.passes.layout_change import (
    RANKS,
    CannotChange,
    Case,
    LayoutChange,
    nothing,
    put_ints,
    reorder,
)


def reduce(case: Case) -> LayoutChange:
    """Reduce*: the listed axes move with the layout."""
    node = case.node
    rank = case.layout_rank(node.inputs[0])
    axes = case.ints(1, "axes")
    if not axes:
        if not node.attrs.get("keepdims", 1):
            raise CannotChange
        return LayoutChange(case.same_shape(), nothing)
    turned = [case.axis(a, rank) for a in axes]

    def write(model: Model, _layout: int) -> None:
        put_ints(model, node, 1, "axes", sorted(turned))

    if node.attrs.get("keepdims", 1):
        return LayoutChange(case.same_shape(), write)
    return _removes(case, axes, write)


def arg_reduce(case: Case) -> LayoutChange:
    """ArgMax and ArgMin: the axis moves with the layout."""
    node = case.node
    rank, given = case.layout_rank(node.inputs[0]), int(node.attrs.get("axis", 0))
    axis = case.axis(given, rank)

    def write(_model: Model, _layout: int) -> None:
        node.attrs["axis"] = axis

    return LayoutChange(case.same_shape(), write) if node.attrs.get("keepdims", 1) else _removes(case, [given], write)


def gather(case: Case) -> LayoutChange:
    """Gather with indices of rank 0, which removes the axis, or of rank 1."""
    node = case.node
    rank, given, width = case.layout_rank(node.inputs[0]), int(node.attrs.get("axis", 0)), case.rank(node.inputs[1])
    axis = case.axis(given, rank)

    def write(_model: Model, _layout: int) -> None:
        node.attrs["axis"] = axis

    if width > 1:
        raise CannotChange
    return LayoutChange(case.same_shape(), write) if width == 1 else _removes(case, [given], write)


def squeeze(case: Case) -> LayoutChange:
    """Squeeze of listed axes."""
    node = case.node
    rank, axes = case.layout_rank(node.inputs[0]), case.ints(1, "axes")
    if axes is None:
        raise CannotChange  # without a list, the axes are known at run time only
    turned = sorted(case.axis(a, rank) for a in axes)
    return _removes(case, axes, lambda model, _layout: put_ints(model, node, 1, "axes", turned))


def unsqueeze(case: Case) -> LayoutChange:
    """Unsqueeze: its output has the layout, and its input too if the remaining axes are permuted alike."""
    node = case.node
    rank, axes = case.layout_rank(node.outputs[0]), case.ints(1, "axes")
    if axes is None:
        raise CannotChange
    changes = _remaining_permuted(case, rank, axes)
    if changes:
        case.layout_rank(node.inputs[0])
    turned = sorted(case.axis(a, rank) for a in axes)

    def write(model: Model, _layout: int) -> None:
        put_ints(model, node, 1, "axes", turned)

    return LayoutChange((node.inputs[0], node.outputs[0]) if changes else (node.outputs[0],), write)


def _removes(case: Case, axes: Sequence[int], write: Callable[[Model, int], None]) -> LayoutChange:
    """The change of a node that removes these axes from its input."""
    x, outs = case.node.inputs[0], [t for t in case.node.outputs if t.name]
    changes = _remaining_permuted(case, case.layout_rank(x), axes)
    if changes:
        for out in outs:
            case.layout_rank(out)
    return LayoutChange((x, *outs) if changes else (x,), write)


def _remaining_permuted(case: Case, rank: int, removed: Sequence[int]) -> bool:
    """Whether the axes that remain after a removal are permuted like a layout of their own.

    Returns False if they stay in order.

    Raises:
        CannotChange: they are permuted in another way.
    """
    gone = {a % rank for a in removed}
    before = [a for a in range(rank) if a not in gone]
    after = [a for a in case.perm(rank) if a not in gone]
    if after == before:
        return False
    if len(before) in RANKS and after == [before[i] for i in case.perm(len(before))]:
        return True
    raise CannotChange


def pad(case: Case) -> LayoutChange:
    """Pad: the pads, or the listed axes, move with the layout."""
    node = case.node
    tensors = case.same_shape()
    rank = case.layout_rank(tensors[0])
    axes = case.ints(3, "")
    if axes is not None:
        turned = [case.axis(a, rank) for a in axes]
        return LayoutChange(tensors, lambda model, _layout: put_ints(model, node, 3, "", turned))
    order = [*case.perm(rank), *(rank + i for i in case.perm(rank))]

    def write(model: Model, _layout: int) -> None:
        for name in ("pads", "paddings"):  # Pad-1 and Pad-2
            if name in node.attrs:
                node.attrs[name] = [node.attrs[name][i] for i in order]
        reorder(model, node, 1, order)

    return LayoutChange(tensors, write)


def slice_(case: Case) -> LayoutChange:
    """Slice: the axes, listed or implied, move with the layout."""
    node = case.node
    tensors = case.same_shape()
    rank = case.layout_rank(tensors[0])
    axes = case.ints(3, "axes")
    if axes is None:
        starts = case.ints(1, "starts")
        axes = list(range(len(starts or ())))
    turned = [case.axis(a, rank) for a in axes]

    def write(model: Model, _layout: int) -> None:
        if "starts" in node.attrs:  # Slice-1
            node.attrs["axes"] = turned
        else:
            put_ints(model, node, 3, "axes", turned)

    return LayoutChange(tensors, write)


def resize(case: Case) -> LayoutChange:
    """Resize and Upsample: scales, sizes and region of interest move with the layout; kernels need channels first."""
    node = case.node
    tensors = case.same_shape()
    perm = case.perm(case.layout_rank(tensors[0]))

    def write(model: Model, _layout: int) -> None:
        if "axes" in node.attrs:
            node.attrs["axes"] = [perm.index(a % len(perm)) for a in node.attrs["axes"]]
            return
        if "scales" in node.attrs:  # Upsample-7
            node.attrs["scales"] = [node.attrs["scales"][i] for i in perm]
        if model.opset < 11:
            reorder(model, node, 1, perm)
            return
        if node.attrs.get("coordinate_transformation_mode") == b"tf_crop_and_resize":
            reorder(model, node, 1, [*perm, *(len(perm) + i for i in perm)])
        reorder(model, node, 2, perm)
        reorder(model, node, 3, perm)

    return LayoutChange(tensors, write, needs_first=True)


def tile(case: Case) -> LayoutChange:
    """Tile-6: the repeats move with the layout."""
    if case.model.opset < 6:
        raise CannotChange
    tensors = case.same_shape()
    perm = case.perm(case.layout_rank(tensors[0]))
    return LayoutChange(tensors, lambda model, _layout: reorder(model, case.node, 1, perm))


def expand(case: Case) -> LayoutChange:
    """Expand to a shape of the tensor's own rank: the sizes move with the layout."""
    tensors = case.same_shape()
    perm = case.perm(case.layout_rank(tensors[0]))
    if case.model.shape(case.node.inputs[1]) != (len(perm),):
        raise CannotChange
    return LayoutChange(tensors, lambda model, _layout: reorder(model, case.node, 1, perm))

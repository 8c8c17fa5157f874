"""Recognize a table of packed blocks whose gathered rows standard operators unpack, as `block_weights` writes it."""

from __future__ import annotations

import numpy as np

from onnxshot.graph import Constant, Node, Tensor, edit
from onnxshot.maths.dequantize_stored import dequantize_blocks
from onnxshot.maths.int4_packing import unpack_bits
from onnxshot.passes.integer_operands import Array, Made, Unsupported, lazy_constant
from onnxshot.passes.node_writer import Writer

_BEFORE = ("Cast", "Mul", "Sub", "Floor", "Reshape", "Concat", "Slice")  # between a Gather and what reads its floats
_FAR = 12  # operators between the Gather and the floats, at most


def packed_table(write: Writer) -> Made:
    """Gather(blocks uint8 [V, B, bytes], ids) -> .. -> Mul(.., scales) -> Reshape becomes Gather(table [V, D], ids).

    Raises:
        Unsupported: it is no such Gather; without a reason, as any Gather may be asked about.
    """
    node, model = write.node, write.model
    stored = node.inputs[0] if node.inputs else None
    if not isinstance(stored, Constant) or len(stored.shape) != 3 or stored.dtype != np.uint8:
        raise Unsupported("")
    ids, path = node.inputs[1], _path(node)
    rescale = next((one for one in reversed(path) if one.op == "Mul" and _gathered(one.inputs[1], ids)), None)
    steps = edit.producer(rescale.inputs[0]) if rescale is not None else None
    if rescale is None or steps is None or steps.op != "Sub":
        raise Unsupported("")
    scale, zeros = _gathered(rescale.inputs[1], ids), _gathered(steps.inputs[1], ids)
    middle = edit.constant_input(steps, 1)
    flat = edit.only_consumer(model, rescale.outputs[0])
    if scale is None or flat is None or flat.op != "Reshape" or (zeros is None and middle is None):
        raise Unsupported("")
    rows, count, width = stored.shape
    by = np.asarray(scale.values)
    bits = 4 if any(one.op == "Floor" for one in path) else 8
    size = width * 8 // bits
    columns, last = count * size, flat
    cut = edit.only_consumer(model, flat.outputs[0])
    ends = edit.constant_input(cut, 2) if cut is not None and cut.op == "Slice" else None
    if cut is not None and ends is not None and ends.size == 1 and columns - size < int(ends[0]) < columns:
        columns, last = int(ends[0]), cut
    zero: Array | float = float(middle.reshape(-1)[0]) if middle is not None and middle.size == 1 else 0.0
    if zeros is not None:
        zero = unpack_bits(np.asarray(zeros.values), bits)[:, :count]
    if by.shape != (rows, count) or (isinstance(zero, np.ndarray) and zero.shape != by.shape):
        raise Unsupported("its scales do not fit its table")

    def compute(q: Array) -> Array:
        return dequantize_blocks(unpack_bits(q.reshape(rows, -1), bits)[:, :columns], by, zero, 1, size)

    table = lazy_constant(write, stored, (rows, columns), by.dtype, compute, by, zero, bits, size)
    out = last.outputs[0]
    edit.remove(model, [last])
    made = write.ops("Gather", [table, ids], [out], axis=0)
    write.done()
    return made, f"weights {bits} bits"


def _path(node: Node) -> list[Node]:
    """Operators behind a Gather of bytes, as far as each has one reader, or one that subtracts the upper halves."""
    path, tensor = list[Node](), node.outputs[0]
    while len(path) < _FAR:
        users = [user for user in edit.consumers(tensor) if user.op in _BEFORE]
        if len(users) == 2 and {user.op for user in users} == {"Mul", "Sub"}:  # both halves of the bytes
            path += [floor for user in users if user.op == "Mul" for floor in edit.consumers(user.outputs[0])]
            users = [user for user in users if user.op == "Sub"]
        if len(users) != 1:
            break
        path.append(users[0])
        tensor = users[0].outputs[0]
    return path


def _gathered(tensor: Tensor, ids: Tensor) -> Constant | None:
    """The constant whose rows these are, gathered by the same ids; None if it is something else."""
    for _ in range(_FAR):
        maker = edit.producer(tensor)
        if maker is None:
            return None
        if maker.op == "Gather":
            found = maker.inputs[0]
            return found if isinstance(found, Constant) and maker.inputs[1] is ids else None
        if maker.op not in _BEFORE:
            return None
        tensor = maker.inputs[0]
    return None

"""Time one product in the forms that its weight may take: blocks (MatMulNBits), and int8 with scales at run time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxshot.runtimes.ort_session import SessionRunner

BLOCKS, DYNAMIC = "blocks", "dynamic"
FORMS = (BLOCKS, DYNAMIC)
_MOST_VALUES = 1 << 22  # of a weight that is timed; a wider one is timed with fewer outputs
_MOST_ROWS = 2048
_SECONDS = 0.02  # of CPU time for one form at one number of rows
_ROUNDS = (3, 50)


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of a product.

    Attributes:
        bits: 4 or 8.
        size: inputs of a block.
        asymmetric: whether each has a zero point.
    """

    bits: int
    size: int
    asymmetric: bool


@dataclass(slots=True)
class ProductSpeed:
    """CPU seconds of products on this machine, on one thread; each is measured once, until the budget is spent.

    Attributes:
        seconds: CPU time that all measurements together may take, about.
    """

    seconds: float = 4.0
    _known: dict[tuple[int, int, int, Blocks], dict[str, float]] = field(default_factory=dict)
    _spent: float = 0.0

    def of(self, inputs: int, outputs: int, rows: int, blocks: Blocks) -> Mapping[str, float]:
        """Seconds of a product of `rows` rows by a weight [inputs, outputs], by form.

        Rows are rounded up to a power of 2. Once the budget is spent, the times of the nearest number of rows that was
        measured are scaled.
        """
        near = min(1 << (max(rows, 1) - 1).bit_length(), _MOST_ROWS)
        kept = max(1, min(outputs, _MOST_VALUES // max(inputs, 1)))
        key = (inputs, kept, near, blocks)
        if key not in self._known:
            if self._spent < self.seconds or not self._known:
                started = time.process_time()
                self._known[key] = _measured(inputs, kept, near, blocks)
                self._spent += time.process_time() - started
            else:
                key = min(self._known, key=lambda k: (k[3] != blocks, abs(np.log2(k[2] / near)), abs(k[0] - inputs)))
        share = rows * inputs * outputs / (key[2] * key[0] * key[1])
        return {form: found * share for form, found in self._known[key].items()}


def _measured(inputs: int, outputs: int, rows: int, blocks: Blocks) -> dict[str, float]:
    """Least CPU seconds of one run of each form, timed in turns."""
    x = np.random.default_rng(0).standard_normal((rows, inputs), np.float32)
    runners = {form: SessionRunner(_model(form, inputs, outputs, blocks), threads=1) for form in FORMS}
    best = dict.fromkeys(FORMS, np.inf)
    least, most = _ROUNDS
    count = 0
    spent = 0.0
    while count < least or (spent < _SECONDS * len(FORMS) and count < most):
        for form, runner in runners.items():
            started = time.process_time()
            runner.run({"x": x})
            took = time.process_time() - started
            spent += took
            if count:  # the first run of a session also packs and allocates
                best[form] = min(best[form], took)
        count += 1
    return {form: max(found, 1e-9) for form, found in best.items()}


def _model(form: str, inputs: int, outputs: int, blocks: Blocks) -> bytes:
    rng = np.random.default_rng(1)
    return _by_blocks(rng, inputs, outputs, blocks) if form == BLOCKS else _dynamic(rng, inputs, outputs)


def _by_blocks(rng: np.random.Generator, inputs: int, outputs: int, blocks: Blocks) -> bytes:
    count = -(-inputs // blocks.size)
    stored = {
        "w": rng.integers(0, 256, (outputs, count, blocks.size * blocks.bits // 8), np.uint8),
        "s": np.full((outputs, count), 0.01, np.float32),
    }
    if blocks.asymmetric:
        stored["z"] = rng.integers(0, 256, (outputs, -(-count * blocks.bits // 8)), np.uint8)
    node = helper.make_node(
        "MatMulNBits", ["x", *stored], ["y"], domain="com.microsoft", K=inputs, N=outputs, bits=blocks.bits,
        block_size=blocks.size, accuracy_level=4,
    )  # fmt: skip
    return _serialized([node], stored, inputs, outputs)


def _dynamic(rng: np.random.Generator, inputs: int, outputs: int) -> bytes:
    stored = {
        "w": rng.integers(-127, 128, (inputs, outputs), np.int8), "z": np.zeros((), np.int8),
        "s": np.full(outputs, 0.01, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("MatMulInteger", ["xq", "w", "xz", "z"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["xs", "s"], ["scales"]),
        helper.make_node("Mul", ["floats", "scales"], ["y"]),
    ]
    return _serialized(nodes, stored, inputs, outputs)


def _serialized(
    nodes: Sequence[NodeProto], stored: Mapping[str, NDArray[np.generic]], inputs: int, outputs: int
) -> bytes:
    graph = helper.make_graph(
        nodes, "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", outputs])],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    made: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return made

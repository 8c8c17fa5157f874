"""Graphs as Keras and TensorFlow exports have them: channels last, with a Transpose on both sides of each Conv."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from handmade.core import model, vector, weight

TO_FIRST, TO_LAST = "Transpose<perm = [0, 3, 1, 2]>", "Transpose<perm = [0, 2, 3, 1]>"


class Nhwc:
    """Writes a graph line by line; `now` is the name of the last tensor, which has its channels last."""

    def __init__(self, channels: int, size: int | str = 12, batch: int | str = "n", seed: int = 0) -> None:
        self.lines: list[str] = []
        self.constants: dict[str, Any] = {}
        self.now, self.channels, self.seed = "x", channels, seed
        self.header = f"float[{batch}, {size}, {size}, {channels}] x"

    def add(self, op: str, *inputs: str) -> str:
        """One more node; its output's name."""
        self.now = f"t{len(self.lines)}"
        self.lines.append(f"{self.now} = {op}({', '.join(inputs)})")
        return self.now

    def hold(self, values: NDArray[Any] | float | Sequence[int]) -> str:
        """A constant; lists become int64, numbers float32."""
        name = f"c{len(self.constants)}"
        kept = np.array(values, np.int64) if isinstance(values, list) else np.asarray(values)
        self.constants[name] = np.float32(kept) if kept.dtype == np.float64 else kept
        return name

    def conv(self, channels: int, kernel: int = 3, attrs: str = "", *, depthwise: bool = False) -> str:
        """Transpose, Conv with a kernel as TensorFlow stores it, [H, W, I, O], Transpose."""
        source, inputs = self.now, 1 if depthwise else self.channels
        group = self.channels if depthwise else 1
        channels = self.channels if depthwise else channels
        w = weight(channels, inputs, kernel, kernel, seed=len(self.lines) + self.seed)
        stored = self.add("Transpose<perm = [3, 2, 0, 1]>", self.hold(w.transpose(2, 3, 1, 0)))
        first = self.add(TO_FIRST, source)
        pads = attrs or f"pads = {[kernel // 2] * 4}"
        made = self.add(f"Conv<group = {group}, {pads}>", first, stored)
        self.channels = channels
        return self.add(TO_LAST, made)

    def pool(self, op: str) -> str:
        """Transpose, a pool that halves the picture, Transpose."""
        first = self.add(TO_FIRST, self.now)
        return self.add(TO_LAST, self.add(f"{op}<kernel_shape = [2, 2], strides = [2, 2]>", first))

    def norm(self, *, rank: int = 1) -> str:
        """BatchNormalization as Sub, Mul, Add."""
        shape = (1,) * (rank - 1) + (self.channels,)
        mean, scale, shift = (vector(self.channels, seed=s, low=0.4, high=1.4).reshape(shape) for s in (1, 2, 3))
        centred = self.add("Sub", self.now, self.hold(mean))
        return self.add("Add", self.add("Mul", centred, self.hold(scale)), self.hold(shift))

    def relu6(self) -> str:
        """Relu6 as TensorFlow's converter writes it."""
        return self.add("Min", self.add("Relu", self.now), self.hold(np.float32(6)))

    def model(self, outputs: str, *, opset: int = 17) -> onnx.ModelProto:
        """The graph; outputs is their declaration, as 'float[n, 10] t7'."""
        body = "\n".join(self.lines)
        return model(f"g ({self.header}) => ({outputs}) {{\n{body}\n}}", self.constants, opset=opset)

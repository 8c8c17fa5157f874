"""A small BERT as exporters write it, in the form that ONNX Runtime's transformer optimizer knows."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WORDS, LENGTH, WIDTH, HEADS = 200, 64, 64, 4


class _Builder:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(5)

    def constant(self, values: Any) -> str:
        self.stored.append(numpy_helper.from_array(np.asarray(values), f"c{len(self.stored)}"))
        return self.stored[-1].name

    def weight(self, *shape: int, std: float | None = None) -> str:
        values = self._rng.normal(size=shape) * (shape[0] ** -0.5 if std is None else std)
        return self.constant(values.astype(np.float32))

    def add(self, op: str, *inputs: str, out: str = "", **attrs: Any) -> str:
        out = out or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=f"{out}_node", **attrs))
        return out

    def norm(self, x: str) -> str:
        centred = self.add("Sub", x, self.add("ReduceMean", x, axes=[-1]))
        square = self.add("Pow", centred, self.constant(np.float32(2)))
        variance = self.add("Add", self.add("ReduceMean", square, axes=[-1]), self.constant(np.float32(1e-12)))
        whole = self.add("Div", centred, self.add("Sqrt", variance))
        return self.add("Add", self.add("Mul", whole, self.weight(WIDTH, std=1)), self.weight(WIDTH, std=0.1))

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        return self.add("Add", self.weight(outputs, std=0.02), self.add("MatMul", x, self.weight(inputs, outputs)))

    def sizes(self, x: str, *last: int) -> str:
        first = [
            self.add("Unsqueeze", self.add("Gather", self.add("Shape", x), self.constant(i), axis=0), self.ints(0))
            for i in (0, 1)
        ]
        return self.add("Concat", *first, *(self.ints(size) for size in last), axis=0)

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def heads(self, x: str, perm: list[int]) -> str:
        return self.add("Transpose", self.add("Reshape", x, self.sizes(x, HEADS, WIDTH // HEADS)), perm=perm)

    def layer(self, x: str, mask: str) -> str:
        query, key, value = (self.linear(x, WIDTH, WIDTH) for _ in range(3))
        turned, values = self.heads(key, [0, 2, 3, 1]), self.heads(value, [0, 2, 1, 3])
        scores = self.add("MatMul", self.heads(query, [0, 2, 1, 3]), turned)
        scores = self.add("Div", scores, self.constant(np.float32((WIDTH // HEADS) ** 0.5)))
        read = self.add("MatMul", self.add("Softmax", self.add("Add", scores, mask), axis=3), values)
        read = self.add("Transpose", read, perm=[0, 2, 1, 3])
        x = self.norm(self.add("Add", self.linear(self.add("Reshape", read, self.sizes(read, WIDTH)), WIDTH, WIDTH), x))
        wide = self.linear(x, WIDTH, 4 * WIDTH)
        gate = self.add("Erf", self.add("Div", wide, self.constant(np.float32(2**0.5))))
        gate = self.add("Mul", wide, self.add("Add", gate, self.constant(np.float32(1))))
        wide = self.add("Mul", gate, self.constant(np.float32(0.5)))
        return self.norm(self.add("Add", self.linear(wide, 4 * WIDTH, WIDTH), x))


def bert(layers: int = 2) -> onnx.ModelProto:
    """input_ids, token_type_ids, attention_mask [n, s] -> hidden [n, s, WIDTH]."""
    b = _Builder()
    names = ("input_ids", "token_type_ids", "attention_mask")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "s"]) for name in names]
    words, kinds = (
        b.add("Gather", b.weight(n, WIDTH, std=0.5), name) for n, name in ((WORDS, names[0]), (2, names[1]))
    )
    size = b.add("Unsqueeze", b.add("Gather", b.add("Shape", names[0]), b.constant(1), axis=0), b.ints(0))
    at = b.add("Slice", b.constant(np.arange(LENGTH)[None]), b.ints(0), size, b.ints(1))
    x = b.add("Add", b.add("Add", words, kinds), b.add("Gather", b.weight(LENGTH, WIDTH, std=0.1), at))
    mask = b.add("Unsqueeze", b.add("Unsqueeze", names[2], b.ints(1)), b.ints(2))
    mask = b.add("Sub", b.constant(np.float32(1)), b.add("Cast", mask, to=TensorProto.FLOAT))
    mask = b.add("Mul", mask, b.constant(np.float32(-10000)))
    x = b.norm(x)
    for _ in range(layers):
        x = b.layer(x, mask)
    hidden = helper.make_tensor_value_info(b.add("Identity", x, out="hidden"), TensorProto.FLOAT, ["n", "s", WIDTH])
    graph = helper.make_graph(b.nodes, "bert", inputs, [hidden], b.stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)

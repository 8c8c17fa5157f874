"""Remove channels from a model, and mask the same channels with zeros, so that tests can compare the two."""

from collections.abc import Collection

import numpy as np
import onnx
from handmade.core import model, vector, weight
from onnx import ModelProto, helper, numpy_helper
from pass_checks import loaded

from onnxshot.channels.groups import Group, Groups, groups_of
from onnxshot.graph import Model
from onnxshot.graph.macs import concrete_shapes
from onnxshot.passes.cut_channels import CutChannels

SUMS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def grouped(proto: ModelProto) -> tuple[Model, Groups]:
    """The model as it is, with its groups."""
    model = loaded(proto)
    return model, groups_of(model, concrete_shapes(model))


def cut(proto: ModelProto, removed: Collection[int]) -> ModelProto:
    """The model without these channels, checked: valid, strict shape inference, and nothing stored that is not read."""
    model, groups = grouped(proto)
    CutChannels(groups.axes, frozenset(removed)).run(model)
    found = model.to_proto()
    onnx.checker.check_model(found, full_check=True)
    onnx.shape_inference.infer_shapes(found, strict_mode=True, data_prop=True)
    read = {name for node in found.graph.node for name in node.input}
    assert {t.name for t in found.graph.initializer} <= read
    assert list(found.graph.output) == list(proto.graph.output)
    return found


def masked(proto: ModelProto, removed: Collection[int]) -> ModelProto:
    """The model with these channels multiplied by zero in front of everything that sums over them."""
    model, groups = grouped(proto)
    shapes = concrete_shapes(model)
    alive = np.ones(groups.axes.count, np.float32)
    alive[list(removed)] = 0.0
    found = model.to_proto()
    nodes = []
    for node in found.graph.node:
        for axis, ids in groups.axes.of.get(node.input[0], {}).items() if node.op_type in SUMS else ():
            x, rank = node.input[0], len(shapes[node.input[0]])
            name = f"{node.output[0]}_mask_{axis}"
            mask = alive[ids].reshape([-1 if i == axis else 1 for i in range(rank)])
            found.graph.initializer.append(numpy_helper.from_array(mask, name))
            nodes.append(helper.make_node("Mul", [x, name], [f"{name}_out"]))
            node.input[0] = f"{name}_out"
        nodes.append(node)
    del found.graph.node[:]
    found.graph.node.extend(nodes)
    return found


def some(group: Group, rng: np.random.Generator, share: float = 0.5) -> list[int]:
    """Some of a group's channels; of every tensor at least one is left."""
    left = {part: len(part) for part in group.parts}
    found = []
    for i in rng.permutation(group.ids).tolist()[: int(len(group.ids) * share)]:
        mine = [part for part in left if i in part]
        if all(left[part] > 1 for part in mine):
            found.append(i)
            left |= {part: left[part] - 1 for part in mine}
    return found


def residual(seed: int = 0) -> ModelProto:
    """Two residual blocks of width 16; half of the inner channels of the second say what others say."""
    text = """net (float[1,4,8,8] x) => (float[1,5] y) {
        s = Conv<pads=[1,1,1,1]>(x, w0, b0) s0 = Relu(s)
        a = Conv<pads=[1,1,1,1]>(s0, w1, b1) a0 = Relu(a) c = Conv<pads=[1,1,1,1]>(a0, w2, b2) d = Add(c, s0)
        s1 = Relu(d) e = Conv<pads=[1,1,1,1]>(s1, w3, b3) e0 = Relu(e) f = Conv<pads=[1,1,1,1]>(e0, w4, b4)
        g = Add(f, s1) p = GlobalAveragePool(g) q = Flatten(p) y = Gemm<transB=1>(q, w5, b5) }"""
    twin = weight(16, 16, 3, 3, seed=seed + 3)
    twin[8:] = twin[:8] * np.float32(0.5)
    twin_bias = np.tile(vector(8, 3), 2) * np.repeat([1, 0.5], 8).astype(np.float32)
    constants = {"w0": weight(16, 4, 3, 3, seed=seed), "w3": twin, "b3": twin_bias, "w5": weight(5, 16)}
    constants |= {name: weight(16, 16, 3, 3, seed=seed + i) for i, name in ((1, "w1"), (2, "w2"), (4, "w4"))}
    constants |= {f"b{i}": vector(16, i) for i in (0, 1, 2, 4)} | {"b5": vector(5)}
    proto = model(text, constants)
    for i, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{i}"
    return proto

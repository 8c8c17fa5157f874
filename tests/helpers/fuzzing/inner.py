"""Mutations that put graphs into graphs, functions, loops, and nodes whose results are larger than any memory."""

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from fuzzing.core import Mutant, Pointless, mutation

_DOMAIN = "fuzz"


def _function(m: Mutant, name: str, nodes: list[NodeProto], inputs: list[str], outputs: list[str]) -> None:
    opset = [
        helper.make_opsetid(
            "", max((o.version for o in m.proto.opset_import if o.domain in ("", "ai.onnx")), default=17)
        ),
        helper.make_opsetid(_DOMAIN, 1),
    ]
    m.proto.functions.append(helper.make_function(_DOMAIN, name, inputs, outputs, nodes, opset))
    if all(o.domain != _DOMAIN for o in m.proto.opset_import):
        m.proto.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    m.proto.ir_version = max(m.proto.ir_version, 8)


def _edge(m: Mutant) -> tuple[int, NodeProto]:
    """A node whose first output others read, and where it stands."""
    read = {name for n in m.graph.node for name in n.input}
    at = m.one([i for i, n in enumerate(m.graph.node) if n.output and n.output[0] in read])
    return at, m.graph.node[at]


def _put_behind(m: Mutant, make: "list[NodeProto]", at: int, old: str, new: str) -> None:
    """Nodes behind a node; readers of `old` read `new`."""
    for other in m.graph.node:
        other.input[:] = [new if n == old else n for n in other.input]
    for i, node in enumerate(make, at + 1):
        m.graph.node.insert(i, node)


@mutation
def function_around_a_node(m: Mutant) -> None:
    index = m.rng.randrange(max(1, len(m.graph.node)))
    node = m.one(m.graph.node[index : index + 1])
    if any(a.type == AttributeProto.GRAPH for a in node.attribute) or "" in (*node.input, *node.output):
        raise Pointless
    inner = NodeProto()
    inner.CopyFrom(node)
    names = list(dict.fromkeys(node.input))
    _function(m, "Around", [inner], names, list(node.output))
    node.CopyFrom(helper.make_node("Around", names, list(node.output), domain=_DOMAIN))


@mutation
def function_of_itself(m: Mutant) -> None:
    at, node = _edge(m)
    _function(m, "Again", [helper.make_node("Again", ["x"], ["y"], domain=_DOMAIN)], ["x"], ["y"])
    _put_behind(
        m, [helper.make_node("Again", [node.output[0]], ["again"], domain=_DOMAIN)], at, node.output[0], "again"
    )


@mutation
def functions_of_each_other(m: Mutant) -> None:
    at, node = _edge(m)
    _function(m, "Ping", [helper.make_node("Pong", ["x"], ["y"], domain=_DOMAIN)], ["x"], ["y"])
    _function(m, "Pong", [helper.make_node("Ping", ["x"], ["y"], domain=_DOMAIN)], ["x"], ["y"])
    _put_behind(m, [helper.make_node("Ping", [node.output[0]], ["ping"], domain=_DOMAIN)], at, node.output[0], "ping")


@mutation
def functions_that_double(m: Mutant) -> None:
    """Each calls the next one twice: 2^40 nodes when they are inlined."""
    at, node = _edge(m)
    depth = m.rng.choice([3, 40])
    for i in range(depth):
        inner = [
            helper.make_node(f"F{i + 1}", ["x"], ["h"], domain=_DOMAIN),
            helper.make_node(f"F{i + 1}", ["h"], ["y"], domain=_DOMAIN),
        ]
        _function(m, f"F{i}", inner, ["x"], ["y"])
    _function(m, f"F{depth}", [helper.make_node("Neg", ["x"], ["y"])], ["x"], ["y"])
    _put_behind(m, [helper.make_node("F0", [node.output[0]], ["f0"], domain=_DOMAIN)], at, node.output[0], "f0")


@mutation
def function_of_a_missing_op(m: Mutant) -> None:
    at, node = _edge(m)
    _function(m, "Missing", [helper.make_node("Nowhere", ["x"], ["y"], domain=_DOMAIN)], ["x"], ["y"])
    _put_behind(m, [helper.make_node("Missing", [node.output[0]], ["out"], domain=_DOMAIN)], at, node.output[0], "out")


@mutation
def function_twice(m: Mutant) -> None:
    function_around_a_node(m)
    again = FunctionProto()
    again.CopyFrom(m.proto.functions[-1])
    again.node[0].op_type = "Neg"
    m.proto.functions.append(again)


def nested(depth: int, innermost: NodeProto) -> NodeProto:
    """An If in an If, so many deep, that all read `x` from outside; the output is `y`."""
    node = innermost
    for level in range(depth):
        graph = GraphProto(name=f"level {level}")
        graph.node.append(node)
        graph.output.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None))
        node = helper.make_node(
            "If", ["fuzz_true"], [f"level_{level}"], then_branch=graph, else_branch=_plain(level, innermost.input[0])
        )
    return node


def _plain(level: int, name: str) -> GraphProto:
    node = helper.make_node("Neg", [name], [f"else_{level}"])
    return helper.make_graph(
        [node], f"else {level}", [], [helper.make_tensor_value_info(f"else_{level}", TensorProto.FLOAT, None)]
    )


@mutation
def graphs_nested_deep(m: Mutant) -> None:
    """Up to 28 deep: protobuf writes 100 messages in each other, three for each graph."""
    at, node = _edge(m)
    depth = m.rng.choice([1, 3, 12, 28])
    m.graph.initializer.append(numpy_helper.from_array(np.array(True), "fuzz_true"))
    inner = nested(depth, helper.make_node("Relu", [node.output[0]], ["innermost"]))
    _put_behind(m, [inner], at, node.output[0], inner.output[0])


@mutation
def branch_shadows(m: Mutant) -> None:
    """A branch makes a tensor that has the name of one outside."""
    at, node = _edge(m)
    m.graph.initializer.append(numpy_helper.from_array(np.array(True), "fuzz_true"))
    inner = nested(
        1, helper.make_node("Relu", [node.output[0]], [m.rng.choice([node.output[0], m.graph.output[0].name])])
    )
    _put_behind(m, [inner], at, node.output[0], inner.output[0])


@mutation
def loop(m: Mutant) -> None:
    """A Loop that runs 0, 3 or 2^62 times, over a tensor or over constants alone."""
    trips = m.rng.choice([0, 3, 1 << 62])
    at, node = _edge(m)
    m.graph.initializer.append(numpy_helper.from_array(np.array(trips, np.int64), "fuzz_trips"))
    m.graph.initializer.append(numpy_helper.from_array(np.array(True), "fuzz_true"))
    m.graph.initializer.append(numpy_helper.from_array(np.array([0.5], np.float32), "fuzz_start"))
    infos = {
        name: helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (
            ("i", TensorProto.INT64, []), ("c", TensorProto.BOOL, []), ("v", TensorProto.FLOAT, None),
            ("c2", TensorProto.BOOL, []), ("v2", TensorProto.FLOAT, None),
        )
    }  # fmt: skip
    steps = [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Mul", ["v", "v"], ["v2"])]
    body = helper.make_graph(steps, "body", [infos[n] for n in ("i", "c", "v")], [infos[n] for n in ("c2", "v2")])
    if m.rng.random() < 0.5:
        made = [
            helper.make_node("Loop", ["fuzz_trips", "fuzz_true", "fuzz_start"], ["looped"], body=body),
            helper.make_node("Add", [node.output[0], "looped"], ["added"]),
        ]
        _put_behind(m, made, at, node.output[0], "added")
    else:
        made = [helper.make_node("Loop", ["fuzz_trips", "fuzz_true", node.output[0]], ["looped"], body=body)]
        _put_behind(m, made, at, node.output[0], "looped")


def _giant(m: Mutant, made: list[NodeProto], constants: dict[str, "np.ndarray"]) -> None:  # type: ignore[type-arg]
    """What the nodes make as `giant` is summed up to a scalar (or its shape is) and added to a tensor."""
    at, node = _edge(m)
    for name, values in constants.items():
        m.graph.initializer.append(numpy_helper.from_array(values, name))
    made = [
        *made,
        helper.make_node("ReduceMax", ["giant"], ["largest"], keepdims=0),
        helper.make_node("Add", [node.output[0], "largest"], ["added"]),
    ]
    _put_behind(m, made, at, node.output[0], "added")


@mutation
def giant_fill(m: Mutant) -> None:
    shape = m.rng.choice([[1 << 20, 1 << 20], [1 << 40], [1 << 32, 1 << 32], [-1], [3]])
    _giant(
        m, [helper.make_node("ConstantOfShape", ["fuzz_shape"], ["giant"])], {"fuzz_shape": np.array(shape, np.int64)}
    )


@mutation
def giant_expand(m: Mutant) -> None:
    _giant(
        m,
        [helper.make_node("Expand", ["fuzz_one", "fuzz_shape"], ["giant"])],
        {"fuzz_shape": np.array([1 << 20, 1 << 19, 2], np.int64), "fuzz_one": np.ones(1, np.float32)},
    )


@mutation
def giant_tile(m: Mutant) -> None:
    _giant(
        m,
        [helper.make_node("Tile", ["fuzz_one", "fuzz_shape"], ["giant"])],
        {"fuzz_shape": np.array([m.rng.choice([1 << 40, -1, 0, 3])], np.int64), "fuzz_one": np.ones(4, np.float32)},
    )


@mutation
def giant_range(m: Mutant) -> None:
    delta = m.rng.choice([1e-30, 0.0, float("nan"), 1e-8])
    _giant(
        m,
        [helper.make_node("Range", ["fuzz_a", "fuzz_b", "fuzz_c"], ["giant"])],
        {k: np.float32(v) for k, v in (("fuzz_a", 0), ("fuzz_b", 1e5), ("fuzz_c", delta))},
    )


@mutation
def giant_resize(m: Mutant) -> None:
    scale = m.rng.choice([1e6, 1e9, 0.0, -1.0])
    made = [helper.make_node("Resize", ["fuzz_image", "", "fuzz_scales"], ["giant"], mode="nearest")]
    _giant(
        m,
        made,
        {"fuzz_image": np.ones((1, 1, 2, 2), np.float32), "fuzz_scales": np.array([1, 1, scale, scale], np.float32)},
    )


@mutation
def giant_onehot(m: Mutant) -> None:
    made = [helper.make_node("OneHot", ["fuzz_ids", "fuzz_depth", "fuzz_off"], ["giant"])]
    _giant(
        m,
        made,
        {
            "fuzz_ids": np.array([0, 1], np.int64),
            "fuzz_depth": np.array(m.rng.choice([1 << 40, 0, -1, 5]), np.int64),
            "fuzz_off": np.array([0, 1], np.float32),
        },
    )


@mutation
def giant_pad(m: Mutant) -> None:
    made = [helper.make_node("Pad", ["fuzz_one", "fuzz_pads"], ["giant"])]
    _giant(
        m,
        made,
        {"fuzz_one": np.ones(4, np.float32), "fuzz_pads": np.array([0, m.rng.choice([1 << 40, -9, 2])], np.int64)},
    )


@mutation
def giant_outer_product(m: Mutant) -> None:
    """Two vectors of 2^20 give a matrix of 2^40."""
    made = [
        helper.make_node("ConstantOfShape", ["fuzz_tall"], ["tall"]),
        helper.make_node("ConstantOfShape", ["fuzz_wide"], ["wide"]),
        helper.make_node("MatMul", ["tall", "wide"], ["giant"]),
    ]
    _giant(m, made, {"fuzz_tall": np.array([1 << 20, 1], np.int64), "fuzz_wide": np.array([1, 1 << 20], np.int64)})


@mutation
def giant_from_an_input(m: Mutant) -> None:
    """Its size follows from the data: nothing that is known before it runs."""
    at, node = _edge(m)
    m.graph.initializer.append(numpy_helper.from_array(np.array(1 << 24, np.int64), "fuzz_factor"))
    made = [
        helper.make_node("Shape", [node.output[0]], ["fuzz_its_shape"]),
        helper.make_node("Mul", ["fuzz_its_shape", "fuzz_factor"], ["fuzz_shape"]),
        helper.make_node("ConstantOfShape", ["fuzz_shape"], ["giant"]),
        helper.make_node("ReduceMax", ["giant"], ["largest"], keepdims=0),
        helper.make_node("Add", [node.output[0], "largest"], ["added"]),
    ]
    _put_behind(m, made, at, node.output[0], "added")

"""Edits of a graph: topological order, bypass, replaced uses, removal of unused nodes, and new names."""

from typing import Any

import numpy as np
import onnx
import pytest
from fixture_data import session
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from onnxshot.errors import ModelError
from onnxshot.graph import Constant, Graph, Model, Node, Variable, edit, opset_upgrade, weights
from onnxshot.graph.load import load_model

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
F = np.float32


def proto(text: str, **values: Any) -> ModelProto:
    """A model from ONNX's text syntax; keyword arguments are the weights of the top-level graph."""
    made = parser.parse_model(HEAD + text)
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in values.items())
    return made


def model(text: str, **values: Any) -> Model:
    return load_model(proto(text, **values))


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def named(m: Model, name: str) -> Any:
    return m.tensors()[name]


def maker(m: Model, name: str) -> Node:
    found = edit.producer(named(m, name))
    assert found is not None
    return found


def outputs(m: Model, **feed: Any) -> list[Any]:
    made = m.to_proto()
    onnx.checker.check_model(made)
    values: list[Any] = session(made.SerializeToString()).run(None, feed)
    return values


def branches(weights_of: dict[str, dict[str, Any]] | None = None, body: str = "Add") -> ModelProto:
    """An If whose branches add p to x, and hold the weights given by branch."""
    made = proto(
        f"""g (bool c, float[2] x) => (float[2] y) {{
            y = If(c) <then_branch = yes () => (float[2] a) {{ a = {body}(x, p) }},
                       else_branch = no () => (float[2] b) {{ b = Mul(x, p) }}>
        }}"""
    )
    for attr in made.graph.node[0].attribute:
        for name, values in (weights_of or {}).get(attr.name, {}).items():
            attr.g.initializer.append(numpy_helper.from_array(np.asarray(values, F), name))
    return made


# ------------------------------------------------------------------ order


def test_toposort_leaves_a_sorted_graph_as_it_is() -> None:
    m = model("g (float[2] x) => (float[2] y) { a = Relu(x) b = Neg(x) c = Abs(a) d = Exp(b) y = Add(c, d) }")
    before = list(m.graph.nodes)
    edit.toposort(m)
    assert all(a is b for a, b in zip(before, m.graph.nodes, strict=True))


def test_toposort_puts_a_new_node_before_its_first_reader() -> None:
    m = model("g (float[2] x) => (float[2] y) { a = Relu(x) b = Neg(x) c = Abs(b) y = Add(a, c) }")
    a = named(m, "a")
    new = edit.add_node(m, "Sqrt", [a], base="a")
    edit.replace_uses(m, a, new.outputs[0], keep=[new])
    edit.toposort(m)
    assert ops(m.graph) == ["Relu", "Neg", "Abs", "Sqrt", "Add"]


def test_toposort_respects_what_branches_read() -> None:
    m = model(
        """g (bool c, float[2] x) => (float[2] y) {
            y = If(c) <then_branch = yes () => (float[2] a) { a = Relu(x) },
                       else_branch = no () => (float[2] b) { b = Neg(x) }>
        }"""
    )
    x = m.graph.inputs[1]
    new = edit.add_node(m, "Abs", [x], base="x")
    edit.replace_uses(m, x, new.outputs[0], keep=[new])
    edit.toposort(m)
    assert ops(m.graph) == ["Abs", "If"]
    assert outputs(m, c=np.array(True), x=F([-1, 2]))[0].tolist() == [1, 2]


def test_toposort_handles_long_chains_in_any_order() -> None:
    m = model("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    tensor = named(m, "y")
    for _ in range(20_000):
        tensor = edit.add_node(m, "Relu", [tensor], base="y").outputs[0]
    m.graph.nodes.reverse()
    edit.toposort(m)
    assert m.graph.nodes[0].inputs[0].name == "x"
    assert m.graph.nodes[-1].outputs[0] is tensor


@pytest.mark.parametrize("through", ["a", "b", "y"])
def test_toposort_names_a_cycle(through: str) -> None:
    m = model("g (float[2] x) => (float[2] y) { a = Relu(x) b = Neg(a) y = Abs(b) }")
    maker(m, "a").inputs[0] = named(m, through)
    with pytest.raises(ModelError, match="cycle"):
        edit.toposort(m)


# ------------------------------------------------------------------ rewiring


def test_bypass_of_an_inner_node() -> None:
    m = model("g (float[2] x) => (float[2] y) { a = Relu(x) b = Identity(a) y = Neg(b) z = Abs(b) }")
    node = maker(m, "b")
    assert edit.bypass(m, node, node.inputs[0])
    assert ops(m.graph) == ["Relu", "Neg", "Abs"]
    assert edit.consumers(named(m, "a")) == [maker(m, "y"), maker(m, "z")]
    assert outputs(m, x=F([-1, 2]))[0].tolist() == [0, -2]


def test_bypass_before_an_output_keeps_its_name() -> None:
    m = model("g (float[2] x) => (float[2] y, float[2] z) { a = Relu(x) y = Identity(a) z = Neg(a) }")
    node = maker(m, "y")
    assert edit.bypass(m, node, node.inputs[0])
    assert [t.name for t in m.graph.outputs] == ["y", "z"]
    assert ops(m.graph) == ["Relu", "Neg"]
    assert [v.tolist() for v in outputs(m, x=F([-1, 2]))] == [[0, 2], [0, -2]]


@pytest.mark.parametrize(
    "text",
    [
        "g (float[2] x) => (float[2] y) { y = Identity(x) }",
        "g (float[2] x) => (float[2] a, float[2] y) { a = Relu(x) y = Identity(a) }",
        "g (float[2] x) => (float[2] y, float[2] z) { y = Identity(w) z = Add(x, w) }",
    ],
    ids=["input to output", "output to output", "weight to output"],
)
def test_bypass_refuses_where_two_output_names_must_be_kept(text: str) -> None:
    m = model(text, **({"w": F([1, 2])} if "w" in text else {}))
    before = m.to_proto()
    node = maker(m, "y")
    assert not edit.bypass(m, node, node.inputs[0])
    assert m.to_proto() == before


def test_bypass_in_a_branch() -> None:
    m = model(
        """g (bool c, float[2] x) => (float[2] y) {
            y = If(c) <then_branch = yes () => (float[2] a) { r = Relu(x) a = Identity(r) },
                       else_branch = no () => (float[2] b) { b = Identity(x) }>
        }"""
    )
    yes, no = (m.graph.nodes[0].attrs[name] for name in ("then_branch", "else_branch"))
    assert edit.bypass(m, yes.nodes[1], yes.nodes[1].inputs[0])
    assert not edit.bypass(m, no.nodes[0], no.nodes[0].inputs[0])  # a branch must make its outputs itself
    assert ops(yes) == ["Relu"]
    assert outputs(m, c=np.array(True), x=F([-1, 2]))[0].tolist() == [0, 2]


def test_replace_uses_covers_branches_and_outputs() -> None:
    m = model(
        """g (bool c, float[2] x) => (float[2] y, float[2] a) {
            a = Relu(x)
            y = If(c) <then_branch = yes () => (float[2] p) { p = Add(a, a) },
                       else_branch = no () => (float[2] q) { q = Neg(a) }>
        }"""
    )
    a = named(m, "a")
    new = edit.add_node(m, "Abs", [a], base="a")
    edit.replace_uses(m, a, new.outputs[0], keep=[new])
    assert edit.consumers(a) == [new]
    assert m.graph.outputs[1] is new.outputs[0]
    assert {n.op for n in edit.consumers(new.outputs[0])} == {"Add", "Neg"}


def test_only_consumer() -> None:
    m = model("g (float[2] x) => (float[2] y, float[2] b) { a = Relu(x) b = Neg(a) c = Mul(b, b) y = Add(c, c) }")
    assert edit.only_consumer(m, named(m, "a")) is maker(m, "b")
    assert edit.only_consumer(m, named(m, "b")) is None  # also given out
    assert edit.only_consumer(m, named(m, "c")) is maker(m, "y")  # twice by one node


# ------------------------------------------------------------------ tidying up


def test_remove_unused_removes_whole_chains_and_keeps_inputs() -> None:
    m = model(
        """g (float[2] x, float[2] unused) => (float[2] y) {
            y = Relu(x) a = Neg(x) b = Abs(a) c, d = Split(b) e = Exp(unused)
        }"""
    )
    assert edit.remove_unused(m) == 4
    assert ops(m.graph) == ["Relu"]
    assert [t.name for t in m.graph.inputs] == ["x", "unused"]
    assert edit.remove_unused(m) == 0


def test_remove_unused_keeps_a_node_with_one_used_output() -> None:
    m = model("g (float[2] x) => (float[1] y) { y, b = Split(x) c = Relu(b) }")
    assert edit.remove_unused(m) == 1
    assert ops(m.graph) == ["Split"]


def test_remove_unused_in_branches_and_what_only_they_read() -> None:
    m = model(
        """g (bool c, float[2] x) => (float[2] y) {
            u = Relu(x)
            v = Neg(x)
            dead = If(c) <then_branch = d1 () => (float[2] p) { p = Abs(u) },
                       else_branch = d2 () => (float[2] q) { q = Exp(u) }>
            y = If(c) <then_branch = yes () => (float[2] a) { a = Abs(v) t = Sqrt(v) },
                       else_branch = no () => (float[2] b) { b = Exp(v) }>
        }"""
    )
    assert edit.remove_unused(m) == 3  # dead and u, and t inside
    assert ops(m.graph) == ["Neg", "If"]
    assert ops(m.graph.nodes[1].attrs["then_branch"]) == ["Abs"]
    assert outputs(m, c=np.array(True), x=F([-1, 2]))[0].tolist() == [1, 2]


def test_removing_a_node_disconnects_its_subgraphs() -> None:
    m = model(
        """g (bool c, float[2] x) => (float[2] y, float[2] r) {
            r = Relu(x)
            y = If(c) <then_branch = yes () => (float[2] a) { a = Abs(r) },
                       else_branch = no () => (float[2] b) { b = Neg(r) }>
        }"""
    )
    edit.remove(m, [maker(m, "y")])
    assert edit.consumers(named(m, "r")) == []


# ------------------------------------------------------------------ names

PIECES = st.sampled_from(
    ["a", "b", "", "_", "scale", "a_1", "a_2", "a_2_2", "a_scale", "a_scale_2", "2", "_2", "/x/y", "ä"]
)


@settings(max_examples=100)
@given(
    st.lists(PIECES.filter(bool), unique=True, min_size=1, max_size=6), st.lists(st.tuples(PIECES, PIECES), max_size=30)
)
def test_fresh_names_never_collide(present: list[str], asked: list[tuple[str, str]]) -> None:
    nodes = [helper.make_node("Relu", ["input"], [name], name=f"{name}_2") for name in present]
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("input", present[0])]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:])
    m = load_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    taken = {"input", *present, *(f"{name}_2" for name in present)}
    for base, suffix in asked:
        name = m.fresh(base, suffix)
        assert name
        assert name not in taken
        taken.add(name)


def test_fresh_names_stay_fast_when_thousands_share_a_stem() -> None:
    m = model("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    assert len({m.fresh("", "QuantizeLinear") for _ in range(30_000)}) == 30_000


def test_new_nodes_and_constants_get_new_names() -> None:
    m = model("g (float[2] x) => (float[2] y) { x_Relu = Neg(x) x_scale = Abs(x_Relu) y = Relu(x_scale) }")
    constant = edit.add_constant(m, "x", "scale", F(0.5))
    node = edit.add_node(m, "Relu", [m.graph.inputs[0]], base="x")
    assert constant.name == "x_scale_2"
    assert (node.name, node.outputs[0].name) == ("x_Relu_2", "x_Relu_2")


def test_a_scalar_constant_stays_a_scalar() -> None:
    m = model("g (float[2] x) => (float[2] y) { y = Mul(x, x) }")
    maker(m, "y").inputs[1] = edit.add_constant(m, "two", "", F(2))
    stored = m.to_proto().graph.initializer[0]
    assert list(stored.dims) == []
    assert outputs(m, x=F([1, 2]))[0].tolist() == [2, 4]


# ------------------------------------------------------------------ branches


def test_weights_of_sibling_branches_get_different_names() -> None:
    m = load_model(branches({"then_branch": {"p": [1, 1]}, "else_branch": {"p": [3, 3]}}))
    made = m.to_proto()
    assert sorted(t.name for t in made.graph.initializer) == ["p", "p_2"]
    assert not any(a.g.initializer for a in made.graph.node[0].attribute)
    assert outputs(m, c=np.array(True), x=F([5, 7]))[0].tolist() == [6, 8]
    assert outputs(m, c=np.array(False), x=F([5, 7]))[0].tolist() == [15, 21]


def test_a_weight_that_both_branches_read_is_stored_once() -> None:
    shared = branches()
    shared.graph.initializer.append(numpy_helper.from_array(F([2, 2]), "p"))
    m = load_model(shared)
    assert len(m.constants()) == 1
    assert [n.op for n in edit.consumers(m.constants()[0])] == ["Add", "Mul"]


def test_siblings_may_use_the_same_tensor_names() -> None:
    m = model(
        """g (bool c, float[2] x) => (float[2] y) {
            y = If(c) <then_branch = yes () => (float[2] r) { t = Relu(x) r = Neg(t) },
                       else_branch = no () => (float[2] r) { t = Abs(x) r = Exp(t) }>
        }"""
    )
    yes, no = (m.graph.nodes[0].attrs[name] for name in ("then_branch", "else_branch"))
    assert yes.outputs[0] is not no.outputs[0]
    assert edit.consumers(yes.nodes[0].outputs[0]) == [yes.nodes[1]]
    assert outputs(m, c=np.array(True), x=F([-1, 2]))[0].tolist() == [0, -2]


def test_a_lifted_weight_does_not_take_the_name_of_a_later_tensor() -> None:
    """The weight of a branch has the name of a tensor of its sibling, and of a graph output."""
    made = proto(
        """g (bool c, float[2] x) => (float[2] p, float[2] y) {
            y = If(c) <then_branch = yes () => (float[2] a) { a = Add(x, p) },
                       else_branch = no () => (float[2] b) { q = Relu(x) b = Neg(q) }>
            p = Abs(x)
        }"""
    )
    made.graph.node[0].attribute[0].g.initializer.append(numpy_helper.from_array(F([1, 1]), "p"))
    made.graph.node[0].attribute[0].g.initializer.append(numpy_helper.from_array(F([9, 9]), "q"))
    made.graph.node[0].attribute[0].g.node[0].input[0] = "q"
    m = load_model(made)
    assert [o.name for o in m.to_proto().graph.output] == ["p", "y"]
    assert sorted(t.name for t in m.to_proto().graph.initializer) == ["p_2", "q_2"]
    given_p, given_y = outputs(m, c=np.array(True), x=F([-1, 2]))
    assert (given_p.tolist(), given_y.tolist()) == ([1, 2], [10, 10])


def test_a_weight_that_is_a_branch_output_stays_one() -> None:
    made = branches({"then_branch": {"p": [1, 1], "a": [7, 8]}, "else_branch": {"p": [3, 3]}})
    del made.graph.node[0].attribute[0].g.node[:]
    m = load_model(made)
    assert outputs(m, c=np.array(True), x=F([5, 7]))[0].tolist() == [7, 8]


def test_names_that_shadow_an_outer_tensor_are_refused() -> None:
    made = branches({"then_branch": {"p": [1, 1]}, "else_branch": {"p": [3, 3]}})
    inner = made.graph.node[0].attribute[0].g
    inner.node[0].output[0] = inner.output[0].name = "x"
    with pytest.raises(ModelError, match="'x'"):
        load_model(made)


def test_a_branch_reads_its_own_weight_where_it_shadows_an_outer_one() -> None:
    made = branches({"then_branch": {"p": [1, 1]}})
    made.graph.initializer.append(numpy_helper.from_array(F([2, 2]), "p"))
    m = load_model(made)
    assert outputs(m, c=np.array(True), x=F([5, 7]))[0].tolist() == [6, 8]
    assert outputs(m, c=np.array(False), x=F([5, 7]))[0].tolist() == [10, 14]


# ------------------------------------------------------------------ skeletons


def old_model(rows: int = 64) -> ModelProto:
    """A model of IR version 3, which lists every weight among the inputs; here before the real input."""
    made = proto(
        f"g (float[{rows},2] w, float[1,{rows}] x) => (float[1,2] y) {{ y = MatMul(x, w) }}", w=np.ones((rows, 2), F)
    )
    made.ir_version = 3
    return made


@pytest.mark.parametrize("rows", [4, 4096])
def test_weights_listed_as_inputs_keep_their_position(rows: int) -> None:
    m = load_model(old_model(rows))
    assert [t.name for t in m.graph.inputs] == ["x"]
    assert list(m.graph.overridable) == ["w"]
    assert [i.name for i in m.to_proto().graph.input] == ["w", "x"]
    assert m.to_proto().ir_version == 3


@pytest.mark.parametrize("rows", [4, 4096])
def test_raising_the_opset_keeps_weights_and_their_readers(rows: int) -> None:
    m = load_model(old_model(rows))
    opset_upgrade.raise_opset(m, 21)
    assert m.opset == 21
    (weight,) = m.constants()
    assert list(m.graph.overridable.values()) == [weight]
    assert edit.consumers(weight) == m.graph.nodes
    assert outputs(m, x=np.ones((1, rows), F))[0].tolist() == [[rows, rows]]


def test_raising_the_opset_leaves_the_stated_shape_of_an_output() -> None:
    """The converter writes inferred shapes: a text detector's output [a, b, c, d] became [a, 1, c, d]."""
    made = parser.parse_model(
        """<ir_version: 7, opset_import: ["": 11]>
        g (float[n, 3] x) => (float[a, b] y) <float[3, 1] w = {1, 2, 3}> { y = MatMul(x, w) }"""
    )
    m = load_model(made)
    opset_upgrade.raise_opset(m, 13)
    (out,) = m.to_proto().graph.output
    assert [d.dim_param for d in out.type.tensor_type.shape.dim] == ["a", "b"]


def test_an_opset_that_cannot_be_raised_is_refused() -> None:
    made = parser.parse_model(
        """<ir_version: 7, opset_import: ["": 8]>
        g (float[1,3,2] x, float[1,2] s) => (float[1,2] end, float[1,3,2] all) {
            end, all = Scan<num_scan_inputs = 1, body = step (float[2] a, float[2] b) => (float[2] c, float[2] d) {
                c = Add(a, b) d = Identity(c)
            }>(, s, x)
        }"""
    )
    m = load_model(made)
    with pytest.raises(ModelError, match="batch axis"):
        opset_upgrade.raise_opset(m, 13)
    assert m.opset == 8


def test_a_weight_that_is_not_an_input_needs_ir_version_4() -> None:
    m = load_model(old_model())
    maker(m, "y").inputs[1] = edit.add_constant(m, "w", "new", np.zeros((64, 2), F))
    made = m.to_proto()
    assert made.ir_version == 4
    assert [i.name for i in made.graph.input] == ["x"]
    onnx.checker.check_model(made)


def test_reading_a_weight_keeps_nothing() -> None:
    m = load_model(old_model())
    (weight,) = m.constants()
    assert weights.read(weight).shape == (64, 2)
    assert isinstance(weight._values, weights.StoredValues)


def test_nodes_and_tensors_compare_by_identity() -> None:
    assert Variable("a") != Variable("a")
    assert Constant("a", F([1])) != Constant("a", F([1]))
    assert Node("Relu", "n") != Node("Relu", "n")

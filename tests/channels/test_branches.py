"""Residual branches left out: what is found, and that what is left gives what the other path gives."""

from typing import Any

import numpy as np
import onnx
import pytest
from channel_removal import grouped
from handmade.core import Feed, feeds, model, vector, weight
from onnx import ModelProto, numpy_helper
from pass_checks import check, loaded, ops, outputs

from onnxshot.channels.branches import branches_of
from onnxshot.graph.macs import concrete_shapes
from onnxshot.passes.drop_branches import DropBranches
from onnxshot.passes.drop_identity import DropIdentity

X = feeds(2, x=(1, 8, 6, 6))


def net(body: str, out: str = "float[1,3,6,6] y", **constants: Any) -> ModelProto:
    """Layers between one that makes 8 channels, s, and one that reads z; every node has a name."""
    text = f"net (float[1,8,6,6] x) => ({out}) {{ s = Conv(x, v1) {body} y = Conv(z, v2) }}"
    proto = model(text, {"v1": weight(8, 8, 1, 1), "v2": weight(3, 8, 1, 1, seed=9), **constants})
    for node in proto.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return proto


W = {"w1": weight(16, 8, 3, 3), "w2": weight(8, 16, 1, 1), "w3": weight(12, 8, 1, 1), "w4": weight(8, 12, 1, 1)}
PLAIN = "a = Conv<pads=[1,1,1,1]>(s, w1) b = Relu(a) c = Conv(b, w2, b2) "
W2 = {k: W[k] for k in ("w1", "w2")} | {"b2": vector(8)}
TWO = PLAIN + "t = Add(c, s) d = Conv(t, w3) e = Sigmoid(d) f = Conv(e, w4) z = Add(t, f)"


def found(proto: ModelProto, *spared: str) -> list[Any]:
    ready, groups = grouped(proto)
    nodes = [n for n in ready.graph.nodes if n.name in spared]
    return branches_of(ready, groups, concrete_shapes(ready), nodes)


def silenced(proto: ModelProto, *names: str) -> ModelProto:
    """The model with these constants zero."""
    other = ModelProto()
    other.CopyFrom(proto)
    for t in other.graph.initializer:
        if t.name in names:
            t.CopyFrom(numpy_helper.from_array(np.zeros(t.dims, np.float32), t.name))
    return other


def dropped(proto: ModelProto, sums: dict[str, str], given: list[Feed], *silent: str) -> dict[str, int]:
    """Check the model without branches against the one whose last layers give zero; its operators."""
    made = loaded(proto)
    assert DropBranches(sums).run(made).edits == len(sums)
    DropIdentity().run(made)
    check(silenced(proto, *silent), made, *given)
    read = {t.name for node in made.graph.nodes for t in node.inputs}
    assert not read & set(silent)
    return dict(ops(made))


def test_both_branches_of_a_chain_are_found_and_go() -> None:
    proto = net(TWO, **W, b2=vector(8))
    first, second = found(proto)
    assert (first.name, first.sums, len(first.ids)) == ("Conv_a", {"t": "c"}, 16)
    assert (second.name, second.sums, len(second.ids)) == ("Conv_d", {"z": "f"}, 12)
    assert dropped(proto, first.sums, X, "w2", "b2") == {"Conv": 4, "Sigmoid": 1, "Add": 1}
    assert dropped(proto, first.sums | second.sums, X, "w2", "b2", "w4") == {"Conv": 2}


def test_layers_behind_each_other_go_together() -> None:
    """A bottleneck: the channels of all its layers are numbers of the branch, so that no work of it is left."""
    body = "r = Relu(s) a = Conv(r, w3) b = Conv(a, w5) c = Conv(b, w4) t = Add(r, c) z = Relu(t)"
    proto = net(body, w3=W["w3"], w4=W["w4"], w5=weight(12, 12, 1, 1))
    (branch,) = found(proto)
    assert len(branch.ids) == 24
    assert dropped(proto, branch.sums, X, "w4") == {"Conv": 2, "Relu": 1}, "a Relu of a Relu does nothing"


def test_an_mlp_with_its_bias_goes() -> None:
    text = """net (float[1,5,8] x) => (float[1,5,3] y) { s = MatMul(x, v1) a = MatMul(s, w1) b = Relu(a)
        c = MatMul(b, w2) d = Add(b2, c) z = Add(d, s) y = MatMul(z, v2) }"""
    constants = {"v1": weight(8, 8), "w1": weight(8, 16), "w2": weight(16, 8), "v2": weight(8, 3), "b2": vector(8)}
    (branch,) = found(model(text, constants))
    assert branch.sums == {"z": "d"}
    assert dropped(model(text, constants), branch.sums, feeds(2, x=(1, 5, 8)), "w2", "b2") == {"MatMul": 2}


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        (PLAIN + "m = Sigmoid(c) z = Add(m, s)", {}),
        (PLAIN + "z = Add(c, k)", {"k": vector(1)}),
        (PLAIN + "g = GlobalAveragePool(s) z = Add(c, g)", {}),
        (PLAIN + "z = Add(c, c)", {}),
        (PLAIN + "t = Add(c, s) z = Mul(t, c)", {}),
        (PLAIN + "z = Mul(c, s)", {}),
    ],
)
def test_what_is_not_only_added_stays(body: str, constants: dict[str, Any]) -> None:
    assert not found(net(body, **W2, **constants))


@pytest.mark.parametrize(
    "body",
    [
        "r = Relu(s) a = Conv(r, k1) b = Conv(r, k2) z = Add(a, b)",
        "r = Relu(s) a = Conv(r, k1) b = Conv(r, k2) t = Add(a, b) c = Conv(r, k3) z = Add(t, c)",
        "r = Relu(s) a = Conv(r, k1) b = Conv(r, k2) t = Add(a, b) c = Conv(r, k3) z = Add(c, t)",
    ],
)
def test_a_sum_keeps_one_side(body: str) -> None:
    """Layers side by side that are summed, as in an ASPP: without what they read nothing would be left to sum."""
    assert found(net(body, **{f"k{i}": weight(8, 8, 1, 1, seed=i) for i in (1, 2, 3) if f"k{i}" in body})) == []


def test_what_is_given_out_or_spared_stays() -> None:
    plain = net(PLAIN + "z = Add(c, s)", **W2)
    assert len(found(plain)) == 1
    assert not found(plain, "Conv_a")
    assert not found(plain, "Conv_c")
    given_out = "float[1,3,6,6] y, float[1,8,6,6] {}"
    assert not found(net(PLAIN + "z = Add(c, s)", given_out.format("z"), **W2))
    assert not found(net(PLAIN + "z = Add(c, s)", given_out.format("c"), **W2))
    assert not found(net(PLAIN + "z = Add(c, s)", given_out.format("b").replace("8", "16", 1), **W2))


def test_the_model_without_is_valid() -> None:
    proto = net(TWO, **W, b2=vector(8))
    onnx.checker.check_model(proto, full_check=True)
    assert outputs(proto, X[0])[0].shape == (1, 3, 6, 6)

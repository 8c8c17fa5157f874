"""A layer walk gives the whole model's values, holds only what is still read, and allows changed constants."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from handmade import HANDMADE, Case
from handmade.core import Feed, feeds, model, vector, weight
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto
from planned_models import quantized, run

from onnxshot import memory
from onnxshot.execution import layer_walk
from onnxshot.execution.layer_walk import Walk
from onnxshot.graph.lean_model import LeanModel

SIX = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
TEXT = """g (float[1, 3, 8, 8] x) => (float[1, 6] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w, b)
    r = Clip(a, zero, six)
    d = Conv<group = 6, pads = [1, 1, 1, 1]>(r, dw)
    e = Relu(d)
    f = Conv(e, u, ub)
    s = Add(f, r)
    n = Sigmoid(a)
    m = Mul(s, n)
    p = GlobalAveragePool(m)
    q = Flatten(p)
    y = Gemm(q, v, vb)
}"""
CONSTANTS = {
    "w": weight(6, 3, 3, 3), "b": vector(6), "dw": weight(6, 1, 3, 3), "u": weight(6, 6, 1, 1), "ub": vector(6, 1),
    "v": weight(6, 6), "vb": vector(6, 2), **SIX,
}  # fmt: skip


def network(count: int = 3) -> Case:
    """Branches that are read at once, and much later."""
    return Case(model(TEXT, CONSTANTS), feeds(count, x=(1, 3, 8, 8)))


def whole(proto: ModelProto, given: list[Feed], name: str, *, optimize: bool = True) -> list[NDArray[Any]]:
    """An inner tensor on every sample, from the whole model."""
    exposed = ModelProto()
    exposed.CopyFrom(proto)
    del exposed.graph.output[:]
    exposed.graph.output.append(ValueInfoProto(name=name))
    return [run(exposed, feed, optimize=optimize)[0] for feed in given]


def made(proto: ModelProto) -> list[str]:
    return [name for node in proto.graph.node for name in node.output if name]


@pytest.mark.parametrize("threads", [1, 2])
def test_tensors_asked_for_in_order_equal_those_of_the_whole_model(threads: int) -> None:
    case = network()
    walk = Walk(case.model, case.feeds, threads)
    for name in made(case.model):
        found = walk.values(name)
        assert len(found) == len(case.feeds)
        for got, wanted in zip(found, whole(case.model, case.feeds, name), strict=True):
            assert got.dtype == wanted.dtype
            np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("asked", [["y"], ["r", "y"], ["n", "e", "y"], ["f", "n", "p", "y"], ["x", "x", "d", "d", "y"]])
def test_any_tensor_may_be_asked_for(asked: list[str]) -> None:
    case = network()
    walk = Walk(case.model, case.feeds, 1)
    for name in asked:
        wanted = [feed["x"] for feed in case.feeds] if name == "x" else whole(case.model, case.feeds, name)
        for got, expected in zip(walk.values(name), wanted, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_no_node_runs_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    case = network()
    ran: list[str] = []
    run_part = Walk._run

    def counted(self: Walk, numbers: Any, *rest: Any) -> Any:
        ran.extend(self._nodes[i].output[0] for i in numbers)
        return run_part(self, numbers, *rest)

    monkeypatch.setattr(Walk, "_run", counted)
    walk = Walk(case.model, case.feeds, 1)
    for name in ["a", *made(case.model)]:
        walk.values(name)
    assert ran == made(case.model)


def test_tensors_that_are_no_longer_read_are_freed() -> None:
    case = network()
    walk = Walk(case.model, case.feeds, 1)
    readers = {"a": {"r", "n"}, "r": {"d", "s"}, "n": {"m"}, "d": {"e"}, "e": {"f"}, "f": {"s"}, "s": {"m"}}
    assert set(walk._held) == {"x"}
    done: set[str] = set()
    for name in ("a", "r", "d", "e", "f", "s"):
        walk.values(name)
        done.add(name)
        waiting = {t for t in done if readers[t] - done}
        assert set(walk._held) == waiting
    walk.values("y")
    assert set(walk._held) == {"y"}


def test_a_tensor_that_is_read_much_later_is_held_until_then() -> None:
    case = network()
    walk = Walk(case.model, case.feeds, 1)
    walk.values("f")  # on the way past r, which the Add after f reads, and a, which a Sigmoid reads
    assert set(walk._held) == {"a", "r", "f"}
    np.testing.assert_allclose(walk.values("s")[0], whole(case.model, case.feeds, "s")[0], rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------------------- quantized models


def qdq() -> tuple[Case, ModelProto]:
    case = HANDMADE["mbconv_block"]()
    case = Case(case.model, case.feeds[:4])
    return case, quantized(case)[1]


def dequantized(proto: ModelProto) -> list[onnx.NodeProto]:
    """The DequantizeLinear nodes of computed tensors."""
    stored = {t.name for t in proto.graph.initializer}
    return [n for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.input[0] not in stored]


def test_a_dequantized_tensor_is_held_in_integers() -> None:
    case, proto = qdq()
    walk = Walk(proto, case.feeds, 1)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    assert len(dequantized(proto)) > 3
    for node in dequantized(proto):
        name = node.output[0]
        assert walk.stop(name) == node.input[0]
        params = walk.params(name)
        assert params is not None
        assert params[0] == stored[node.input[1]]
        assert params[1] == stored[node.input[2]]
        assert walk.params(node.input[0]) is None
        assert walk.stop(node.input[0]) == node.input[0]
        found = walk.values(name)
        for got, wanted in zip(found, whole(proto, case.feeds, name), strict=True):
            assert got.dtype == np.uint8
            back = (got.astype(np.float32) - np.float32(params[1])) * params[0]
            # A kernel may round a tie the other way.
            assert (np.abs(back - wanted) <= 1.01 * params[0]).all()
            assert (np.abs(back - wanted) < 1e-6).mean() > 0.999
        assert name not in walk._held
        assert {walk._values_of(held, 0).dtype for held in walk._held} <= {np.dtype(np.uint8), np.dtype(np.float32)}


def test_the_outputs_of_a_walk_equal_those_of_the_fused_model() -> None:
    case, proto = qdq()
    walk = Walk(proto, case.feeds, 2)
    for node in dequantized(proto):
        walk.values(node.output[0])
    last = proto.graph.output[0].name
    for got, wanted in zip(walk.values(last), whole(proto, case.feeds, last), strict=True):
        assert got.dtype == wanted.dtype == np.float32
        assert (np.abs(got - wanted) < 1e-6).mean() > 0.99, "the kernels are those of the whole model"
        assert np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()


def test_a_tensor_that_two_layers_read_is_held_in_8_bits() -> None:
    text = """g (float[1, 4, 6, 6] x) => (float[1, 2, 6, 6] y) {
        a = Conv(x, w) r = Relu(a) c = Conv(r, u) d = Relu(c) e = Conv(d, v) s = Add(e, r) y = Conv(s, z) }"""
    constants = {"w": weight(5, 4, 1, 1), "u": weight(8, 5, 1, 1), "v": weight(5, 8, 1, 1), "z": weight(2, 5, 1, 1)}
    case = Case(model(text, constants), feeds(8, x=(1, 4, 6, 6)))
    proto = quantized(case)[1]
    convs = [n for n in proto.graph.node if n.op_type == "Conv"]
    walk = Walk(proto, case.feeds, 1)
    held = [set(walk._held) for n in convs if walk.values(n.input[0])]
    waiting = walk.stop(convs[1].input[0])
    assert [waiting in names for names in held] == [False, True, True, False]
    assert [len(names) for names in held] == [1, 1, 2, 1]
    for got, wanted in zip(walk.values("y"), whole(proto, case.feeds, walk.stop("y")), strict=True):
        assert got.dtype == wanted.dtype == np.uint8
        assert np.abs(got.astype(int) - wanted).max() <= 1  # a kernel may round a tie the other way
        assert (got == wanted).mean() > 0.99


def test_weights_are_dequantized_in_place() -> None:
    case, proto = qdq()
    walk = Walk(proto, case.feeds, 1)
    stored = {t.name for t in proto.graph.initializer}
    weights = [n for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in stored]
    assert weights
    for node in weights:
        assert walk.stop(node.output[0]) == node.output[0]
        assert walk.params(node.output[0]) is None
    assert walk.params("x") is None
    assert walk.stop("x") == "x"


# ---------------------------------------------------------------------------- changes, subgraphs


def test_a_changed_constant_applies_to_later_nodes() -> None:
    case = network()
    before = case.model.SerializeToString()
    walk = Walk(case.model, case.feeds, 1)
    walk.values("d")
    assert walk.constant("ub").tolist() == CONSTANTS["ub"].tolist()
    walk.set("ub", np.asarray(CONSTANTS["ub"] + 1, np.float32))
    walk.set("b", np.zeros(6, np.float32))  # too late: its reader has run
    assert (walk.constant("ub") == CONSTANTS["ub"] + 1).all()
    changed = model(TEXT, {**CONSTANTS, "ub": (CONSTANTS["ub"] + 1).astype(np.float32)})
    for name in ("f", "y"):
        for got, wanted, old in zip(
            walk.values(name), whole(changed, case.feeds, name), whole(case.model, case.feeds, name), strict=True
        ):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
            assert np.abs(got - old).max() > 0.1
    assert case.model.SerializeToString() == before


def branching() -> Case:
    text = """g (float[1, 3, 8, 8] x) => (float[1, 6, 8, 8] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w, b)
        r = Relu(a)
        m = ReduceMean<keepdims = 0>(r)
        go = Greater(m, half)
        t = Neg(r)
        p = If (go) <
            then_branch = yes () => (float[1, 6, 8, 8] yes_out) { yes_out = Conv(r, u) },
            else_branch = no () => (float[1, 6, 8, 8] no_out) {
                inner = If (go) <
                    then_branch = deep () => (float[1, 6, 8, 8] deep_out) { deep_out = Neg(r) },
                    else_branch = deeper () => (float[1, 6, 8, 8] deeper_out) { deeper_out = Add(r, a) }
                >
                no_out = Sub(inner, lost)
            }
        >
        y = Add(p, t)
    }"""
    constants = {k: CONSTANTS[k] for k in "wbu"} | {"half": np.array(0.4, np.float32), "lost": vector(1)}
    given = [{"x": feed["x"] * size} for feed, size in zip(feeds(4, x=(1, 3, 8, 8)), (0.1, 1, 0.2, 3), strict=True)]
    return Case(model(text, constants), [{k: v.astype(np.float32) for k, v in feed.items()} for feed in given])


def test_a_tensor_that_a_branch_reads_is_held_at_any_depth() -> None:
    case = branching()
    took = {bool(go) for go in whole(case.model, case.feeds, "go")}
    assert took == {True, False}, "both branches run"
    walk = Walk(case.model, case.feeds, 1)
    for name in made(case.model):
        for got, wanted in zip(walk.values(name), whole(case.model, case.feeds, name), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)
        if name == "t":
            assert set(walk._held) == {"a", "r", "go", "t"}
    assert set(walk._held) == {"y"}


def test_a_constant_that_a_branch_reads_is_available() -> None:
    case = branching()
    walk = Walk(case.model, case.feeds, 1)
    walk.values("t")
    walk.set("lost", np.full(1, 7, np.float32))
    changed = ModelProto()
    changed.CopyFrom(case.model)
    (lost,) = [t for t in changed.graph.initializer if t.name == "lost"]
    lost.CopyFrom(onnx.numpy_helper.from_array(np.full(1, 7, np.float32), "lost"))
    for got, wanted in zip(walk.values("y"), whole(changed, case.feeds, "y"), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------------------- parts, tensors that are only shown


@pytest.mark.parametrize("part_bytes", [1, 1 << 30])
def test_tensors_are_shown_without_being_held(part_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one session, or in one for each node with a weight; what crosses waits in a file."""
    monkeypatch.setattr(layer_walk, "_PORTION", part_bytes)
    monkeypatch.setattr(memory, "held_bytes", lambda: 0)
    case = network()
    walk = Walk(LeanModel.of(case.model), case.feeds, 2)
    shown: dict[tuple[str, int], NDArray[Any]] = {}
    for names in (["d", "a"], ["f"]):
        for sample, found in walk.visit(names, lambda sample, found: (sample, dict(found))):
            shown |= {(name, sample): values for name, values in found.items()}
    assert set(shown) == {(name, i) for name in "daf" for i in range(len(case.feeds))}
    for (name, sample), values in shown.items():
        np.testing.assert_allclose(values, whole(case.model, case.feeds, name)[sample], rtol=1e-5, atol=1e-5)
    for got, wanted in zip(walk.values("y"), whole(case.model, case.feeds, "y"), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_a_weight_of_a_file_may_change_where_it_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in an external file are read from there; a changed one takes its place for later nodes alone."""
    monkeypatch.setattr(layer_walk, "_PORTION", 8192)
    monkeypatch.setattr(memory, "part_bytes", lambda: 8192)
    rng = np.random.default_rng(5)
    text = "g (float[1, 64] x) => (float[1, 64] y) { a = MatMul(x, k) r = Relu(a) y = MatMul(r, m) }"
    constants = {n: rng.standard_normal((64, 64)).astype(np.float32) / 8 for n in "km"}
    proto, given = model(text, constants), feeds(5, x=(1, 64))
    path = tmp_path / "model.onnx"
    onnx.save(proto, str(path), save_as_external_data=True, size_threshold=0, location="model.data")
    walk = Walk(LeanModel.of(path), given, 2)
    first = list(walk.values("r"))
    walk.set("m", constants["m"] * 2)
    for sample, feed in enumerate(given):
        r = np.maximum(feed["x"] @ constants["k"], 0)
        np.testing.assert_allclose(first[sample], r, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(walk.values("y")[sample], r @ constants["m"] * 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["x", "a", "r", "f", "m", "q"])
def test_the_rest_of_a_walk_gives_the_outputs_of_the_whole_model(name: str) -> None:
    case = network()
    walk = Walk(case.model, case.feeds, 1)
    if name != "x":
        walk.values(name)
    rest = walk.rest()
    done = made(case.model)[: made(case.model).index(name) + 1] if name != "x" else []
    assert not {n for node in rest.proto.graph.node for n in node.output} & set(done)
    for i, wanted in enumerate(whole(case.model, case.feeds, "y")):
        (found,) = run(rest.to_proto(), walk.held(i))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)

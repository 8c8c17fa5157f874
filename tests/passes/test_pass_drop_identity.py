import numpy as np
import pytest
from handmade import HANDMADE
from handmade.core import feeds, model
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_checks import ops, reasons, rewritten

from onnxshot.passes.drop_identity import DropIdentity

DO_NOTHING = [
    "Identity({})",
    "Dropout({})",
    "Dropout({}, ratio)",
    "Dropout({}, ratio, off)",
    "Cast<to = 1>({})",
    "Transpose<perm = [0, 1]>({})",
    "Pad({}, zeros)",
    "Concat<axis = 1>({})",
]
CONSTANTS = {
    "ratio": np.array(0.5, np.float32), "off": np.array(False), "on": np.array(True), "zeros": np.zeros(4, np.int64),
}  # fmt: skip


def used(text: str) -> dict[str, np.ndarray]:
    return {k: v for k, v in CONSTANTS.items() if k in text}


@settings(max_examples=30)
@given(st.lists(st.sampled_from(DO_NOTHING), min_size=1, max_size=5))
def test_chain_between_two_nodes(chain: list[str]) -> None:
    nodes = " ".join(f"t{i + 1} = {op.format(f't{i}')}" for i, op in enumerate(chain))
    text = f"g (float[n, 4] x) => (float[n, 4] y) {{ t0 = Relu(x) {nodes} y = Neg(t{len(chain)}) }}"
    after, change = rewritten(model(text, used(text)), DropIdentity(), *feeds(1, x=(3, 4)))
    assert change.edits == len(chain)
    assert ops(after) == {"Relu": 1, "Neg": 1}


@pytest.mark.parametrize("op", DO_NOTHING)
def test_output_keeps_its_name(op: str) -> None:
    text = f"g (float[n, 4] x) => (float[n, 4] y) {{ t = Relu(x) y = {op.format('t')} }}"
    after, change = rewritten(model(text, used(text)), DropIdentity(), *feeds(1, x=(3, 4)))
    assert change.edits == 1
    assert [n.outputs[0].name for n in after.graph.nodes] == ["y"]


def test_a_node_between_an_input_and_an_output_of_the_model_stays() -> None:
    for name, kept in (("input_is_output", 1), ("dropout_and_identity_chain", 0)):
        case = HANDMADE[name]()
        after, change = rewritten(case.model, DropIdentity(), *case.feeds[:1])
        assert ops(after)["Identity"] == kept
        assert len(change.skips) == kept


@pytest.mark.parametrize(
    "nodes",
    ["t = Cast<to = 10>(x) y = Cast<to = 1>(t)", "y = Transpose<perm = [1, 0]>(x)", "y = Concat<axis = 0>(x, x)"],
)
def test_nodes_that_change_values_stay(nodes: str) -> None:
    before = model(f"g (float[4, 4] x) => (float[p, q] y) {{ {nodes} }}")
    _, change = rewritten(before, DropIdentity(), *feeds(1, x=(4, 4)))
    assert (change.edits, change.skips) == (0, [])


def test_pad_as_attribute() -> None:
    text = "g (float[n, 4] x) => (float[n, 4] y) { a = Pad<pads = [0, 0, 0, 0]>(x) y = Relu(a) }"
    after, change = rewritten(model(text, opset=9), DropIdentity(), *feeds(1, x=(3, 4)))
    assert (change.edits, ops(after)) == (1, {"Relu": 1})


def test_dropout_that_may_train_stays() -> None:
    text = """g (float[n] x, bool t) => (float[n] y, float[n] z) {
        a = Dropout(x, ratio, t) b = Dropout(x, ratio, on) y = Neg(a) z = Neg(b)
    }"""
    _, change = rewritten(model(text, used(text.replace("off", ""))), DropIdentity())
    assert (change.edits, reasons(change)) == (0, ["it may be in training mode"] * 2)


def test_dropout_with_a_used_mask_stays() -> None:
    text = "g (float[n] x) => (float[n] y, bool[n] z) { y, z = Dropout(x) }"
    _, change = rewritten(model(text), DropIdentity(), *feeds(1, x=(3,)))
    assert (change.edits, reasons(change)) == (0, ["its mask is used"])


@pytest.mark.parametrize("name", ["if_captures_weights", "loop_body", "scan_body", "nested_if"])
def test_branches_keep_the_identities_they_need(name: str) -> None:
    case = HANDMADE[name]()
    _, change = rewritten(case.model, DropIdentity(), *case.feeds[:2])
    assert not change.skips


def test_identity_in_a_branch() -> None:
    text = """g (float[2] x, bool c) => (float[2] y) {
        y = If (c) <
            then_branch = t () => (float[2] p) { a = Identity(x) b = Neg(a) p = Identity(b) },
            else_branch = e () => (float[2] q) { q = Identity(x) }
        >
    }"""
    x = np.array([1, 2], np.float32)
    after, change = rewritten(model(text), DropIdentity(), *({"x": x, "c": np.array(c)} for c in (True, False)))
    assert change.edits == 2
    assert ops(after) == {"If": 1, "Neg": 1, "Identity": 1}


def test_a_relu_of_a_relu() -> None:
    text = "g (float[n, 4] x) => (float[n, 4] y) { a = Relu(x) b = Relu(a) c = Neg(b) d = Relu(c) y = Neg(d) }"
    after, change = rewritten(model(text), DropIdentity(), *feeds(1, x=(3, 4)))
    assert change.edits == 1
    assert ops(after) == {"Relu": 2, "Neg": 2}


def test_leakyrelu_of_slope_1_and_flatten_of_a_matrix_are_removed() -> None:
    text = """g (float[n, 4] x) => (float[n, 4] y, float[n, 12] z) {
        a = LeakyRelu<alpha = 1.0>(x)  b = Flatten<axis = 1>(a)  y = Neg(b)
        u = Unsqueeze(x, one)  e = Concat<axis = 1>(u, u, u)  f = Flatten<axis = 1>(e)  z = LeakyRelu<alpha = 0.5>(f)
    }"""
    after, change = rewritten(model(text, {"one": np.array([1], np.int64)}), DropIdentity(), *feeds(2, x=(3, 4)))
    assert change.edits == 2
    assert ops(after) == {"Neg": 1, "Unsqueeze": 1, "Concat": 1, "Flatten": 1, "LeakyRelu": 1}

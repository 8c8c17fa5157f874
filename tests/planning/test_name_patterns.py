import numpy as np
import pytest
from handmade import HANDMADE
from handmade.core import model, weight

from onnxshot.errors import UsageError
from onnxshot.graph import Model
from onnxshot.graph.load import copy_of, load_model
from onnxshot.passes.normalize import normalize
from onnxshot.planning.name_patterns import match_nodes


@pytest.fixture
def net() -> Model:
    text = """g (float[1, 4] x) => (float[1, 4] y) {
        ["head.fc"] h = MatMul(x, w)
        ["head.relu[0]"] r = Relu(h)
        ["tail.fc"] y = MatMul(r, w)
    }"""
    return load_model(model(text, {"w": weight(4, 4)}))


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["head.fc"], {"head.fc": "head.fc"}),
        (["head.*"], {"head.fc": "head.*", "head.relu[0]": "head.*"}),
        (["MatMul"], {"head.fc": "MatMul", "tail.fc": "MatMul"}),
        (["r"], {"head.relu[0]": "r"}),
        (["?"], {"head.fc": "?", "head.relu[0]": "?", "tail.fc": "?"}),
        (["*.fc", "head.*"], {"head.fc": "*.fc", "tail.fc": "*.fc", "head.relu[0]": "head.*"}),
        (["head.relu[0]"], {"head.relu[0]": "head.relu[0]"}),  # a name that is a glob matches itself
        ([], {}),
        (["?head.fc"], {"head.fc": "?head.fc"}),
        (["?*.fc", "?Conv", "?konv*"], {"head.fc": "?*.fc", "tail.fc": "?*.fc"}),  # `?` in front: may match nothing
        (["?", "??"], {"head.fc": "?", "head.relu[0]": "?", "tail.fc": "?"}),
    ],
)
def test_patterns_pick_by_name_tensor_and_op(net: Model, patterns: list[str], expected: dict[str, str]) -> None:
    assert {n.name: p for n, p in match_nodes(net, patterns, "pattern").items()} == expected


def test_case_matters(net: Model) -> None:
    with pytest.raises(UsageError):
        match_nodes(net, ["matmul"], "pattern")


def test_a_pattern_that_matches_nothing_names_the_closest(net: Model) -> None:
    with pytest.raises(UsageError) as caught:
        match_nodes(net, ["MatMul", "head.fx"], "exclude pattern")
    assert "exclude pattern 'head.fx' matches no" in caught.value.message
    assert "head.fc" in caught.value.hint.split(", ")[0]
    assert len(caught.value.hint.split(", ")) == 3
    assert caught.value.exit_code == 2


def test_a_name_that_begins_with_the_mark_is_still_matched_by_itself() -> None:
    net = load_model(model('g (float[1, 4] x) => (float[1, 4] y) { ["?odd"] y = Relu(x) }'))
    assert [n.name for n in match_nodes(net, ["?odd"], "pattern")] == ["?odd"]


def test_nodes_of_subgraphs_are_picked() -> None:
    inside = load_model(HANDMADE["if_captures_weights"]().model)
    assert [n.outputs[0].name for n in match_nodes(inside, ["yes_out"], "pattern")] == ["yes_out"]


def test_a_tensor_that_was_folded_into_its_layer_is_still_known_by_its_name() -> None:
    text = """g (float[1, 4, 5, 5] x) => (float[1, 3, 5, 5] y) {
        ["conv"] c = Conv(x, w)  ["bn"] b = BatchNormalization(c, one, zero, zero, one)  ["scale"] s = Mul(b, two)
        ["relu"] y = Relu(s)
    }"""
    ones = np.ones(3, np.float32)
    constants = {"w": weight(3, 4, 1, 1), "one": ones, "zero": 0 * ones, "two": np.float32(2)}
    net = load_model(model(text, constants))
    normalize(net)
    assert [node.op for node in net.graph.nodes] == ["Conv", "Relu"]
    for pattern in ("c", "b", "s"):
        assert {n.name for n in match_nodes(copy_of(net), [pattern], "pattern")} == {"conv"}

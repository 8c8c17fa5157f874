from handmade import HANDMADE
from handmade.core import feeds, model
from hypothesis import given
from hypothesis import strategies as st
from pass_checks import loaded, rewritten

from onnxshot.passes.name_nodes import NameNodes


def names(proto_names: list[str]) -> tuple[list[str], int]:
    chain = " ".join(f"t{i + 1} = Relu(t{i})" for i in range(len(proto_names)))
    proto = model(f"g (float[2] t0) => (float[2] t{len(proto_names)}) {{ {chain} }}")
    for node, name in zip(proto.graph.node, proto_names, strict=True):
        node.name = name
    after = loaded(proto)
    change = NameNodes().run(after)
    return [n.name for _, n in after.walk()], change.edits


@given(st.lists(st.sampled_from(["", "a", "b", "Relu_t1", "Relu_t2", "t1"]), min_size=1, max_size=6))
def test_every_name_is_unique_and_good_ones_stay(given_names: list[str]) -> None:
    found, edits = names(given_names)
    assert all(found)
    assert len(set(found)) == len(found)
    assert edits == sum(1 for old, new in zip(given_names, found, strict=True) if old != new)
    first = {name: i for i, name in reversed(list(enumerate(given_names))) if name}
    assert all(found[i] == name for name, i in first.items())


def test_named_after_op_and_output() -> None:
    found, _ = names(["", "given"])
    assert found == ["Relu_t1", "given"]


def test_subgraph_nodes_are_named() -> None:
    for name in ("if_captures_weights", "loop_body", "scan_body", "nested_if"):
        case = HANDMADE[name]()
        after, _ = rewritten(case.model, NameNodes(), *case.feeds[:1])
        found = [n.name for _, n in after.walk()]
        assert all(found)
        assert len(set(found)) == len(found)


def test_second_run_changes_nothing() -> None:
    proto = model("g (float[2] x) => (float[2] y) { a = Relu(x) y = Relu(a) }")
    after, change = rewritten(proto, NameNodes(), *feeds(1, x=(2,)))
    assert change.edits == 2
    assert NameNodes().run(after).edits == 0

from handmade import HANDMADE
from handmade.core import feeds, model, weight
from pass_checks import ops, rewritten

from onnxshot.passes.remove_unused import RemoveUnused


def test_dead_branch_goes_with_its_weight() -> None:
    text = "g (float[2, 4] x, float[2] spare) => (float[2, 4] y) { a = MatMul(x, w) b = Relu(a) y = Neg(x) }"
    after, change = rewritten(model(text, {"w": weight(4, 4)}), RemoveUnused(), *feeds(1, x=(2, 4), spare=(2,)))
    assert change.edits == 2
    assert ops(after) == {"Neg": 1}
    assert not after.constants()


def test_handmade_unused_nodes() -> None:
    case = HANDMADE["unused_nodes"]()
    _, change = rewritten(case.model, RemoveUnused(), *case.feeds[:1])
    assert change.edits == 2


def test_what_a_branch_reads_stays() -> None:
    for name in ("if_captures_weights", "nested_if", "loop_body", "scan_body"):
        case = HANDMADE[name]()
        _, change = rewritten(case.model, RemoveUnused(), *case.feeds[:1])
        assert change.edits == 0

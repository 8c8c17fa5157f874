import pytest
from handmade.core import feeds, model
from pass_checks import ops, rewritten

from onnxshot.passes.isolate_softmax import IsolateSoftmax

SANDWICH = "a = Transpose<perm = [0, 3, 2, 1]>(x) b = Softmax<axis = {axis}>(a) y = Transpose<perm = [0, 3, 2, 1]>(b)"


@pytest.mark.parametrize("axis", [-1, 3])
@pytest.mark.parametrize("first", ["1", "n"])
def test_softmax_between_transposes_is_kept_on_rows(axis: int, first: str) -> None:
    text = f"g (float[{first}, 6, 4, 5] x) => (float[{first}, 6, 4, 5] y) {{ {SANDWICH.format(axis=axis)} }}"
    after, change = rewritten(model(text, {}, opset=13), IsolateSoftmax(), *feeds(1, x=(1, 6, 4, 5)))
    assert change.edits == 1
    assert ops(after) == {"Transpose": 2, "Softmax": 1, "Reshape": 2}
    (softmax,) = [n for n in after.graph.nodes if n.op == "Softmax"]
    assert {softmax.inputs[0].inputs[0].op, softmax.outputs[0].outputs[0].op} == {"Reshape"}


def test_two_dynamic_dimensions_are_skipped_with_a_reason() -> None:
    text = f"g (float[n, 6, h, 5] x) => (float[n, 6, h, 5] y) {{ {SANDWICH.format(axis=-1)} }}"
    after, change = rewritten(model(text, {}, opset=13), IsolateSoftmax(), *feeds(1, x=(2, 6, 4, 5)))
    assert change.edits == 0
    assert [s.reason for s in change.skips] == ["more than one of its dimensions is dynamic"]
    assert ops(after) == {"Transpose": 2, "Softmax": 1}


@pytest.mark.parametrize(
    "body",
    [
        "y = Softmax<axis = -1>(x)",
        SANDWICH.format(axis=1),
        SANDWICH.format(axis=-1).replace("y = ", "c = Relu(b) y = ").replace(">(b)", ">(c)"),
    ],
)
def test_other_softmaxes_stay(body: str) -> None:
    text = f"g (float[1, 6, 4, 5] x) => (float[1, 6, 4, 5] y) {{ {body} }}"
    _, change = rewritten(model(text, {}, opset=13), IsolateSoftmax(), *feeds(1, x=(1, 6, 4, 5)))
    assert change.edits == 0

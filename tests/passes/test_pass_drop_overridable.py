import pytest
from handmade import HANDMADE
from handmade.core import feeds, model, weight
from pass_checks import loaded, outputs, reasons, rewritten

from onnxshot.passes.drop_overridable import DropOverridable
from onnxshot.passes.fold_affine import FoldAffine
from onnxshot.passes.fold_batchnorm import FoldBatchNorm

TEXT = "g (float[n, 4] x, float[4, 4] w, float[4] s) => (float[n, 4] y) { a = MatMul(x, w) y = Mul(a, s) }"


@pytest.mark.parametrize("ir", [3, 8])
def test_initializers_are_removed_from_the_inputs(ir: int) -> None:
    """ORT PR #3449, PR #25102."""
    proto = model(TEXT, {"w": weight(4, 4), "s": weight(4)}, ir=ir, opset=9)
    after, change = rewritten(proto, DropOverridable(), *feeds(1, x=(2, 4)))
    assert change.edits == 2
    assert [i.name for i in after.to_proto().graph.input] == ["x"]
    assert after.to_proto().ir_version == max(4, ir)
    assert after.notes == ["2 initializers are no longer listed as inputs: w, s"]


def test_kept_initializers_stay_inputs_and_no_pass_changes_them() -> None:
    proto = model(TEXT, {"w": weight(4, 4), "s": weight(4)})
    after, change = rewritten(proto, DropOverridable(keep=True), *feeds(1, x=(2, 4)))
    assert change.edits == 0
    assert reasons(change) == ["it is an input too, so a caller may replace it"] * 2
    assert FoldAffine().run(after).edits == 0
    assert FoldBatchNorm().run(after).edits == 0
    other = {**feeds(1, x=(2, 4))[0], "w": weight(4, 4, seed=3), "s": weight(4, seed=3)}
    assert (outputs(after.to_proto(), other)[0] == outputs(proto, other)[0]).all()


def test_nothing_to_drop() -> None:
    case = HANDMADE["resnet_block"]()
    after = loaded(case.model)
    assert DropOverridable().run(after).edits == 0
    assert not after.notes

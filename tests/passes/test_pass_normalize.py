from pathlib import Path

import numpy as np
import onnx
import pytest
from fixture_data import facts, fixture, heldout, session
from handmade import HANDMADE, write_external
from handmade.core import feeds, model, vector, weight
from pass_checks import check, ops

from onnxshot.graph import Constant
from onnxshot.graph.load import load_model
from onnxshot.graph.save import write
from onnxshot.passes.normalize import normalize


@pytest.mark.parametrize("name", HANDMADE)
def test_handmade_graph_computes_the_same(name: str) -> None:
    case = HANDMADE[name]()
    after = load_model(case.model)
    done = normalize(after)
    if case.runs and case.valid:
        check(case.model, after, *case.feeds[:2])
    assert len({name for name, _ in done}) == len(done)
    assert all(node.name for _, node in after.walk())
    assert not ops(after)["Dropout"]


@pytest.mark.parametrize("name", facts())
def test_trained_model_computes_the_same(name: str) -> None:
    proto = onnx.load(fixture(name))
    after = load_model(fixture(name))
    normalize(after)
    check(proto, after, *heldout(name)[0][:2])


@pytest.mark.parametrize("name", ["resnet_block", "attention_block", "opset_12"])
def test_second_time_changes_nothing(name: str) -> None:
    after = load_model(HANDMADE[name]().model)
    normalize(after)
    once = after.to_proto().SerializeToString(deterministic=True)
    again = load_model(after.to_proto())
    assert not any(change.edits for _, change in normalize(again))
    assert len(again.to_proto().SerializeToString(deterministic=True)) == len(once)


def test_folds_meet_across_passes() -> None:
    """Constant -> Cast -> Transpose -> MatMul -> Identity -> BatchNormalization -> Mul becomes one Gemm."""
    text = """g (float[n, 4] x) => (float[n, 8] y) {
        c = Cast<to = 1>(h) w = Transpose<perm = [1, 0]>(c) m = MatMul(x, w) i = Identity(m)
        o = BatchNormalization(i, s, s, s, s) d = Dropout(o) k = Constant<value_float = 2.0>() y = Mul(d, k)
    }"""
    proto = model(text, {"h": weight(8, 4).astype(np.float16), "s": vector(8, 0, 1, 2)})
    after = load_model(proto)
    done = dict(normalize(after))
    check(proto, after, *feeds(1, x=(3, 4)))
    assert ops(after) == {"Gemm": 1}
    assert isinstance(after.graph.nodes[0].inputs[1], Constant)
    edits = {name: change.edits for name, change in done.items() if change.edits}
    expected = {"name_nodes": 8, "fold_constants": 3, "drop_identity": 2, "fold_batchnorm": 1, "fold_affine": 1}
    assert edits == expected


def test_dynamic_axes_stay() -> None:
    """onnxsim #101, #213, #342; ORT #8169: the result runs at two batch sizes and two lengths."""
    case = HANDMADE["constant_folding"]()
    after = load_model(case.model)
    normalize(after)
    shape = case.feeds[0][case.model.graph.input[0].name].shape
    name = case.model.graph.input[0].name
    check(case.model, after, *feeds(1, **{name: shape}), *feeds(1, **{name: (shape[0] + 1, *shape[1:])}))


def test_opset_is_raised_only_when_asked() -> None:
    case = HANDMADE["opset_11"]()
    for opset, expected in ((None, 11), (9, 11), (13, 13)):
        after = load_model(case.model)
        normalize(after, opset=opset)
        assert after.opset == expected
        check(case.model, after, *case.feeds[:1])


@pytest.mark.parametrize("keep", [False, True])
def test_overridable_initializers(keep: bool) -> None:
    case = HANDMADE["initializers_as_inputs"]()
    after = load_model(case.model)
    done = dict(normalize(after, keep_overridable=keep))
    check(case.model, after, *case.feeds[:1])
    assert done["drop_overridable"].edits == (0 if keep else 2)
    assert len(done["drop_overridable"].skips) == (2 if keep else 0)
    assert len(after.to_proto().graph.input) == (len(case.model.graph.input) if keep else 1)


def test_metadata_and_doc_strings_survive() -> None:
    case = HANDMADE["metadata_and_doc_strings"]()
    after = load_model(case.model)
    normalize(after)
    check(case.model, after, *case.feeds[:1])
    old = {n.output[0]: (n.doc_string, list(n.metadata_props)) for n in case.model.graph.node}
    assert {n.output[0]: (n.doc_string, list(n.metadata_props)) for n in after.to_proto().graph.node} == old


def test_external_weights_stay_external(tmp_path: Path) -> None:
    path = write_external(tmp_path)
    after = load_model(path)
    normalize(after)
    (tmp_path / "out").mkdir()
    files = write(after, tmp_path / "out" / "m.onnx")
    case = HANDMADE["resnet_block"]()
    assert len(files) == 2
    expected = session(path).run(None, case.feeds[0])[0]
    np.testing.assert_allclose(session(tmp_path / "out" / "m.onnx").run(None, case.feeds[0])[0], expected, rtol=1e-5)

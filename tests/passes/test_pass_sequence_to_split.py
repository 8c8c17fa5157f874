"""Sequences of parts, as torch.export writes torch.chunk, become Split."""

import numpy as np
import onnx
import pytest
from handmade.core import feeds, model, weight
from pass_checks import check, ops, rewritten

import onnxshot
from onnxshot.graph.load import load_model
from onnxshot.passes.normalize import normalize
from onnxshot.passes.sequence_to_split import SequenceToSplit

PARTS = {"scalar": np.array(3), "uneven": np.array(4), "sizes": np.array([2, 1, 3]), "none": None}


def chunked(split: object, positions: tuple[int, ...], opset: int = 17, attrs: str = "axis = 1") -> onnx.ModelProto:
    given = "x" if split is None else "x, split"
    reads = " ".join(f"p{i} = SequenceAt(s, at{i})" for i in range(len(positions)))
    results = ", ".join(f"float[n, k{i}, 5] y{i}" for i in range(len(positions)))
    ends = " ".join(f"y{i} = Neg(p{i})" for i in range(len(positions)))
    text = f"g (float[n, 6, 5] x) => ({results}) {{ s = SplitToSequence<{attrs}>({given}) {reads} {ends} }}"
    held = {f"at{i}": np.array(at) for i, at in enumerate(positions)}
    return model(text, held if split is None else {**held, "split": np.asarray(split)}, opset=opset)


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("positions", [(0, 1), (-1, 0), (1, 1)], ids=str)
def test_a_sequence_is_a_split(kind: str, positions: tuple[int, ...], opset: int) -> None:
    after, change = rewritten(chunked(PARTS[kind], positions, opset), SequenceToSplit(), *feeds(2, x=(2, 6, 5)))
    assert change.edits == 1
    assert ops(after)["Split"] == 1
    assert ops(after)["SequenceAt"] == ops(after)["SplitToSequence"] == 0
    normalize(after)
    check(chunked(PARTS[kind], positions, opset), after, *feeds(2, x=(2, 6, 5)))
    assert ops(after)["Identity"] == 0


@pytest.mark.parametrize(
    ("proto", "why"),
    [
        (chunked(None, (0, 1), attrs="axis = 1, keepdims = 0"), "the axis is dropped"),
        (chunked(PARTS["scalar"], (0, 1), attrs="axis = 0"), "the size of the axis is free"),
        (
            model(
                "g (float[n, 6, 5] x, int64 at) => (float[n, k, 5] y) { s = SplitToSequence<axis = 1>(x, split)"
                " y = SequenceAt(s, at) }",
                {"split": np.array(3)},
            ),
            "the position is computed",
        ),
        (
            model(
                "g (float[n, 6, 5] x) => (float[n, k, 5] y, int64 c) { s = SplitToSequence<axis = 1>(x, split)"
                " y = SequenceAt(s, at) c = SequenceLength(s) }",
                {"split": np.array(3), "at": np.array(0)},
            ),
            "another operator reads the sequence",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_sequences_stay(proto: onnx.ModelProto, why: str) -> None:
    step = load_model(proto)
    assert SequenceToSplit().run(step).edits == 0, why
    assert ops(step)["SplitToSequence"] == 1


def test_channels_are_cut_through_a_chunk() -> None:
    """A block of a ShuffleNet as torch.export writes it: half of the channels pass, half are computed."""
    text = """net (float[1, 8, 6, 6] x) => (float[1, 4] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w1) r = Relu(a)
        s = SplitToSequence<axis = 1>(r, half) left = SequenceAt(s, zero) right = SequenceAt(s, one)
        c = Conv<pads = [1, 1, 1, 1]>(right, w2) d = Relu(c)
        e = Concat<axis = 1>(left, d) f = Conv(e, w3) p = GlobalAveragePool(f) y = Flatten(p) }"""
    held = {
        "w1": weight(32, 8, 3, 3), "w2": weight(16, 16, 3, 3), "w3": weight(4, 32, 1, 1), "half": np.array(16),
        "zero": np.array(0), "one": np.array(1),
    }  # fmt: skip
    found = onnxshot.shrink(model(text, held), target_flops=0.8, multiple=1)
    before, after = found.report.macs
    assert after <= 0.82 * before
    onnx.checker.check_model(found.model.to_proto(), full_check=True)

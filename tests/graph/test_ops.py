import numpy as np
import pytest
from handmade import HANDMADE
from handmade.core import Feed, model, vector, weight
from planned_models import run

from onnxshot.graph import Node
from onnxshot.graph.load import load_model
from onnxshot.graph.ops import OPS, channel_axis, data_slots, op_of, weight_slot


def first(text: str, constants: Feed) -> Node:
    """The first node of a graph given as text."""
    return load_model(model(text, constants)).graph.nodes[0]


CHANNELS = {
    "Conv": ("y = Conv(x, w)", "1, 4, 8, 8", "1, 6, 6, 6", weight(6, 4, 3, 3), 0),
    "grouped Conv": ("y = Conv<group = 2>(x, w)", "1, 4, 8, 8", "1, 6, 6, 6", weight(6, 2, 3, 3), 0),
    "ConvTranspose": ("y = ConvTranspose(x, w)", "1, 4, 8, 8", "1, 6, 9, 9", weight(4, 6, 2, 2), 1),
    "grouped ConvTranspose": (
        "y = ConvTranspose<group = 2>(x, w)", "1, 4, 8, 8", "1, 6, 9, 9", weight(4, 3, 2, 2), 1,
    ),
    "Gemm": ("y = Gemm(x, w)", "4, 8", "4, 6", weight(8, 6), 1),
    "Gemm transB": ("y = Gemm<transB = 1>(x, w)", "4, 8", "4, 6", weight(6, 8), 0),
    "Gemm, weight on the left": ("y = Gemm(w, x)", "8, 4", "6, 4", weight(6, 8), 0),
    "Gemm transA, weight on the left": ("y = Gemm<transA = 1>(w, x)", "8, 4", "6, 4", weight(8, 6), 1),
    "MatMul": ("y = MatMul(x, w)", "4, 8", "4, 6", weight(8, 6), 1),
    "MatMul rank 3": ("y = MatMul(x, w)", "3, 4, 8", "3, 4, 6", weight(3, 8, 6), 2),
    "MatMul, weight on the left": ("y = MatMul(w, x)", "8, 4", "6, 4", weight(6, 8), 0),
    "MatMul rank 3, weight on the left": ("y = MatMul(w, x)", "3, 8, 4", "3, 6, 4", weight(3, 6, 8), 1),
    "MatMul with a vector": ("y = MatMul(x, w)", "4, 8", "4", weight(8), None),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANNELS)
def test_a_channel_of_the_weight_reaches_its_own_outputs_only(name: str) -> None:
    """Doubling one channel doubles the outputs of that channel (of every group) and leaves all others alone."""
    body, x_dims, y_dims, w, expected = CHANNELS[name]
    text = f"g (float[{x_dims}] x) => (float[{y_dims}] y) {{ {body} }}"
    node = first(text, {"w": w})
    slot = weight_slot(node)
    assert slot is not None
    assert channel_axis(node, slot, w.ndim) == expected
    if expected is None:
        return
    x = np.random.default_rng(1).normal(size=tuple(map(int, x_dims.split(",")))).astype(np.float32)
    louder = w.copy()
    louder[(slice(None),) * expected + (1,)] *= 2
    (plain,), (loud,) = (run(model(text, {"w": v}), {"x": x}) for v in (w, louder))
    unchanged = np.isclose(plain, loud, rtol=1e-5, atol=1e-6)
    doubled = np.isclose(2 * plain, loud, rtol=1e-5, atol=1e-6)
    assert (unchanged | doubled).all()
    groups = int(node.attrs.get("group", 1)) if node.op == "ConvTranspose" else 1
    share = groups / (w.shape[expected] * groups)
    assert np.mean(doubled & ~unchanged) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_recurrent_weights_have_their_gates_on_axis_1(name: str) -> None:
    node = load_model(HANDMADE[name]().model).graph.nodes[0]
    assert weight_slot(node) == 1
    assert [channel_axis(node, slot, 3) for slot in (1, 2)] == [1, 1]
    assert data_slots(node) == [0]


def test_weight_slot_is_the_constant_operand() -> None:
    head = "g (float[8, 8] x, float[8, 8] z) => (float[8, 8] y)"
    assert weight_slot(first(head + "{ y = MatMul(x, w) }", {"w": weight(8, 8)})) == 1
    assert weight_slot(first(head + "{ y = MatMul(w, x) }", {"w": weight(8, 8)})) == 0
    assert weight_slot(first(head + "{ y = MatMul(x, z) }", {})) is None
    assert weight_slot(first(head + "{ y = Add(x, w) }", {"w": weight(8, 8)})) is None


def test_data_slots_exclude_constants_parameters_and_absent_inputs() -> None:
    head = "g (float[4, 4] x, float[4, 4] z, int64[2] s) => (float[4, 4] y)"
    assert data_slots(first(head + "{ y = Add(x, z) }", {})) == [0, 1]
    assert data_slots(first(head + "{ y = Add(x, c) }", {"c": vector(4)})) == [0]
    assert data_slots(first(head + "{ y = Reshape(x, s) }", {})) == [0]
    assert data_slots(first(head + "{ y = Gemm(x, w, z) }", {"w": weight(4, 4)})) == [0]
    assert data_slots(first(head + "{ y = Concat<axis = 0>(x, c, z) }", {"c": weight(4, 4)})) == [0, 2]
    assert data_slots(first(head + "{ y = Clip(x, , six) }", {"six": np.array(6, np.float32)})) == [0]


def test_a_custom_operator_with_a_standard_name_is_unknown() -> None:
    text = "g (float[4, 4] x) => (float[4, 4] y) { y = vendor.MatMul(x, w) }"
    node = load_model(model(text, {"w": weight(4, 4)}, imports=', "vendor": 1')).graph.nodes[0]
    assert weight_slot(node) is None
    assert op_of(node) != OPS["MatMul"]


@pytest.mark.parametrize(
    ("body", "keeps"),
    [
        ("y = Pad(x, p)", True),
        ("y = Pad(x, p, zero)", True),
        ("y = Pad(x, p, seven)", False),
        ('y = Pad<mode = "reflect">(x, p)', True),
        ('y = Resize<mode = "nearest">(x, , s)', True),
        ('y = Resize<mode = "linear">(x, , s)', True),
        ('y = Resize<mode = "cubic">(x, , s)', False),
        ('y = Resize<mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize">(x, roi, s)', False),
        ("y = MaxPool<kernel_shape = [2, 2]>(x)", True),
        ("y = AveragePool<kernel_shape = [2, 2]>(x)", False),
    ],
)
def test_which_operators_keep_the_range(body: str, keeps: bool) -> None:
    """A padding of 7, or the overshoot of a cubic resize, is outside the range of the input."""
    constants = {
        "p": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "zero": np.array(0, np.float32),
        "seven": np.array(7, np.float32),
        "s": np.array([1, 1, 2, 2], np.float32),
        "roi": np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32),
    }
    node = first(f"g (float[1, 2, 4, 4] x) => (float[a, b, c, d] y) {{ {body} }}", constants)
    assert op_of(node).keeps_range is keeps

"""Nodes in 16 bits: what is stored, where casts stand, and that answers stay."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from fixture_runs import stored
from handmade import HANDMADE
from handmade.core import Feed, feeds, model, weight
from pass_checks import loaded, ops, outputs
from tensor_ranges import spans_of

from onnxshot.graph import Model
from onnxshot.maths.sqnr import sqnr_db
from onnxshot.passes.normalize import normalize
from onnxshot.passes.to_precision16 import ToPrecision16
from onnxshot.planning.plan import HALF
from onnxshot.planning.precision16_ops import BF16, FP16, HalfType
from onnxshot.planning.precision16_plan import plan_half

RANDOM: set[str] = set()


def halved(proto: onnx.ModelProto, samples: Sequence[Feed], kind: HalfType = FP16) -> tuple[Model, int]:
    """The model in 16 bits, valid and with its contract, and how many nodes went; fp16 within 40 dB in ONNX Runtime."""
    made = loaded(proto)
    change = ToPrecision16(plan_half(made, kind, spans_of(proto, samples))).run(made)
    after = made.to_proto()
    onnx.checker.check_model(after, full_check=True)
    assert list(after.graph.input) == list(proto.graph.input)
    assert list(after.graph.output) == list(proto.graph.output)
    for feed in samples if kind is FP16 else ():
        for wanted, found in zip(outputs(proto, feed), outputs(after, feed), strict=True):
            assert found.dtype == wanted.dtype
            assert sqnr_db(wanted.astype(np.float64), found.astype(np.float64)) > 40
    return made, change.edits


def types(made: Model) -> dict[str, str]:
    """Tensor -> its element type, as ONNX infers it."""
    graph = onnx.shape_inference.infer_shapes(made.to_proto(), strict_mode=True).graph
    names = onnx.TensorProto.DataType.Name
    return {v.name: names(v.type.tensor_type.elem_type) for v in (*graph.value_info, *graph.output)}


def test_casts_stand_at_the_borders_alone() -> None:
    case = HANDMADE["resnet_block"]()
    made, edits = halved(case.model, case.feeds)
    assert edits == len(case.model.graph.node)
    assert ops(made)["Cast"] == 2
    assert {v.dtype.name for v in stored(made.to_proto()).values()} == {"float16"}


def test_a_float32_island_is_wrapped_in_casts_once() -> None:
    text = """g (float[1, 8] x) => (float[1, 8] y, float[1, 8] z) {
        a = MatMul(x, w) s = Softmax(a) e = Exp(a) b = MatMul(s, w) c = MatMul(s, w) y = Add(b, c) z = MatMul(e, w)
    }"""
    made, edits = halved(model(text, {"w": weight(8, 8)}), feeds(3, x=(1, 8)))
    assert edits == 5
    assert ops(made) == {"MatMul": 4, "Softmax": 1, "Exp": 1, "Add": 1, "Cast": 6}
    assert sum(v.size for v in stored(made.to_proto()).values()) == 64, "one weight, stored once"


def test_an_output_that_is_read_inside_keeps_name_and_type() -> None:
    text = "g (float[1, 8] x) => (float[1, 8] y, float[1, 8] z) { y = MatMul(x, w) r = Relu(y) z = MatMul(r, w) }"
    made, _ = halved(model(text, {"w": weight(8, 8)}), feeds(3, x=(1, 8)))
    found = types(made)
    assert found["y"] == found["z"] == "FLOAT"
    assert found["r"] == "FLOAT16"
    assert ops(made)["Cast"] == 3


def test_cast_to_float_gives_16_bits() -> None:
    """OCC #320: a Cast that still says float32 feeds a node of 16 bits."""
    text = """g (int64[1, 8] i, float16[1, 8] h) => (float[1, 8] y) {
        a = Cast<to = 1>(i) b = Cast<to = 1>(h) c = Add(a, b) y = MatMul(c, w)
    }"""
    rng = np.random.default_rng(0)
    samples: list[Feed] = [
        {"i": rng.integers(0, 9, (1, 8)), "h": rng.normal(0, 1, (1, 8)).astype(np.float16)} for _ in range(3)
    ]
    made, edits = halved(model(text, {"w": weight(8, 8)}), samples)
    assert edits == 4
    (to_half,) = (n for n in made.to_proto().graph.node if n.input[0] == "i")
    assert to_half.attribute[0].i == onnx.TensorProto.FLOAT16
    assert ops(made)["Cast"] == 2, "the one from float16 is gone, the other and that of the output stay"
    assert types(made)["c"] == "FLOAT16"


def test_casts_of_16_bits_to_other_types_read_them_as_they_are() -> None:
    text = "g (float[1, 8] x) => (int64[1, 8] y) { a = MatMul(x, w) b = Mul(a, k) y = Cast<to = 7>(b) }"
    made = loaded(proto := model(text, {"w": weight(8, 8), "k": np.float32(3)}))
    ToPrecision16(plan_half(made, FP16, spans_of(proto, feeds(3, x=(1, 8))))).run(made)
    assert ops(made) == {"Cast": 2, "MatMul": 1, "Mul": 1}


def test_resize_keeps_its_scales_in_float32() -> None:
    """OCC #306, #207: Resize with scales of float16 is no valid model."""
    text = """g (float[1, 4, 4, 4] x) => (float[1, 4, 8, 8] y) {
        c = Conv<kernel_shape = [1, 1]>(x, w) y = Resize<mode = "linear">(c, roi, scales)
    }"""
    constants: dict[str, Any] = {
        "w": weight(4, 4, 1, 1), "roi": np.zeros(0, np.float32), "scales": np.array([1, 1, 2, 2], np.float32),
    }  # fmt: skip
    made, edits = halved(model(text, constants), feeds(3, x=(1, 4, 4, 4)))
    assert edits == 2
    (resize,) = (n for n in made.to_proto().graph.node if n.op_type == "Resize")
    kept = stored(made.to_proto())
    assert kept[resize.input[1]].dtype == kept[resize.input[2]].dtype == np.float32


def test_shapes_are_asked_of_16_bits_without_a_cast() -> None:
    text = """g (float[1, 8] x) => (float[1, 8] y, int64[2] s) { a = MatMul(x, w) s = Shape(a) y = Reshape(a, s) }"""
    made, edits = halved(model(text, {"w": weight(8, 8)}), feeds(3, x=(1, 8)))
    assert edits == 2
    assert ops(made)["Cast"] == 2


def test_subgraphs_see_float32() -> None:
    for name in ("if_captures_weights", "loop_body", "nested_if"):
        case = HANDMADE[name]()
        made, _ = halved(case.model, case.feeds)
        for graph, node in made.walk():
            if graph is not made.graph:
                assert all(made.elem_type(t) != onnx.TensorProto.FLOAT16 for t in node.inputs)


def test_bf16_is_written_as_it_is_rounded() -> None:
    import ml_dtypes

    text = "g (float[1, 8] x) => (float[1, 8] y) { a = MatMul(x, w) y = Relu(a) }"
    made, edits = halved(model(text, {"w": weight(8, 8)}, opset=22, ir=10), feeds(2, x=(1, 8)), BF16)
    assert edits == 2
    (found,) = stored(made.to_proto()).values()
    np.testing.assert_array_equal(found, weight(8, 8).astype(ml_dtypes.bfloat16))
    assert types(made)["a"] == "BFLOAT16"


def test_a_limit_beyond_16_bits_becomes_the_largest_value() -> None:
    text = "g (float[1, 8] x) => (float[1, 8] y) { a = MatMul(x, w) y = Clip(a, low, high) }"
    constants = {"w": weight(8, 8), "low": np.float32(0), "high": np.finfo(np.float32).max}
    made, _ = halved(model(text, constants), feeds(2, x=(1, 8)))
    assert all(np.isfinite(values).all() for values in stored(made.to_proto()).values())


@pytest.mark.parametrize("name", [name for name, build in HANDMADE.items() if build().runs])
def test_every_handmade_model_stays_within_40_db_or_says_why(name: str) -> None:
    """Scaled inputs, so that another few tensors pass what fp16 holds each time."""
    case = HANDMADE[name]()
    rng = np.random.default_rng(len(name))
    for times in (1.0, float(10 ** rng.uniform(0, 4))):
        samples = [
            {k: np.asarray(v * v.dtype.type(times)) if v.dtype == np.float32 else v for k, v in feed.items()}
            for feed in case.feeds[:3]
        ]
        made = loaded(case.model)
        normalize(made)
        normal = made.to_proto()
        plan = plan_half(made, FP16, spans_of(normal, samples))
        assert all(node.reason for node in plan.nodes if node.how != HALF)
        ToPrecision16(plan).run(made)
        for feed in samples:
            for wanted, found in zip(outputs(normal, feed), outputs(made.to_proto(), feed), strict=True):
                assert found.dtype == wanted.dtype
                if wanted.dtype.kind == "f" and name not in RANDOM:
                    assert sqnr_db(wanted.astype(np.float64), found.astype(np.float64)) > 40


def test_a_plan_without_such_nodes_changes_nothing() -> None:
    case = HANDMADE["no_weights"]()
    made, edits = halved(case.model, case.feeds)
    assert edits == 0
    assert "Cast" not in ops(made)

import numpy as np
import onnx
import pytest
from handmade import HANDMADE
from handmade.core import model, weight
from pass_checks import ops, outputs, rewritten
from planned_models import initializers

from onnxshot.graph.load import load_model
from onnxshot.passes.normalize import normalize
from onnxshot.passes.store_original_dtype import StoreOriginalDtype


@pytest.mark.parametrize("op", ["conv", "matmul", "gemm"])
def test_a_weight_that_came_as_float16_goes_back(op: str) -> None:
    case = HANDMADE[f"{op}_behind_cast"]()
    loaded = load_model(case.model)
    normalize(loaded)
    assert "Cast" not in ops(loaded)
    change = StoreOriginalDtype().run(loaded)
    made = loaded.to_proto()
    onnx.checker.check_model(made, full_check=True)
    assert change.edits == 1
    assert ops(loaded)["Cast"] == 1
    (half,) = (v for v in initializers(made).values() if v.dtype == np.float16)
    np.testing.assert_array_equal(half, initializers(case.model)["s"])
    assert made.ByteSize() <= case.model.ByteSize() + 400
    assert StoreOriginalDtype().run(loaded).edits == 0, "once is enough"


@pytest.mark.parametrize(("lowest", "stored"), [(0.1, 1), (1e-7, 0)])
def test_a_weight_that_folding_changed_is_rounded_where_that_is_close(lowest: float, stored: int) -> None:
    """BatchNormalization went into it: float16 holds it to 60 dB, but for a channel that leaves its range."""
    text = """g (float[1, 16, 4, 4] x) => (float[1, 64, 4, 4] y) {
        w = Cast<to = 1>(s)
        c = Conv(x, w)
        y = Mul(c, scale)
    }"""
    scale = np.geomspace(lowest, 0.9, 64).astype(np.float32)[:, None, None]
    case = model(text, {"s": weight(64, 16, 1, 1).astype(np.float16), "scale": scale})
    loaded = load_model(case)
    normalize(loaded)
    assert ops(loaded) == {"Conv": 1}
    assert StoreOriginalDtype().run(loaded).edits == stored
    feed = {"x": np.random.default_rng(0).normal(size=(1, 16, 4, 4)).astype(np.float32)}
    (wanted,), (found,) = outputs(case, feed), outputs(loaded.to_proto(), feed)
    noise = np.square(wanted - found).sum(axis=(0, 2, 3))
    assert (np.square(wanted).sum(axis=(0, 2, 3)) > noise * 10**5.5).all()


@pytest.mark.parametrize("kind", ["bfloat16", "float8_e4m3fn", "int8"])
def test_other_narrow_types_go_back_too(kind: str) -> None:
    """What is stored in one or two bytes behind a Cast is no larger once it was folded and stayed float."""
    import ml_dtypes

    values = np.round(weight(64, 32) * 16).astype(getattr(ml_dtypes, kind, kind))
    text = """<ir_version: 9, opset_import: ["" : 19]>
    g (float[1, 64] x) => (float[1, 32] y) { w = Cast<to = 1>(s) y = MatMul(x, w) }"""
    case = onnx.parser.parse_model(text)
    case.graph.initializer.append(onnx.numpy_helper.from_array(values, "s"))
    loaded = load_model(case)
    normalize(loaded)
    assert ops(loaded) == {"MatMul": 1}
    assert StoreOriginalDtype().run(loaded).edits == 1
    made = loaded.to_proto()
    assert made.ByteSize() <= case.ByteSize() + 300
    feed = {"x": np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)}
    np.testing.assert_array_equal(*(outputs(m, feed)[0] for m in (case, made)))


def test_a_model_that_was_float32_is_left_alone() -> None:
    for name in ("resnet_block", "half_precision_model", "shared_with_output"):
        after, change = rewritten(HANDMADE[name]().model, StoreOriginalDtype())
        assert change.edits == 0
        assert "Cast" not in ops(after)


def test_small_constants_are_not_worth_a_node() -> None:
    text = "g (float[1, 4] x) => (float[1, 4] y) { w = Cast<to = 1>(s) y = MatMul(x, w) }"
    loaded = load_model(model(text, {"s": weight(4, 4).astype(np.float16)}))
    normalize(loaded)
    assert StoreOriginalDtype().run(loaded).edits == 0


def test_every_reader_gets_the_one_cast() -> None:
    text = """g (float[2, 64] x) => (float[2, 64] y) {
        w = Cast<to = 1>(s)
        h = MatMul(x, w)
        r = Relu(h)
        y = MatMul(r, w)
    }"""
    proto = model(text, {"s": weight(64, 64).astype(np.float16)})
    loaded = load_model(proto)
    normalize(loaded)
    assert StoreOriginalDtype().run(loaded).edits == 1
    assert ops(loaded) == {"MatMul": 2, "Relu": 1, "Cast": 1}
    assert [v.dtype.name for v in initializers(loaded.to_proto()).values()] == ["float16"]

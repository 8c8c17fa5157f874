"""8-bit images, normalized per channel, are quantized to exactly their original bytes."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from fixture_data import session
from handmade.core import Case, Feed, model, vector, weight
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from planned_models import FAST, sqnr

from onnxshot import Settings, quantize
from onnxshot.graph.load import load_model
from onnxshot.maths.value_grid import Grid, find_grid, least_db
from onnxshot.passes.image_input_grid import PutOnGrid, grids_of, reader_of

MEAN, STD = np.asarray([0.485, 0.456, 0.406]), np.asarray([0.229, 0.224, 0.225])
TEXT = """g (float[1, 3, 12, 12] x) => (float[1, 10] y) {{
    a = Conv<{attributes}>(x, w, b) r = Relu(a) c = Conv<pads = [1, 1, 1, 1]>(r, v, vb) s = Relu(c)
    p = GlobalAveragePool(s) f = Flatten(p) y = Gemm(f, k, kb) }}"""
PADDED = "pads = [1, 0, 2, 1], strides = [2, 2]"


def network(attributes: str = PADDED) -> onnx.ModelProto:
    constants = {
        "w": weight(8, 3, 3, 3), "b": vector(8), "v": weight(12, 8, 3, 3), "vb": vector(12),
        "k": weight(12, 10, channel_axis=1), "kb": vector(10),
    }  # fmt: skip
    return model(TEXT.format(attributes=attributes), constants)


def pictures(count: int, size: int = 12) -> NDArray[np.uint8]:
    rng = np.random.default_rng(5)
    noise = rng.standard_normal((count, 3, size, size + 6))
    smooth = sum(noise[..., i : i + size] for i in range(7))
    return np.clip(128 + 40 * smooth, 0, 255).astype(np.uint8)


def normalized(images: NDArray[np.uint8]) -> list[Feed]:
    x = (images / 255 - MEAN.reshape(3, 1, 1)) / STD.reshape(3, 1, 1)
    return [{"x": one[None].astype(np.float32)} for one in x]


def grids(images: NDArray[np.uint8]) -> list[Grid]:
    found = grids_of([feed["x"] for feed in normalized(images)])
    assert found is not None
    return found


# ---------------------------------------------------------------------------- grids


def test_least_sqnr_of_a_channel_under_one_scale() -> None:
    rng = np.random.default_rng(5)
    samples = [rng.normal(size=(2, 3, 40, 40)) * np.asarray([3.0, 0.2, 0.0]).reshape(3, 1, 1) + 1 for _ in range(4)]
    quiet = np.concatenate([x[:, 1] for x in samples])
    noise = np.rint(quiet / 0.05) * 0.05 - quiet
    assert least_db(samples, 0.05) == pytest.approx(10 * np.log10(quiet.var() / noise.var()), abs=0.1)
    assert least_db([np.ones((1, 3, 4, 4))], 0.1) == np.inf


@given(st.floats(1e-3, 10), st.floats(-50, 50), st.lists(st.integers(0, 255), min_size=40, max_size=80, unique=True))
def test_the_grid_of_values_on_one_is_found(step: float, offset: float, codes: list[int]) -> None:
    values = (offset + step * np.asarray(codes, np.float64)).astype(np.float32)
    found = find_grid(values)
    if np.abs(values).max() * 1e-5 > step / 4:
        return  # float32 itself is too coarse to tell
    assert found is not None
    codes_found = (values.astype(np.float64) - found.offset) / found.step
    assert np.abs(codes_found - np.rint(codes_found)).max() < 0.03
    assert codes_found.min() > -0.5
    assert codes_found.max() < 255.5


def test_all_256_values_determine_step_and_offset_exactly() -> None:
    found = find_grid(((np.arange(256) / 255 - 0.485) / 0.229).astype(np.float32))
    assert found is not None
    assert found.step == pytest.approx(1 / 255 / 0.229, rel=1e-7)
    assert found.offset == pytest.approx(-0.485 / 0.229, abs=1e-6)


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).standard_normal(500),
        np.zeros(100),
        np.arange(300.0),
        np.arange(8.0),
        np.concatenate([np.arange(100.0), [50.4]]),
        np.asarray([np.nan, *np.arange(99)]),
        np.zeros(0),
    ],
    ids=["noise", "one value", "300 levels", "few levels", "one beside it", "not finite", "none"],
)
def test_values_without_a_grid(values: NDArray[Any]) -> None:
    assert find_grid(values.astype(np.float32)) is None


def test_one_exact_scale_needs_no_scales_per_channel() -> None:
    x = (pictures(4) / 255).astype(np.float32)
    assert grids_of(list(x[:, None].reshape(4, 1, 3, 12, 12))) is None


def test_zero_points_half_way_between_two_integers_are_rejected() -> None:
    codes = np.arange(256, dtype=np.float32)
    apart = np.stack([codes - 100.2, codes - 110.3])[None, :, :]
    assert grids_of([apart]) is not None
    tie = np.stack([codes - 100.2, codes - 110.5])[None, :, :]
    assert grids_of([tie]) is None


# ---------------------------------------------------------------------------- the pass


@pytest.mark.parametrize("attributes", [PADDED, "strides = [1, 1]", "dilations = [2, 1], pads = [0, 1, 0, 1]"])
def test_float_outputs_stay_the_same(attributes: str) -> None:
    images = pictures(6)
    proto = network(attributes)
    changed = load_model(proto)
    change = PutOnGrid({"x": grids(images)})
    assert change.run(changed).edits == 1
    after = changed.to_proto()
    onnx.checker.check_model(after)
    ops = [node.op_type for node in after.graph.node]
    assert ops.count("Pad") == ("pads" in attributes)
    assert ops.count("Mul") == ops.count("Add") == 1
    feeds = normalized(images)
    assert sqnr(Case(proto, feeds), after) > 100
    runner = session(_with_output(after, change.made["x"]))
    for feed, image in zip(feeds, images, strict=True):
        codes = runner.run([change.made["x"]], feed)[0][0]
        top, left = (1, 0) if attributes == PADDED else (0, 1) if "pads" in attributes else (0, 0)
        np.testing.assert_allclose(codes[:, top : top + 12, left : left + 12], image, atol=2e-3)


def _with_output(proto: onnx.ModelProto, name: str) -> bytes:
    proto.graph.output.append(onnx.ValueInfoProto(name=name))
    return bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    "text",
    [
        "a = Conv<pads = [1, 1, 1, 1]>(x, w, b) z = Relu(x) y = Conv<pads = [1, 1, 1, 1]>(z, w, b)",
        'a = Conv<auto_pad = "SAME_UPPER">(x, w, b) y = Relu(a)',
        "n = Neg(x) y = Conv<pads = [1, 1, 1, 1]>(n, w, b)",
    ],
    ids=["read twice", "pads by itself", "not read by a Conv"],
)
def test_inputs_without_a_suitable_conv_stay(text: str) -> None:
    constants = {"w": weight(3, 3, 3, 3), "b": vector(3)}
    proto = model(f"g (float[1, 3, 12, 12] x) => (float[1, 3, 12, 12] y) {{ {text} }}", constants)
    assert reader_of(load_model(proto), "x") is None


# ---------------------------------------------------------------------------- the whole


def made(feeds: list[Feed], **options: Any) -> Any:
    return quantize(network(), feeds, settings=FAST, effort="balanced", **options)


def test_the_quantized_image_equals_the_image(tmp_path: Any) -> None:
    images = pictures(32)
    result = made(normalized(images), grid=True)
    assert "inputs are quantized on the grid" in " ".join(result.report.notes)
    proto = result.model.to_proto()
    q = next(node for node in proto.graph.node if node.op_type == "QuantizeLinear")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    assert stored[q.input[1]].shape == stored[q.input[2]].shape == (3,)
    np.testing.assert_allclose(stored[q.input[1]], 1 / 255 / STD, rtol=1e-6)
    assert stored[q.input[2]].tolist() == np.rint(255 * MEAN).tolist()
    assert not {"Mul", "Add"} & {node.op_type for node in proto.graph.node}
    runner = session(_with_output(proto, q.output[0]))
    for feed, image in zip(normalized(images), images, strict=True):
        codes = runner.run([q.output[0]], feed)[0]
        assert codes.dtype == np.uint8
        np.testing.assert_array_equal(codes[0, :, 1:13, 0:12], image)
        assert codes[0, :, 0, 0].tolist() == stored[q.input[2]].tolist(), "beside the picture, what stands for zero"


def test_grid_is_tried_and_kept_if_it_helps() -> None:
    """One channel has 9 times the range of another, so one scale for all is inaccurate."""
    spans = np.asarray([3, 1, 1 / 3], np.float32).reshape(1, 3, 1, 1)
    feeds = [{"x": feed["x"] * spans} for feed in normalized(pictures(48))]
    uneven = network()
    (w,) = (t for t in uneven.graph.initializer if t.name == "w")
    w.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(w) / spans, "w"))
    results = {grid: quantize(uneven, feeds, settings=FAST, grid=grid) for grid in (None, True, False)}
    found = {grid: sqnr(Case(uneven, feeds), result.model.to_proto()) for grid, result in results.items()}
    assert found[True] > found[False] + 3
    assert found[None] == found[True]
    kept = [any("grid" in note for note in results[grid].report.notes) for grid in (None, True, False)]
    assert kept == [True, True, False]


def test_images_between_the_steps_have_no_grid() -> None:
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 3, 12, 12)).astype(np.float32)} for _ in range(16)]
    assert not any("grid" in note for note in made(feeds, grid=True).report.notes)


def test_the_result_can_be_taken_back_to_float() -> None:
    feeds = normalized(pictures(16))
    result = made(feeds, grid=True)
    again = quantize(result.model.to_proto(), feeds, settings=replace(FAST, requantize=True), mode="weights")
    assert sqnr(Case(network(), feeds), again.model.to_proto()) > 30


def test_a_target_without_per_channel_activations_has_no_grid() -> None:
    feeds = normalized(pictures(16))
    result = quantize(network(), feeds, settings=FAST, target="tensorrt", grid=True)
    assert not any("grid" in note for note in result.report.notes)


def test_a_proven_run_runs_all_of_it_in_int8() -> None:
    feeds = normalized(pictures(48))
    settings = Settings(use_cache=False, threads=1, bench_seconds=0.01)
    report = quantize(network(), feeds, settings=settings, grid=True).report
    without = quantize(network(), feeds, settings=settings, grid=False).report
    assert report.int8_macs_share is not None
    assert report.int8_macs_share == without.int8_macs_share > 0.99
    assert report.float_between_qdq == without.float_between_qdq
    assert report.sqnr_db is not None
    assert report.sqnr_db > 40



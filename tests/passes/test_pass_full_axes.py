"""Pad and Resize that name their axes, CenterCropPad: written for all axes, computed the same, and loaded in int8."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade.core import feeds, model, vector, weight
from pass_checks import ops, rewritten, the

import onnxshot
from onnxshot.graph import edit
from onnxshot.maths.sqnr import sqnr_db
from onnxshot.passes.full_axes import FullAxes
from onnxshot.settings import Settings

PADS = {
    "constant": ("Pad(c, pads, value, axes)", {"pads": [1, 0, 2, 3], "value": np.float32(-2), "axes": [2, 3]}),
    "reflect": ('Pad<mode = "reflect">(c, pads, , axes)', {"pads": [1, 2, 0, 3], "axes": [3, -2]}),
    "edge": ('Pad<mode = "edge">(c, pads, , axes)', {"pads": [2, 1], "axes": [-1]}),
    "wrap": ('Pad<mode = "wrap">(c, pads, , axes)', {"pads": [2, 1], "axes": [2]}),
    "negative": ("Pad(c, pads, , axes)", {"pads": [-1, 2, 3, -2], "axes": [2, 3]}),
}
SIZES = {
    "sizes": ('Resize<axes = [2, 3], mode = "linear">(c, , , s)', {"s": [13, 21]}),
    "sizes_swapped": ('Resize<axes = [3, 2], mode = "nearest">(c, , , s)', {"s": [13, 21]}),
    "scales": ('Resize<axes = [2, 3], mode = "cubic", exclude_outside = 1>(c, , s)', {"s": np.float32([1.5, 2])}),
    "smaller": ('Resize<axes = [-2, -1], mode = "linear", antialias = 1>(c, , s)', {"s": np.float32([0.5, 0.4])}),
    "cubic_smaller": ('Resize<mode = "cubic">(c, , s)', {"s": np.float32([1, 1, 0.5, 0.7])}),
    "corners": (
        'Resize<axes = [2], mode = "linear", coordinate_transformation_mode = "align_corners">(c, , , s)', {"s": [17]},
    ),
    "crop": (
        'Resize<axes = [2, 3], mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize">(c, r, , s)',
        {"s": [8, 8], "r": np.float32([0.1, 0.2, 0.9, 0.7])},
    ),
    "aspect": (
        'Resize<axes = [2, 3], mode = "linear", keep_aspect_ratio_policy = "not_larger">(c, , , s)', {"s": [20, 30]},
    ),
    "aspect_rounded": (
        'Resize<axes = [2, 3], mode = "linear", keep_aspect_ratio_policy = "not_smaller">(c, , , s)', {"s": [9, 13]},
    ),
    "crop_or_pad": ("CenterCropPad<axes = [2, 3]>(c, s)", {"s": [7, 15]}),
    "crop_or_pad_odd": ("CenterCropPad<axes = [3, 2]>(c, s)", {"s": [6, 17]}),
}  # fmt: skip
FORMS = PADS | SIZES


def held(values: dict[str, Any]) -> dict[str, Any]:
    """Constants: lists are int64."""
    return {name: np.array(v, np.int64) if isinstance(v, list) else v for name, v in values.items()}


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_all_axes_are_written_out(form: str, free: bool) -> None:
    """With a dynamic height and width too: a Shape then gives the sizes of the axes that are not listed."""
    line, constants = FORMS[form]
    size = "float[n, 4, h, w] c" if free else "float[n, 4, 10, 10] c"
    opset = 19
    proto = model(f"g ({size}) => (float[n, 4, u, v] y) {{ y = {line} }}", held(constants), opset=opset, ir=9)
    after, change = rewritten(proto, FullAxes(), *feeds(2, c=(2, 4, 10, 10)))
    assert change.edits == (0 if free and "aspect" in form else 1)
    if change.edits and form != "aspect_rounded":
        assert all("axes" not in n.attrs for n in after.graph.nodes if n.op == "Resize")
        assert all(len(n.inputs) < 4 for n in after.graph.nodes if n.op == "Pad")


def test_computed_pads_are_scattered_to_all_axes() -> None:
    text = """g (float[n, 4, h, w] c, int64[2] one) => (float[n, 4, u, w] y) {
        pads = Add(one, one)
        y = Pad(c, pads, , axes)
    }"""
    feed = {**feeds(1, c=(1, 4, 5, 6))[0], "one": np.array([1, 0])}
    after, _ = rewritten(model(text, held({"axes": [2]}), opset=18), FullAxes(), feed)
    assert ops(after) == {"Add": 1, "ScatterElements": 1, "Pad": 1}


def test_a_pad_without_axes_stays() -> None:
    text = "g (float[n, 2, h] c) => (float[n, 2, u] y) { y = Pad(c, pads) }"
    after, change = rewritten(
        model(text, held({"pads": [0, 0, 1, 0, 0, 1]}), opset=18), FullAxes(), *feeds(1, c=(1, 2, 3))
    )
    assert change.edits == 0
    assert edit.constant_input(the(after, "Pad"), 1) is not None


DEFAULT = ("reflect", "cubic_smaller", "aspect_rounded", "crop_or_pad")


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=() if form in DEFAULT else pytest.mark.slow) for form in FORMS]
)
def test_the_written_file_loads_and_gives_the_same_outputs(form: str, tmp_path: Path) -> None:
    """Between two int8 Convs, where ONNX Runtime's layout optimization moves Transposes past the ops."""
    import onnxruntime

    line, constants = FORMS[form]
    text = f"""g (float[n, 4, 10, 10] x) => (float[n, 8, u, v] y) {{
        a = Conv<pads = [1, 1, 1, 1]>(x, w, b)
        c = Relu(a)
        d = {line}
        e = Conv<pads = [1, 1, 1, 1]>(d, t, b)
        y = Relu(e)
    }}"""
    weights = {"w": weight(8, 4, 3, 3), "t": weight(8, 8, 3, 3), "b": vector(8)}
    proto, fed = model(text, held(constants) | weights, opset=19, ir=9), feeds(16, x=(1, 4, 10, 10))
    result = onnxshot.quantize(
        proto, fed, effort="fast", output=tmp_path / "q.onnx", settings=Settings(bench_seconds=0.01, use_cache=False)
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    given = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    written = onnxruntime.InferenceSession(str(tmp_path / "q.onnx"), providers=["CPUExecutionProvider"])
    expected, found = (np.stack([s.run(None, feed)[0] for feed in fed]) for s in (given, written))
    told = result.report.sqnr_db
    assert told is not None
    assert told > 20
    assert sqnr_db(expected, found) > told - 3
    assert result.report.int8_macs_share == 1

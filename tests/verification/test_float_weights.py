"""A report lists every weight that is still float in the written file, whatever reads it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from handmade.core import feeds, model, vector, weight
from onnx import numpy_helper
from planned_models import FAST

from onnxshot.api.quantize import quantize
from onnxshot.report.values import VECTOR

TEXT = """g (float[n, 3, 8, 8] x, float[n, 16] z, int64[n] i, bool c)
=> (float y0, float y1, float y2, float y3, float y4) {
    [fused] y0 = com.microsoft.CDist<metric = "euclidean">(z, w0)
    [sum] y1 = Einsum<equation = "ni,ij->nj">(z, w1)
    [table] t = Gather(w2, i)  y2 = Exp(t)
    [branch] y3 = If (c) <then_branch = a () => (float p) { [inner] p = Mul(z, w3) },
                          else_branch = e () => (float q) { q = Neg(z) }>
    [long] y4 = Add(v, z2)  z2 = Exp(one)
}"""


def network() -> tuple[onnx.ModelProto, dict[str, tuple[int, ...]]]:
    shapes = {"w0": (80, 16), "w1": (16, 64), "w2": (64, 16), "w3": (64, 16), "v": (2048,), "one": (1,)}
    text = TEXT.replace("[long] y4 = Add(v, z2)  z2 = Exp(one)", "z2 = Exp(one)  [long] y4 = Add(v, z2)")
    proto = model(text, {k: weight(*s) if len(s) > 1 else vector(*s) for k, s in shapes.items()},
                  imports=', "com.microsoft": 1')  # fmt: skip
    for out in proto.graph.output:
        out.type.tensor_type.ClearField("shape")
    return proto, shapes


def floats_of(path: Path) -> set[str]:
    """Names of the float initializers of 1024 elements or more in a file."""
    held = (numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer)
    return {str(a.shape) for a in held if a.dtype.kind == "f" and a.size >= 1024}


def test_every_weight_left_in_float_is_listed_with_a_reason(tmp_path: Path) -> None:
    proto, shapes = network()
    other = {"i": np.array([3], np.int64), "c": np.bool_(True)}
    given = [feed | other for feed in feeds(4, x=(1, 3, 8, 8), z=(64, 16))]
    result = quantize(proto, given, output=tmp_path / "q.onnx", exclude=("table", "sum"), settings=FAST)
    left = {row.node: row for row in result.report.float_weights}
    held = floats_of(tmp_path / "q.onnx")
    readers = {"fused": "w0", "sum": "w1", "table": "w2", "inner": "w3", "long": "v"}
    assert {str(shapes[name]) for name in readers.values()} >= held
    for node, name in readers.items():
        if str(shapes[name]) in held:
            assert left[node].reason
    assert set(left) == set(readers)
    assert left["table"].reason == "excluded by 'table'"
    assert left["sum"].reason == "excluded by 'sum'"
    assert left["long"].reason == VECTOR


@pytest.mark.parametrize("mode", ["static", "dynamic", "weights"])
def test_scales_are_not_listed_as_weights(mode: str, tmp_path: Path) -> None:
    proto = model("g (float[n, 32] x) => (float[n, 2048] y) { [product] y = MatMul(x, w) }", {"w": weight(32, 2048)})
    result = quantize(proto, feeds(4, x=(2, 32)), output=tmp_path / "q.onnx", mode=mode, settings=FAST)
    assert floats_of(tmp_path / "q.onnx") == {"(2048,)"}  # one scale per output
    assert result.report.float_weights == []

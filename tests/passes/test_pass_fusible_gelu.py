import itertools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from fixture_data import session
from handmade.core import feeds, model
from pass_checks import loaded, rewritten

from onnxshot.passes.fusible_gelu import FusibleGelu
from onnxshot.runtimes.ort_runtime import Runner

CONSTANTS = {"root": 2**0.5, "inv": 0.5**0.5, "one": 1.0, "half": 0.5, "third": 1 / 3}
INNER = ["Div(x, root)", "Mul(x, inv)"]
HALVES, PRODUCTS = ("h = Mul(half, g)", "h = Mul(g, half)"), ("y = Mul(x, h)", "y = Mul(h, x)")
HALVED = [" ".join(p) for p in itertools.product(HALVES, PRODUCTS)]


def gelu(inner: str, tail: str) -> tuple[str, dict[str, np.ndarray]]:
    text = f"g (float[n, 8] x0) => (float[n, 8] y) {{ x = Neg(x0) d = {inner} e = Erf(d) g = Add(e, one) {tail} }}"
    return text, {k: np.array(v, np.float32) for k, v in CONSTANTS.items() if k in text}


@pytest.mark.parametrize("tail", HALVED)
@pytest.mark.parametrize("inner", INNER)
def test_halving_moves_last_and_changes_no_bit(inner: str, tail: str) -> None:
    text, constants = gelu(inner, tail)
    proto = model(text, constants, opset=17)
    (feed,) = feeds(1, x0=(3, 8))
    after, change = rewritten(proto, FusibleGelu(), feed)
    assert change.edits == 1
    (last,) = [n for n in after.graph.nodes if n.outputs[0].name == "y"]
    assert "half" in [t.name for t in last.inputs]
    expected, found = (
        Runner(p.SerializeToString(), optimize=False, threads=1).run(feed)["y"] for p in (proto, after.to_proto())
    )
    np.testing.assert_array_equal(found, expected)


def test_the_runtime_fuses_what_it_left_in_pieces(tmp_path: Path) -> None:
    text, constants = gelu(INNER[0], HALVED[0])
    proto = model(text, constants, opset=17)
    fused = []
    for candidate in (proto, rewritten(proto, FusibleGelu())[0].to_proto()):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        onnxruntime.InferenceSession(candidate.SerializeToString(), options, providers=["CPUExecutionProvider"])
        fused.append({n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node})
    assert "Erf" in fused[0]
    assert "Erf" not in fused[1] and "Gelu" in fused[1]


@pytest.mark.parametrize(
    "tail",
    [
        "h = Mul(third, g) y = Mul(x, h)",  # not a half
        "h = Mul(half, g) y = Mul(x0, h)",  # times something else
        "h = Mul(half, g) z = Mul(x, h) y = Add(z, h)",  # the half is read twice
        "h = Mul(x, g) y = Mul(h, half)",  # in order already
    ],
)
def test_everything_else_stays(tail: str) -> None:
    text, constants = gelu(INNER[0], tail)
    proto = model(text, constants, opset=17)
    before = loaded(proto).to_proto()
    after, change = rewritten(proto, FusibleGelu(), *feeds(1, x0=(3, 8)))
    assert change.edits == 0
    assert after.to_proto() == before
    assert session(after.to_proto().SerializeToString())

import numpy as np
import pytest
from handmade.core import feeds, model
from pass_checks import ops, rewritten

from onnxshot.passes.mean_to_global_pool import MeanToGlobalPool


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("axes", [[2, 3], [-1, -2], [3, 2]])
def test_spatial_means_become_pooling(axes: list[int], keep: int) -> None:
    out = "float[n, 5, 1, 1]" if keep else "float[n, 5]"
    text = f"g (float[n, 5, 4, 3] x) => ({out} y) {{ y = ReduceMean<axes = {axes}, keepdims = {keep}>(x) }}"
    after, change = rewritten(model(text, {}, opset=13), MeanToGlobalPool(), *feeds(2, x=(2, 5, 4, 3)))
    assert change.edits == 1
    assert ops(after) == ({"GlobalAveragePool": 1} if keep else {"GlobalAveragePool": 1, "Flatten": 1})


def test_axes_as_input_since_opset_18() -> None:
    text = "g (float[n, 5, 4, 3] x) => (float[n, 5, 1, 1] y) { y = ReduceMean(x, axes) }"
    proto = model(text, {"axes": np.array([2, 3])}, opset=18)
    after, change = rewritten(proto, MeanToGlobalPool(), *feeds(1, x=(1, 5, 4, 3)))
    assert change.edits == 1
    assert ops(after) == {"GlobalAveragePool": 1}


@pytest.mark.parametrize(
    "text",
    [
        "g (float[n, 5, 4, 3] x) => (float[n, 1, 4, 3] y) { y = ReduceMean<axes = [1]>(x) }",
        "g (float[n, 5, 4, 3] x) => (float[n, 5, 4, 1] y) { y = ReduceMean<axes = [3]>(x) }",
        "g (float[n, 5, 4, 3] x) => (float[1, 1, 1, 1] y) { y = ReduceMean(x) }",
        "g (float[n, 5] x) => (float[n, 1] y) { y = ReduceMean<axes = [1]>(x) }",
    ],
)
def test_other_means_stay(text: str) -> None:
    shape = (2, 5) if "[n, 5] x" in text else (2, 5, 4, 3)
    after, change = rewritten(model(text, {}, opset=13), MeanToGlobalPool(), *feeds(1, x=shape))
    assert change.edits == 0
    assert ops(after) == {"ReduceMean": 1}


NORMS = {
    "T5": "p = Pow(x, two) m = ReduceMean<axes = [-1]>(p) a = Add(m, eps) r = Sqrt(a) y = Div(x, r)",
    "LLaMA": "p = Mul(x, x) m = ReduceMean<axes = [2]>(p) a = Add(eps, m) r = Sqrt(a) i = Reciprocal(r) y = Mul(x, i)",
    "one over it": "p = Pow(x, two) m = ReduceMean<axes = [2]>(p) a = Add(m, eps) r = Sqrt(a) i = Div(one, r)"
    " y = Mul(x, i)",
    "power of a half": "p = Pow(x, two) m = ReduceMean<axes = [2]>(p) a = Add(m, eps) r = Pow(a, half) y = Div(x, r)",
    "casts": "d = Cast<to = 11>(x) p = Mul(d, d) m = ReduceMean<axes = [2]>(p) f = Cast<to = 1>(m) a = Add(f, eps)"
    " r = Sqrt(a) y = Div(x, r)",
    "clipped": "p = Mul(x, x) m = ReduceMean<axes = [2]>(p) a = Max(m, eps) r = Sqrt(a) y = Div(x, r)",
    "LayerNorm": "m = ReduceMean<axes = [2]>(x) d = Sub(x, m) p = Pow(d, two) v = ReduceMean<axes = [2]>(p)"
    " a = Add(v, eps) r = Sqrt(a) y = Div(d, r)",
    "LayerNorm behind a cast": "h = Cast<to = 11>(x) e = Cast<to = 1>(h) m = ReduceMean<axes = [2]>(e) d = Sub(x, m)"
    " p = Pow(d, two) v = ReduceMean<axes = [2]>(p) a = Add(v, eps) r = Sqrt(a) y = Div(d, r)",
}


@pytest.mark.parametrize("body", NORMS.values(), ids=NORMS)
def test_means_of_norms_stay_what_runtimes_fuse(body: str) -> None:
    constants = {k: np.float32(v) for k, v in {"two": 2, "eps": 1e-6, "one": 1, "half": 0.5}.items()}
    proto = model(f"g (float[n, t, 8] x) => (float[n, t, 8] y) {{ {body} }}", constants, opset=17)
    after, change = rewritten(proto, MeanToGlobalPool(), *feeds(2, x=(2, 3, 8)))
    assert change.edits == 0
    assert "GlobalAveragePool" not in ops(after)


def test_an_rmsnorm_is_fused_after_normalizing() -> None:
    from onnxshot.graph.load import load_model
    from onnxshot.passes.normalize import normalize
    from onnxshot.runtimes.ort_executed import executed

    constants = {"two": np.float32(2), "eps": np.float32(1e-6), "g": np.ones(8, np.float32)}
    text = f"g (float[n, t, 8] x) => (float[n, t, 8] z) {{ {NORMS['T5']} z = Mul(g, y) }}"
    ready = load_model(model(text, constants, opset=17))
    normalize(ready)
    assert executed(ready.to_proto().SerializeToString()).ops == {"SimplifiedLayerNormalization": 1}

import numpy as np
import pytest
from handmade.core import feeds, model
from rewrites import ops, rewritten

from onnxshot.passes.pool_means import PoolMeans


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("axes", [[2, 3], [-1, -2], [3, 2]])
def test_spatial_means_become_pooling(axes: list[int], keep: int) -> None:
    out = "float[n, 5, 1, 1]" if keep else "float[n, 5]"
    text = f"g (float[n, 5, 4, 3] x) => ({out} y) {{ y = ReduceMean<axes = {axes}, keepdims = {keep}>(x) }}"
    after, change = rewritten(model(text, {}, opset=13), PoolMeans(), *feeds(2, x=(2, 5, 4, 3)))
    assert change.edits == 1
    assert ops(after) == ({"GlobalAveragePool": 1} if keep else {"GlobalAveragePool": 1, "Flatten": 1})


def test_axes_as_input_since_opset_18() -> None:
    text = "g (float[n, 5, 4, 3] x) => (float[n, 5, 1, 1] y) { y = ReduceMean(x, axes) }"
    after, change = rewritten(model(text, {"axes": np.array([2, 3])}, opset=18), PoolMeans(), *feeds(1, x=(1, 5, 4, 3)))
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
    after, change = rewritten(model(text, {}, opset=13), PoolMeans(), *feeds(1, x=shape))
    assert change.edits == 0
    assert ops(after) == {"ReduceMean": 1}

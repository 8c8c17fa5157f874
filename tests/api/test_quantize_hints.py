"""What is said of an option that `quantize` does not have."""

from typing import Any

import onnx
import pytest
from handmade.core import feeds, model, weight

import onnxshot
from onnxshot.errors import UsageError


@pytest.fixture
def net() -> onnx.ModelProto:
    return model("g (float[n, 8] x) => (float[n, 8] y) { y = MatMul(x, w) }", {"w": weight(8, 8)})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"efort": "best"}, "did you mean 'effort'?"),
        ({"samples": 8}, "give settings=Settings(samples=...)"),
        ({"min_sqnr": 30}, "onnxshot.tune(model, calib, Goal(min_sqnr=...)) searches"),
    ],
)
def test_the_hint_names_what_was_meant(given: dict[str, Any], said: str, net: onnx.ModelProto) -> None:
    with pytest.raises(UsageError) as refused:
        onnxshot.quantize(net, feeds(4, x=(1, 8)), **given)
    assert said in str(refused.value)

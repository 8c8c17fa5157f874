"""Models that are given as open files and as results: the file that they came from is not replaced."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fixture_runs import QUICK
from handmade.core import feeds, model, weight

import onnxshot
from onnxshot.errors import UsageError

NET = "g (float[N, 16] x) => (float[N, 16] y) { y = MatMul(x, w) }"
SAMPLES = feeds(count=8, x=(1, 16))


@pytest.fixture
def net(tmp_path: Path) -> Path:
    onnx.save(model(NET, {"w": weight(16, 16)}), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_an_open_file_is_the_input_itself(net: Path) -> None:
    before = net.read_bytes()
    calls: list[Any] = [
        lambda file: onnxshot.quantize(file, SAMPLES, output=net, settings=QUICK),
        lambda file: onnxshot.prune(file, sparsity=0.5, output=net, settings=QUICK),
        lambda file: onnxshot.emit(file, output=net),
    ]
    for call in calls:
        with net.open("rb") as file, pytest.raises(UsageError, match="the input itself"):
            call(file)
    assert net.read_bytes() == before


def test_what_a_result_was_made_from_is_not_replaced_by_a_result_of_it(net: Path) -> None:
    before = net.read_bytes()
    pruned = onnxshot.prune(net, sparsity=0.5, settings=QUICK)
    with pytest.raises(UsageError, match="the model that it was made from"):
        onnxshot.quantize(pruned, SAMPLES, output=net, settings=QUICK)
    assert net.read_bytes() == before


def test_two_models_that_give_no_numbers_are_not_ready(tmp_path: Path) -> None:
    proto = model(NET, {"w": np.full((16, 16), np.nan, np.float32)})
    report = onnxshot.compare(proto, proto, SAMPLES, settings=QUICK)
    assert report.sqnr_db is None
    assert report.verdict.level == "bad"
    assert report.verdict.reasons[0].startswith("the float model gives no finite number on 8 of the 8 samples")

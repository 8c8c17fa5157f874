"""Inner tensors are compared on the first samples only; reports say so if outputs are compared on more."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from fixture_runs import QUICK, command
from handmade.core import feeds, model, weight

import onnxshot
from onnxshot.calibration.readers import Sample
from onnxshot.cli import tables
from onnxshot.verification.compare_tensors import SAMPLES, compare_tensors


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    text = "g (float[1, 32] x) => (float[1, 16] y) { h = MatMul(x, v) r = Relu(h) y = MatMul(r, w) }"
    proto = model(text, {"v": weight(32, 64), "w": weight(64, 16, seed=1)})
    before, after = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save(proto, before)
    onnxshot.quantize(proto, feeds(8, x=(1, 32)), output=after, settings=QUICK)
    return before, after


@pytest.mark.parametrize("count", [SAMPLES, SAMPLES + 3])
def test_a_report_says_how_many_samples_tensors_are_compared_on(
    pair: tuple[Path, Path], count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = onnxshot.compare(*pair, feeds(count, x=(1, 32)), settings=onnxshot.Settings(bench_seconds=0.01))
    assert report.samples["judged"] == count
    assert report.samples["tensors"] == SAMPLES
    tables.show_report(report)
    assert (f"worst tensors ({SAMPLES} of {count} samples)" in capsys.readouterr().err) == (count > SAMPLES)
    found = onnxshot.diff(*pair, feeds(count, x=(1, 32)))
    assert (found.samples, found.tensor_samples) == (count, SAMPLES)


def test_diff_says_how_many_samples_tensors_are_compared_on(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "data.npz", x=np.concatenate([feed["x"] for feed in feeds(9, x=(1, 32))]))
    assert command("diff", *pair, "--calib", tmp_path / "data.npz") == 0
    assert f"on the first {SAMPLES} samples" in capsys.readouterr().err
    assert command("diff", *pair, "--calib", tmp_path / "data.npz", "--json") == 0
    assert json.loads(capsys.readouterr().out)["tensor_samples"] == SAMPLES


def test_outputs_that_are_handed_out_keep_no_memory_of_their_sessions(pair: tuple[Path, Path]) -> None:
    samples = [Sample(str(i), feed) for i, feed in enumerate(feeds(2, x=(1, 32)))]
    seen: list[bool] = []
    compare_tensors(
        *pair, samples, outputs=["y"],
        each=lambda _, wanted, got: seen.extend(side["y"].flags.owndata for side in (wanted, got)),
    )  # fmt: skip
    assert seen == [True] * 4

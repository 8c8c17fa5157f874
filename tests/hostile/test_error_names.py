"""Errors name files that people know: what they gave, and what will be written, never what lies aside for a while."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from handmade.core import model, weight
from onnx import TensorProto

import onnxshot
from onnxshot.errors import CalibrationError, ModelError, UsageError, in_place
from onnxshot.files.atomic_write import aside

FEEDS = [{"x": np.ones((1, 64), np.float32)}] * 4
QUIET = onnxshot.Settings(threads=1, use_cache=False, bench_seconds=0.02)


def test_a_file_aside_is_called_by_the_place_it_will_have(tmp_path: Path) -> None:
    with aside(tmp_path / "a b.onnx") as folder:
        held = folder / "a b.onnx.data"
        text = f"{folder / 'a b.onnx'} is at fault, as are {held} and {tmp_path / '.b.part'}"
    told = f"{tmp_path / 'a b.onnx'} is at fault, as are {tmp_path / 'a b.onnx.data'} and {tmp_path / '.b.part'}"
    assert in_place(text) == UsageError(text).message == told


def test_a_file_aside_with_a_relative_path_leaves_the_words_in_front_of_it() -> None:
    path = Path(".a b.onnx.onnxshot-abcdefg1.part") / "work" / "a b.onnx"
    assert in_place(f"{path} does not load: Load model from {path} failed") == (
        "a b.onnx does not load: Load model from a b.onnx failed"
    )
    assert in_place(f"net.onnx, not {path}") == "net.onnx, not a b.onnx"


def test_a_full_disk_names_the_place_that_was_meant(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom onnxshot.cli import app\n"
        f"def full(**_): raise OSError({errno.ENOSPC}, 'No space left on device', sys.argv[1])\n"
        "app.app = full\napp.main()"
    )
    place = tmp_path / ".net.onnxshot-abcdefg1.part" / "work" / "net.bin"
    done = subprocess.run([sys.executable, "-c", code, str(place)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: {tmp_path / 'net.bin'}: No space left on device"


def test_an_unknown_operator_is_the_given_models_with_its_node(tmp_path: Path) -> None:
    text = "g (float[n, 64] x) => (float[n, 64] y) { [odd] a = my.domain.Twist(x)\n y = MatMul(a, w) }"
    onnx.save(model(text, {"w": weight(64, 64)}, imports=', "my.domain": 1'), tmp_path / "net.onnx")
    with pytest.raises(ModelError) as caught:
        onnxshot.quantize(tmp_path / "net.onnx", FEEDS, output=tmp_path / "out.onnx", settings=QUIET)
    assert caught.value.message.startswith(f"{tmp_path / 'net.onnx'} has an operator that ONNX Runtime does not know")
    assert "node 'odd' (my.domain.Twist)" in caught.value.message
    assert not (tmp_path / "out.onnx").exists()


def test_a_model_that_fails_on_a_sample_is_called_by_its_file(tmp_path: Path) -> None:
    text = "g (float[n, 64] x, int64[n] i) => (float[n, 64] y) { t = MatMul(x, w)\n e = Gather(v, i)\n y = Add(t, e) }"
    onnx.save(model(text, {"w": weight(64, 64), "v": weight(8, 64)}), tmp_path / "net.onnx")
    feeds = [{**feed, "i": np.array([99])} for feed in FEEDS]
    with pytest.raises(CalibrationError) as caught:
        onnxshot.quantize(tmp_path / "net.onnx", feeds, settings=QUIET)
    assert caught.value.message.startswith(f"{tmp_path / 'net.onnx'} fails on sample")


def test_external_data_that_is_a_fifo_is_said_to_be_one(tmp_path: Path) -> None:
    proto = model("g (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, w) }", {"w": weight(64, 64)})
    (w,) = proto.graph.initializer
    w.ClearField("raw_data")
    w.data_location = TensorProto.EXTERNAL
    w.external_data.add(key="location", value="w.data")
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    os.mkfifo(tmp_path / "w.data")
    with pytest.raises(ModelError, match=r"'w': its external data file .*w\.data is a FIFO"):
        onnxshot.quantize(tmp_path / "net.onnx", None, mode="dynamic", settings=QUIET)

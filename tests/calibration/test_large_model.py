"""A model of 2.4 GB: the memory of a run is a fraction of its weights, because they are never held together."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from large_model import COMMAND_LINE, LAYERS, SIZE, TOTAL, peak, write_large

from onnxshot.calibration.statistics_file import load_statistics

FREE = 3 * TOTAL  # the model, a copy, and room

LOAD_AND_SAVE = """
from pathlib import Path
from onnxshot.graph.load import load_model
from onnxshot.graph.save import draft
with draft(load_model(sys.argv[1]), Path(sys.argv[2])) as written:
    written.publish()
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 layers of MatMul and Relu; all weights are in one file beside the model."""
    folder = tmp_path_factory.mktemp("large")
    if shutil.disk_usage(folder).free < FREE:
        pytest.skip(f"needs {FREE >> 30} GiB of disk")
    return write_large(folder)


@pytest.mark.slow
def test_a_copy_holds_one_weight_at_a_time(large: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy.onnx"
    used = peak(LOAD_AND_SAVE, large, out)
    print(f"load and save: {used / 1e6:.0f} MB of {TOTAL / 1e6:.0f}")
    assert used <= 0.1 * TOTAL
    tensors = onnx.load(str(out), load_external_data=False).graph.initializer
    assert len(tensors) == LAYERS
    given = np.memmap(large.with_name("weights.bin"), np.float32, "r")
    for layer in (0, LAYERS // 2, LAYERS - 1):
        entries = {e.key: e.value for e in tensors[layer].external_data}
        made = np.memmap(tmp_path / "copy.onnx.data", np.float32, "r", int(entries["offset"]), (SIZE * SIZE,))
        assert np.array_equal(made, given[layer * SIZE * SIZE : (layer + 1) * SIZE * SIZE])


@pytest.mark.slow
def test_storing_weights_in_8_bits_holds_a_part_of_them(large: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("onnxshot") is None:
        pytest.skip("the command line is not there")
    out = tmp_path / "small.onnx"
    used = peak(COMMAND_LINE, "quantize", large, "--mode", "weights", "--no-verify", "-o", out)
    print(f"quantize --mode weights: {used / 1e6:.0f} MB of {TOTAL / 1e6:.0f}")
    assert used <= 0.12 * TOTAL
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 0.3 * TOTAL


@pytest.mark.slow
def test_calibration_maps_the_weights_where_they_lie(large: Path, tmp_path: Path) -> None:
    """One part is packed at a time; its bytes follow from the memory budget, and are 128 MB at most."""
    out = tmp_path / "stats.npz"
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    code = f'import tempfile; tempfile.tempdir = "{temporary}"; {COMMAND_LINE}'
    used = peak(code, "calibrate", large, "--calib", "random", "--samples", "8", "-o", out, "--no-cache")
    print(f"calibrate: {used / 1e6:.0f} MB of {TOTAL / 1e6:.0f}")
    assert used <= 0.25 * TOTAL  # the program itself is 0.15 GB
    assert len(load_statistics(out).tensors) >= LAYERS
    assert list(temporary.iterdir()) == []

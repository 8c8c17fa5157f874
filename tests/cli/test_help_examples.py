"""The examples at the end of each command's help run, in a folder with the files that they name."""

import os
import shlex
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pseudo_terminal
import pytest
from fixture_data import FIXTURES
from PIL import Image

import onnxshot
from onnxshot.cli.examples import EXAMPLES


def _picture_net() -> onnx.ModelProto:
    """A small network of pictures as ImageNet has them, whose channels can be cut."""
    rng = np.random.default_rng(0)
    net = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[n,3,224,224] image) => (float[n,10] scores) {
            a = Conv<pads=[1,1,1,1], strides=[4,4]>(image, w1)
            b = Relu(a)
            c = Conv<pads=[1,1,1,1], strides=[2,2]>(b, w2)
            d = Relu(c)
            e = GlobalAveragePool(d)
            f = Flatten(e)
            scores = Gemm<transB=1>(f, w3)
        }"""
    )
    for name, shape in {"w1": (32, 3, 3, 3), "w2": (64, 32, 3, 3), "w3": (10, 64)}.items():
        weight = rng.normal(size=shape) / np.prod(shape[1:]) ** 0.5
        net.graph.initializer.append(onnx.numpy_helper.from_array(weight.astype(np.float32), name))
    return net


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the examples name."""
    root, rng = tmp_path_factory.mktemp("examples"), np.random.default_rng(1)
    onnx.save(_picture_net(), str(root / "net.onnx"))
    for name in ("pictures", "data"):
        (root / name).mkdir()
    for i in range(16):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(root / "pictures" / f"{i:02}.png")
        np.savez(root / "data" / f"{i:02}.npz", image=rng.normal(size=(1, 3, 224, 224)).astype(np.float32))
    shutil.copytree(FIXTURES / "language", root / "llm")
    shutil.copyfile(FIXTURES / "language" / "calib.txt", root / "texts.txt")
    (root / "stages.yaml").write_text("stages: [{prune: {sparsity: 0.3}}, {quantize: {effort: fast}}]\n")
    (root / "manifest.yaml").write_text(
        "models: [{model: net.onnx, calib: data, recipe: {effort: '${effort:fast}'}}]\ntargets: [ort]\noutput: batch\n"
    )
    made = onnxshot.quantize(root / "net.onnx", root / "data", output=root / "net.int8.onnx", effort="fast")
    onnxshot.bundle(made, root / "out", root / "data")
    for name in ("part1", "part2"):
        few = [{"image": rng.normal(size=(1, 3, 224, 224)).astype(np.float32)} for _ in range(4)]
        onnxshot.calibrate(root / "net.onnx", few, output=root / f"{name}.npz")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("line", sorted({line for lines in EXAMPLES.values() for _, line in lines}))
def test_an_example_runs(line: str, folder: Path, tmp_path: Path) -> None:
    words = shlex.split(line)[1:]
    if "openvino" in line:
        pytest.importorskip("openvino")
    if "tensorrt" in line:
        pytest.importorskip("tensorrt")
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path) if path.name != "out" else shutil.copytree(path, tmp_path / "out")
    if "--bundle" in words:
        shutil.rmtree(tmp_path / "out")
    env = {**os.environ, "ONNXSHOT_CACHE": str(tmp_path / "cache"), "BROWSER": "true"}
    command = [sys.executable, "-m", "onnxshot", *words]
    shown = pseudo_terminal.run(command, tmp_path, env, until="http://" if words[0] == "ui" else "")
    assert shown.code == 0, shown.text
    written = [b for a, b in pairwise(words) if a in ("-o", "--report", "--bundle")]
    assert [n for n in written if not (tmp_path / n).exists()] == [], (shown.text, sorted(tmp_path.iterdir()))

"""Engines that TensorRT-RTX builds from models quantized for it; it needs no GPU for that."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fixture_data import facts, fixture
from handmade.core import model, weight
from planned_models import FAST

from onnxshot.api.quantize import quantize
from onnxshot.errors import TargetError
from onnxshot.runtimes.base import EmitOptions
from onnxshot.runtimes.executed import Execution
from onnxshot.targets.tensorrt import TENSORRT

pytestmark = pytest.mark.slow
pytest.importorskip("tensorrt_rtx")

CONV = "net (float[N,8,8,8] x) => (float y) { y = Conv(x, w) }"
TEXTS = {name: ((1, 8), (1, 64), (1, 128)) for name in ("input_ids", "attention_mask")}


def emitted(source: Path, **options: Any) -> Execution:
    assert TENSORRT.runtime is not None
    made = TENSORRT.runtime.emit(source, source.parent, "out", EmitOptions(**options))
    assert (source.parent / made.files[0]).stat().st_size > 0
    assert made.executed is not None
    return made.executed


def quantized(name: str, folder: Path) -> Path:
    about = facts()[name]
    preset = about["preset"] if about["preset"] == "none" else str(fixture(about["preset"]))
    quantize(
        fixture(name), fixture(about["calib"]), preset=preset, target="tensorrt", effort="fast", settings=FAST,
        output=folder / "net.onnx",
    )  # fmt: skip
    return folder / "net.onnx"


@pytest.mark.parametrize("name", ["digits_resnet", "digits_mobile", "digits_detector"])
def test_cnns_run_in_int8(name: str, tmp_path: Path) -> None:
    told = emitted(quantized(name, tmp_path))
    assert told.share >= 0.95
    assert told.float_between == ()


def test_all_weights_of_an_encoder_run_in_int8_and_its_attention_in_float(tmp_path: Path) -> None:
    source = quantized("licence_encoder", tmp_path)
    told = emitted(source, shapes=TEXTS)
    stored = {t.name for t in onnx.load(source).graph.initializer}
    made = {o: n for n in onnx.load(source).graph.node for o in n.output}
    weighted = {
        n.name
        for n in onnx.load(source).graph.node
        if n.op_type in ("MatMul", "Gemm") and set(made[n.input[1]].input) & stored
    }
    assert {n.name for n in told.nodes if n.precision == "int8"} == weighted
    assert len(told.nodes) - len(weighted) == 4  # two layers: queries times keys, and those times values


@pytest.mark.parametrize("name", ["licence_lstm", "licence_gru"])
def test_recurrent_nets_build(name: str, tmp_path: Path) -> None:
    told = emitted(quantized(name, tmp_path), shapes=TEXTS)
    assert [n.precision for n in told.nodes if n.op == "Gemm"] == ["int8"]


def test_float_models_build_in_float(tmp_path: Path) -> None:
    onnx.save(model(CONV, {"w": weight(8, 8, 3, 3)}), tmp_path / "net.onnx")
    told = emitted(tmp_path / "net.onnx")
    assert [(n.op, n.precision, n.macs) for n in told.nodes] == [("Conv", "float", 8 * 8 * 9 * 36)]


@pytest.mark.parametrize("hardware", [("sm80",), ("SM86", "sm89", "sm120")])
def test_compute_capabilities(hardware: tuple[str, ...], tmp_path: Path) -> None:
    onnx.save(model(CONV, {"w": weight(8, 8, 3, 3)}), tmp_path / "net.onnx")
    emitted(tmp_path / "net.onnx", hardware=hardware)


def test_capabilities_there_are_not(tmp_path: Path) -> None:
    onnx.save(model(CONV, {"w": weight(8, 8, 3, 3)}), tmp_path / "net.onnx")
    with pytest.raises(TargetError, match="no hardware 'sm90'; it knows current, sm120, sm121, sm75"):
        emitted(tmp_path / "net.onnx", hardware=("sm90",))


def test_weights_beside_the_file_are_found(tmp_path: Path) -> None:
    proto = model(CONV, {"w": weight(8, 8, 3, 3)})
    onnx.save(proto, tmp_path / "net.onnx", save_as_external_data=True, size_threshold=0, location="net.bin")
    assert (tmp_path / "net.bin").stat().st_size == 8 * 8 * 9 * 4
    emitted(tmp_path / "net.onnx")


def test_an_operator_that_is_not_there_is_one_error_that_names_the_node(tmp_path: Path) -> None:
    proto = model("net (float[1,8] x) => (float[1,8] y) { y = own.Op(x) }", imports=', "own": 1')
    proto.graph.node[0].name = "odd_one"
    onnx.save(proto, tmp_path / "net.onnx")
    with pytest.raises(TargetError, match="at node 'odd_one'"):
        emitted(tmp_path / "net.onnx")


def test_a_memory_limit_stops_the_builder(tmp_path: Path) -> None:
    values = np.ones((1024, 8, 3, 3), np.float32)
    onnx.save(model(CONV, {"w": values}), tmp_path / "net.onnx")
    with pytest.raises(TargetError, match="GB of memory"):
        emitted(tmp_path / "net.onnx", memory_gb=0.02)


def test_there_is_a_note_where_no_timing_cache_can_be_written(tmp_path: Path) -> None:
    onnx.save(model(CONV, {"w": weight(8, 8, 3, 3)}), tmp_path / "net.onnx")
    assert TENSORRT.runtime is not None
    options = EmitOptions(timing_cache=tmp_path / "timing.cache")
    made = TENSORRT.runtime.emit(tmp_path / "net.onnx", tmp_path, "out", options)
    assert any("no timing cache" in note for note in made.notes)

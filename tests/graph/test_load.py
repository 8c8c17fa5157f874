"""Files of other formats are refused by name, in one line, with the step that converts them to ONNX."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper, parser

from onnxshot.errors import ModelError
from onnxshot.graph.load import load_model

RELU = '<ir_version: 8, opset_import: ["": 17]> g (float[1, 8] x) => (float[1, 8] y) { y = Relu(x) }'


def refusal(source: Path | ModelProto) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load_model(source)
    error = caught.value
    assert error.exit_code == 4
    assert len(str(error).splitlines()) == 1
    return error


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return path


def written(path: Path, content: bytes = b"\x00\x01\x02\x03 some bytes that are not a model") -> Path:
    path.write_bytes(content)
    return path


def keras_saved_model(path: Path) -> Path:
    path.mkdir()
    return written(path / "saved_model.pb").parent


def hugging_face(path: Path, *models: str) -> Path:
    (path / "onnx").mkdir(parents=True)
    written(path / "config.json", b"{}")
    for name in models:
        written(path / name)
    return path


OTHER_FORMATS: list[tuple[Callable[[Path], Path], str, str]] = [
    (lambda d: written(d / "m.pt"), "PyTorch checkpoint", "torch.onnx.export"),
    (lambda d: written(d / "yolo.pt"), "PyTorch checkpoint", "yolo export"),
    (lambda d: zipped(d / "m.pth", "m/data.pkl", "m/version"), "PyTorch checkpoint", "torch.onnx.export"),
    (lambda d: zipped(d / "weights", "m/data.pkl"), "PyTorch checkpoint", "torch.onnx.export"),
    (lambda d: zipped(d / "m.onnx", "m/data.pkl"), "PyTorch checkpoint", "torch.onnx.export"),
    (lambda d: written(d / "m.onnx", b"\x80\x02}q\x00."), "pickle", "torch.onnx.export"),
    (lambda d: written(d / "m.onnx", b"\x80\x04\x95rest"), "pickle", "torch.onnx.export"),
    (lambda d: zipped(d / "m.pt", "m/code/__torch__.py", "m/data.pkl"), "TorchScript", "torch.jit.load"),
    (lambda d: zipped(d / "scripted", "m/code/__torch__.py"), "TorchScript", "torch.jit.load"),
    (lambda d: written(d / "m.pt2"), "torch.export program", "torch.export.load"),
    (lambda d: written(d / "m.ckpt"), "training checkpoint", "torch.onnx.export"),
    (lambda d: written(d / "m.safetensors"), "weights without a graph", "optimum-cli"),
    (lambda d: written(d / "m.h5"), "Keras", "tf2onnx"),
    (lambda d: written(d / "model", b"\x89HDF\r\n\x1a\n and more"), "Keras", "tf2onnx"),
    (lambda d: zipped(d / "m.keras", "model.weights.h5", "config.json"), "Keras", "keras.models.load_model"),
    (lambda d: zipped(d / "model", "model.weights.h5", "config.json"), "Keras", "keras.models.load_model"),
    (lambda d: keras_saved_model(d / "saved"), "SavedModel", "tf2onnx.convert --saved-model"),
    (lambda d: written(d / "frozen.pb"), "TensorFlow graph", "tf2onnx"),
    (lambda d: written(d / "m.tflite"), "TensorFlow Lite", "--tflite"),
    (lambda d: written(d / "model", b"\x1c\x00\x00\x00TFL3 and more"), "TensorFlow Lite", "--tflite"),
    (lambda d: hugging_face(d / "bert"), "Hugging Face folder", "optimum-cli export onnx"),
    (lambda d: hugging_face(d / "bert", "onnx/model.onnx"), "Hugging Face folder", "onnx/model.onnx"),
    (lambda d: written(d / "m.xml"), "OpenVINO IR", "start from the ONNX file"),
    (lambda d: written(d / "model", b"<?xml version='1.0'?><net/>"), "OpenVINO IR", "start from the ONNX file"),
    (lambda d: written(d / "m.engine"), "TensorRT engine", "start from the ONNX file"),
    (lambda d: written(d / "m.plan"), "TensorRT engine", "start from the ONNX file"),
    (lambda d: written(d / "m.ort"), "ORT-format model", "start from the ONNX file"),
    (lambda d: written(d / "m.mlmodel"), "Core ML", "start from the ONNX file"),
    (lambda d: written(d / "m.gguf"), "GGUF", "optimum-cli"),
    (lambda d: written(d / "m.pdmodel"), "Paddle", "paddle2onnx"),
    (lambda d: written(d / "m.onnxtxt", RELU.encode()), "text", "onnx.save"),
    (lambda d: written(d / "m.onnx", b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS", "git lfs pull"),
    (lambda d: written(d / "m.onnx", b"<!DOCTYPE html><html></html>"), "web page", "download"),
]


@pytest.mark.parametrize("case", range(len(OTHER_FORMATS)), ids=[f"{i}-{c[1]}" for i, c in enumerate(OTHER_FORMATS)])
def test_other_formats_are_refused_by_name(case: int, tmp_path: Path) -> None:
    make, name, step = OTHER_FORMATS[case]
    path = make(tmp_path)
    error = refusal(path)
    assert str(path) in error.message
    assert name in error.message
    assert step in error.hint


def test_a_missing_file_names_the_closest_ones(tmp_path: Path) -> None:
    for name in ("resnet50.onnx", "bert.onnx", "yolo.onnx", "zebra.onnx", "resnet18.onnx"):
        written(tmp_path / name)
    error = refusal(tmp_path / "resnet5.onnx")
    assert "does not exist" in error.message
    assert error.hint.startswith("in that folder: resnet50.onnx, resnet18.onnx")
    assert "zebra" not in error.hint


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    assert "nowhere does not exist either" in refusal(tmp_path / "nowhere" / "model.onnx").hint


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert "is empty" in refusal(written(tmp_path / "m.onnx", b"")).message


def test_a_folder_is_refused_and_names_what_is_inside(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path).message
    written(tmp_path / "inside.onnx")
    assert "inside.onnx" in refusal(tmp_path).hint


@pytest.mark.parametrize("name", ["a\nb.onnx", "a" * 300 + ".onnx", "a\0b.onnx", "\x1b[31mred.onnx"])
def test_odd_file_names_give_one_printable_line(name: str, tmp_path: Path) -> None:
    assert str(refusal(tmp_path / name)).isprintable()


def test_a_file_of_another_format_with_the_suffix_onnx(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.arange(6.0), "t")
    for content in (b"not a model at all", tensor.SerializeToString(), b"\n" * 100):
        message = refusal(written(tmp_path / "m.onnx", content)).message
        assert "not an ONNX file" in message or "no ONNX graph" in message


def test_a_model_proto_loads_and_is_not_changed() -> None:
    proto = parser.parse_model(RELU)
    before = proto.SerializeToString(deterministic=True)
    model = load_model(proto)
    model.set_metadata("key", "value")
    model.graph.nodes[0].attrs["new"] = 1
    assert model.path is None
    assert model.metadata == {"key": "value"}
    assert proto.SerializeToString(deterministic=True) == before


def test_a_model_proto_that_is_not_valid_is_refused_too() -> None:
    assert "the given model" in refusal(ModelProto()).message
    proto = parser.parse_model(RELU)
    proto.graph.node[0].input[0] = "nothing"
    assert "'nothing'" in refusal(proto).message


def test_a_model_proto_with_external_data_asks_for_its_path() -> None:
    proto = parser.parse_model(RELU)
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    proto.graph.initializer.append(tensor)
    assert "load the model from its path" in refusal(proto).hint


def test_strings_and_paths_both_load(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(parser.parse_model(RELU), str(path))
    assert load_model(str(path)).path == load_model(path).path == path

"""A large .onnx file is parsed without its large weights; a damaged one gives the errors of protobuf."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxshot.errors import ModelError
from onnxshot.graph import lean_parse, weights
from onnxshot.graph.copies import copy_of
from onnxshot.graph.load import external_files, load_model
from onnxshot.graph.save import write


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat files from 1 KiB and weights from 256 bytes as large."""
    monkeypatch.setattr(lean_parse, "LEAST_WEIGHTS", 1024)
    monkeypatch.setattr(lean_parse, "LEAST_TENSOR", 256)


def two_layers() -> ModelProto:
    rng = np.random.default_rng(3)
    arrays = {
        "w": rng.normal(size=(16, 33)).astype(np.float32),
        "b": rng.normal(size=33).astype(np.float32),
        "v": rng.normal(size=(33, 40)).astype(np.float16),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("Cast", ["v"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["a", "wide"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, k]) for n, k in (("x", 16), ("y", 40))]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:])
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def saved(path: Path, proto: ModelProto) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def in_the_file(proto: ModelProto) -> set[str]:
    return {t.name for t in proto.graph.initializer if t.data_location == TensorProto.EXTERNAL}


def test_large_weights_stay_in_the_file(tmp_path: Path) -> None:
    proto = two_layers()
    path = saved(tmp_path / "m.onnx", proto)
    lean = lean_parse.parse_lean(path)
    assert in_the_file(lean) == {"w", "v"}
    whole = path.read_bytes()
    for tensor in lean.graph.initializer:
        if tensor.name in ("w", "v"):
            places = {e.key: e.value for e in tensor.external_data}
            assert places["location"] == "m.onnx"
            start, length = int(places["offset"]), int(places["length"])
            tensor.ClearField("data_location")
            del tensor.external_data[:]
            tensor.raw_data = whole[start : start + length]
    assert lean == proto


def test_a_model_in_the_file_reads_and_writes_as_one_in_memory(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", two_layers())
    model, held = load_model(path), load_model(two_layers())
    assert not model.external_data
    assert model.data_files == ()
    assert external_files(path) == []
    for mine, other in zip(model.constants(), held.constants(), strict=True):
        array = weights.read(mine)
        assert np.array_equal(array, weights.read(other))
        assert array.flags.aligned
    assert [write(m, tmp_path / f"{i}.onnx") for i, m in enumerate((model, copy_of(model)))] == [["0.onnx"], ["1.onnx"]]
    assert (tmp_path / "0.onnx").read_bytes() == (tmp_path / "1.onnx").read_bytes()
    write(load_model(two_layers()), tmp_path / "h.onnx")
    assert (tmp_path / "0.onnx").read_bytes() == (tmp_path / "h.onnx").read_bytes()


def test_packed_float_data_is_read_from_the_file(tmp_path: Path) -> None:
    proto = two_layers()
    values = numpy_helper.to_array(proto.graph.initializer[0])
    proto.graph.initializer[0].ClearField("raw_data")
    proto.graph.initializer[0].float_data.extend(values.reshape(-1).tolist())
    path = saved(tmp_path / "m.onnx", proto)
    assert in_the_file(lean_parse.parse_lean(path)) == {"w", "v"}
    read = {c.name: weights.read(c) for c in load_model(path).constants()}
    assert np.array_equal(read["w"], values)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", two_layers())
    model = load_model(path)
    saved(path, two_layers())
    with pytest.raises(ModelError, match=r"m\.onnx was changed while its weights were in use"):
        weights.read(model.constants()[0])
    path.unlink()
    with pytest.raises(ModelError, match=r"m\.onnx was removed while"):
        weights.read(model.constants()[0])


def test_a_link_to_another_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "m.onnx").symlink_to(saved(tmp_path / "blobs" / "a1", two_layers()))
    assert [weights.read(c).size for c in load_model(tmp_path / "m.onnx").constants()] == [528, 33, 1320]


def test_a_weight_of_another_size_than_its_shape_is_refused_as_in_memory(tmp_path: Path) -> None:
    proto = two_layers()
    proto.graph.initializer[0].dims[0] = 17
    path = saved(tmp_path / "m.onnx", proto)
    messages = []
    for source in (path, proto):
        with pytest.raises(ModelError) as caught:
            load_model(source)
        messages.append(str(caught.value).split(": ", 1)[1])
    assert messages[0] == messages[1]


ODD: list[Callable[[bytes], bytes]] = [
    lambda b: b + b,  # protobuf merges two graphs
    lambda b: b[:-1],
    lambda b: b[: len(b) // 2],
    lambda b: b + b"\x3a\xff\xff\xff\xff\x0f",  # a graph beyond the end
    lambda b: b + b"\x0b",  # a group
    lambda b: b"\x3a\x00" + b,
]


@pytest.mark.parametrize("change", ODD)
def test_odd_files_are_parsed_as_protobuf_parses_them(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(change(two_layers().SerializeToString()))
    try:
        expected = ModelProto.FromString(path.read_bytes())
    except DecodeError:
        with pytest.raises(DecodeError):
            lean_parse.parse_lean(path)
    else:
        assert lean_parse.parse_lean(path) == expected


def test_mutated_files_parse_as_protobuf_parses_them(tmp_path: Path) -> None:
    """The scanner must not see another message than protobuf in any file."""
    rng, good, path = random.Random(5), two_layers().SerializeToString(), tmp_path / "m.onnx"
    parsed = 0
    for _ in range(400):
        content = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content)) if rng.random() < 0.3 else rng.choice(range(300))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            expected = ModelProto.FromString(bytes(content))
        except DecodeError:
            expected = None
        try:
            lean = lean_parse.parse_lean(path)
        except DecodeError:
            lean = None
        assert (lean is None) == (expected is None)
        if lean is not None and expected is not None:
            parsed += 1
            for tensor in lean.graph.initializer:
                places = {e.key: e.value for e in tensor.external_data}
                if tensor.data_location == TensorProto.EXTERNAL and places.get("location") == "m.onnx":
                    start, length = int(places["offset"]), int(places["length"])
                    tensor.ClearField("data_location")
                    del tensor.external_data[:]
                    tensor.raw_data = bytes(content[start : start + length])
            assert lean.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)
    assert parsed > 50


def test_small_files_are_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    path = saved(tmp_path / "m.onnx", two_layers())
    assert lean_parse.parse_lean(path) == onnx.load(str(path))


def test_a_file_whose_fields_are_no_models_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each two bytes are a field that ONNX does not know, and protobuf would keep all of them."""
    (tmp_path / "no.onnx").write_bytes(b"x" * 10_000)
    monkeypatch.setattr(onnx, "load", lambda *_, **__: pytest.fail("it was parsed"))
    with pytest.raises(ModelError, match="damaged or not an ONNX file"):
        load_model(tmp_path / "no.onnx")


def test_a_model_may_have_fields_of_a_newer_onnx(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", two_layers())
    path.write_bytes(b"x\x01" * 10 + path.read_bytes())
    assert len(load_model(path).graph.nodes) == 4

"""A model that is written one weight at a time has the bytes that protobuf gives it."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxshot.graph import Constant, weight_pieces, weights
from onnxshot.graph.load import load_model
from onnxshot.graph.model import Model
from onnxshot.graph.stream_model import write_streamed
from onnxshot.graph.weight_pieces import raw_pieces, row_blocks


def with_weights() -> Model:
    """A model with weights of all forms: raw, float_data, int4, bfloat16 and strings."""
    rng = np.random.default_rng(0)
    arrays = {
        "raw": rng.normal(size=(200, 100)).astype(np.float32),
        "typed": rng.normal(size=(150, 150)).astype(np.float32),
        "int4": rng.integers(-8, 8, (300, 501)).astype(ml_dtypes.int4),
        "bf16": rng.normal(size=(300, 300)).astype(ml_dtypes.bfloat16),
        "small": np.ones(3, np.float32),
    }
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in (*arrays, "text")]
    outputs = [helper.make_empty_tensor_value_info(f"{name}_out") for name in (*arrays, "text")]
    graph = helper.make_graph(nodes, "g", [], outputs, doc_string="about it")
    graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    graph.initializer[0].doc_string = "behind the data"
    graph.initializer[1].ClearField("raw_data")
    graph.initializer[1].float_data.extend(arrays["typed"].reshape(-1).tolist())
    graph.initializer.append(helper.make_tensor("text", TensorProto.STRING, [2], ["a", "b"]))
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    proto.metadata_props.add(key="key", value="value")
    for info, tensor in zip(proto.graph.output, proto.graph.initializer, strict=True):
        info.type.tensor_type.elem_type = tensor.data_type
    return Model(proto)


def test_the_bytes_are_those_of_protobuf(tmp_path: Path) -> None:
    model = with_weights()
    write_streamed(model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == model.to_proto().SerializeToString(deterministic=True)


@pytest.mark.parametrize("with_rows", [False, True])
def test_computed_weights_are_written_a_block_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, with_rows: bool
) -> None:
    monkeypatch.setattr(weight_pieces, "BLOCK", 1000)
    model = with_weights()
    values = np.random.default_rng(1).normal(size=(401, 100)).astype(np.float32)
    asked: list[tuple[int, int]] = []

    def rows(start: int, stop: int) -> np.ndarray:
        asked.append((start, stop))
        return values[start:stop]

    lazy = weights.ComputedValues(values.shape, values.dtype, lambda: values, rows if with_rows else None)
    weight = next(c for c in model.constants() if c.name == "raw")
    weight._values = lazy
    write_streamed(model, tmp_path / "m.onnx")
    assert (len(asked), max((b - a for a, b in asked), default=0)) == ((41, 10) if with_rows else (0, 0))
    written = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(tmp_path / "m.onnx")).graph.initializer}
    np.testing.assert_array_equal(written["raw"], values)


def test_blocks_of_external_data_are_read_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_pieces, "BLOCK", 1000)
    model = with_weights()
    onnx.save(model.to_proto(), str(tmp_path / "m.onnx"), save_as_external_data=True, size_threshold=0, location="d")
    for constant, held in zip(load_model(tmp_path / "m.onnx").constants(), model.constants(), strict=True):
        if weights.elem_type(constant) != TensorProto.STRING:
            blocks = [block for _, block in row_blocks(constant, 3)]
            np.testing.assert_array_equal(np.concatenate(blocks), weights.read(held))
            assert b"".join(map(bytes, raw_pieces(constant))) == b"".join(map(bytes, raw_pieces(held)))


def test_int4_rows_of_an_odd_length_are_packed_across_rows() -> None:
    values = np.arange(-7, 8).reshape(5, 3).astype(ml_dtypes.int4)
    stored = TensorProto(data_type=TensorProto.INT4, dims=[5, 3], raw_data=b"".join(raw_pieces(Constant("w", values))))
    np.testing.assert_array_equal(numpy_helper.to_array(stored), values)


def test_a_large_model_in_memory_is_loaded_by_the_runtime(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = with_weights()
    del model.graph.nodes[2:], model.graph.outputs[2:], model.graph.output_infos[2:]
    write_streamed(model, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {})[0], weights.read(model.constants()[0]))

"""Where target openvino puts Q and DQ, and that OpenVINO runs it so."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from handmade import HANDMADE, Case
from handmade.core import vector, weight
from planned_models import initializers, nodes_of, planned, quantized, small, treatment

from onnxshot.errors import TargetError
from onnxshot.graph.load import load_model
from onnxshot.planning.plan import FLOAT, STATIC
from onnxshot.runtimes.base import EmitOptions
from onnxshot.targets import target_named

pytest.importorskip("openvino")

OPENVINO = target_named("openvino")


def between_convs(lines: str) -> Case:
    """A Conv that makes a, lines that make b of it, and a Conv of b."""
    constants = {f"w{i}": weight(8, 8, 3, 3, seed=i) for i in (1, 2, 3)} | {
        "half": np.array(0.5, np.float32), "sizes": np.array([1, 1, 2, 2], np.float32),
        "shape": np.array([0, 8, 5, 20], np.int64), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
    }  # fmt: skip
    text = f"""g (float[n, 8, 10, 10] x) => (float[n, c, h, w] y) {{
        a = Conv<pads = [1, 1, 1, 1]>(x, w1)
        {lines}
        y = Conv<pads = [1, 1, 1, 1]>(b, w2)
    }}"""
    used = text.replace(",", " ").replace(")", " ").replace("(", " ").split()
    return small(text, {name: values for name, values in constants.items() if name in used}, x=(2, 8, 10, 10))


def layers(proto: onnx.ModelProto, folder: Path) -> dict[str, str]:
    """ONNX name -> kernel of every layer of OpenVINO's compiled graph."""
    import openvino

    path = folder / "m.onnx"
    onnx.save(proto, path)
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = {}
    for layer in compiled.get_runtime_model().get_ordered_ops():
        info = layer.get_rt_info()
        if "originalLayersNames" in info:
            names = str(info["originalLayersNames"].astype(str)).split(",")
            found |= {name: str(info["primitiveType"].astype(str)) for name in names}
    return found


FOLLOWERS = {
    "Add": "o = Conv<pads = [1, 1, 1, 1]>(x, w3)\nb = Add(a, o)",
    "Concat": "o = Conv<pads = [1, 1, 1, 1]>(x, w3)\nd = Concat<axis = 2>(a, o)\nb = Relu(d)",
    "MaxPool": "b = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(a)",
    "AveragePool": "b = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(a)",
    "Resize": 'b = Resize<mode = "nearest">(a, , sizes)',
    "Reshape": "b = Reshape(a, shape)",
    "Transpose": "b = Transpose<perm = [0, 1, 3, 2]>(a)",
    # With zeros: in float where 0 is not the lowest integer. With a Transpose behind, no Conv takes it as its own.
    "Pad": "d = Relu(a)\np = Pad(d, pads)\nb = Transpose<perm = [0, 1, 3, 2]>(p)",
    "DepthToSpace": "d = DepthToSpace<blocksize = 2>(a)\nb = SpaceToDepth<blocksize = 2>(d)",
}


@pytest.mark.parametrize("op", FOLLOWERS)
def test_what_moves_or_joins_integers_stands_between_pairs_and_runs_on_them(op: str, tmp_path: Path) -> None:
    case = between_convs(FOLLOWERS[op])
    _, plan = planned(case, target="openvino", calibrate=True)
    assert {n.how for n in plan.nodes if n.op == op} == {STATIC}
    _, proto = quantized(case, target="openvino")
    name = next(n.name for n in proto.graph.node if n.op_type == op)
    kernels = layers(proto, tmp_path)
    assert kernels[name].lower().endswith("i8"), kernels


INSIDE = {
    "Sigmoid": ("s = Sigmoid(a)\nb = Mul(a, s)", {"Sigmoid", "Mul"}),
    "LeakyRelu": ("b = LeakyRelu<alpha = 0.1>(a)", {"LeakyRelu"}),
}


@pytest.mark.parametrize("op", INSIDE)
def test_what_the_conv_before_it_computes_in_float_gets_no_pair(op: str, tmp_path: Path) -> None:
    lines, ops = INSIDE[op]
    case = between_convs(lines)
    _, plan = planned(case, target="openvino", calibrate=True)
    assert list(plan.tensors) == ["x", "b"]
    assert {n.op for n in plan.nodes if n.how == FLOAT} == ops
    _, proto = quantized(case, target="openvino")
    onnx.save(proto, tmp_path / "m.onnx")
    assert OPENVINO.runtime is not None
    found = OPENVINO.runtime.emit(tmp_path / "m.onnx", tmp_path, "m", EmitOptions()).executed
    assert found is not None
    assert (found.honoured, found.share) == (1.0, 1.0)
    assert not {"Eltwise", "Math"} & set(found.ops)


def test_a_product_is_static_and_gives_floats() -> None:
    text = """g (float[n, 5, 128] x) => (float[n, 5, 64] y) {
        m = MatMul(x, w1)
        y = Add(m, b)
    }"""
    case = small(text, {"w1": weight(128, 64, channel_axis=1), "b": vector(64)}, x=(2, 5, 128))
    ready, plan = planned(case, target="openvino", calibrate=True)
    assert treatment(ready, plan)["m"] == STATIC
    assert list(plan.tensors) == ["x"]
    ready, plan = planned(case, target="ort", calibrate=True)
    assert treatment(ready, plan)["m"] == "dynamic"


def test_a_conv_has_no_pair_on_what_only_float_ops_read() -> None:
    text = """g (float[n, 8, 10, 10] x) => (float[n, 8, 10, 10] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w1)
        y = Softmax<axis = 1>(a)
    }"""
    case = small(text, {"w1": weight(8, 8, 3, 3)}, x=(2, 8, 10, 10))
    assert list(planned(case, target="openvino", calibrate=True)[1].tensors) == ["x"]
    assert list(planned(case, target="ort", calibrate=True)[1].tensors) == ["x", "a"]


@pytest.mark.parametrize(("op", "gates"), [("GRU", 3), ("LSTM", 4), ("RNN", 1)])
@pytest.mark.parametrize("mode", ["static", "weights"])
def test_what_it_reads_recurrent_weights_from_compiles(op: str, gates: int, mode: str, tmp_path: Path) -> None:
    """Beside quantized activations OpenVINO refuses an LSTM or a GRU whose weights are no constants."""
    text = f"""g (float[5, 1, 16] x) => (float[5, 1, 12] y) {{
        a = MatMul(x, v)
        h = {op}<hidden_size = 48>(a, w, r)
        s = Squeeze(h, axis)
        y = MatMul(s, o)
    }}"""
    constants = {
        "v": weight(16, 16), "w": weight(1, 48 * gates, 16), "r": weight(1, 48 * gates, 48), "o": weight(48, 12),
        "axis": np.array([1], np.int64),
    }  # fmt: skip
    case = small(text, constants, x=(5, 1, 16))
    _, proto = quantized(case, target="openvino", mode=mode)
    assert layers(proto, tmp_path)
    stored = any(t.data_type == onnx.TensorProto.INT8 and t.dims[0] == 1 for t in proto.graph.initializer)
    assert stored == (mode == "weights" or op == "RNN")


def test_a_transposed_conv_stays_float_and_says_why() -> None:
    _, plan = planned(HANDMADE["conv_transpose"](), target="openvino")
    node = next(n for n in plan.nodes if n.op == "ConvTranspose")
    assert (node.how, node.reason) == (FLOAT, "OpenVINO runs it in int8 only if its input has zero point 0")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "dynamic"}, "openvino has no dynamic quantization"),
        ({"activation_type": "uint16"}, "16-bit activations in float, with the error of 8 bits"),
        ({"activation_type": "int16"}, "16-bit activations in float, with the error of 8 bits"),
        ({"weight_type": "uint8"}, "OpenVINO runs uint8 weights in float"),
        ({"activation_type": "float8e4m3fn", "weight_type": "float8e4m3fn"}, "float8"),
    ],
)
def test_what_it_runs_in_float_or_wrongly_is_refused_before_any_work(options: dict[str, str], said: str) -> None:
    with pytest.raises(TargetError, match=said):
        planned(between_convs("b = Relu(a)"), target="openvino", **options)


def test_int8_activations_are_taken_on_request(tmp_path: Path) -> None:
    _, proto = quantized(between_convs("b = Relu(a)"), target="openvino", activation_type="int8")
    onnx.save(proto, tmp_path / "m.onnx")
    assert OPENVINO.runtime is not None
    assert OPENVINO.runtime.preflight(load_model(proto)) == []
    found = OPENVINO.runtime.emit(tmp_path / "m.onnx", tmp_path, "m", EmitOptions()).executed
    assert found is not None
    assert found.honoured == 1.0
    zero_points = [initializers(proto)[q.input[2]] for q in nodes_of(proto, "QuantizeLinear")]
    assert len(zero_points) == 2
    assert {z.dtype for z in zero_points} == {np.dtype(np.int8)}
    assert not any(zero_points)  # with another, CPUs with AMX run it in float

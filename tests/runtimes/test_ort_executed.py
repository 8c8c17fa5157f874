"""The reported int8 share is what ONNX Runtime executes: work from a run, precision from the optimized graph."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from handmade.core import Feed, feeds, model, vector, weight
from handmade.products import integers
from onnx import TensorProto, helper, numpy_helper

from onnxshot import memory
from onnxshot.api.quantize import quantize
from onnxshot.graph.load import load_model
from onnxshot.passes.keep_float import KeepFloat
from onnxshot.runtimes.executed import Execution
from onnxshot.runtimes.ort_executed import executed
from onnxshot.runtimes.ort_runtime import Runner
from onnxshot.settings import Settings

GRID = {"s": np.float32(0.05), "z": np.uint8(128)}
FAST = Settings(verify=False, use_cache=False, threads=1)
PROVEN = Settings(use_cache=False, threads=1, bench_seconds=0.01)


def chain(middle: str, constants: Feed, channels: int = 16) -> onnx.ModelProto:
    """An int8 Conv, float nodes from a to b, and an int8 Conv, each between Q/DQ pairs."""
    text = f"""g (float[n, 16, 8, 8] x) => (float[n, 16, 8, 8] y) {{
        xq = QuantizeLinear(x, s, z)  xd = DequantizeLinear(xq, s, z)
        w1 = DequantizeLinear<axis = 0>(w, w_scale, w_zero)
        [first] f = Conv<pads = [1, 1, 1, 1]>(xd, w1, c1)
        fq = QuantizeLinear(f, s, z)  a = DequantizeLinear(fq, s, z)
        {middle}
        bq = QuantizeLinear(b, s, z)  bd = DequantizeLinear(bq, s, z)
        w2 = DequantizeLinear<axis = 0>(v, v_scale, v_zero)
        [last] l = Conv<pads = [1, 1, 1, 1]>(bd, w2, c2)
        lq = QuantizeLinear(l, s, z)  y = DequantizeLinear(lq, s, z)
    }}"""
    first = integers(weight(channels, 16, 3, 3), "int8", 0, 0)
    last = {k.replace("w", "v", 1): v for k, v in integers(weight(16, channels, 3, 3, seed=1), "int8", 0, 0).items()}
    return model(text, GRID | first | last | {"c1": vector(channels), "c2": vector(16)} | constants)


def share(macs: dict[str, int], int8: set[str]) -> float:
    return sum(macs[name] for name in int8) / sum(macs.values())


def labels(run: Execution, precision: str) -> set[str]:
    return {node.name for node in run.nodes if node.precision == precision and node.macs}


@pytest.mark.parametrize("channels", [4, 16, 20])
def test_padded_channels_do_not_count_as_work(channels: int) -> None:
    """PAINS 45: NCHWc pads 4 channels to 16; the share was reported as 0.667 instead of 0.889."""
    middle = "[mid] m = Conv<pads = [1, 1, 1, 1]>(a, w3)  b = Relu(m)"
    proto = chain(middle, {"w3": weight(channels, channels, 3, 3)}, channels)
    kept = load_model(proto)
    KeepFloat({"mid"}).run(kept)
    run = executed(kept.to_proto().SerializeToString(), sample=feeds(1, x=(2, 16, 8, 8))[0])
    each = 2 * 64 * 9 * channels
    macs = {"first": each * 16, "mid": each * channels, "last": each * 16}
    assert {node.name: node.macs for node in run.nodes} == macs
    assert run.share == share(macs, {"first", "last"})
    assert all(node.exact for node in run.nodes) and not run.unplanned()


PRODUCTS = {
    "conv": ("[mid] b = Conv<pads = [1, 1, 1, 1]>(a, u)", {"u": weight(16, 16, 3, 3)}),
    "conv and relu": ("[mid] m = Conv<pads = [1, 1, 1, 1]>(a, u)  b = Relu(m)", {"u": weight(16, 16, 3, 3)}),
    "depthwise": ("[mid] b = Conv<pads = [1, 1, 1, 1], group = 16>(a, u)", {"u": weight(16, 1, 3, 3)}),
    "transposed": ("[mid] b = ConvTranspose<pads = [1, 1, 1, 1]>(a, u)", {"u": weight(16, 16, 3, 3)}),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_nodes_that_the_runtime_quantizes_by_itself_are_reported(name: str) -> None:
    """Without the prevention the fault occurs; with it, it does not."""
    proto, sample = chain(*PRODUCTS[name]), feeds(1, x=(2, 16, 8, 8))[0]
    assert executed(proto.SerializeToString(), sample=sample).unplanned() == ["mid"]
    kept = load_model(proto)
    KeepFloat({"mid"}).run(kept)
    run = executed(kept.to_proto().SerializeToString(), sample=sample)
    assert run.unplanned({"mid"}) == []
    assert labels(run, "float") == {"mid"} and labels(run, "int8") == {"first", "last"}


def test_nodes_without_weights_that_a_plan_leaves_in_float_are_reported() -> None:
    proto = chain("[sum] b = Add(a, xd)", {})
    run = executed(proto.SerializeToString(), sample=feeds(1, x=(2, 16, 8, 8))[0])
    assert run.unplanned() == []  # the file has nothing that says float
    assert run.unplanned({"sum"}) == ["sum"]


def network(third: str = "ConvTranspose") -> onnx.ModelProto:
    text = f"""g (float[n, 8, 12, 12] x) => (float[n, 8, 12, 12] y) {{
        [one] a = Conv<pads = [1, 1, 1, 1]>(x, w1, c1)  b = Relu(a)
        [two] c = Conv<pads = [1, 1, 1, 1]>(b, w2, c1)  d = Relu(c)
        [three] e = {third}<pads = [1, 1, 1, 1]>(d, w3, c1)  f = Relu(e)
        [four] y = Conv<pads = [1, 1, 1, 1]>(f, w4, c1)
    }}"""
    held = {f"w{i}": weight(8, 8, 3, 3, seed=i) for i in range(1, 5)}
    return model(text, held | {"c1": vector(8)})


@pytest.mark.parametrize("target", ["ort", "ort-avx2", "portable"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"exclude": ("two",)},
        {"exclude": ("two",), "activation_type": "int8"},
        {"exclude": ("two",), "per_channel": False},
        {"layers": {"two": {"mode": "float"}}},
    ],
)
def test_nodes_left_in_float_by_a_plan_run_in_float(target: str, options: dict[str, object], tmp_path: Path) -> None:
    """onnxruntime PR #24537, #25673, #22969: an excluded layer still ran in int8, with one scale per tensor."""
    given = feeds(8, x=(1, 8, 12, 12))
    result = quantize(
        network(), given, output=tmp_path / "q.onnx", target=target, effort="fast", settings=PROVEN, **options
    )
    floats = {"three"} | ({"two"} if "exclude" in options or "layers" in options else set())
    run = executed(tmp_path / "q.onnx", sample=given[0])
    assert labels(run, "float") == floats
    assert result.report.int8_unplanned == []
    assert result.report.int8_macs_share == pytest.approx(1 - len(floats) / 4)
    assert not any("runs nodes in int8 that are float" in note for note in result.report.notes)


def test_a_report_names_nodes_run_in_int8_against_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeepFloat, "run", lambda self, model: None)
    given = feeds(8, x=(1, 8, 12, 12))
    proto = network("Conv")
    result = quantize(proto, given, output=tmp_path / "q.onnx", effort="fast", exclude=("two",), settings=PROVEN)
    assert result.report.int8_unplanned == ["two"]
    assert any(note.endswith("float in the file or the plan: 'two'") for note in result.report.notes)


def test_a_loop_counts_every_round_by_its_own_sizes() -> None:
    text = """g (float[4, 8] x) => (float[m, 8] y) {
        y = Loop (n, go, x) <body = b (int64 i, bool c, float[r, 8] h) => (bool d, float[q, 8] k) {
            d = Identity(c)  p = MatMul(h, w)  k = Concat<axis = 0>(p, x) }>
    }"""
    proto = model(text, {"w": weight(8, 8), "n": np.int64(3), "go": np.bool_(True)})
    run = executed(proto.SerializeToString(), sample={"x": feeds(1, x=(4, 8))[0]["x"]})
    assert run.total_macs == (4 + 8 + 12) * 64


def test_sizes_that_inference_cannot_know_come_from_the_run() -> None:
    text = """g (float[n, 3, h, v] x) => (float y) {
        s = Shape(x)  k = Slice(s, two, four, zero)  b = Mul(k, k2)  c = Concat<axis = 0>(front, b)
        r = Expand(one, c)  [mid] y = Conv(r, w)
    }"""
    held = {
        "two": np.array([2], np.int64), "four": np.array([4], np.int64), "zero": np.array([0], np.int64),
        "k2": np.array([2, 2], np.int64), "front": np.array([1, 3], np.int64), "one": np.ones((1, 1, 1, 1), np.float32),
        "w": weight(4, 3, 1, 1),
    }  # fmt: skip
    proto = model(text, held)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    run = executed(proto.SerializeToString(), sample=feeds(1, x=(1, 3, 5, 7))[0])
    assert run.total_macs == 4 * 10 * 14 * 3 and all(node.exact for node in run.nodes)


def test_work_inside_functions_is_counted() -> None:
    proto = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["": 17, "local": 1]>
        g (float[n, 8] x) => (float[n, 4] y) { h = local.twice(x, w)  y = MatMul(h, v) }
        <domain: "local", opset_import: ["": 17]>
        twice (a, b) => (c) { d = MatMul(a, b)  c = MatMul(d, b) }""")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight(8, 8), "w"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight(8, 4), "v"))
    run = executed(proto.SerializeToString(), sample=feeds(1, x=(3, 8))[0])
    assert run.total_macs == 3 * (64 + 64 + 32)


def test_a_file_with_float_layers_is_read_back_unchanged(tmp_path: Path) -> None:
    given = feeds(8, x=(1, 8, 12, 12))
    first = quantize(network(), given, output=tmp_path / "q.onnx", exclude=("two",), effort="fast", settings=FAST)
    again = quantize(
        tmp_path / "q.onnx", given, output=tmp_path / "r.onnx", exclude=("two",), effort="fast",
        settings=Settings(verify=False, use_cache=False, threads=1, requantize=True),
    )  # fmt: skip
    assert sorted((n.op, n.how) for n in again.plan.nodes) == sorted((n.op, n.how) for n in first.plan.nodes)


def test_what_parts_execute_is_what_the_whole_executes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares, precisions and work of a model that is run in parts are those of the whole model."""
    width, rng = 80, np.random.default_rng(0)
    nodes, weights, source = [], {}, "x"
    for i in range(5):
        weights[f"w{i}"] = (rng.standard_normal((width, width)) / 9).astype(np.float32)
        nodes += [
            helper.make_node("MatMul", [source, f"w{i}"], [f"m{i}"], name=f"product{i}"),
            helper.make_node("Relu", [f"m{i}"], [f"r{i}"], name=f"relu{i}"),
        ]
        source = f"r{i}"
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", TensorProto.FLOAT, ["n", width])], [info(source, TensorProto.FLOAT, ["n", width])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    feed = {"x": rng.standard_normal((3, width)).astype(np.float32)}
    path = tmp_path / "q.onnx"
    quantize(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), [feed] * 4, output=path,
        effort="fast", exclude=("product2",), settings=Settings(verify=False),
    )  # fmt: skip
    whole = executed(path, sample=feed)
    assert 0 < whole.share < 1
    monkeypatch.setattr(memory, "part_bytes", lambda: 2 * width * width)
    assert Runner(path).in_parts > 2
    assert executed(path, sample=feed).nodes == whole.nodes
    assert executed(path).nodes == executed(path, sample={"x": np.zeros((1, width), np.float32)}).nodes

"""A Gelu behind a DequantizeLinear is one kernel in ONNX Runtime, and gives what it gave."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxshot.graph import Model
from onnxshot.passes.one_dequantized_reader import OneDequantizedReader
from onnxshot.runtimes.ort_session import SessionRunner

FLOATS = frozenset("acey") | {"b", "n0", "n1", "n2"}


def gelu(reads_erf: bool = True) -> onnx.ModelProto:
    """x -> Q -> DQ -> Gelu."""
    stored = {"s": np.array(0.02, np.float32), "z": np.array(128, np.uint8), "root": np.array(2**0.5, np.float32)}
    stored |= {"one": np.array(1, np.float32), "half": np.array(0.5, np.float32)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("Div", ["d", "root"], ["a"], name="a"),
        helper.make_node("Erf" if reads_erf else "Exp", ["a"], ["b"], name="b"),
        helper.make_node("Add", ["b", "one"], ["c"], name="c"),
        helper.make_node("Mul", ["d", "c"], ["e"], name="e"),
        helper.make_node("Mul", ["e", "half"], ["y"], name="y"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 64]) for name in ("x", "y")]
    weights = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "gelu", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def ran(proto: onnx.ModelProto, folder: Path) -> tuple[np.ndarray, list[str]]:
    """The output, and the operators that ran."""
    runner = SessionRunner(proto.SerializeToString(), threads=1, save_optimized=folder / "o.onnx")
    x = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    return runner.run({"x": x})["y"], [node.op_type for node in onnx.load(str(folder / "o.onnx")).graph.node]


def test_gelu_is_fused_behind_a_dq(tmp_path: Path) -> None:
    before, ops = ran(gelu(), tmp_path)
    assert "Gelu" not in ops, "ONNX Runtime fuses it by now: the pass is not needed any more"
    model = Model(gelu())
    assert OneDequantizedReader(FLOATS).run(model).edits == 1
    after, ops = ran(model.to_proto(), tmp_path)
    assert "Gelu" in ops and "Erf" not in ops
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert OneDequantizedReader(FLOATS).run(model).edits == 0


def test_other_readers_are_left_alone() -> None:
    assert OneDequantizedReader(FLOATS).run(Model(gelu(reads_erf=False))).edits == 0
    assert OneDequantizedReader(FLOATS - {"a"}).run(Model(gelu())).edits == 0


def test_what_many_read_is_dequantized_once(tmp_path: Path) -> None:
    proto = gelu()
    del proto.graph.node[2:]
    ops = ("Exp", "Sin", "Cos")
    proto.graph.node.extend(helper.make_node(op, ["d"], [f"o{i}"], name=f"n{i}") for i, op in enumerate(ops))
    proto.graph.node.append(helper.make_node("Sum", ["o0", "o1", "o2"], ["y"], name="y"))
    before, ran_before = ran(proto, tmp_path)
    assert ran_before.count("DequantizeLinear") == 3
    model = Model(proto)
    assert OneDequantizedReader(FLOATS).run(model).edits == 1
    after, ran_after = ran(model.to_proto(), tmp_path)
    assert ran_after.count("DequantizeLinear") == 1
    np.testing.assert_array_equal(after, before)

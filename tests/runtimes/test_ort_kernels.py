"""Kernels of an optimized graph with the tensors and times of each, and what a border costs."""

import numpy as np
from onnx import TensorProto, helper

from onnxshot.graph.lean_model import LeanModel
from onnxshot.runtimes.ort_border_times import border_times
from onnxshot.runtimes.ort_kernels import kernels_of


def model(loop: bool) -> LeanModel:
    """Neg and Abs; with `loop`, inside an If as well, whose nodes the profile lists in between."""
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Neg", ["x"], ["n"]), helper.make_node("Abs", ["n"], ["y"])]
    inputs, outputs = [value("x", TensorProto.FLOAT, [64, 64])], [value("y", TensorProto.FLOAT, [64, 64])]
    if loop:
        branch = [
            helper.make_graph([helper.make_node(op, ["n"], [f"{op}_out"])], op, [], [value(f"{op}_out", 1, [64, 64])])
            for op in ("Exp", "Sin")
        ]
        nodes.append(helper.make_node("If", ["c"], ["z"], then_branch=branch[0], else_branch=branch[1]))
        inputs.append(value("c", TensorProto.BOOL, []))
        outputs.append(value("z", TensorProto.FLOAT, [64, 64]))
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return LeanModel.of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_every_kernel_has_its_tensors_and_a_time() -> None:
    feed = {"x": np.ones((64, 64), np.float32), "c": np.array(True)}
    plain, branching = kernels_of([model(False), model(True)], feed, threads=1, rounds=(3, 3), seconds=1.0)
    assert [(k.op, k.inputs, k.outputs, k.shape) for k in plain] == [
        ("Neg", ("x",), ("n",), (64, 64)), ("Abs", ("n",), ("y",), (64, 64))
    ]  # fmt: skip
    assert {k.op for k in branching} == {"Neg", "Abs", "If"}
    assert all(k.microseconds >= 0 for k in (*plain, *branching))


def test_borders_cost_something_and_pictures_more() -> None:
    found = border_times(1)
    assert 0 < found.each <= found.each_of_pictures
    assert found.fixed >= 0 and found.profiled >= 0

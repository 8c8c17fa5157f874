"""A copy of a model has its own graph and shares the values of weights."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxshot.graph import edit, weights
from onnxshot.graph.copies import copy_of
from onnxshot.graph.load import load_model
from onnxshot.graph.model import Model


def branches() -> Model:
    """x -> If(flag): x + w, else: x * w, with a weight that both branches read, an empty list and metadata."""
    then, other = (
        helper.make_graph(
            [helper.make_node(op, ["x", "w"], [f"{op}_out"], name=op)],
            f"{op}_graph",
            [],
            [helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, [3])],
        )
        for op in ("Add", "Mul")
    )
    nodes = [
        helper.make_node("If", ["flag"], ["y"], name="if", then_branch=then, else_branch=other),
        helper.make_node("Cast", ["y"], ["z"], name="cast", to=TensorProto.FLOAT),
    ]
    nodes[1].doc_string = "kept"
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [3]),
        helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        helper.make_tensor_value_info("z", TensorProto.FLOAT, [3]),
    ]
    graph = helper.make_graph(nodes, "g", ports[:2], ports[2:], [numpy_helper.from_array(np.ones(3, np.float32), "w")])
    graph.value_info.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [3]))
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    proto.metadata_props.add(key="a", value="b")
    return load_model(proto)


def test_a_copy_is_written_like_its_original() -> None:
    model = branches()
    assert copy_of(model).to_proto() == model.to_proto()
    onnx.checker.check_model(copy_of(model).to_proto())


def test_edits_of_a_copy_leave_the_original() -> None:
    model = branches()
    before = model.to_proto()
    copy = copy_of(model)
    node = edit.add_node(copy, "Neg", [copy.graph.outputs[0]], base="more")
    copy.graph.outputs[0] = node.outputs[0]
    copy.set_metadata("c", "d")
    copy.graph.value_infos["y"].type.tensor_type.shape.dim[0].dim_value = 7
    copy.notes.append("a note")
    inner = next(graph for graph in copy.graphs() if graph.name == "Add_graph")
    inner.nodes[0].inputs[1] = edit.add_constant(copy, "w", "new", np.zeros(3, np.float32))
    assert model.to_proto() == before
    assert model.notes == []


def test_a_copy_shares_the_values_of_weights() -> None:
    model = branches()
    weight = model.constants()[0]
    weight.stored_as = TensorProto.FLOAT16
    copied = copy_of(model).constants()[0]
    assert copied is not weight
    assert copied._values is weight._values
    assert copied.stored_as == TensorProto.FLOAT16


def test_a_copy_gives_new_names_as_a_loaded_model_does() -> None:
    model = branches()
    model.fresh("gone")
    assert [m.fresh("gone") for m in (model, copy_of(model))] == ["gone_2", "gone"]
    assert copy_of(model).fresh("Add_out") == "Add_out_2"


def test_a_copy_forgets_types_of_removed_tensors() -> None:
    model = branches()
    model.graph.value_infos["gone"] = helper.make_tensor_value_info("gone", TensorProto.INT8, [3])
    copy = copy_of(model)
    assert copy.value_info("gone") is None
    assert copy.value_info("y") == model.value_info("y")


def test_readers_have_the_order_of_a_loaded_model() -> None:
    model = branches()
    for mine, loaded in zip(copy_of(model).constants(), load_model(model.to_proto()).constants(), strict=True):
        assert [n.name for n in edit.consumers(mine)] == [n.name for n in edit.consumers(loaded)]
        assert np.array_equal(weights.read(mine), weights.read(loaded))

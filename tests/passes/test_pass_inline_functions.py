import numpy as np
import onnx
from handmade import HANDMADE
from handmade.core import feeds, model, weight
from onnx import helper
from pass_checks import ops, rewritten

from onnxshot.graph.load import load_model
from onnxshot.passes.inline_functions import InlineFunctions

TWICE = """
<domain: "local", opset_import: ["": 17]>
twice (a) => (b) { two = Constant<value = float {2}>() b = Mul(a, two) }
<domain: "local", opset_import: ["": 17, "local": 1]>
four (a) => (b) { c = local.twice(a) b = local.twice(c) }
"""


def test_nothing_to_inline() -> None:
    _, change = rewritten(model("g (float[2, 8] x) => (float[2, 8] y) { y = Relu(x) }"), InlineFunctions())
    assert change.edits == 0


def test_handmade_function_is_inlined() -> None:
    case = HANDMADE["local_function"]()
    after, change = rewritten(case.model, InlineFunctions(), *case.feeds[:1])
    assert change.edits == len(case.model.functions)
    assert not after.envelope.functions
    assert all(node.domain in (None, "") for _, node in after.walk())


def test_nested_functions_beside_large_weights() -> None:
    text = "g (float[n, 64] x) => (float[n, 64] y) { h = MatMul(x, w) y = local.four(h) }" + TWICE
    proto = model(text, {"w": weight(64, 64)}, imports=', "local": 1')
    proto.doc_string = "kept"
    onnx.helper.set_model_props(proto, {"author": "kept"})
    after, change = rewritten(proto, InlineFunctions(), *feeds(1, x=(3, 64)))
    assert change.edits == 2
    assert ops(after) == {"MatMul": 1, "Constant": 2, "Mul": 2}


def test_function_called_in_a_branch() -> None:
    text = """g (float[2] x, bool c) => (float[2] y) {
        y = If (c) <
            then_branch = t () => (float[2] p) { p = local.twice(x) },
            else_branch = e () => (float[2] q) { q = Identity(x) }
        >
    }"""
    proto = model(text + TWICE, imports=', "local": 1')
    after, _ = rewritten(proto, InlineFunctions(), {"x": np.ones(2, np.float32), "c": np.array(True)})
    assert ops(after)["Mul"] == 1


def test_defaults_of_attributes_reach_nested_functions() -> None:
    """ONNX's inliner drops the default of an attribute that a function hands on."""
    leaky = helper.make_node("LeakyRelu", ["x"], ["y"])
    leaky.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    inner = helper.make_function(
        "local", "Leaky", ["x"], ["y"], [leaky], [helper.make_opsetid("", 17)], attributes=["slope"]
    )
    call = helper.make_node("Leaky", ["x"], ["y"], domain="local")
    call.attribute.add(name="slope", ref_attr_name="steep", type=onnx.AttributeProto.FLOAT)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    outer = helper.make_function(
        "local", "Outer", ["x"], ["y"], [call], opsets, attribute_protos=[helper.make_attribute("steep", 0.25)]
    )
    text = "g (float[n, 4] x) => (float[n, 4] y, float[n, 4] z) { y = local.Outer(x) z = local.Outer<steep = 0.5>(x) }"
    proto = model(text, imports=', "local": 1')
    proto.functions.extend([inner, outer])
    after = load_model(proto)
    assert InlineFunctions().run(after).edits == 2
    assert [node.attrs["alpha"] for _, node in after.walk()] == [0.25, 0.5]

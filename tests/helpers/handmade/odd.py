"""Odd but legal: names, imports, metadata, shapes and values that tools trip over."""

import numpy as np
import onnx

from handmade.core import Case, case, feeds, model, vector, weight

CONV_RELU_CONV = """g (float[batch, 4, 8, 8] x) => (float[batch, 4, 8, 8] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
        r = Relu(a)
        y = Conv<pads = [1, 1, 1, 1]>(r, w2, b2)
    }"""


def conv_relu_conv(imports: str = "") -> onnx.ModelProto:
    """Two convolutions [batch, 4, 8, 8] -> [batch, 4, 8, 8]."""
    weights = {"w1": weight(8, 4, 3, 3), "b1": vector(8), "w2": weight(4, 8, 3, 3, seed=1), "b2": vector(4)}
    return model(CONV_RELU_CONV, weights, imports=imports)


def named(*names: str) -> Case:
    """Two convolutions whose three nodes have these names."""
    proto = conv_relu_conv()
    for node, name in zip(proto.graph.node, names, strict=True):
        node.name = name
    return Case(proto, feeds(x=(2, 4, 8, 8)))


@case
def duplicate_node_names() -> Case:
    """Legal by the checker, refused by ONNX Runtime: it runs once the nodes are renamed."""
    case_ = named("conv", "conv", "conv")
    return Case(case_.model, case_.feeds, runs=False)


@case
def empty_node_names() -> Case:
    return named("", "", "")


@case
def clashing_names() -> Case:
    """Tensor and node names that appending a number or the usual suffixes would produce."""
    text = """g (float[batch, 8] x) => (float[batch, 8] y) {
        b_0 = MatMul(x, b)
        b_1 = MatMul(b_0, b0)
        b_QuantizeLinear = Mul(b_1, b_scale)
        b_DequantizeLinear = Add(b_QuantizeLinear, b_zero_point)
        x_scale = Relu(b_DequantizeLinear)
        x_zero_point = MatMul(x_scale, b_quantized)
        y_scale = Add(x_zero_point, b_dq)
        y = MatMul(y_scale, x_q)
    }"""
    square = ("b", "b0", "b_quantized", "x_q")
    weights = {name: weight(8, 8, seed=n) for n, name in enumerate(square)}
    weights |= {name: vector(8, n) for n, name in enumerate(("b_scale", "b_zero_point", "b_dq"))}
    proto = model(text, weights)
    for node, name in zip(proto.graph.node, ["b", "b_q", "b_scale", "b_Q", "x", "b_dq", "y_q", "y"], strict=True):
        node.name = name
    return Case(proto, feeds(x=(4, 8)))


@case
def unusual_names() -> Case:
    """Names with slashes, dots, colons, spaces and other scripts."""
    case_ = named("/model.0/conv/Conv:0", "a b", "вход")
    for old, new in {"a": "/model.0/conv/Conv_output_0:0", "w1": "model.0.conv.weight ", "r": "выход"}.items():
        for node in case_.model.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
            node.output[:] = [new if name == old else name for name in node.output]
        for tensor in case_.model.graph.initializer:
            tensor.name = new if tensor.name == old else tensor.name
    return case_


@case
def microsoft_first() -> Case:
    """opset_import lists com.microsoft before the default domain, and a node uses it."""
    text = """g (float[batch, 4, 8, 8] x) => (float[batch, 8, 8, 8] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w, b)
        y = com.microsoft.Gelu(a)
    }"""
    proto = model(text, {"w": weight(8, 4, 3, 3), "b": vector(8)}, imports=', "com.microsoft": 1')
    del proto.opset_import[:]
    proto.opset_import.extend([onnx.helper.make_opsetid("com.microsoft", 1), onnx.helper.make_opsetid("", 17)])
    return Case(proto, feeds(x=(2, 4, 8, 8)))


@case
def microsoft_fused() -> Case:
    """Operators that only ONNX Runtime knows, as its optimizer writes them."""
    text = """g (float[batch, 16] x) => (float[batch, 16] y) {
        a = com.microsoft.FusedMatMul<alpha = 0.5, transB = 1>(x, w)
        h = com.microsoft.BiasGelu(a, b)
        y = com.microsoft.SkipLayerNormalization<epsilon = 0.00001>(h, x, scale, shift)
    }"""
    weights = {"w": weight(16, 16), "b": vector(16), "scale": vector(16, 1, 0.5, 2), "shift": vector(16, 2)}
    proto = model(text, weights, imports=', "com.microsoft": 1')
    return Case(proto, feeds(x=(4, 16)))


@case
def metadata_and_doc_strings() -> Case:
    """metadata_props on model, graph, node and value; doc strings everywhere; producer and version."""
    proto = conv_relu_conv()
    proto.producer_name, proto.producer_version, proto.model_version = "handmade", "1.2", 7
    proto.domain, proto.doc_string, proto.graph.doc_string = "org.example", "what the model is", "what the graph is"
    onnx.helper.set_model_props(proto, {"classes": "cat,dog", "stride": "32"})
    proto.graph.metadata_props.add(key="graph_key", value="graph_value")
    proto.graph.node[0].doc_string = "the first node"
    proto.graph.node[0].metadata_props.add(key="node_key", value="node_value")
    proto.graph.input[0].doc_string = "an image"
    proto.graph.initializer[0].doc_string = "a weight"
    inner = onnx.helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, ["batch", 8, 8, 8])
    inner.metadata_props.add(key="value_key", value="value_value")
    proto.graph.value_info.append(inner)
    return Case(proto, feeds(x=(2, 4, 8, 8)))


@case
def two_outputs() -> Case:
    """A feature map that is an output and also feeds the second output."""
    text = """g (float[batch, 4, 8, 8] x) => (float[batch, 8, 8, 8] features, float[batch, 10] logits) {
        c = Conv<pads = [1, 1, 1, 1]>(x, w, b)
        features = Relu(c)
        p = GlobalAveragePool(features)
        f = Flatten(p)
        logits = Gemm<transB = 1>(f, fc, fc_b)
    }"""
    weights = {"w": weight(8, 4, 3, 3), "b": vector(8), "fc": weight(10, 8), "fc_b": vector(10)}
    return Case(model(text, weights), feeds(x=(2, 4, 8, 8)))


@case
def input_is_output() -> Case:
    text = "g (float[batch, 8] x) => (float[batch, 8] same, float[batch, 8] y) { same = Identity(x) y = MatMul(x, w) }"
    return Case(model(text, {"w": weight(8, 8)}), feeds(x=(4, 8)))


@case
def scalar_input() -> Case:
    """A second input of rank 0."""
    text = """g (float[batch, 8] x, float gain) => (float[batch, 8] y) {
        h = MatMul(x, w)
        y = Mul(h, gain)
    }"""
    return Case(model(text, {"w": weight(8, 8)}), feeds(x=(4, 8), gain=()))


@case
def nan_for_negative_input() -> Case:
    """Log of the input: normal samples hold NaN after it."""
    text = "g (float[batch, 8] x) => (float[batch, 8] y) { l = Log(x) y = MatMul(l, w) }"
    return Case(model(text, {"w": weight(8, 8)}), feeds(x=(4, 8)))


@case
def infinite_mask() -> Case:
    """Attention scores masked with minus infinity: finite again after Softmax."""
    text = """g (float[batch, 6, 8] x) => (float[batch, 6, 8] y) {
        q = MatMul(x, w)
        t = Transpose<perm = [0, 2, 1]>(q)
        s = MatMul(x, t)
        masked = Add(s, mask)
        p = Softmax(masked)
        y = MatMul(p, x)
    }"""
    mask = np.triu(np.full((6, 6), -np.inf, np.float32), 1)
    return Case(model(text, {"w": weight(8, 8), "mask": mask}), feeds(x=(2, 6, 8)))


@case
def dropout_and_identity_chain() -> Case:
    text = """g (float[batch, 16] x) => (float[batch, 8] y) {
        i1 = Identity(x)
        h = Gemm<transB = 1>(i1, w1, b1)
        d1 = Dropout(h)
        i2 = Identity(d1)
        d2, mask = Dropout(i2, ratio)
        r = Relu(d2)
        i3 = Identity(r)
        i4 = Identity(i3)
        o = Gemm<transB = 1>(i4, w2, b2)
        y = Identity(o)
    }"""
    weights = {"w1": weight(16, 16), "b1": vector(16), "w2": weight(8, 16), "b2": vector(8)}
    return Case(model(text, weights | {"ratio": np.array(0.5, np.float32)}), feeds(x=(4, 16)))


@case
def unused_nodes() -> Case:
    """Nodes and an initializer that reach no output."""
    text = """g (float[batch, 8] x) => (float[batch, 8] y) {
        h = MatMul(x, w)
        dead = MatMul(h, w_dead)
        dead2 = Relu(dead)
        y = Relu(h)
    }"""
    return Case(model(text, {"w": weight(8, 8), "w_dead": weight(8, 8, seed=1), "never": vector(8)}), feeds(x=(4, 8)))


@case
def constant_folding() -> Case:
    """Shape arithmetic and constants that fold to one value; a bias that is computed."""
    text = """g (float[batch, 4, 8, 8] x) => (float[batch, T] y) {
        two = Constant<value_float = 2.0>()
        bias = Mul(b, two)
        c = Conv<pads = [1, 1, 1, 1]>(x, w, bias)
        s = Shape(c)
        n = Gather(s, zero)
        n1 = Unsqueeze(n, axes)
        target = Concat<axis = 0>(n1, minus)
        y = Reshape(c, target)
    }"""
    weights = {"w": weight(8, 4, 3, 3), "b": vector(8), "zero": np.array(0, np.int64)}
    weights |= {"axes": np.array([0], np.int64), "minus": np.array([-1], np.int64)}
    return Case(model(text, weights), feeds(x=(2, 4, 8, 8)))


@case
def no_weights() -> Case:
    text = "g (float[batch, 8] x) => (float[batch, 8] y) { a = Relu(x) y = Softmax(a) }"
    return Case(model(text), feeds(x=(4, 8)))


@case
def dead_channels() -> Case:
    """Channels of zeros, of tiny values and of huge ones; a bias that overflows int32 at a tiny weight scale."""
    proto = conv_relu_conv()
    w = weight(8, 4, 3, 3)
    w[0], w[1], w[2] = 0, 1e-30, w[2] * 1000
    b = vector(8)
    b[1] = 50.0
    for tensor in proto.graph.initializer:
        if tensor.name in ("w1", "b1"):
            tensor.CopyFrom(onnx.numpy_helper.from_array({"w1": w, "b1": b}[tensor.name], tensor.name))
    return Case(proto, feeds(x=(2, 4, 8, 8)))

"""Mutations of attributes and of opset imports."""

from onnx import AttributeProto, TensorProto, helper

from fuzzing.core import Mutant, Pointless, mutation

INTS = (0, -1, 1, 2, 5, -(1 << 62), 1 << 31, (1 << 63) - 1)
_FLOATS = (0.0, -1.0, 1e-45, 3e38, float("inf"), float("nan"), 1.5)


def _kernel(m: Mutant, name: str, values: list[int]) -> None:
    node = m.node("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "ConvInteger")
    for attribute in [a for a in node.attribute if a.name == name]:
        node.attribute.remove(attribute)
    node.attribute.append(helper.make_attribute(name, values, attr_type=AttributeProto.INTS))


@mutation
def an_int(m: Mutant) -> None:
    m.attribute(AttributeProto.INT)[1].i = m.rng.choice(INTS)


@mutation
def an_int_of_a_list(m: Mutant) -> None:
    _, attribute = m.attribute(AttributeProto.INTS)
    if not attribute.ints:
        raise Pointless
    attribute.ints[m.rng.randrange(len(attribute.ints))] = m.rng.choice(INTS)


@mutation
def a_list_of_zeros(m: Mutant) -> None:
    _, attribute = m.attribute(AttributeProto.INTS)
    attribute.ints[:] = [0] * len(attribute.ints)


@mutation
def a_list_too_long(m: Mutant) -> None:
    m.attribute(AttributeProto.INTS)[1].ints.append(1)


@mutation
def a_list_too_short(m: Mutant) -> None:
    _, attribute = m.attribute(AttributeProto.INTS)
    del attribute.ints[-1:]


@mutation
def a_list_empty(m: Mutant) -> None:
    del m.attribute(AttributeProto.INTS)[1].ints[:]


@mutation
def a_float(m: Mutant) -> None:
    m.attribute(AttributeProto.FLOAT)[1].f = m.rng.choice(_FLOATS)


@mutation
def a_string(m: Mutant) -> None:
    m.attribute(AttributeProto.STRING, AttributeProto.STRINGS)[1].s = m.rng.choice(
        [b"", b"SAME_UPPER", b"VALID", b"\xff"]
    )


@mutation
def attribute_dropped(m: Mutant) -> None:
    node = m.one([n for n in m.graph.node if n.attribute])
    node.attribute.remove(m.one(node.attribute))


@mutation
def attribute_twice(m: Mutant) -> None:
    node = m.one([n for n in m.graph.node if n.attribute])
    node.attribute.add().CopyFrom(m.one(node.attribute))


@mutation
def attribute_of_other_type(m: Mutant) -> None:
    node = m.one([n for n in m.graph.node if n.attribute])
    attribute = m.one(node.attribute)
    made = helper.make_attribute(
        attribute.name, m.rng.choice([1.5, b"x", [1.0, 2.0], [b"a"], helper.make_tensor("t", 1, [1], [1])])
    )
    attribute.CopyFrom(made)


@mutation
def axis(m: Mutant) -> None:
    node = m.node("Concat", "Softmax", "Gather", "Split", "Flatten", "ArgMax", "TopK", "LogSoftmax", "DequantizeLinear")
    for attribute in [a for a in node.attribute if a.name == "axis"]:
        node.attribute.remove(attribute)
    node.attribute.append(helper.make_attribute("axis", m.rng.choice([*INTS, 3, -3, 10])))


@mutation
def group(m: Mutant) -> None:
    node = m.node("Conv", "ConvTranspose")
    for attribute in [a for a in node.attribute if a.name == "group"]:
        node.attribute.remove(attribute)
    node.attribute.append(helper.make_attribute("group", m.rng.choice([0, -1, 2, 3, 1 << 40])))


@mutation
def strides(m: Mutant) -> None:
    _kernel(m, "strides", [m.rng.choice([0, -1, 2, 1 << 33]) for _ in range(2)])


@mutation
def dilations(m: Mutant) -> None:
    _kernel(m, "dilations", [m.rng.choice([0, -1, 2, 1 << 33]) for _ in range(2)])


@mutation
def pads(m: Mutant) -> None:
    _kernel(m, "pads", [m.rng.choice([0, 1, 3, -1, 1 << 20, 1 << 40, (1 << 63) - 1]) for _ in range(4)])


@mutation
def pads_uneven(m: Mutant) -> None:
    _kernel(m, "pads", [m.rng.choice([0, 1, 2, 3]) for _ in range(4)])


@mutation
def kernel_shape(m: Mutant) -> None:
    _kernel(m, "kernel_shape", [m.rng.choice([0, -1, 1, 3, 1 << 33]) for _ in range(2)])


@mutation
def auto_pad(m: Mutant) -> None:
    node = m.node("Conv", "ConvTranspose", "MaxPool", "AveragePool")
    node.attribute.append(
        helper.make_attribute("auto_pad", m.rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID", "x", ""]))
    )


@mutation
def output_padding(m: Mutant) -> None:
    node = m.node("ConvTranspose")
    node.attribute.append(
        helper.make_attribute(m.rng.choice(["output_padding", "output_shape"]), [m.rng.choice([0, 1, -1, 1 << 40])] * 2)
    )


@mutation
def permutation(m: Mutant) -> None:
    node = m.node("Transpose")
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("perm", m.rng.choice([[0], [1, 0], [0, 0, 1], [0, 1, 2, 7], [-1, 0]])))


@mutation
def cast_to(m: Mutant) -> None:
    node = m.node("Cast")
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("to", m.rng.choice([0, 1, 2, 7, 8, 9, 10, 11, 16, 17, 22, 99, -1])))


@mutation
def recurrent(m: Mutant) -> None:
    """hidden_size, direction, clip, activations."""
    node = m.node("LSTM", "GRU", "RNN")
    name, value = m.rng.choice([
        ("hidden_size", 0), ("hidden_size", 7), ("hidden_size", 1 << 40), ("direction", "bidirectional"),
        ("direction", "sideways"), ("clip", 0.5), ("clip", -1.0), ("activations", ["Relu"]), ("layout", 1),
        ("linear_before_reset", 1), ("input_forget", 1), ("activations", ["Relu", "Tanh", "Tanh"]),
    ])  # fmt: skip
    for attribute in [a for a in node.attribute if a.name == name]:
        node.attribute.remove(attribute)
    node.attribute.append(helper.make_attribute(name, value))


@mutation
def gemm(m: Mutant) -> None:
    node = m.node("Gemm")
    name, value = m.rng.choice(
        [
            ("transA", 1),
            ("transB", 0),
            ("transB", 1),
            ("transB", 5),
            ("alpha", 0.0),
            ("beta", 0.0),
            ("alpha", 1e30),
            ("beta", -2.0),
        ]
    )
    for attribute in [a for a in node.attribute if a.name == name]:
        node.attribute.remove(attribute)
    node.attribute.append(helper.make_attribute(name, value))


@mutation
def norm_epsilon(m: Mutant) -> None:
    node = m.node("BatchNormalization", "LayerNormalization", "InstanceNormalization")
    for attribute in [a for a in node.attribute if a.name == "epsilon"]:
        node.attribute.remove(attribute)
    node.attribute.append(helper.make_attribute("epsilon", m.rng.choice([0.0, -1.0, 1.0, 1e30])))


@mutation
def batchnorm_variance(m: Mutant) -> None:
    """Zero, negative, tiny or huge variance, or values of another width."""
    node = m.node("BatchNormalization")
    tensor = m.one([t for t in m.graph.initializer if t.name in node.input[1:]])
    size = tensor.dims[0] if tensor.dims else 1
    value = m.rng.choice([0.0, -1.0, 1e-45, 3e38, float("nan"), float("inf")])
    tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.FLOAT, [size], [value] * size))


@mutation
def opset_missing(m: Mutant) -> None:
    del m.proto.opset_import[:]


@mutation
def opset_twice(m: Mutant) -> None:
    m.proto.opset_import.append(
        helper.make_opsetid(m.rng.choice(["", "ai.onnx"]), m.rng.choice([1, 7, 11, 13, 17, 21]))
    )


@mutation
def opset_of_other_version(m: Mutant) -> None:
    m.proto.opset_import[0].version = m.rng.choice([0, -1, 1, 5, 7, 9, 10, 11, 12, 13, 14, 18, 20, 21, 23, 1 << 40])


@mutation
def opset_of_other_domain(m: Mutant) -> None:
    m.proto.opset_import.append(
        helper.make_opsetid(m.rng.choice(["com.microsoft", "ai.onnx.ml", "x"]), m.rng.choice([0, -1, 1, 99]))
    )


@mutation
def ir_version(m: Mutant) -> None:
    m.proto.ir_version = m.rng.choice([0, 1, 3, 4, 7, 10, 99, 1 << 40])

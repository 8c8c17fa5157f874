"""Mutations of nodes, names and edges."""

from onnx import GraphProto, NodeProto, TensorProto, helper

from fuzzing.core import Mutant, Pointless, mutation


def _made(m: Mutant) -> list[str]:
    return [*(i.name for i in m.graph.input), *(o for n in m.graph.node for o in n.output if o)]


@mutation
def node_dropped(m: Mutant) -> None:
    m.graph.node.remove(m.node())


@mutation
def node_bypassed(m: Mutant) -> None:
    """Readers of the node read what it reads."""
    node = m.one([n for n in m.graph.node if n.input and n.input[0] and n.output])
    for other in m.graph.node:
        other.input[:] = [node.input[0] if name == node.output[0] else name for name in other.input]
    if all(info.name not in node.output for info in m.graph.output):
        m.graph.node.remove(node)


@mutation
def node_doubled(m: Mutant) -> None:
    """The same node twice makes the same tensors twice."""
    m.graph.node.add().CopyFrom(m.node())


@mutation
def node_copied(m: Mutant) -> None:
    """A copy with outputs of its own, one of which a reader reads."""
    index = m.rng.randrange(max(1, len(m.graph.node)))
    node = m.one(m.graph.node[index : index + 1])
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.output[:] = [f"{o}_copy" if o else "" for o in node.output]
    copy.name = ""
    m.graph.node.insert(index + 1, copy)
    for other in m.graph.node[index + 2 :]:
        if node.output and node.output[0] in other.input:
            other.input[list(other.input).index(node.output[0])] = copy.output[0]
            return


@mutation
def nodes_renamed(m: Mutant) -> None:
    """All nodes have one name."""
    for node in m.graph.node:
        node.name = "n"


@mutation
def nodes_swapped(m: Mutant) -> None:
    if len(m.graph.node) < 2:
        raise Pointless
    i = m.rng.randrange(len(m.graph.node) - 1)
    first = NodeProto()
    first.CopyFrom(m.graph.node[i])
    m.graph.node[i].CopyFrom(m.graph.node[i + 1])
    m.graph.node[i + 1].CopyFrom(first)


@mutation
def input_rewired(m: Mutant) -> None:
    """A node reads another tensor that was made before it."""
    index = m.rng.randrange(max(1, len(m.graph.node)))
    node = m.one(m.graph.node[index : index + 1])
    before = [*(i.name for i in m.graph.input), *(o for n in m.graph.node[:index] for o in n.output if o)]
    if not node.input:
        raise Pointless
    node.input[m.rng.randrange(len(node.input))] = m.one(before)


@mutation
def input_from_behind(m: Mutant) -> None:
    """A node reads what is made after it, or by itself."""
    node = m.one([n for n in m.graph.node if n.input and n.output])
    node.input[m.rng.randrange(len(node.input))] = m.one([*node.output, *m.graph.node[-1].output])


@mutation
def weight_rewired(m: Mutant) -> None:
    """A node reads another weight of its type."""
    kinds = {t.name: t.data_type for t in m.graph.initializer}
    node = m.one([n for n in m.graph.node if any(name in kinds for name in n.input)])
    slot = m.rng.choice([i for i, name in enumerate(node.input) if name in kinds])
    node.input[slot] = m.one([n for n, kind in kinds.items() if kind == kinds[node.input[slot]]])


@mutation
def inputs_swapped(m: Mutant) -> None:
    node = m.one([n for n in m.graph.node if len(n.input) > 1])
    node.input[:] = list(node.input)[::-1]


@mutation
def input_left_out(m: Mutant) -> None:
    """An input is named "": legal where it is optional."""
    node = m.one([n for n in m.graph.node if n.input])
    node.input[m.rng.randrange(len(node.input))] = ""


@mutation
def inputs_cut_short(m: Mutant) -> None:
    node = m.one([n for n in m.graph.node if n.input])
    del node.input[-1]


@mutation
def inputs_too_many(m: Mutant) -> None:
    node = m.node()
    node.input.append(node.input[0] if node.input else "")


@mutation
def output_left_out(m: Mutant) -> None:
    node = m.one([n for n in m.graph.node if n.output])
    node.output[m.rng.randrange(len(node.output))] = ""


@mutation
def outputs_too_many(m: Mutant) -> None:
    m.node().output.append("one_more")


@mutation
def graph_output_missing(m: Mutant) -> None:
    m.graph.output.remove(m.one(m.graph.output))


@mutation
def graph_outputs_none(m: Mutant) -> None:
    del m.graph.output[:]


@mutation
def graph_output_twice(m: Mutant) -> None:
    m.graph.output.add().CopyFrom(m.one(m.graph.output))


@mutation
def graph_output_of_nothing(m: Mutant) -> None:
    m.one(m.graph.output).name = "made by nobody"


@mutation
def graph_output_is_input(m: Mutant) -> None:
    m.graph.output.add().CopyFrom(m.one(m.graph.input))


@mutation
def graph_output_is_weight(m: Mutant) -> None:
    tensor = m.weight()
    m.graph.output.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


@mutation
def graph_output_inside(m: Mutant) -> None:
    """A tensor in the middle is an output too, with no type stated beyond float."""
    m.graph.output.append(helper.make_tensor_value_info(m.one(_made(m)), TensorProto.FLOAT, None))


@mutation
def graph_output_of_other_shape(m: Mutant) -> None:
    info = m.one([i for i in m.graph.output if i.type.tensor_type.shape.dim])
    dim = m.rng.choice(list(info.type.tensor_type.shape.dim))
    dim.dim_value = m.rng.choice([0, 1, 7, -1, 1 << 40])


@mutation
def graph_input_of_other_shape(m: Mutant) -> None:
    info = m.one([i for i in m.graph.input if i.type.tensor_type.shape.dim])
    dim = m.rng.choice(list(info.type.tensor_type.shape.dim))
    dim.dim_value = m.rng.choice([0, 1, 3, 7, -1, 1 << 40])


@mutation
def batch_of_nothing(m: Mutant) -> None:
    for info in m.graph.input:
        if info.type.tensor_type.shape.dim:
            info.type.tensor_type.shape.dim[0].dim_value = 0


@mutation
def graph_input_without_shape(m: Mutant) -> None:
    m.one(m.graph.input).type.tensor_type.ClearField("shape")


@mutation
def graph_input_of_other_type(m: Mutant) -> None:
    kinds = (0, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.STRING, TensorProto.BOOL, 99)
    m.one(m.graph.input).type.tensor_type.elem_type = m.rng.choice(kinds)


@mutation
def graph_input_unused(m: Mutant) -> None:
    m.graph.input.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, ["anything", 3]))


@mutation
def graph_input_missing(m: Mutant) -> None:
    m.graph.input.remove(m.one(m.graph.input))


@mutation
def tensors_of_one_name(m: Mutant) -> None:
    """Two nodes make a tensor of the same name."""
    made = [n for n in m.graph.node if n.output]
    if len(made) < 2:
        raise Pointless
    one, other = m.rng.sample(made, 2)
    one.output[0] = other.output[0]


@mutation
def node_named_like_tensor(m: Mutant) -> None:
    m.node().name = m.one(_made(m))


@mutation
def names_with_odd_characters(m: Mutant) -> None:
    name = m.rng.choice(["a\nb", "\u202e", "x" * 5000, " ", "../../a", "%s{}", "\0"])
    node = m.one([n for n in m.graph.node if n.output and n.output[0] not in {o.name for o in m.graph.output}])
    old = node.output[0]
    for other in m.graph.node:
        other.input[:] = [name if n == old else n for n in other.input]
    node.output[0] = node.name = name


@mutation
def op_of_other_name(m: Mutant) -> None:
    """An op is another that takes the same number of inputs."""
    one = "Relu Sigmoid Exp Neg Sqrt Log Identity Softmax NonZero Shape Not Floor"
    two = "Add Mul Sub Div MatMul Pow Max Mod Equal Gather Expand Reshape Tile"
    pairs = [kind.split() for kind in (one, two, "Conv ConvTranspose Gemm ConvInteger QLinearConv Einsum")]
    same = m.rng.choice(pairs)
    m.node(*same).op_type = m.rng.choice(same)


@mutation
def op_unknown(m: Mutant) -> None:
    m.node().op_type = m.rng.choice(["", "Frobnicate", "conv", "Conv\n", "If"])


@mutation
def domain_of_node(m: Mutant) -> None:
    m.node().domain = m.rng.choice(["ai.onnx", "com.microsoft", "ai.onnx.ml", "my.own", "com.microsoft.nchwc", "\n"])


@mutation
def value_info_wrong(m: Mutant) -> None:
    """A tensor inside is stated to be of another shape or type than it is."""
    inside = m.one([o for n in m.graph.node for o in n.output if o])
    kind = m.rng.choice([TensorProto.FLOAT, TensorProto.INT8, TensorProto.STRING, 0, 99])
    m.graph.value_info.append(
        helper.make_tensor_value_info(inside, kind, m.rng.choice([[], [1], [3, 0], [1 << 40] * 4]))
    )


@mutation
def graph_empty(m: Mutant) -> None:
    m.graph.CopyFrom(GraphProto(name="empty"))


@mutation
def graph_without_a_name(m: Mutant) -> None:
    m.graph.ClearField("name")

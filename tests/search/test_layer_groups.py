"""Groups of layers: blocks are found by the residual Adds, whatever the names are."""

import numpy as np
import onnx
from handmade.core import model

from onnxshot.graph import Constant, Model, Node
from onnxshot.search.layer_groups import Group, layer_groups

_BLOCK = """
    q{i} = MatMul(x{i}, wq{i})
    k{i} = MatMul(x{i}, wk{i})
    t{i} = Transpose<perm = [0, 2, 1]>(k{i})
    raw{i} = MatMul(q{i}, t{i})
    masked{i} = Add(raw{i}, mask)
    share{i} = Softmax(masked{i})
    v{i} = MatMul(x{i}, wv{i})
    mixed{i} = MatMul(share{i}, v{i})
    o{i} = MatMul(mixed{i}, wo{i})
    h{i} = Add(x{i}, o{i})
    u{i} = MatMul(h{i}, wu{i})
    cube{i} = Mul(u{i}, u{i})
    bent{i} = Add(u{i}, cube{i})
    d{i} = MatMul(bent{i}, wd{i})
    x{j} = Add(d{i}, h{i})
"""


def transformer(blocks: int = 2) -> onnx.ModelProto:
    """A table, a mask that is computed once, blocks of attention and a feed-forward part, and a tied head."""
    body = "x0 = Gather(table, ids)\nseen = Cast<to = 1>(ids)\nmask = Unsqueeze(seen, one)\n"
    body += "".join(_BLOCK.format(i=i, j=i + 1) for i in range(blocks))
    body += f"turned = Transpose<perm = [1, 0]>(table)\nscores = MatMul(x{blocks}, turned)\n"
    rng, width = np.random.default_rng(0), 8
    held = {f"w{c}{i}": rng.normal(0, 1, (width, width)).astype(np.float32) for c in "qkvoud" for i in range(blocks)}
    held["table"] = rng.normal(0, 1, (40, width)).astype(np.float32)
    return model(f"g (int64[1,S] ids) => (float[1,S,40] scores) {{ {body} }}", {**held, "one": np.array([1])})


def groups(most: int, *, same: bool = True) -> list[list[str]]:
    """Names of the outputs of each group's layers; the head counts as reading the table."""
    graph = Model(transformer())
    nodes = {node.outputs[0].name: node for _, node in graph.walk()}
    constants = {c.name: c for c in graph.constants()}
    layers: dict[Node, Constant] = {}
    for node in nodes.values():
        read = [t for t in node.inputs if isinstance(t, Constant)]
        if node.op in ("MatMul", "Gather") and read:
            layers[node] = read[0]
    own = Constant("head", np.ascontiguousarray(constants["table"].values.T))
    layers[nodes["scores"]] = own
    found: list[Group] = layer_groups(graph, layers, {own: constants["table"]} if same else {}, most)
    return [[node.outputs[0].name for node in group] for group in found]


def test_layers_stand_alone_as_long_as_they_are_few() -> None:
    assert sorted(groups(64)) == sorted([["x0", "scores"], *([f"{n}{i}"] for i in (0, 1) for n in "qkvoud")])


def test_projections_of_one_tensor_are_measured_together() -> None:
    expected = [["x0", "scores"]]
    for i in (0, 1):
        expected += [[f"q{i}", f"k{i}", f"v{i}"], [f"o{i}"], [f"u{i}"], [f"d{i}"]]
    assert groups(9) == expected


def test_blocks_are_what_stands_between_residual_adds() -> None:
    expected = [["x0", "scores"]]
    for i in (0, 1):
        expected += [[f"q{i}", f"k{i}", f"v{i}", f"o{i}"], [f"u{i}", f"d{i}"]]
    assert groups(5) == expected
    assert groups(6, same=False) == [["x0"], *expected[1:], ["scores"]], "tables and heads are no part of a block"


def test_consecutive_blocks_are_joined_where_there_are_too_many() -> None:
    found = groups(3)
    assert len(found) == 3
    assert found[0] == ["x0", "scores"]
    assert found[1] == ["q0", "k0", "v0", "o0", "u0", "d0"]

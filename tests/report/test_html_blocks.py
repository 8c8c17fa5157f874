"""Blocks of a network: by modules, by patterns that repeat, and with globs that match them alone."""

from fnmatch import fnmatchcase
from typing import Any

from fixture_data import fixture
from onnx import NodeProto, StringStringEntryProto

from onnxshot.graph import Node
from onnxshot.graph.load import load_model
from onnxshot.graph.module_names import module_names
from onnxshot.report.html.blocks import MOST, blocks, drawn


def row(name: str, op: str = "Conv", module: str = "") -> dict[str, Any]:
    return {"node": name, "op": op, "tensor": f"{name}_out", "module": module, "sparsity": None, "macs_share": 0.0}


def test_blocks_are_modules_as_deep_as_they_stay_few() -> None:
    rows = [row(f"n{i}.{j}", module=f"net/layers.{i}/conv{j}") for i in range(3) for j in range(6)]
    found = blocks([row("first"), *rows, row("last")])
    assert [(block.name, len(block.nodes)) for block in found] == [
        ("(no module)", 1), ("layers.0", 6), ("layers.1", 6), ("layers.2", 7),
    ]  # fmt: skip


def test_every_node_is_in_one_block_in_order() -> None:
    for rows in ([row(str(i)) for i in range(100)], [row(str(i), "AB"[i % 2], f"m{i % 7}") for i in range(99)], []):
        assert [i for block in blocks(rows) for i in block.nodes] == list(range(len(rows)))


def test_without_modules_blocks_are_what_repeats() -> None:
    ops = ["Conv", "Relu", "Conv", "Relu", "Conv", "Add"]
    rows = [row(f"n{i}", op) for i, op in enumerate(["Conv", *ops * 4, "Gemm"])]
    found = blocks(rows)
    assert len(found) == 5
    assert [block.name for block in found[1:3]] == [f"{i}: Conv, Relu, Conv, Relu, Conv, Add" for i in (2, 3)]


def test_the_glob_of_a_block_matches_its_nodes_and_no_others() -> None:
    rows = [row(f"/net/b[{i}]/conv{j}", module=f"net/b{i}") for i in range(3) for j in range(4)]
    for rows_now in (rows, [*rows, row("/net/b[2]/more", module="head")]):
        for block in blocks(rows_now):
            inside = [rows_now[i]["node"] for i in block.nodes]
            matched = [one["node"] for one in rows_now if fnmatchcase(one["node"], block.pattern)]
            assert matched in (inside, [])
    assert blocks(rows)[0].pattern == "/net/b[[]0]/*"
    assert blocks([*rows, row("/net/b[2]/more", module="head")])[2].pattern == ""


def test_of_a_large_graph_the_nodes_with_most_work_are_drawn_in_order() -> None:
    rows = [{**row(str(i)), "macs_share": float(i % 2)} for i in range(2 * MOST)]
    assert [one["node"] for one in drawn(rows)] == [str(i) for i in range(1, 2 * MOST, 2)]


def test_modules_are_what_exporters_wrote() -> None:
    namespace = ": m.Net/layer1: nn.Sequential/layer1.0: m.Block/relu: aten.relu.default"
    entry = StringStringEntryProto(key="namespace", value=namespace)
    dynamo = Node("Relu", "node_relu")
    dynamo.extra = NodeProto(metadata_props=[entry])
    script, plain = Node("Conv", "/layer1/layer1.0/conv1/Conv"), Node("Conv", "Conv_3")
    assert module_names([dynamo, script, plain]) == ["layer1.0", "layer1.0/conv1", ""]
    names = module_names(node for _, node in load_model(fixture("digits_resnet")).walk())
    assert {"stem.0", "blocks.3/conv2", "head"} <= set(names)

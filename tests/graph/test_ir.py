"""The list of a graph's nodes knows its members; names of removed tensors are followed."""

import random

import pytest

from onnxshot.graph import Node
from onnxshot.graph.ir import Graph, Nodes
from onnxshot.graph.renamed import Renamed


def test_nodes_know_their_members_after_any_edit() -> None:
    rng = random.Random(0)
    nodes, plain, all_nodes = Nodes(), list[Node](), [Node("Relu", str(i)) for i in range(400)]
    free = list(all_nodes)
    for _ in range(3000):
        what = rng.randrange(7)
        if what < 2 and free:
            node = free.pop()
            at = rng.randint(0, len(plain))
            for held in (nodes, plain):
                if what:
                    held.append(node)
                else:
                    held.insert(at, node)
        elif what == 2 and plain:
            node = rng.choice(plain)
            nodes.remove(node)
            plain.remove(node)
            free.append(node)
        elif what == 3 and plain:
            at = rng.randrange(len(plain))
            assert nodes.pop(at) is plain[at]
            free.append(plain.pop(at))
        elif what == 4 and len(plain) > 4:
            free += plain[1:3]
            del nodes[1:3], plain[1:3]
        elif what == 5:
            rng.shuffle(plain)
            nodes[:] = plain
        elif what == 6 and len(free) > 2:
            more = [free.pop(), free.pop()]
            nodes += more
            plain += more
        assert list(nodes) == plain
    assert {n for n in all_nodes if n in nodes} == set(plain)
    with pytest.raises(ValueError, match="not in list"):
        nodes.remove(free[0])


def test_a_graph_keeps_such_a_list() -> None:
    graph = Graph(nodes=[Node("Relu", "a")])
    assert type(graph.nodes) is Nodes
    graph.nodes = [Node("Relu", "b")]
    assert type(graph.nodes) is Nodes
    assert graph.nodes[0] in graph.nodes


def test_names_lead_to_the_last_name() -> None:
    names = Renamed({"a": "b"})
    names.follow(["b"], "c")
    names.follow(["x"], "c")
    names.follow(["c"], "d")
    assert names == {"a": "d", "b": "d", "x": "d", "c": "d"}
    names |= {"x": "y"}
    names.follow(["d"], "e")
    assert names == {"a": "e", "b": "e", "x": "y", "c": "e", "d": "e"}

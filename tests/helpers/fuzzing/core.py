"""What every mutation is made with: a registry, and the parts of a model that it picks from."""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

Mutate = Callable[["Mutant"], None]
MUTATIONS: dict[str, Mutate] = {}
T = TypeVar("T")


class Pointless(Exception):  # not an error: the model has nothing that this mutation could change
    """The mutation does not apply to the model."""


class Mutant:
    """A model that is being changed. proto: the model; rng: decides; folder: where files beside it may go."""

    def __init__(self, proto: ModelProto, rng: random.Random, folder: Path) -> None:
        self.proto, self.rng, self.folder = proto, rng, folder

    @property
    def graph(self) -> GraphProto:
        return self.proto.graph

    def one(self, items: Sequence[T]) -> T:
        """One of the items. Raises Pointless where there is none."""
        if not items:
            raise Pointless
        return self.rng.choice(items)

    def node(self, *ops: str) -> NodeProto:
        """A node of the outermost graph, of one of these ops where any are given."""
        return self.one([n for n in self.graph.node if not ops or n.op_type in ops])

    def weight(self, *kinds: int, least: int = 0) -> TensorProto:
        """An initializer, of these types where any are given, with so many dimensions at least."""
        return self.one(
            [t for t in self.graph.initializer if (not kinds or t.data_type in kinds) and len(t.dims) >= least]
        )

    def attribute(self, *kinds: int) -> tuple[NodeProto, AttributeProto]:
        """An attribute of one of these types, and its node."""
        return self.one([(n, a) for n in nodes_of(self.graph) for a in n.attribute if a.type in kinds])


def mutation(mutate: Mutate) -> Mutate:
    """Register a mutation under its function's name."""
    assert mutate.__name__ not in MUTATIONS, mutate.__name__
    MUTATIONS[mutate.__name__] = mutate
    return mutate


def nodes_of(graph: GraphProto) -> Iterator[NodeProto]:
    """Every node, those of subgraphs too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from nodes_of(attribute.g)


def rng_of(*parts: object) -> random.Random:
    """The same numbers for the same parts, in every process."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))

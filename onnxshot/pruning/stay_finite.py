"""Fall-backs of layers whose zeros would make an output NaN or infinite: in front of a Log, say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from onnxshot.comparison.random_nodes import with_fixed_randomness
from onnxshot.errors import ModelError
from onnxshot.execution.layer_walk import reads
from onnxshot.graph.proto_copies import with_initializers, with_outputs
from onnxshot.maths.pruning_masks import Pattern
from onnxshot.pruning.layerwise_pruning import Prunable, Pruned, by_magnitude
from onnxshot.runtimes.ort_runtime import Feed, Runner

_ALONE = 8  # layers that are tried one by one


class Instead(Enum):
    """What a layer holds in place of what was found for it."""

    MAGNITUDE = "pruned by magnitude alone"
    WHOLE = "it keeps all of its weights"


Fallbacks = Mapping[str, Instead]
"""By the name of the layer."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Holds a pruned model against the one before any weight went, sample by sample.

    tables: the weights as they were, by name of the layer; counts: how many of them go.
    """

    reference: ModelProto
    layers: Sequence[Prunable]
    tables: Mapping[str, NDArray[np.float32]]
    counts: Mapping[str, int]
    pattern: Pattern
    threads: int = 2

    def applied(self, found: Mapping[str, Pruned], fallbacks: Fallbacks) -> dict[str, Pruned]:
        """What was found, and in place of some of it the fall-backs."""
        return {
            la.name: self._fallback(la, fallbacks[la.name]) if la.name in fallbacks else found[la.name]
            for la in self.layers
        }

    def _fallback(self, layer: Prunable, how: Instead) -> Pruned:
        table = self.tables[layer.name]
        note = f"{how.value}: otherwise an output would be NaN or infinite where the model's is finite"
        if how is Instead.WHOLE:
            return Pruned(table, note=note)
        return Pruned(by_magnitude(layer, table, self.pattern, self.counts[layer.name]).weight, note=note)

    def needed(self, found: Mapping[str, Pruned], fallbacks: Fallbacks, feeds: Iterable[Feed]) -> Fallbacks:
        """These fall-backs, and those that it takes for outputs that are finite wherever the reference's are.

        Where an output is not, the first such tensor inside is looked for. Of the layers in front of it the nearest is
        pruned by magnitude, if that is enough; else one that is near keeps its weights, else the two nearest do, then
        four, up to all. Raises ModelError where a model does not run, or where nothing helps.
        """
        own: Runner | None = None
        runner = self._runner(self.applied(found, fallbacks))
        for feed in feeds:
            while suspects := [name for name, values in runner.run(feed).items() if not _finite(values)]:
                own = own or self._runner({})
                wanted, got = own.run(feed, suspects), runner.run(feed, suspects)
                at_fault = [name for name in suspects if _worse(wanted[name], got[name])]
                if not at_fault:
                    break
                tensor = self._first(self.applied(found, fallbacks), feed) or at_fault[0]
                fallbacks = self._more(found, fallbacks, feed, tensor)
                runner = self._runner(self.applied(found, fallbacks))
        return fallbacks

    def _runner(self, pruned: Mapping[str, Pruned], outputs: Sequence[str] = ()) -> Runner:
        """The reference with these layers; it gives these tensors, its own outputs where there are none."""
        constants = dict[str, NDArray[Any]]()
        for layer in self.layers:
            if layer.name in pruned:
                constants[layer.weight], bias = pruned[layer.name].weight, pruned[layer.name].bias
                constants |= {} if bias is None else {layer.bias: bias}
        model = with_fixed_randomness(with_initializers(self.reference, constants))
        made = with_outputs(model, outputs) if outputs else bytes(model.SerializeToString())
        return Runner(made, threads=self.threads, inner=bool(outputs))

    def _first(self, pruned: Mapping[str, Pruned], feed: Feed) -> str:
        """The first tensor inside that is at fault on this sample; empty where, looked at one by one, none is."""
        names = [name for node in self.reference.graph.node for name in node.output if name]
        wanted, got = (self._runner(one, names).run(feed) for one in ({}, pruned))
        return next((name for name in names if name in got and _worse(wanted[name], got[name])), "")

    def _more(self, found: Mapping[str, Pruned], fallbacks: Fallbacks, feed: Feed, tensor: str) -> Fallbacks:
        """The fall-backs, and the first more of them that help this tensor on this sample."""
        wanted = self._runner({}, [tensor]).run(feed)[tensor]
        chosen = fallbacks
        for more in self._ladder(fallbacks, tensor):
            chosen = {**fallbacks, **more}
            if not _worse(wanted, self._runner(self.applied(found, chosen), [tensor]).run(feed)[tensor]):
                break
        if chosen == fallbacks:
            maker = next((node for node in self.reference.graph.node if tensor in node.output), NodeProto())
            raise ModelError(
                f"once pruned, {tensor!r} ({maker.op_type}) is NaN or infinite on a sample where the model's is finite",
                "prune less, or exclude the layers that it is computed from",
            )
        return chosen

    def _ladder(self, fallbacks: Fallbacks, tensor: str) -> Iterator[Fallbacks]:
        """What to try, in this order."""
        before = _before(self.reference, tensor)
        near = [layer.name for layer in reversed(self.layers) if layer.output in before]
        if near and near[0] not in fallbacks:
            yield {near[0]: Instead.MAGNITUDE}
        left = [name for name in near if fallbacks.get(name) is not Instead.WHOLE]
        yield from ({name: Instead.WHOLE} for name in left[:_ALONE])
        count = 2
        while left and count < 2 * len(left):
            yield dict.fromkeys(left[:count], Instead.WHOLE)
            count *= 2


def _before(model: ModelProto, tensor: str) -> set[str]:
    """All tensors that this one is computed from, itself among them."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found, left = set[str](), [tensor]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += reads(makers[name]) if name in makers else ()
    return found


def _finite(values: NDArray[Any]) -> bool:
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


def _worse(wanted: NDArray[Any], got: NDArray[Any]) -> bool:
    """Whether a value is not finite where the wanted one is; of another shape, where all wanted ones are."""
    if _finite(got) or wanted.dtype.kind != "f":
        return False
    if wanted.shape != got.shape:
        return _finite(wanted)
    return bool((np.isfinite(wanted) & ~np.isfinite(got)).any())

"""Fallbacks for layers whose zeros would make an output NaN or infinite, for instance in front of a Log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from onnxshot.comparison.random_nodes import with_fixed_randomness
from onnxshot.errors import ModelError
from onnxshot.execution.layer_walk import reads
from onnxshot.graph.lean_model import LeanModel
from onnxshot.maths.pruning_masks import Pattern
from onnxshot.pruning.layerwise_pruning import PrunableLayer, PrunedLayer, by_magnitude
from onnxshot.runtimes.ort_runtime import Feed, Runner

_ALONE = 8  # layers that are tried one at a time


class Fallback(Enum):
    """What replaces the fitted weights of a layer."""

    MAGNITUDE = "pruned by magnitude alone"
    WHOLE = "it keeps all of its weights"


Fallbacks = Mapping[str, Fallback]
"""Layer name -> fallback."""


@dataclass(frozen=True, slots=True)
class FiniteGuard:
    """Compares a pruned model with the float model sample by sample, and finds the fallbacks it needs.

    Attributes:
        reference: The float model.
        layers: The pruned layers, in graph order.
        tables: Weights before pruning, by layer name.
        counts: Number of zeros, by layer name.
        pattern: Pattern of the zeros.
        threads: Threads of ONNX Runtime.
    """

    reference: LeanModel
    layers: Sequence[PrunableLayer]
    tables: Mapping[str, NDArray[np.float32]]
    counts: Mapping[str, int]
    pattern: Pattern
    threads: int = 2

    def applied(self, found: Mapping[str, PrunedLayer], fallbacks: Fallbacks) -> dict[str, PrunedLayer]:
        """Return the pruned layers, some replaced by their fallbacks."""
        return {
            la.name: self._fallback(la, fallbacks[la.name]) if la.name in fallbacks else found[la.name]
            for la in self.layers
        }

    def _fallback(self, layer: PrunableLayer, how: Fallback) -> PrunedLayer:
        """The layer with its fallback."""
        table = self.tables[layer.name]
        note = f"{how.value}: otherwise an output would be NaN or infinite where the model's is finite"
        if how is Fallback.WHOLE:
            return PrunedLayer(table, note=note)
        return PrunedLayer(by_magnitude(layer, table, self.pattern, self.counts[layer.name]).weight, note=note)

    def fallbacks_for(self, found: Mapping[str, PrunedLayer], fallbacks: Fallbacks, feeds: Sequence[Feed]) -> Fallbacks:
        """Return these fallbacks, and those needed so that outputs are finite wherever the reference's are.

        For an output that is not finite, the first intermediate tensor that is not finite is located. Then the layers
        in front of it are tried: the nearest is pruned by magnitude; then one of the nearest keeps its weights; then
        the nearest two do, the nearest four, up to all.

        Args:
            found: The pruned layers.
            fallbacks: Known fallbacks.
            feeds: Samples to check.

        Raises:
            ModelError: A model does not run, or no fallback helps.
        """
        own: Runner | None = None
        done = 0
        while done < len(feeds):
            runner = self._runner(self.applied(found, fallbacks))
            at_fault: list[str] = []
            for got in runner.run_all(feeds[done:], self.threads):
                suspects = [name for name, values in got.items() if not _finite(values)]
                own = own or (self._runner({}) if suspects else None)
                wanted = own.run(feeds[done], suspects) if own is not None and suspects else {}
                at_fault = [name for name in suspects if _worse(wanted[name], got[name])]
                if at_fault:
                    break
                done += 1
            if not at_fault:
                break
            tensor = self._first(self.applied(found, fallbacks), feeds[done]) or at_fault[0]
            fallbacks = self._more(found, fallbacks, feeds[done], tensor)
        return fallbacks

    def _runner(self, pruned: Mapping[str, PrunedLayer], outputs: Sequence[str] = ()) -> Runner:
        """A runner of the reference with these layers replaced. outputs: tensors to return, default: its own."""
        constants = dict[str, NDArray[Any]]()
        for layer in self.layers:
            if layer.name in pruned:
                constants[layer.weight], bias = pruned[layer.name].weight, pruned[layer.name].bias
                constants |= {} if bias is None else {layer.bias: bias}
        model = replace(self.reference, proto=with_fixed_randomness(self.reference.proto)).replaced(constants)
        threads = self.threads if outputs else 1  # samples run side by side where all of them are run
        return Runner(model.with_outputs(outputs), threads=threads, inner=bool(outputs))

    def _first(self, pruned: Mapping[str, PrunedLayer], feed: Feed) -> str:
        """The first intermediate tensor that becomes non-finite on this sample; empty if none can be observed."""
        names = [name for node in self.reference.proto.graph.node for name in node.output if name]
        wanted, got = (self._runner(one, names).run(feed) for one in ({}, pruned))
        return next((name for name in names if name in got and _worse(wanted[name], got[name])), "")

    def _more(self, found: Mapping[str, PrunedLayer], fallbacks: Fallbacks, feed: Feed, tensor: str) -> Fallbacks:
        """The fallbacks, extended by the first ones that keep this tensor finite on this sample."""
        wanted = self._runner({}, [tensor]).run(feed)[tensor]
        chosen = fallbacks
        for more in self._ladder(fallbacks, tensor):
            chosen = {**fallbacks, **more}
            if not _worse(wanted, self._runner(self.applied(found, chosen), [tensor]).run(feed)[tensor]):
                break
        if chosen == fallbacks:
            maker = next((node for node in self.reference.proto.graph.node if tensor in node.output), NodeProto())
            raise ModelError(
                f"once pruned, {tensor!r} ({maker.op_type}) is NaN or infinite on a sample where the model's is finite",
                "prune less, or exclude the layers that it is computed from",
            )
        return chosen

    def _ladder(self, fallbacks: Fallbacks, tensor: str) -> Iterator[Fallbacks]:
        """The fallbacks to try, in order."""
        before = _before(self.reference.proto, tensor)
        near = [layer.name for layer in reversed(self.layers) if layer.output in before]
        if near and near[0] not in fallbacks:
            yield {near[0]: Fallback.MAGNITUDE}
        left = [name for name in near if fallbacks.get(name) is not Fallback.WHOLE]
        yield from ({name: Fallback.WHOLE} for name in left[:_ALONE])
        count = 2
        while left and count < 2 * len(left):
            yield dict.fromkeys(left[:count], Fallback.WHOLE)
            count *= 2


def _before(model: ModelProto, tensor: str) -> set[str]:
    """All tensors that this one is computed from, including itself."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found, left = set[str](), [tensor]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += reads(makers[name]) if name in makers else ()
    return found


def _finite(values: NDArray[Any]) -> bool:
    """Whether all values are finite; true for other types than floats."""
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


def _worse(wanted: NDArray[Any], got: NDArray[Any]) -> bool:
    """Whether a value is not finite where the wanted one is. If shapes differ: whether all wanted values are finite."""
    if _finite(got) or wanted.dtype.kind != "f":
        return False
    if wanted.shape != got.shape:
        return _finite(wanted)
    return bool((np.isfinite(wanted) & ~np.isfinite(got)).any())

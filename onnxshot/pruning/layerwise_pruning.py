"""Layer-wise pruning: set weights of each layer to zero and refit the others to the float model's outputs.

Layers are pruned in graph order. The inputs of a layer are those of the pruned model, with all earlier layers pruned.
Its targets are the outputs of the float model (asymmetric calibration: GPTAQ, Li et al. 2025, section 3, here for
pruning). The mask and the update follow Optimal Brain Surgeon (SparseGPT, Frantar and Alistarh 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxshot.execution.activation import Activation, Activations
from onnxshot.execution.layer_rows import Feeds, LayerOutputs, MatrixForm, layer_outputs, product
from onnxshot.execution.layer_walk import Walk
from onnxshot.graph.lean_model import LeanModel
from onnxshot.maths import optimal_brain_surgeon as obs
from onnxshot.maths.bias_correction import corrected_bias
from onnxshot.maths.pruning_masks import Mask, Pattern, lowest_scores
from onnxshot.maths.ridge_regression import Moments, ridge
from onnxshot.pruning.input_blocks import blocks_of, counts_of, in_place
from onnxshot.pruning.strength_trial import Strength, best_strength

ROWS = 8192
"""Output positions of a layer, over all samples, that it is pruned on."""
_ROW_BYTES, _OUTPUT_BYTES = 160 << 20, 320 << 20  # bytes of inputs and outputs at these positions, at most
_ROWS_PER_INPUT, _LEAST_ROWS = 24, 1024  # layers with few inputs need fewer positions
_FEW_DAMPING = 1.0  # with too few samples to compare strengths
_FOLD, _LEAST_SAMPLES = 4, 8  # every 4th sample is held out to compare strengths; needs 8 samples


@dataclass(frozen=True, slots=True)
class PrunableLayer:
    """A Conv, Gemm or MatMul with a constant float32 weight that no other node reads.

    Attributes:
        name, op: Node name and operator.
        form: How the layer multiplies its input and weight.
        input, output, weight: Tensor names.
        bias: Name of the bias constant; "" if there is none that only this layer reads.
        shape: Shape of the weight as stored.
        outputs: Number of outputs, over all groups.
        inputs: K, the columns of the weight as a table [G, O, K].
        kernel: Kernel positions of each input channel; 1 for Gemm and MatMul.
    """

    name: str
    op: str
    form: MatrixForm
    input: str
    output: str
    weight: str
    bias: str
    shape: tuple[int, ...]
    outputs: int
    inputs: int
    kernel: int

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape))

    @property
    def groups(self) -> int:
        """Number of groups of a grouped Conv; 1 otherwise."""
        return int(self.form.attrs.get("group", 1))

    def order(self, pattern: Pattern) -> NDArray[np.int64] | slice:
        """Column order in which neighbours are input channels at one kernel position, as patterns require.

        A slice, which copies nothing, if the pattern does not depend on the order.
        """
        if pattern.width == 1:
            return slice(None)
        return np.arange(self.inputs).reshape(-1, self.kernel).T.reshape(-1)


@dataclass(frozen=True, eq=False, slots=True)
class PrunedLayer:
    """A layer after pruning.

    Attributes:
        weight: The weight with its zeros, in the stored shape.
        bias: The corrected bias; None if there is none or it stays.
        refitted: Strength of the ridge regression that moved the weight towards the float outputs before pruning; None
            if it was not moved.
        note: What the user should know about the layer.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None = None
    refitted: float | None = None
    note: str = ""


def prune_layers(
    reference: LeanModel,
    layers: Sequence[PrunableLayer],
    counts: Mapping[str, int],
    pattern: Pattern,
    feeds: Feeds,
    *,
    keep_zeros: bool = False,
    given: Mapping[str, PrunedLayer] | None = None,
    keep: Callable[[PrunableLayer, PrunedLayer], PrunedLayer] = lambda _, pruned: pruned,
    threads: int = 2,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, PrunedLayer]:
    """Prune every layer, in graph order.

    Args:
        reference: The float model.
        layers: The layers to prune, in graph order.
        counts: Number of zeros of each layer, by name.
        pattern: Pattern of the zeros.
        feeds: Samples.
        keep_zeros: Weights that are zero stay zero.
        given: Layers whose result is already known; later layers compensate for their error too.
        keep: Called with each result; later layers compensate for what it returns. It may round weights or move them
            out of memory.
        threads: Samples that run at a time.
        progress: Called as (stage, done, total).

    Returns:
        The pruned layers by name.

    Raises:
        ModelError: The model does not run.

    Memory: what two walks hold, for one layer up to `ROWS` rows of inputs and outputs and their second moments, and
    what `keep` returns.
    """
    student, activations = Walk(reference, feeds, threads), Activations(reference.proto)
    shares = [positions_per_sample(layer, len(feeds), ROWS) for layer in layers]
    targets = layer_outputs(reference, with_nodes(reference, layers), feeds, shares, threads)
    found = {}
    for done, (layer, share, outputs) in enumerate(zip(layers, shares, targets, strict=True), 1):
        pruned = (given or {}).get(layer.name)
        if pruned is None:
            x = input_rows(student, layer, outputs, share)
            task = _LayerProblem(layer, x, outputs, student.constant(layer.weight))
            bias = student.constant(layer.bias) if layer.bias else None
            pruned = task.solve(counts[layer.name], pattern, keep_zeros, bias, activations.after(layer.output))
            pruned = keep(layer, pruned)
            del x, task
        student.set(layer.weight, pruned.weight)
        if pruned.bias is not None:
            student.set(layer.bias, pruned.bias)
        found[layer.name] = pruned
        if progress is not None:
            progress("pruning", done, len(layers))
    return found


def positions_per_sample(layer: PrunableLayer, samples: int, most: int) -> int:
    """Output positions to use of every sample, for at most `most` rows over all samples."""
    rows = min(most, max(_ROWS_PER_INPUT * layer.inputs, _LEAST_ROWS))
    rows = min(rows, _ROW_BYTES // (4 * layer.groups * layer.inputs), _OUTPUT_BYTES // (4 * layer.outputs))
    return max(1, -(-rows // samples))


def with_nodes(model: LeanModel, layers: Sequence[PrunableLayer]) -> list[tuple[NodeProto, PrunableLayer]]:
    """Each layer with its node."""
    nodes = {node.name: node for node in model.proto.graph.node}
    return [(nodes[layer.name], layer) for layer in layers]


def input_rows(walk: Walk, layer: PrunableLayer, outputs: LayerOutputs, share: int) -> NDArray[np.float32]:
    """Inputs of the layer in the walk, at the positions of these outputs [G, N, K]."""
    x = np.empty((len(outputs.values), layer.groups, layer.inputs), np.float32)
    ends = (*outputs.starts[1:], len(x))
    samples = zip(walk.values(layer.input), outputs.sizes, outputs.starts, ends, strict=True)
    for number, (values, sizes, start, end) in enumerate(samples):
        x[start:end] = layer.form.inputs(values, sizes, share, number, layer.shape[2:])
    return x.transpose(1, 0, 2)


@dataclass(frozen=True, slots=True)
class _LayerProblem:
    """One layer to prune: its inputs x [G, N, K], its target outputs, and its weight as stored."""

    layer: PrunableLayer
    x: NDArray[np.float32]
    wanted: LayerOutputs
    stored: NDArray[np.float32]

    def solve(
        self, count: int, pattern: Pattern, keep_zeros: bool, bias: NDArray[np.float32] | None, behind: Activation
    ) -> PrunedLayer:
        """Refit the weight, choose the zeros, update the other weights, and correct the bias.

        Prune by magnitude if inputs, outputs or the fit are not finite.
        """
        if not (np.isfinite(self.x).all() and np.isfinite(self.wanted.values).all()):
            why = "its inputs or outputs are not finite"
        else:
            try:
                with np.errstate(all="ignore"):  # checked below
                    found = self._solved(count, pattern, keep_zeros, bias, behind)
                if all(np.isfinite(values).all() for values in (found.weight, found.bias) if values is not None):
                    return found
                why = "the fitted weights are not finite"
            except np.linalg.LinAlgError as e:
                why = f"the second moments of its inputs cannot be inverted ({e})"
        return replace(by_magnitude(self.layer, self.stored, pattern, count), note=f"pruned by magnitude: {why}")

    def _solved(
        self, count: int, pattern: Pattern, keep_zeros: bool, bias: NDArray[np.float32] | None, behind: Activation
    ) -> PrunedLayer:
        """The layer pruned on the samples; a large layer block by block, each block fitted to the remaining error."""
        order = self.layer.order(pattern)
        blocks = blocks_of(self.layer.inputs, pattern)
        weight = self.layer.form.table(self.stored)[:, :, order]
        fixed = weight == 0 if keep_zeros else np.broadcast_to(False, weight.shape)
        x, y = self._centred(order)
        fitted, chosen = np.empty_like(weight), None
        if len(blocks) == 1:
            fitted, chosen = self._fitted(x, y, weight, pattern, count, fixed, None)
        else:
            counts = counts_of(blocks, weight, x, pattern, count, fixed)
            missing = y - x @ weight.transpose(0, 2, 1)
            for block, share in zip(blocks, counts, strict=True):
                part, rows = weight[:, :, block], x[:, :, block]
                aim = missing + rows @ part.transpose(0, 2, 1)
                zeros = fixed[:, :, block]
                fitted[:, :, block], chosen = self._fitted(rows, aim, part, pattern, share, zeros, chosen)
                missing = aim - rows @ fitted[:, :, block].transpose(0, 2, 1)
        table = in_place(fitted, order)
        assert chosen is not None
        pruned, refitted = self.layer.form.stored(table, self.stored), chosen.damping if chosen.moves else None
        note = f"its {weight.shape[2]} inputs were fitted {blocks[0].stop} at a time" if len(blocks) > 1 else ""
        if bias is None:
            return PrunedLayer(pruned, None, refitted, note)
        got = product(self.x, table)
        learned_bias = corrected_bias(self.wanted.values, got, bias.reshape(-1), behind, self.wanted.starts)
        return PrunedLayer(pruned, learned_bias.astype(np.float32).reshape(bias.shape), refitted, note)

    def _fitted(
        self,
        x: NDArray[np.float32],
        y: NDArray[np.float32],
        weight: NDArray[np.float32],
        pattern: Pattern,
        count: int,
        fixed: Mask,
        chosen: Strength | None,
    ) -> tuple[NDArray[np.float32], Strength]:
        """The weight [G, O, K] with `count` zeros, and the strength it was fitted with, the given one if there is one.

        x: inputs [G, N, K]. y: target outputs [G, N, O].
        """
        learned, others = self._moments(x, y)
        if chosen is None and len(self.wanted.starts) < _LEAST_SAMPLES:
            chosen = Strength(_FEW_DAMPING, moves=False)
        chosen = chosen or best_strength(weight, learned, others, pattern, count, fixed)
        moments = learned + others
        del learned, others
        damped = moments.damped(chosen.damping).astype(np.float32)
        target = weight
        if chosen.moves:
            target = np.empty(weight.shape, np.float32)
            for chunk in obs.outputs_at_once(weight):
                target[:, chunk] = ridge(moments.of_outputs(chunk), weight[:, chunk], chosen.damping)
        return obs.prune_and_refit(target, damped, pattern, count, fixed), chosen

    def _centred(self, order: NDArray[np.int64] | slice) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Inputs [G, N, K] and target outputs [G, N, O], minus their means if there is a bias to absorb these."""
        x = self.x[:, :, order]
        groups, rows, _ = x.shape
        y = self.wanted.values.reshape(rows, groups, -1).transpose(1, 0, 2)
        if self.layer.bias:
            x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
        return x, y

    def _moments(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> tuple[Moments, Moments]:
        """Second moments of the samples to fit on, and of the held-out ones (every `_FOLD`-th)."""
        sizes = np.diff(self.wanted.starts, append=x.shape[1])
        held_out = np.repeat(np.arange(len(sizes)) % _FOLD == _FOLD - 1, sizes)
        chunks = obs.outputs_at_once(np.broadcast_to(np.float32(0), (len(y), y.shape[2], x.shape[2])))

        def moments(part: NDArray[np.bool_]) -> Moments:
            rows = x[:, part]
            products = [y[:, part, chunk].transpose(0, 2, 1) @ rows for chunk in chunks]
            return Moments(rows.transpose(0, 2, 1) @ rows, np.concatenate(products, axis=1))

        return moments(~held_out), moments(held_out)


def by_magnitude(layer: PrunableLayer, weight: NDArray[np.float32], pattern: Pattern, count: int) -> PrunedLayer:
    """Set the weights of least magnitude to zero, or the blocks of least L2 norm; needs no data.

    Weights that are zero stay zero, since their magnitude is least.
    """
    order = layer.order(pattern)
    table = layer.form.table(weight)[:, :, order]
    sizes = np.square(table, dtype=np.float64) if pattern.rows * pattern.columns > 1 else np.abs(table)
    gone = lowest_scores(sizes.reshape(-1, layer.inputs), pattern, count).reshape(table.shape)
    left = np.empty_like(table)
    left[:, :, order] = np.where(gone, np.float32(0), table)
    return PrunedLayer(layer.form.stored(left, weight))

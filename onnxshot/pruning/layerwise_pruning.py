"""Layer by layer, take weights out of a network and let what is left make up for it.

The float model is the teacher. The pruned one walks over the samples, and at every layer the inputs are those of the
pruned model so far, and the outputs wanted are the float model's (the asymmetric form: GPTAQ, Li et al. 2025,
section 3, here for pruning).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from onnxshot.execution.activation import Activation, Activations
from onnxshot.execution.layer_rows import Feeds, LayerOutputs, MatrixForm, layer_outputs, product, samples_that_fit
from onnxshot.execution.layer_walk import Walk
from onnxshot.maths import optimal_brain_surgeon
from onnxshot.maths.bias_correction import corrected_bias
from onnxshot.maths.pruning_masks import Mask, Pattern, lowest_scores
from onnxshot.maths.ridge_regression import Moments, change, ridge
from onnxshot.pruning.input_blocks import BLOCK, WHOLE, blocks_of, counts_of, in_place

HELD = 512 << 20
"""Bytes of tensors that a walk may hold: it is of as many samples as that takes."""
ROWS = 8192
"""Positions of a layer's output, over all samples, that it is pruned on."""
_ROW_BYTES = 160 << 20  # of what a layer reads for them: fewer rows where it reads more
_WANTED = 96 << 20  # bytes of the float model's outputs that are held at once, of as many layers as that takes
_ROWS_PER_INPUT, _LEAST_ROWS = 24, 1024  # no more rows where a layer has few inputs
_STRENGTHS = (0.01, 0.1, 1.0)  # of ridge and damping, in second moments, as they are tried
_DAMPING = 0.1  # for the first mask; SparseGPT, section 4, has 0.01 on a thousand times the rows
_FEW_DAMPING = 1.0  # where there are too few samples to try any
_FOLD, _LEAST_SAMPLES = 4, 8  # every so many-th sample judges a strength; with fewer samples none is tried
_TRIAL_STEPS = 15


@dataclass(frozen=True, slots=True)
class Prunable:
    """A layer with a constant float32 weight of its own: the node's name, how it multiplies, and its constants' names.

    shape: the weight as it is stored; inputs: K of the table [G, O, K], with `kernel` positions of each channel.
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
        """How many weights."""
        return int(np.prod(self.shape))

    @property
    def groups(self) -> int:
        """Groups that have no inputs in common."""
        return int(self.form.attrs.get("group", 1))

    def order(self, pattern: Pattern) -> NDArray[np.int64] | slice:
        """The order of columns in which neighbours are input channels at one kernel position, where it matters.

        A slice, which copies nothing, where it does not, and the layer is one whose copies take much memory.
        """
        if self.inputs > WHOLE and pattern.width == 1:
            return slice(None)
        columns = np.arange(self.inputs)
        return columns.reshape(-1, self.kernel).T.reshape(-1) if pattern.width > 1 else columns


@dataclass(frozen=True, eq=False, slots=True)
class Pruned:
    """What becomes of a layer: its weight as it is stored, and its bias; None where there is none or it stays.

    refitted: the strength of the ridge that the weight was refitted with, before any went; None: it was not.
    note: what is special about it, in words.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None = None
    refitted: float | None = None
    note: str = ""


def sparsified(
    reference: ModelProto,
    layers: Sequence[Prunable],
    counts: Mapping[str, int],
    pattern: Pattern,
    feeds: Feeds,
    *,
    keep_zeros: bool = False,
    given: Mapping[str, Pruned] | None = None,
    threads: int = 2,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Pruned]:
    """What becomes of every layer, by name. counts: how many of its weights become zero.

    given: what becomes of some is known; the others make up for that too.

    layers: in the order of the graph. Held at any time: the model twice, HELD bytes of tensors, and of one layer
    ROWS rows of inputs and outputs and their second moments. Raises ModelError where the model does not run.
    """
    feeds = feeds[: samples_that_fit(reference, [layer.name for layer in layers], feeds, HELD)]
    student, activations = Walk(reference, feeds, threads), Activations(reference)
    shares = [share_of(layer, len(feeds), ROWS) for layer in layers]
    targets = layer_outputs(reference, named(reference, layers), feeds, shares, threads, _WANTED)
    found = {}
    for done, (layer, share, outputs) in enumerate(zip(layers, shares, targets, strict=True), 1):
        pruned = (given or {}).get(layer.name)
        if pruned is None:
            x = rows_of(student, layer, outputs, share)
            task = _Task(layer, x, outputs, student.constant(layer.weight))
            bias = student.constant(layer.bias) if layer.bias else None
            pruned = task.solve(counts[layer.name], pattern, keep_zeros, bias, activations.behind(layer.output))
        student.set(layer.weight, pruned.weight)
        if pruned.bias is not None:
            student.set(layer.bias, pruned.bias)
        found[layer.name] = pruned
        if progress is not None:
            progress("pruning", done, len(layers))
    return found


def share_of(layer: Prunable, samples: int, most: int) -> int:
    """How many positions of every sample the layer is looked at, for `most` rows of all."""
    rows = min(most, max(_ROWS_PER_INPUT * layer.inputs, _LEAST_ROWS))
    rows = min(rows, _ROW_BYTES // (4 * layer.groups * layer.inputs))
    return max(1, -(-rows // samples))


def named(model: ModelProto, layers: Sequence[Prunable]) -> list[tuple[NodeProto, Prunable]]:
    """The layers with their nodes."""
    nodes = {node.name: node for node in model.graph.node}
    return [(nodes[layer.name], layer) for layer in layers]


def rows_of(walk: Walk, layer: Prunable, outputs: LayerOutputs, share: int) -> NDArray[np.float32]:
    """What the layer reads in the walk for the positions of these outputs: [G, N, K]."""
    return layer.form.read(walk.values(layer.input), outputs.sizes, share, layer.shape, np.zeros((), np.float32))


@dataclass(frozen=True, slots=True)
class _Task:
    """One layer: what it reads [G, N, K], what it should give, and its weight as it is."""

    layer: Prunable
    x: NDArray[np.float32]
    wanted: LayerOutputs
    stored: NDArray[np.float32]

    def solve(
        self, count: int, pattern: Pattern, keep_zeros: bool, bias: NDArray[np.float32] | None, behind: Activation
    ) -> Pruned:
        """Refit, choose what goes, fit what stays, and correct the bias.

        By magnitude alone where the samples teach nothing: they are not finite, or what was fitted to them is not.
        """
        if not (np.isfinite(self.x).all() and np.isfinite(self.wanted.values).all()):
            why = "what it reads or gives is not finite"
        else:
            try:
                with np.errstate(all="ignore"):  # looked for below
                    found = self._solved(count, pattern, keep_zeros, bias, behind)
                if all(np.isfinite(values).all() for values in (found.weight, found.bias) if values is not None):
                    return found
                why = "what makes up for the zeros is not finite"
            except np.linalg.LinAlgError as e:
                why = f"what it reads cannot be solved for ({e})"
        return replace(by_magnitude(self.layer, self.stored, pattern, count), note=f"pruned by magnitude: {why}")

    def _solved(
        self, count: int, pattern: Pattern, keep_zeros: bool, bias: NDArray[np.float32] | None, behind: Activation
    ) -> Pruned:
        order = self.layer.order(pattern)
        blocks = blocks_of(self.layer.inputs, pattern)
        weight = self.layer.form.table(self.stored)[:, :, order]
        fixed = weight == 0 if keep_zeros else np.broadcast_to(False, weight.shape)
        x, y = self._centred(order)
        fitted, settled = np.empty_like(weight), None
        if len(blocks) == 1:
            settled = self._settled(weight, *self._moments(x, y), pattern, count, fixed)
            fitted = self._fitted(x, y, weight, pattern, count, fixed, settled)
        else:
            counts = counts_of(blocks, weight, x, pattern, count, fixed)
            missing = y - x @ weight.transpose(0, 2, 1)
            for block, share in zip(blocks, counts, strict=True):
                part, rows = weight[:, :, block], x[:, :, block]
                aim = missing + rows @ part.transpose(0, 2, 1)
                settled = settled or self._settled(part, *self._moments(rows, aim), pattern, share, fixed[:, :, block])
                fitted[:, :, block] = self._fitted(rows, aim, part, pattern, share, fixed[:, :, block], settled)
                missing = aim - rows @ fitted[:, :, block].transpose(0, 2, 1)
        table = in_place(fitted, order)
        assert settled is not None
        pruned, refitted = self.layer.form.stored(table, self.stored), settled[0] if settled[1] else None
        note = f"its {weight.shape[2]} inputs were fitted {BLOCK} at a time" if len(blocks) > 1 else ""
        if bias is None:
            return Pruned(pruned, None, refitted, note)
        got = product(self.x, table)
        learned_bias = corrected_bias(self.wanted.values, got, bias.reshape(-1), behind, self.wanted.starts)
        return Pruned(pruned, learned_bias.astype(np.float32).reshape(bias.shape), refitted, note)

    def _fitted(
        self,
        x: NDArray[np.float32],
        y: NDArray[np.float32],
        weight: NDArray[np.float32],
        pattern: Pattern,
        count: int,
        fixed: Mask,
        settled: tuple[float, bool],
    ) -> NDArray[np.float32]:
        """The weight [G, O, K] without `count` of its values. x [G, N, K], y [G, N, O]: what is read, and wanted."""
        learned, others = self._moments(x, y)
        moments, (strength, moves) = learned + others, settled
        target = ridge(moments, weight, strength).astype(np.float32) if moves else weight
        damped = moments.damped(strength).astype(np.float32)
        return optimal_brain_surgeon.prune_and_refit(target, damped, pattern, count, fixed)

    def _settled(
        self,
        weight: NDArray[np.float32],
        learned: Moments,
        others: Moments,
        pattern: Pattern,
        count: int,
        fixed: Mask,
    ) -> tuple[float, bool]:
        """(Strength of ridge and damping, whether the weight moves towards the wanted outputs at all).

        Those whose pruned layer, fitted on most samples, comes closest to what is wanted on the others: few rows, or
        noise, and a refit does harm; and what is fitted after the mask is just as free to do so.
        """
        if len(self.wanted.starts) < _LEAST_SAMPLES:
            return _FEW_DAMPING, False
        gone = fixed
        if count:
            factor = optimal_brain_surgeon.inverse_factor(learned.damped(_DAMPING))
            gone = optimal_brain_surgeon.prune(weight, factor, pattern, count, fixed)[0]
        best, least = (_DAMPING, False), np.inf if gone.any() else 0.0
        for strength in _STRENGTHS:
            damped = learned.damped(strength).astype(np.float32)
            for moves in (False, True) if gone.any() else (True,):
                target = ridge(learned, weight, strength).astype(np.float32) if moves else weight
                fitted = optimal_brain_surgeon.refit(target, damped, gone, steps=_TRIAL_STEPS) if gone.any() else target
                found = change(others, weight, fitted)
                if found < least:
                    best, least = (strength, moves), found
        return best

    def _centred(self, order: NDArray[np.int64] | slice) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What is read [G, N, K] and wanted [G, N, O]; about the means where there is a bias to take them up."""
        x = self.x[:, :, order]
        groups, rows, _ = x.shape
        y = self.wanted.values.reshape(rows, groups, -1).transpose(1, 0, 2)
        if self.layer.bias:
            x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
        return x, y

    def _moments(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> tuple[Moments, Moments]:
        """Of most samples, and of every _FOLD-th."""
        sizes = np.diff(self.wanted.starts, append=x.shape[1])
        held_out = np.repeat(np.arange(len(sizes)) % _FOLD == _FOLD - 1, sizes)
        first, second = (Moments.of(x[:, part], y[:, part]) for part in (~held_out, held_out))
        return first, second


def by_magnitude(layer: Prunable, weight: NDArray[np.float32], pattern: Pattern, count: int) -> Pruned:
    """The layer without its weights of least L2 norm, by block where the pattern is of blocks; no data is needed.

    Zeros are of the least norm: what is zero already stays so.
    """
    order = layer.order(pattern)
    table = layer.form.table(weight)[:, :, order]
    sizes = np.square(table, dtype=np.float64) if pattern.rows * pattern.columns > 1 else np.abs(table)
    gone = lowest_scores(sizes.reshape(-1, layer.inputs), pattern, count).reshape(table.shape)
    left = np.empty_like(table)
    left[:, :, order] = np.where(gone, np.float32(0), table)
    return Pruned(layer.form.stored(left, weight))

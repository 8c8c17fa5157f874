"""`prune`: set weights to zero in one shot, let the others make up for it, write the file, hold it against the input.

Nothing is trained: the float model says what every layer should give, sample by sample, and least squares do the rest.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from onnxshot.arguments import checked
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.readers import Dataset, split
from onnxshot.delivery.input_files import of_run
from onnxshot.delivery.output_files import is_external, of_result
from onnxshot.delivery.record import record, source_of, stamp
from onnxshot.delivery.write_results import deliver, input_bytes, source_name
from onnxshot.errors import ModelError, UsageError
from onnxshot.execution import candidate_race
from onnxshot.execution.layer_rows import Feeds
from onnxshot.execution.statistics_cache import model_hash
from onnxshot.execution.statistics_source import HOLDOUT, open_calib
from onnxshot.graph import Model, edit
from onnxshot.graph.load import load_model
from onnxshot.graph.macs import NodeMacs, by_label
from onnxshot.graph.save import Draft
from onnxshot.graph.shape_inference import refuse_giants
from onnxshot.graph.weight_sparsity import layers_of, sparsity_notes
from onnxshot.maths.sparsity_allocation import cheapest_allocation
from onnxshot.passes.apply_repairs import ApplyRepairs
from onnxshot.passes.normalize import normalize
from onnxshot.passes.store_original_dtype import StoreOriginalDtype, narrowed
from onnxshot.passes.undo_large_folds import UndoLargeFolds
from onnxshot.passes.widen_precision16 import WidenPrecision16
from onnxshot.precision16.bfloat16_emulation import in_float
from onnxshot.pruning.layerwise_pruning import Prunable, Pruned, by_magnitude, sparsified
from onnxshot.pruning.loss_curves import curves
from onnxshot.pruning.prunable_layers import (
    Tables,
    choose_layers,
    described,
    fixed_counts,
    nm_counts,
    reachable,
    shared_out,
)
from onnxshot.pruning.stay_finite import Fallbacks, Guard
from onnxshot.recipes.stages import PruneStage, Stages
from onnxshot.results.pruned import LayerSparsity, PruneReport, PruneResult
from onnxshot.rewriting.prepare import half_notes, narrow, widen
from onnxshot.runtimes.invalid_model import blames_model
from onnxshot.runtimes.ort_tensor_sizes import sizes_on
from onnxshot.settings import Settings
from onnxshot.verification import proof, report_rows
from onnxshot.verification.compare_models import compare
from onnxshot.verification.reference import Reference, reference_of

_ROUNDS = 3  # of fitting anew what stands behind a layer that fell back
_MEASURED_FROM = 3  # samples: from fewer, nothing is learned of what a layer costs on others


@checked
@blames_model
def prune(
    model: str | Path | ModelProto,
    calib: Any = None,
    *,
    sparsity: float | None = None,
    pattern: str = "unstructured",
    scope: str | None = None,
    output: str | Path | None = None,
    preset: str | Preset | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    layers: Mapping[str, float] | None = None,
    keep_zeros: bool = False,
    settings: Settings | None = None,
) -> PruneResult:
    """Set weights of Conv, Gemm and MatMul to zero in one shot, and hold the result against the float model.

    Args:
        model: path of an .onnx file, or a ModelProto.
        calib: sample inputs, as `quantize` takes them; without, weights go by magnitude and nothing makes up for them.
        sparsity: share in [0, 1) of the weights of all layers that may be pruned. An N:M pattern fixes its own.
        pattern: 'unstructured', 'N:M' (N of M neighbouring inputs stay), 'block:RxC' (R outputs by C inputs).
        scope: 'layer', 'global', 'erk' or 'auto' (measured, needs data); by default auto with data, layer without.
        output: where to write; None keeps the result in memory.
        preset: preprocessing of pictures.
        include: globs over node names, tensor names and op types: only what they match is pruned.
        exclude: globs of what is left as it is.
        layers: glob -> sparsity of those layers; the others are solved for what is left of the whole.
        keep_zeros: what is zero stays zero, and counts.
        settings: how to run it.

    Raises:
        ModelError, CalibrationError, UsageError: each says what was found and what to do.
    """
    settings = settings or Settings()
    asked = PruneStage.from_dict(
        {
            "sparsity": sparsity, "pattern": pattern, "scope": scope, "layers": layers or {}, "include": include,
            "exclude": exclude, "keep_zeros": keep_zeros,
        }
    )  # fmt: skip
    run = _Run(model, asked.resolved(calib is not None), settings)
    files = settings.files.reading(*of_run(run.model, calib, preset))
    if output is not None:
        files = files.writing(*of_result(Path(output), external=is_external(run.model)))
    files.check()
    opened = contextlib.nullcontext() if calib is None else open_calib(calib, run.model, preset, settings)
    with opened as data:
        run.rewrite(data)
        deliver(
            run.model, output, "ort", run.report, lambda written: run.prove(written, data),
            source=source_of(calib, preset, data),
        )  # fmt: skip
    run.report.seconds = time.perf_counter() - run.started
    return PruneResult(run.model, run.report)


@dataclass(slots=True)
class _Run:
    """One pruning under way; its methods are the stages."""

    source: str | Path | ModelProto
    asked: PruneStage
    settings: Settings
    started: float = field(default_factory=time.perf_counter)
    model: Model = field(init=False)
    report: PruneReport = field(init=False)
    _source_hash: str = field(init=False)
    _widened: WidenPrecision16 = field(init=False)
    _plain: ModelProto = field(init=False)  # normalized, not pruned
    _reference: Reference = field(init=False)
    _layers: list[Prunable] = field(init=False)
    _tables: Tables = field(init=False)
    _counts: dict[str, int] = field(init=False)
    _work: list[NodeMacs] = field(init=False)
    _held_out: list[int] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.model = load_model(self.source)
        self._source_hash = model_hash(self.model)
        self.report = PruneReport(source_name(self.source), Stages((self.asked,)).to_dict())
        self.report.input_bytes = input_bytes(self.source, self.model)
        self._widened = widen(self.model)
        self.report.notes += half_notes(self._widened.computed, kept=True)
        with self.report.timed("normalize"):
            normalize(self.model)
            refuse_giants(self.model)
        asked = self.asked
        labels, self.report.skips = choose_layers(self.model, asked.parsed_pattern, asked.include, asked.exclude)
        if not labels:
            skips = self.report.skips
            why = f": {skips[0].node!r} ({skips[0].op}): {skips[0].reason}" if skips else ""
            raise UsageError(f"nothing to prune{why}", "it prunes Conv, Gemm and MatMul with constant float32 weights")
        if self.model.weight_bytes() > proof.MAX_BYTES:
            what = f"{self.model.weight_bytes() / 1e6:.0f} MB of weights"
            raise UsageError(f"{what}, {proof.MAX_BYTES / 1e6:.0f} at most", "prune a smaller model")
        self._plain = self.model.to_proto()
        self._layers = described(self._plain, labels)
        stored = {t.name: t for t in self._plain.graph.initializer}
        self._tables = Tables({la.name: stored[la.weight] for la in self._layers})

    def rewrite(self, data: Dataset | None) -> None:
        """Decide how many weights of each layer go, and which, and change the model."""
        feeds: Feeds = []
        if data is not None:
            self.report.notes += data.notes
            self._refer(data)
            numbers, self._held_out = split(len(data), HOLDOUT)
            feeds = list(_feeds(data, numbers))
            if not feeds:
                self.report.notes.append("pruned by magnitude alone: an input of every sample is empty")
            self.report.samples = {
                "calibration": len(feeds), "held_out": len(self._held_out), "source": data.source,
                "random": data.random,
            }  # fmt: skip
        with self.report.timed("allocate"):
            self._counts = self._allocated(feeds)
        with self.report.timed("prune"):
            found = self._as_stored(self._sparsified(feeds, {}) if feeds else self._by_magnitude())
        if data is not None:
            with self.report.timed("keep finite"):
                found = self._kept_finite(found, feeds, data)
        self.report.notes += [f"{name!r}: {pruned.note}" for name, pruned in found.items() if pruned.note]
        self.report.layers = [self._row(layer, found[layer.name]) for layer in self._layers]
        total = sum(row.weights for row in self.report.layers)
        self.report.sparsity = sum(row.sparsity * row.weights for row in self.report.layers) / total
        ApplyRepairs(found).run(self.model)
        edit.remove_unused(self.model)
        self.report.sparsity_of_all = proof.sparsity(self.model)
        first = data[0].feed if data is not None and len(data) else None
        self._work = sizes_on(self.model, first, threads=self.settings.threads).work(self.model)
        self.report.graph = report_rows.graph_rows(self.model, self._work)
        UndoLargeFolds().run(self.model)
        StoreOriginalDtype().run(self.model)
        narrow(self.model, self._widened)
        stamp(self.model, record(self.asked, self._source_hash, self.settings, sampled=data is not None))
        if self.report.samples.get("random"):
            self.report.notes.append("pruned on random data: what makes up for the zeros is a guess")

    def _refer(self, data: Dataset) -> None:
        """Find what the result is held against. Raises ModelError where normalizing has changed outputs."""
        check = self.settings.verify and len(self.model.graph.nodes) < proof.MAX_NODES
        with self.report.timed("normalize"):
            self._reference = reference_of(self.source, self.model, data, check=check, threads=self.settings.threads)
        self.report.notes += [self._reference.note] if self._reference.note else []

    def _allocated(self, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, int]:
        """How many weights of each layer become zero."""
        asked, layers = self.asked, self._layers
        least = {la.name: int((self._tables[la.name] == 0).sum()) if asked.keep_zeros else 0 for la in layers}
        if asked.parsed_pattern.of:
            return {la.name: n for la, n in zip(layers, nm_counts(layers, asked.parsed_pattern), strict=True)}
        counts = fixed_counts(self.model, layers, asked.layers, least)
        others = [layer for layer in layers if layer.name not in counts]
        left = max(reachable(layers, asked.share) - sum(counts.values()), 0)
        if not others:
            return counts
        scope = asked.scope or ""
        if scope == "auto" and len(feeds) < _MEASURED_FROM:
            scope = "layer"
            self.report.notes.append(f"zeros were shared out by layer: {len(feeds)} samples say little of their cost")
        if scope == "auto":
            found = curves(
                self._plain, others, asked.parsed_pattern, feeds, keep_zeros=asked.keep_zeros,
                threads=self.settings.threads, progress=self.settings.progress,
            )  # fmt: skip
            with_least = [replace(c, least=least[la.name]) for c, la in zip(found, others, strict=True)]
            shares = cheapest_allocation(with_least, left)
        else:
            shares = shared_out(scope, others, self._tables, left, asked.share, least)
        return counts | {layer.name: n for layer, n in zip(others, shares, strict=True)}

    def _sparsified(self, feeds: Feeds, given: Mapping[str, Pruned]) -> dict[str, Pruned]:
        return sparsified(
            self._plain, self._layers, self._counts, self.asked.parsed_pattern, feeds, given=given,
            keep_zeros=self.asked.keep_zeros, threads=self.settings.threads, progress=self.settings.progress,
        )  # fmt: skip

    def _kept_finite(self, found: dict[str, Pruned], feeds: Feeds, data: Dataset) -> dict[str, Pruned]:
        """What was found, or fall-backs where outputs would not be finite on some sample, held out or not."""
        guard = Guard(
            self._plain, self._layers, self._tables, self._counts, self.asked.parsed_pattern, self.settings.threads
        )
        fallbacks: Fallbacks = {}
        for rounds in itertools.count(1):
            needed = guard.needed(found, fallbacks, _feeds(data, range(len(data))))
            if needed == fallbacks:
                break
            fallbacks, found = needed, guard.applied(found, needed)
            if feeds and rounds <= _ROUNDS:  # those behind were fitted to what is NaN
                given = {name: found[name] for name in fallbacks}
                found = self._as_stored(self._sparsified(feeds, given))
        return found

    def _by_magnitude(self) -> dict[str, Pruned]:
        return {
            la.name: by_magnitude(la, self._tables[la.name], self.asked.parsed_pattern, self._counts[la.name])
            for la in self._layers
        }

    def _as_stored(self, found: Mapping[str, Pruned]) -> dict[str, Pruned]:
        """Weights that came in a narrow type are rounded to it: the file must not grow."""
        nodes = {node.label: node for node in self.model.graph.nodes}
        kinds = {n: int(getattr(nodes[n].inputs[1], "stored_as", 0)) for n in found}

        def rounded(weight: NDArray[np.float32], kind: int) -> NDArray[np.float32]:
            values = narrowed(weight, kind).astype(np.float32)
            return values if np.isfinite(values).all() else weight

        return {n: replace(p, weight=rounded(p.weight, kinds[n])) if kinds[n] else p for n, p in found.items()}

    def _row(self, layer: Prunable, pruned: Pruned) -> LayerSparsity:
        zeros, before = int((pruned.weight == 0).sum()), int((self._tables[layer.name] == 0).sum())
        share = zeros / layer.size
        return LayerSparsity(layer.name, layer.op, layer.size, share, before / layer.size, pruned.refitted)

    def prove(self, written: Draft, data: Dataset | None) -> None:
        """Read the written file back and hold it against the float model."""
        self._zeros_are_there(written)
        self._weigh()
        if not self.settings.verify:
            return
        proof.keeps_contract(self.source, written.path)
        if data is None:
            proof.loads(written.path, self.source)
            return
        judges = data.subset(self._held_out or range(len(data)))
        with self.report.timed("verify"):
            reference = self._reference.model
            with in_float(written.path, wanted=self._widened.runs_nowhere) as runs:
                compared = compare(reference, runs, judges, threads=self.settings.threads)
            proof.record_comparison(self.report, compared, random=data.random)
            if compared.not_finite:
                raise ModelError(f"nothing is written: {compared.not_finite[0]}", "prune less, or other layers")
            plain = load_model(self._plain)
            ApplyRepairs(self._by_magnitude()).run(plain)
            candidate = plain.to_proto().SerializeToString()
            threads = self.settings.threads
            (found,) = candidate_race.measure_candidates(reference, [candidate], list(judges), threads=threads)
            self.report.magnitude_sqnr_db = None if data.random else found.total.db

    def _weigh(self) -> None:
        """What the zeros are worth: the size that is sent, and what runs faster."""
        work = by_label(self._work)
        before, after = layers_of(load_model(self._plain), work), layers_of(self.model, work)
        self.report.packed_bytes = (sum(x.packed_bytes for x in before), sum(x.packed_bytes for x in after))
        self.report.worth = sparsity_notes(after)

    def _zeros_are_there(self, written: Draft) -> None:
        """The file holds the zeros that the report tells of, to the bit."""
        model = load_model(written.path)
        widen(model)
        normalize(model)
        again = described(model.to_proto(), [row.layer for row in self.report.layers])
        stored = {t.name: t for t in model.to_proto().graph.initializer}
        for layer, row in zip(again, self.report.layers, strict=True):
            zeros = int((numpy_helper.to_array(stored[layer.weight]) == 0).sum())
            if zeros != round(row.sparsity * row.weights):
                raise ModelError(f"{layer.name!r}: {zeros} zeros were written, not {row.sparsity * row.weights:.0f}")


def _feeds(data: Dataset, numbers: Iterable[int]) -> Iterator[Mapping[str, NDArray[Any]]]:
    """The samples of these numbers; without those of which an input is empty."""
    feeds = (data[i].feed for i in numbers)
    return (feed for feed in feeds if all(np.size(value) for value in feed.values()))

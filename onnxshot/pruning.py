"""`prune`: set weights to zero in one shot, let the others make up for it, write the file, hold it against the input.

Nothing is trained: the float model says what every layer should give, sample by sample, and least squares do the rest.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from onnxshot import proof, trial
from onnxshot.calibrating import HOLDOUT, open_calib
from onnxshot.calibration.preprocess import Preset
from onnxshot.calibration.readers import Dataset, split
from onnxshot.curves import curves
from onnxshot.errors import ModelError, UsageError
from onnxshot.graph import Model, edit
from onnxshot.graph.load import load_model
from onnxshot.graph.macs import macs
from onnxshot.graph.save import Draft, draft, refuse_sources
from onnxshot.maths.allocation import cheapest
from onnxshot.maths.masks import Pattern
from onnxshot.passes.normalize import normalize
from onnxshot.passes.repair import ApplyRepairs
from onnxshot.passes.store_half import StoreHalf
from onnxshot.pipeline import RECIPE_KEY, VERSION_KEY, input_bytes, peak_rss_mb
from onnxshot.prune_layers import choose_layers, described, fixed_counts, nm_counts, reachable, shared_out
from onnxshot.report import Artifact, Report
from onnxshot.settings import Settings
from onnxshot.sparsify import Prunable, Pruned, by_magnitude, sparsified
from onnxshot.verify import compare
from onnxshot.zeros import layers_of, worth

SCOPES = ("layer", "global", "erk", "auto")
_MEASURED_FROM = 3  # samples: from fewer, nothing is learned of what a layer costs on others


@dataclass(frozen=True, slots=True)
class LayerSparsity:
    """One layer that was pruned.

    Attributes:
        layer, op: the node's name and operator.
        weights: how many it has.
        sparsity: share 0..1 of them that is zero now.
        before: share that was zero before.
        refitted: strength of the ridge with which the others moved towards the float layer's outputs; None where they
            only make up for those that went, or there was no data.
    """

    layer: str
    op: str
    weights: int
    sparsity: float
    before: float
    refitted: float | None = None


@dataclass(slots=True)
class PruneReport(Report):
    """What pruning did; `sparsity` is that of the layers that were to be pruned, all together.

    Attributes:
        layers: one row per pruned layer, in the order of the graph.
        magnitude_sqnr_db: of the same numbers of zeros a layer, chosen by magnitude, with nothing made up for.
        packed_bytes: of the weights of the input and of the result, as gzip packs them; 0 where they are over 256 MB.
        worth: what the zeros bring on each target, in words.
    """

    layers: list[LayerSparsity] = field(default_factory=list)
    magnitude_sqnr_db: float | None = None
    packed_bytes: tuple[int, int] = (0, 0)
    worth: tuple[str, ...] = ()

    def next_step(self) -> str:
        """The one thing to try next."""
        if self.sqnr_db is None:
            return "give --calib DATA: weights that stay can then make up for those that go"
        return "zeros make the file smaller to send; to run faster, quantize it: onnxshot quantize keeps them"


@dataclass(slots=True)
class PruneResult:
    """A pruned model and the proof. Nothing is printed and, without an output path, nothing is kept on disk."""

    model: Model
    report: PruneReport

    def save(self, path: str | Path) -> Path:
        """Write the model to `path` (and `path`.data where it is over 1 GiB), aside first; the path."""
        with draft(self.model, Path(path)) as written:
            return written.publish()


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
    asked = _Asked.checked(sparsity, pattern, scope, layers or {}, calib is not None)
    run = _Run(model, asked, settings, keep_zeros, _patterns(include), _patterns(exclude))
    if output is not None:
        refuse_sources(run.model, Path(output))  # before the work, not after it
    with contextlib.ExitStack() as stack:
        data = None
        if calib is not None:
            data = stack.enter_context(open_calib(calib, run.model, preset, settings))
            run.report.notes += data.notes
        run.rewrite(data)
        folder = stack.enter_context(tempfile.TemporaryDirectory()) if output is None else None
        final = Path(folder) / "model.onnx" if folder is not None else Path(output or "")
        written = stack.enter_context(draft(run.model, final))
        run.prove(written, data)
        if folder is None:
            size = written.size_bytes
            written.publish()
            run.report.outputs.append(Artifact(str(final), "ort", "onnx", size))
    run.report.seconds = time.perf_counter() - run.started
    run.report.peak_rss_mb = peak_rss_mb()
    return PruneResult(run.model, run.report)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What was asked for, checked: it contradicts neither itself nor what is there."""

    sparsity: float
    pattern: Pattern
    scope: str
    layers: Mapping[str, float]

    @classmethod
    def checked(
        cls, sparsity: float | None, pattern: str, scope: str | None, layers: Mapping[str, float], has_data: bool
    ) -> _Asked:
        """Raises UsageError naming what was found."""
        if pattern == "channels":
            raise UsageError("prune sets weights to zero; pattern 'channels' cuts them out", "call onnxshot.shrink")
        try:
            parsed = Pattern.parse(pattern)
        except ValueError as e:
            hint = "unstructured, N:M such as 2:4 with N below M, or block:4x1"
            raise UsageError(f"--pattern is {pattern!r}", hint) from e
        fixed = parsed.sparsity
        if sparsity is None:
            if fixed is None:
                raise UsageError("no --sparsity was given", "a share of the weights such as 0.5")
            sparsity = fixed
        for name, share in (("--sparsity", sparsity), *((f"--layer {glob}", s) for glob, s in layers.items())):
            if not 0 <= share < 1:
                raise UsageError(f"{name} is {share}", "a share from 0 up to but not including 1, such as 0.5")
        if scope is not None and scope not in SCOPES:
            raise UsageError(f"--scope is {scope!r}", f"one of {', '.join(SCOPES)}")
        if fixed is not None:
            if abs(sparsity - fixed) > 1e-6:
                raise UsageError(f"--sparsity {sparsity} with --pattern {parsed}, which makes {fixed:.4g}",
                                 "leave out --sparsity")  # fmt: skip
            if layers:
                raise UsageError(f"--layer with --pattern {parsed}, which fixes every layer", "leave out layers with "
                                 "--exclude")  # fmt: skip
        elif scope == "auto" and not has_data:
            raise UsageError("--scope auto without --calib", "give --calib DATA, or --scope erk, which needs none")
        return cls(float(sparsity), parsed, scope or ("auto" if has_data else "layer"), dict(layers))


@dataclass(slots=True)
class _Run:
    """One pruning under way; its methods are the stages."""

    source: str | Path | ModelProto
    asked: _Asked
    settings: Settings
    keep_zeros: bool
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    started: float = field(default_factory=time.perf_counter)
    model: Model = field(init=False)
    report: PruneReport = field(init=False)
    _original: ModelProto = field(init=False)
    _layers: list[Prunable] = field(init=False)
    _tables: dict[str, NDArray[np.float32]] = field(init=False)
    _counts: dict[str, int] = field(init=False)
    _held_out: list[int] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.model = load_model(self.source)
        asked = self.asked
        recipe = {
            "sparsity": asked.sparsity, "pattern": str(asked.pattern), "scope": asked.scope,
            "layers": dict(asked.layers), "keep_zeros": self.keep_zeros, "include": list(self.include),
            "exclude": list(self.exclude),
        }  # fmt: skip
        name = str(self.source) if isinstance(self.source, str | Path) else "(ModelProto)"
        self.report = PruneReport(name, recipe)
        self.report.input_bytes = input_bytes(self.source, self.model)
        with self.report.timed("normalize"):
            normalize(self.model)
        labels, self.report.skips = choose_layers(self.model, asked.pattern, self.include, self.exclude)
        if not labels:
            skips = self.report.skips
            why = f": {skips[0].node!r} ({skips[0].op}): {skips[0].reason}" if skips else ""
            raise UsageError(f"nothing to prune{why}", "it prunes Conv, Gemm and MatMul with constant float32 weights")
        if self.model.weight_bytes() > proof.MAX_BYTES:
            what = f"{self.model.weight_bytes() / 1e6:.0f} MB of weights"
            raise UsageError(f"{what}, {proof.MAX_BYTES / 1e6:.0f} at most", "prune a smaller model")
        self._original = self.model.to_proto()
        self._layers = described(self._original, labels)
        stored = {t.name: t for t in self._original.graph.initializer}
        self._tables = {la.name: numpy_helper.to_array(stored[la.weight]) for la in self._layers}

    def rewrite(self, data: Dataset | None) -> None:
        """Decide how many weights of each layer go, and which, and change the model."""
        feeds: list[Mapping[str, NDArray[Any]]] = []
        if data is not None:
            numbers, self._held_out = split(len(data), HOLDOUT)
            feeds = [data[i].feed for i in numbers]
            self.report.samples = {
                "calibration": len(feeds), "held_out": len(self._held_out), "source": data.source,
                "random": data.random,
            }  # fmt: skip
        with self.report.timed("allocate"):
            self._counts = self._allocated(feeds)
        found: dict[str, Pruned]
        with self.report.timed("prune"):
            if feeds:
                found = sparsified(
                    self._original, self._layers, self._counts, self.asked.pattern, feeds, keep_zeros=self.keep_zeros,
                    threads=self.settings.threads, progress=self.settings.progress,
                )  # fmt: skip
            else:
                found = self._by_magnitude()
        found = self._as_stored(found)
        self.report.layers = [self._row(layer, found[layer.name]) for layer in self._layers]
        total = sum(row.weights for row in self.report.layers)
        self.report.sparsity = sum(row.sparsity * row.weights for row in self.report.layers) / total
        ApplyRepairs(found).run(self.model)
        edit.remove_unused(self.model)
        StoreHalf().run(self.model)
        self._stamp()

    def _allocated(self, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, int]:
        """How many weights of each layer become zero."""
        asked, layers = self.asked, self._layers
        least = {name: int((t == 0).sum()) if self.keep_zeros else 0 for name, t in self._tables.items()}
        if asked.pattern.of:
            return {la.name: n for la, n in zip(layers, nm_counts(layers, asked.pattern), strict=True)}
        counts = fixed_counts(self.model, layers, asked.layers, least)
        others = [layer for layer in layers if layer.name not in counts]
        left = max(reachable(layers, asked.sparsity) - sum(counts.values()), 0)
        if not others:
            return counts
        scope = asked.scope
        if scope == "auto" and len(feeds) < _MEASURED_FROM:
            scope = "layer"
            self.report.notes.append(f"zeros were shared out by layer: {len(feeds)} samples say little of their cost")
        if scope == "auto":
            found = curves(
                self._original, others, asked.pattern, feeds, keep_zeros=self.keep_zeros,
                threads=self.settings.threads, progress=self.settings.progress,
            )  # fmt: skip
            with_least = [replace(c, least=least[la.name]) for c, la in zip(found, others, strict=True)]
            shares = cheapest(with_least, left)
        else:
            shares = shared_out(scope, others, self._tables, left, asked.sparsity, least)
        return counts | {layer.name: n for layer, n in zip(others, shares, strict=True)}

    def _by_magnitude(self) -> dict[str, Pruned]:
        return {
            la.name: by_magnitude(la, self._tables[la.name], self.asked.pattern, self._counts[la.name])
            for la in self._layers
        }

    def _as_stored(self, found: Mapping[str, Pruned]) -> dict[str, Pruned]:
        """Weights that came as float16 are rounded to it: the file must not grow."""
        nodes = {node.label: node for node in self.model.graph.nodes}
        half = {n for n in found if getattr(nodes[n].inputs[1], "stored_as", None) == TensorProto.FLOAT16}

        def rounded(weight: NDArray[np.float32]) -> NDArray[np.float32]:
            with np.errstate(over="ignore"):
                values = weight.astype(np.float16).astype(np.float32)
            return values if np.isfinite(values).all() else weight

        return {n: replace(p, weight=rounded(p.weight)) if n in half else p for n, p in found.items()}

    def _row(self, layer: Prunable, pruned: Pruned) -> LayerSparsity:
        zeros, before = int((pruned.weight == 0).sum()), int((self._tables[layer.name] == 0).sum())
        share = zeros / layer.size
        return LayerSparsity(layer.name, layer.op, layer.size, share, before / layer.size, pruned.refitted)

    def _stamp(self) -> None:
        from onnxshot import __version__

        self.model.set_metadata(VERSION_KEY, __version__)
        self.model.set_metadata(RECIPE_KEY, json.dumps(self.report.recipe))
        if self.report.samples.get("random"):
            self.report.notes.append("pruned on random data: what makes up for the zeros is a guess")

    def prove(self, written: Draft, data: Dataset | None) -> None:
        """Read the written file back and hold it against the float model."""
        self._zeros_are_there(written)
        self._weigh()
        if not self.settings.verify:
            return
        proof.keeps_contract(self.source, written.path)
        if data is None:
            proof.loads(written.path, self.source)
            self.report.notes.append("not compared with the float model: give --calib DATA to see what it costs")
            return
        judges = data.subset(self._held_out or range(len(data)))
        with self.report.timed("verify"):
            reference = self._original.SerializeToString()
            proof.tell(self.report, compare(reference, written.path, judges, threads=self.settings.threads))
            plain = load_model(self._original)
            ApplyRepairs(self._by_magnitude()).run(plain)
            candidate = plain.to_proto().SerializeToString()
            (found,) = trial.tried(reference, [candidate], list(judges), threads=self.settings.threads)
            self.report.magnitude_sqnr_db = found.total.db

    def _weigh(self) -> None:
        """What the zeros are worth: the size that is sent, and what runs faster."""
        work = macs(self.model)
        before, after = layers_of(load_model(self._original), work), layers_of(self.model, work)
        self.report.packed_bytes = (sum(x.packed_bytes for x in before), sum(x.packed_bytes for x in after))
        self.report.worth = worth(after)

    def _zeros_are_there(self, written: Draft) -> None:
        """The file holds the zeros that the report tells of, to the bit."""
        model = load_model(written.path)
        normalize(model)
        again = described(model.to_proto(), [row.layer for row in self.report.layers])
        stored = {t.name: t for t in model.to_proto().graph.initializer}
        for layer, row in zip(again, self.report.layers, strict=True):
            zeros = int((numpy_helper.to_array(stored[layer.weight]) == 0).sum())
            if zeros != round(row.sparsity * row.weights):
                raise ModelError(f"{layer.name!r}: {zeros} zeros were written, not {row.sparsity * row.weights:.0f}")


def _patterns(globs: Sequence[str]) -> tuple[str, ...]:
    return (globs,) if isinstance(globs, str) else tuple(globs)

"""The stages of a run, in order: load, normalize, plan, calibrate, plan, rewrite, write, prove, publish."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxshot import effort, proof, trial
from onnxshot.calibrating import Gathered, from_data, from_file, open_calib
from onnxshot.calibration.preprocess import Preset
from onnxshot.calibration.readers import Dataset, Sample, open_data
from onnxshot.calibration.stats import TensorStats
from onnxshot.errors import CalibrationError, ModelError, TargetError, UsageError
from onnxshot.graph import Model, edit, weights
from onnxshot.graph.load import load_model
from onnxshot.graph.save import Draft, draft, refuse_sources
from onnxshot.parallel import in_order
from onnxshot.passes.base import Pass, Skip
from onnxshot.passes.dynamic import QuantizeDynamically
from onnxshot.passes.isolate_softmax import IsolateSoftmax
from onnxshot.passes.merge_products import MergeProducts
from onnxshot.passes.normalize import normalize
from onnxshot.passes.qdq import InsertQdq
from onnxshot.passes.qoperator import ToQOperator
from onnxshot.passes.smooth import Smooth
from onnxshot.passes.store_half import StoreHalf
from onnxshot.passes.strip_qdq import StripQdq
from onnxshot.passes.weight_only import QuantizeWeightsOnly
from onnxshot.plan import FLOAT, Plan
from onnxshot.planner import already_quantized, make_plan, schemes
from onnxshot.preparing import fold, input_specs, prepare
from onnxshot.recipe import Recipe
from onnxshot.refine import refined
from onnxshot.report import Artifact, Report
from onnxshot.scales import TRAINED, Evidence
from onnxshot.settings import Settings
from onnxshot.targets import target_named
from onnxshot.targets.base import Target
from onnxshot.trained import NOTHING, Trained, notes, read_pairs

_TRIED = 8  # calibration samples that plans are tried on
_LEARNED_FROM = {"balanced": 48, "best": 128}  # calibration samples that repairs are learned from, and checked on
_EQUALIZED_FROM = 12  # calibration samples on: fewer do not show how far channels go
_REFINED_ON = 24  # samples that ranges are chosen on by what they do to the outputs
_CLIPPING_GAIN_DB = 1.0  # by which min-max ranges must be better: clipped ones are what each tensor asks for
VERSION_KEY, RECIPE_KEY, RANDOM_KEY = "onnxshot.version", "onnxshot.recipe", "onnxshot.calibrated_on_random_data"


@dataclass(slots=True)
class Result:
    """A compressed model and the proof. Nothing is printed and, without an output path, nothing is kept on disk."""

    model: Model
    plan: Plan
    report: Report

    def save(self, path: str | Path) -> Path:
        """Write the model to `path` (and `path`.data where it is over 1 GiB), aside first; the path."""
        with draft(self.model, Path(path)) as written:
            return written.publish()

    def emit(self, to: str, folder: str | Path) -> Path:
        """Write the model into `folder` as `to`. Raises TargetError for what is not there to emit to yet."""
        if to != "onnx":
            raise TargetError(f"emitting to {to!r} is not available", "emit to 'onnx'")
        stem = self.model.path.stem if self.model.path is not None else "model"
        return self.save(Path(folder) / f"{stem}.int8.onnx")


def quantize(
    model: str | Path | ModelProto,
    calib: Any = None,
    *,
    stats: str | Path | None = None,
    output: str | Path | None = None,
    preset: str | Preset | None = None,
    recipe: Recipe | None = None,
    settings: Settings | None = None,
    **options: Any,
) -> Result:
    """Quantize an ONNX model for a target, and prove the result against the float model.

    Args:
        model: path of an .onnx file, or a ModelProto.
        calib: calibration data: a folder of pictures, .npy or .npz; a .npz; a test_data_set folder;
            'module:function'; any iterable of dicts of arrays; 'random'. Only mode 'static' needs it.
        stats: statistics that `calibrate` wrote of this model: nothing is run to calibrate. `calib`, where it is given
            too, must hold the samples they are of; the others judge the result.
        output: where to write; None keeps the result in memory (`Result.save` writes it later).
        preset: preprocessing of pictures: a name, a YAML file, or a Preset.
        recipe: what to do; `options` override its fields (target='ort', mode='static', exclude=(...,), ...).
        settings: how to run it.
        **options: fields of the recipe, by name.

    Returns:
        The model, the plan and the report.

    Raises:
        ModelError, CalibrationError, UsageError, TargetError: each says what was found and what to do.
    """
    settings = settings or Settings()
    recipe = Recipe.from_dict({**(recipe or Recipe()).to_dict(), **options})
    run = Run(model, recipe, settings, stats)
    if output is not None:
        refuse_sources(run.model, Path(output))  # before the work, not after it
    with contextlib.ExitStack() as stack:
        data = run.open(calib, preset)
        if data is not None:
            stack.enter_context(data)
        run.rewrite(data)
        folder = stack.enter_context(tempfile.TemporaryDirectory()) if output is None else None
        final = Path(folder) / "model.onnx" if folder is not None else Path(output or "")
        written = stack.enter_context(draft(run.model, final))
        run.prove(written, data)
        if folder is None:
            size = written.size_bytes
            written.publish()
            run.report.outputs.append(Artifact(str(final), recipe.target, "onnx", size))
    run.report.seconds = time.perf_counter() - run.started
    run.report.peak_rss_mb = _peak_rss_mb()
    return Result(run.model, run.plan, run.report)


def emit(model: str | Path | ModelProto, *, to: str = "onnx", output: str | Path) -> Path:
    """Normalize a model without compressing it, and write it. `to` is 'onnx'."""
    if to != "onnx":
        raise TargetError(f"emitting to {to!r} is not available", "emit to 'onnx'")
    loaded = load_model(model)
    normalize(loaded)
    StoreHalf().run(loaded)
    edit.toposort(loaded)
    with draft(loaded, Path(output)) as written:
        proof.loads(written.path, model)
        return written.publish()


@dataclass(slots=True)
class Run:
    """One quantization under way; its methods are the stages."""

    source: str | Path | ModelProto
    recipe: Recipe
    settings: Settings
    given: str | Path | None = None
    started: float = field(default_factory=time.perf_counter)
    target: Target = field(init=False)
    model: Model = field(init=False)
    plan: Plan = field(init=False)
    report: Report = field(init=False)
    decided: Recipe = field(init=False)  # the recipe with what was tried and found to be best
    float_model: ModelProto | None = field(init=False, default=None)  # that the plan is made for
    _original: ModelProto | None = field(init=False, default=None)
    _learned_from: list[Sample] = field(init=False, default_factory=list)
    _changed: bool = field(init=False, default=False)  # whether the weights are no longer those of the original
    gathered: Gathered | None = field(init=False, default=None)
    trained: Trained = field(init=False, default=NOTHING)

    def __post_init__(self) -> None:
        self.target = target_named(self.recipe.target)
        self.decided = self.recipe
        schemes(self.target, self.recipe)  # a pair the target cannot run is refused before any work
        self.model = load_model(self.source)
        name = str(self.source) if isinstance(self.source, str | Path) else "(ModelProto)"
        self.report = Report(name, self.recipe.to_dict())
        self.report.input_bytes = _input_bytes(self.source, self.model)
        self._refuse_quantized()
        with self.timed("normalize"):
            prepare(self.model, self.target, self.recipe, keep_overridable=self.settings.keep_overridable)

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Put the seconds that the block takes into the report."""
        start = time.perf_counter()
        yield
        self.report.timings[stage] = time.perf_counter() - start

    def _refuse_quantized(self) -> None:
        if self.recipe.complete and self.settings.requantize:
            raise UsageError("--complete keeps the scales that --requantize takes out", "give one of them")
        found = already_quantized(self.model)
        if not found:
            return
        if not self.settings.requantize and not self.recipe.complete:
            raise UsageError(
                f"the model is quantized already: {len(found)} nodes such as {found[0].label!r} ({found[0].op})",
                "start from the float model, pass --complete to keep its scales and quantize the rest, "
                "or --requantize to go back to float first",
            )
        if self.recipe.complete:
            fold(self.model)
            self.trained = read_pairs(self.model)
        change = StripQdq().run(self.model)
        left = already_quantized(self.model)
        if left:
            raise UsageError(
                f"{len(left)} nodes such as {left[0].label!r} ({left[0].op}) cannot be taken back to float",
                "start from the float model, or from one with QuantizeLinear and DequantizeLinear pairs",
            )
        self.model.notes.append(f"{change.edits} Q/DQ pairs of the input were taken out before quantizing")

    def planned(self, recipe: Recipe | None = None, evidence: Evidence | None = None) -> Plan:
        """The plan of a recipe, by default the run's own, for the model as it is now; with scales by `evidence`."""
        return make_plan(self.model, self.target, recipe or self.recipe, evidence, self.trained)

    # ------------------------------------------------------------------ stages

    def open(self, calib: Any, preset: str | Preset | None) -> Dataset | None:
        """Open the calibration data; None where there is none and none is needed."""
        if calib is None:
            needed = self.given is None and self.recipe.mode == "static"
            unknown = self.planned().observe if needed else ()
            if unknown and self.trained:
                what = f"{len(unknown)} tensors came without a scale, such as {unknown[0]!r}"
                raise CalibrationError(what, "give --calib DATA to complete them, or --exclude their ops")
            if unknown:
                open_data(None, input_specs(self.model))  # raises, and says what --calib takes
            return None
        data = open_calib(calib, self.model, preset, self.settings)
        self.report.notes += data.notes
        return data

    def rewrite(self, data: Dataset | None) -> None:
        """Plan, calibrate, plan again with scales, and change the graph."""
        self.plan = self.planned()
        if self.plan.observe and (data is not None or self.given is not None):
            with self.timed("calibrate"):
                stats = self.statistics(data)
            self.improve_plan(stats, data)
        elif self.trained:
            self.plan = self.planned(evidence=Evidence({}))  # every scale is known
        small = self.model.weight_bytes() < proof.MAX_BYTES and len(self.model.graph.nodes) < proof.MAX_NODES
        if small and (self.settings.verify or self.recipe.effort != "fast"):
            original = self.original()
            self.float_model = self.model.to_proto() if self._changed else original
        self.report.skips = list(self.plan.skips)
        self.report.notes += [*self.plan.notes, *self.model.notes]
        self.report.notes += notes(self.trained, self.plan) if self.recipe.complete else []
        with self.timed("rewrite"):
            self.report.skips += self.apply(self.model, self.plan)
        if self.float_model is not None:
            with self.timed("repair"):
                done = self.repair(self.float_model, self.model, self.plan, data)
            self.report.notes += [done] if done else []
        self.report.skips += self._finish(self.model)
        if not any(n.how != FLOAT for n in self.plan.nodes):
            self.report.notes.append("nothing was quantized: onnxshot inspect MODEL says why, node by node")
        self._stamp(data)

    def apply(self, model: Model, plan: Plan) -> list[Skip]:
        """Change the graph as the plan says; what the passes refused."""
        method = self.recipe.weight_method
        skips = InsertQdq(plan, method).run(model).skips if plan.tensors else []
        Smooth(plan).run(model)
        merge = MergeProducts(plan)
        merge.run(model)
        steps = (QuantizeDynamically(merge.plan, method), QuantizeWeightsOnly(plan, method), StoreHalf())
        skips += [skip for step in steps for skip in step.run(model).skips]
        edit.remove_unused(model)
        edit.toposort(model)
        return skips

    def _finish(self, model: Model) -> list[Skip]:
        """Bring a rewritten graph into the form that was asked for, and the target needs."""
        passes: list[Pass] = []
        if self.recipe.format == "qoperator":
            passes.append(ToQOperator())
        if self.target.isolates_softmax:
            passes.append(IsolateSoftmax())
        skips = [skip for step in passes for skip in step.run(model).skips]
        edit.remove_unused(model)
        edit.toposort(model)
        return skips

    def improve_plan(self, stats: Mapping[str, TensorStats], data: Dataset | None) -> Evidence:
        """Try other plans on calibration samples, and other weights that give the same answers; take what is best.

        Ranges that clip are better for every tensor alone, and may be worse for the outputs: the mean error of a tensor
        does not know which values matter, and in a detector it is the few large ones. Gives what is known of the
        tensors of the model that was taken.
        """
        evidence = Evidence(stats)
        self.plan = self.planned(evidence=evidence)
        if data is None or self.gathered is None or self.model.weight_bytes() > trial.MAX_BYTES:
            return evidence
        given = effort.Candidate(self.model, self.plan, evidence)
        candidates = [given]
        enough = len(self.gathered.calibrated) >= _EQUALIZED_FROM or self.recipe.equalize is True
        if self.recipe.effort != "fast" and self.recipe.equalize is not False and enough and not self.trained:
            better = self._equalized(given, data)
            if better is not None:
                candidates = [better] if self.recipe.equalize else [better, given]
        first = candidates[0]
        clipped = any(r.method not in ("minmax", TRAINED) for r in first.plan.ranges.values())
        if self.recipe.method == "auto" and self.recipe.clip is None and clipped:
            plain = self.planned(replace(self.recipe, clip=False), first.evidence)
            candidates.append(replace(first, plan=plain, clips=False, lead=_CLIPPING_GAIN_DB))
        best = first
        if len(candidates) > 1:
            with self.timed("try"):
                samples = self._samples(data, self.gathered.calibrated, _TRIED)
                best = effort.choose(self.original(), candidates, self.apply, samples, threads=self.settings.threads)
        else:
            self.original()
        if not best.clips:
            self.report.notes.append("no range is clipped: on calibration samples the outputs were better so")
        if self.recipe.effort == "best" and best.plan.params:
            with self.timed("refine"):
                best = self._refined(best, data)
        self._changed = best.model is not self.model
        self.model, self.plan = best.model, best.plan
        clip = self.recipe.clip if self.recipe.clip is not None else best.clips
        self.decided = replace(self.recipe, equalize=self._changed, clip=clip)
        if self._changed:
            self.report.notes.append("channels were equalized")
        return best.evidence

    def _refined(self, given: effort.Candidate, data: Dataset) -> effort.Candidate:
        """The candidate with ranges chosen by what they do to the outputs, where other samples like them better too."""
        samples = self._learning(data)
        learn, check = effort.split(samples)
        method = self.recipe.range_method if given.clips else "minmax"
        recipe = self.recipe if given.clips else replace(self.recipe, clip=False)
        evidence = refined(
            given.model, given.plan, given.evidence, method, learn[:_REFINED_ON], threads=self.settings.threads,
            progress=self.settings.progress,
        )  # fmt: skip
        plan = make_plan(given.model, self.target, recipe, evidence, self.trained)
        other = replace(given, plan=plan, evidence=evidence)
        best = effort.choose(self.original(), [given, other], self.apply, check, threads=self.settings.threads)
        if best is other:
            self.report.notes.append("ranges of the loudest tensors were then chosen by what they do to the outputs")
        return best

    def _learning(self, data: Dataset) -> list[Sample]:
        """The samples that repairs are learned from, and checked on: none of those that the result is judged on."""
        assert self.gathered is not None
        if not self._learned_from:
            judges = set(self.gathered.held_out)
            numbers = [i for i in range(len(data)) if i not in judges] or self.gathered.calibrated
            self._learned_from = self._samples(data, numbers, _LEARNED_FROM[self.recipe.effort])
        return self._learned_from

    def _equalized(self, given: effort.Candidate, data: Dataset) -> effort.Candidate | None:
        """The model with equalized channels, calibrated anew; None where there is nothing to gain."""
        with self.timed("equalize"):
            # Without what this run leaves out: channels do not depend on it, so that statistics can be reused.
            whole = make_plan(given.model, self.target, Recipe(target=self.recipe.target), given.evidence)
            model = effort.equalized(given.model, whole, given.evidence.stats)
            if model is None:
                return None
            evidence = Evidence(self._again(model, data))
            plan = make_plan(model, self.target, self.recipe, evidence)
        return effort.Candidate(model, plan, evidence)

    def original(self) -> ModelProto:
        """The normalized float model, as it was before anything that only keeps its answers."""
        if self._original is None:
            self._original = self.model.to_proto()
        return self._original

    def _again(self, model: Model, data: Dataset) -> Mapping[str, TensorStats]:
        """Statistics of a changed model on the samples that were calibrated on."""
        assert self.gathered is not None
        plan = make_plan(model, self.target, self.recipe)
        numbers = self.gathered.calibrated
        found = from_data(model, plan, self.recipe, data.subset(numbers), self.settings, 0.0, settle=False)
        self.report.samples["inferences"] += found.inferences
        return found.statistics.tensors

    def _samples(self, data: Dataset, numbers: Sequence[int], most: int) -> list[Sample]:
        """So many of the samples with these numbers, in equal steps from the first."""
        step = max(1, len(numbers) // most)
        return list(in_order(data.__getitem__, numbers[::step][:most], self.settings.threads))

    def repair(self, reference: ModelProto, model: Model, plan: Plan, data: Dataset | None) -> str:
        """Repair a quantized model layer by layer, where the effort asks for it and it helps; what was done, in words.

        reference: the float model that the plan was made for.
        """
        if self.recipe.effort == "fast" or data is None or self.gathered is None or not plan.tensors:
            return ""
        if model.weight_bytes() > trial.MAX_BYTES:
            return ""
        return effort.repaired(reference, model, plan, self._learning(data), self.recipe.effort, self.settings)

    def statistics(self, data: Dataset | None) -> Mapping[str, TensorStats]:
        """Statistics of every tensor the plan watches."""
        if self.given is not None:
            found = from_file(self.given, self.model, self.plan, data)
        else:
            assert data is not None
            found = from_data(self.model, self.plan, self.recipe, data, self.settings)
        self.gathered = found
        self.report.notes += found.notes
        self.report.samples = {
            "calibration": len(found.statistics.samples) if data is None else len(found.calibrated),
            "considered": found.statistics.considered,
            "held_out": len(found.held_out),
            "inferences": found.inferences,
            "source": str(self.given) if data is None else data.source,
            "random": data is not None and data.random,
        }
        return found.statistics.tensors

    def _stamp(self, data: Dataset | None) -> None:
        from onnxshot import __version__

        self.model.set_metadata(VERSION_KEY, __version__)
        self.model.set_metadata(RECIPE_KEY, json.dumps(self.report.recipe))
        if data is not None and data.random:
            self.model.set_metadata(RANDOM_KEY, "true")
            self.report.notes.append("calibrated on random data: scales are guesses, do not deploy this")

    def prove(self, written: Draft, data: Dataset | None) -> None:
        """Read the written file back and hold it against the float model."""
        report = self.report
        report.float_weights = proof.float_weights(self.model, self.plan)
        report.sparsity = proof.sparsity(self.model)
        if not self.settings.verify:
            load_model(written.path)  # what is called done was read back at least
            return
        proof.keeps_contract(self.source, written.path)
        if data is None and self.float_model is not None:
            data = proof.random_data(self.original(), self.model)
            if data is not None:
                report.notes.append("compared on random data: give --calib DATA for figures that mean something")
        if data is None or self.float_model is None:
            how = "loaded in ONNX Runtime" if proof.loads(written.path, self.source) else "not loaded"
            report.notes.append(f"not compared with the float model, {how}: no data that it runs on, or too large")
            return
        gathered = self.gathered
        judges = gathered.held_out if gathered is not None and gathered.held_out else range(len(data))
        held_out = data.subset(judges)
        report.samples.setdefault("held_out", len(held_out))
        with self.timed("verify"):
            proof.prove(
                report, self.plan, self.original(), self.float_model, self.model, written.path, held_out, self.settings
            )
        if not self.target.runs_here:
            report.notes.append(f"checked in ONNX Runtime, not in {self.target.name}; not timed")
            return
        with self.timed("bench"), tempfile.TemporaryDirectory() as folder:
            self._time(Path(folder) / "float.onnx", written.path, held_out)

    def _time(self, path: Path, written: Path, samples: Dataset) -> None:
        """Time against the source, or against the normalized model where ONNX Runtime refuses the source.

        What is no file yet is written to `path`.
        """
        source = path
        if isinstance(self.source, ModelProto):
            path.write_bytes(self.source.SerializeToString())
        else:
            source = Path(self.source)
        try:
            proof.time_both(self.report, source, written, samples, self.settings)
        except ModelError:
            path.write_bytes(self.original().SerializeToString())
            proof.time_both(self.report, path, written, samples, self.settings)
            self.report.notes.append("timed against the normalized model: ONNX Runtime does not load the input")


def _peak_rss_mb() -> float:
    """Peak resident memory of this process; 0 where the system does not tell."""
    with contextlib.suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return float(next(line for line in status if line.startswith("VmHWM:")).split()[1]) / 1024
    return 0.0


def _input_bytes(source: str | Path | ModelProto, model: Model) -> int:
    """Bytes of the source, external data included."""
    if isinstance(source, ModelProto):
        return int(source.ByteSize())
    stored = (c._values for c in model.constants() if isinstance(c._values, weights.StoredValues))
    return Path(source).stat().st_size + sum(int(values.nbytes) for values in stored if values.external)

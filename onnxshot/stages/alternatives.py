"""Go on where a result falls short: measure other recipes of the same model, and take the best where it is better.

- Accuracy below the floor: groups of nodes go to float or, products, to scales at run time, as few as it takes; then
  all products are quantized at run time; at last weights alone.
- A result that is not faster than the input, or hardly: products are quantized at run time.
- Recurrent layers in float, a file larger than the input, or a graph that is faster in float: weights alone are
  measured, and advised.

Every recipe is judged by the same rules as the result. One that quantizes nothing, or makes a file larger than the
input, is left out. Trials are bounded in number and in time. The rows are `Report.tried`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace

from onnxshot import memory
from onnxshot.calibration.readers import Dataset
from onnxshot.calibration.sampling import spread
from onnxshot.delivery.artifacts import Judged
from onnxshot.errors import OnnxshotError, UsageError
from onnxshot.execution.candidate_race import Judge
from onnxshot.files.atomic_write import scratch
from onnxshot.graph import Constant, Model, weights
from onnxshot.graph.save import write
from onnxshot.planning.make_plan import make_plan
from onnxshot.planning.plan import DYNAMIC, DYNAMIC16, FLOAT, OPERATOR, STATIC, STORED, WEIGHTS
from onnxshot.planning.scales import Evidence
from onnxshot.planning.smoothable import PRODUCTS
from onnxshot.recipes.command_line import options_of
from onnxshot.recipes.recipe import Recipe
from onnxshot.recipes.vocabulary import Mode
from onnxshot.recovery.group_search import GroupSearch, Mix, OutOfTime
from onnxshot.recovery.plan_trials import SHORTEST_MS, PlanTrials
from onnxshot.report.accuracy_findings import is_inaccurate
from onnxshot.report.advice import BAD, FLOOR_DB, is_slower, level_of
from onnxshot.runtimes.ort_bench import CLEAR, NOISE, bench
from onnxshot.settings import Settings
from onnxshot.stages.make_quantized import Quantized
from onnxshot.stages.other_results import OtherResults, row_of
from onnxshot.stages.prepare_model import Prepared
from onnxshot.stages.settle_forms import AUTO, settle_forms
from onnxshot.wording import option, worded

RECURRENT = ("LSTM", "GRU", "RNN")
AS_ASKED = "as asked for"
_FORMS = {
    "in float": (FLOAT, STORED), "with scales at run time": (DYNAMIC,), "with inputs of 16 bits": (DYNAMIC16,),
}  # fmt: skip
_HARDLY_FASTER = 1.2  # times as fast as the input
_SHARE = 0.25  # of the result's weight bytes: float recurrent layers below it are not what makes the file large
_TRIED_ON = 4  # samples
_LOOKED_AT = 16  # samples to choose from those that mixes are measured on
_HALF_DB = 6.0  # half of the error, as an amplitude
_SPARE_DB = 1.0  # what a mix should have more, where the one before it fell short
_MOST_MODELS = 40  # that the search among groups measures
_MOST_MIXES = 3  # of groups that are made in full
_SECONDS = 30.0  # or as long as the run has taken: after this no trial begins
_CLEARLY = 1.25  # times as fast: then int8 is not timed any longer against the float graph


@dataclass(frozen=True, slots=True)
class Alternatives:
    """What other recipes make of the same model.

    Attributes:
        made: the result, with the figures of its proof in its report.
        judged: the given model and the samples that the result was compared on.
        written_bytes: size of the result's file.
    """

    made: Quantized
    judged: Judged
    written_bytes: int
    _others: OtherResults = field(init=False)
    _run_seconds: float = field(init=False)

    def __post_init__(self) -> None:
        so_far = sum(self.made.report.timings.values())
        given = self.made.prepared.settings.search_seconds
        allowed = max(_SECONDS, so_far) if given is None else given
        object.__setattr__(self, "_run_seconds", so_far)
        others = OtherResults(self.made, self.judged, time.perf_counter() + allowed)
        object.__setattr__(self, "_others", others)

    def better(self) -> Quantized | None:
        """Measure what may be better, and return the result to take in place of this one, if there is one.

        The rows go into the report of the result that is kept.
        """
        made, data, report = self.made, self.made.samples.data, self.made.report
        if self._recipe.precision != "int8" or data is None or data.random or not made.prepared.target.runs_here:
            return None
        if self._settings.search_seconds == 0:
            return None
        inaccurate = is_inaccurate(asdict(report))
        size = self._float_model.weight_bytes()
        if size > memory.part_bytes():
            listed = [options_of(recipe) for recipe in (*self._recurrent(), *self._quicker(), *self._smaller())]
            listed += ["groups of nodes in float"] if inaccurate else []
            if listed:
                why = f"the model has {size / 1e6:.0f} MB of weights and runs in parts"
                report.notes.append(f"what may be better was not measured, as {why}: {', '.join(listed)}")
            return None
        if inaccurate:
            self._above_floor(data)
        for recipe in (*self._recurrent(), *self._quicker(), *self._smaller(), *self._faster_in_float()):
            self._others.attempt(recipe, self._words_of(recipe))
        taken = self._others.best()
        report.tried = [one.row for one in self._others.found]
        result = None if taken is None else self._others.in_full(taken)
        if taken is None or result is None:
            if inaccurate:
                report.notes.append(f"nothing above the floor is as fast as the input: {self._count}")
            return None
        made.model.check_files()  # the other result was made of the files anew
        kept = result.report
        kept.tried = [row_of(report, self.written_bytes, AS_ASKED)]
        kept.tried += [{**one.row, "taken": True} if one is taken else one.row for one in self._others.found]
        kept.timings = {**report.timings, **kept.timings}
        of_samples = made.gathered.notes if made.gathered is not None else ()
        kept.notes += [note for note in of_samples if note not in kept.notes]
        why = "not accurate enough" if inaccurate else "not fast enough"
        kept.notes.append(
            f"the result {AS_ASKED} was {why}; taken is: {taken.row['options']} ({self._count}; "
            + worded("[[search_seconds=0]] keeps what was asked for)")
        )
        return result

    @property
    def _count(self) -> str:
        count = len(self._others.found)
        return f"{count} other recipe{'s' * (count != 1)} measured"

    @property
    def _prepared(self) -> Prepared:
        return self.made.prepared

    @property
    def _settings(self) -> Settings:
        return self.made.prepared.settings

    @property
    def _recipe(self) -> Recipe:
        return self.made.prepared.recipe

    @property
    def _asked(self) -> Recipe:
        """The recipe without what the look added: other mixes are made from the plan that it looked at."""
        return self.made.final.asked or self._recipe

    def _words_of(self, recipe: Recipe) -> str:
        return options_of(recipe, self._asked) or option("mode", recipe.mode)

    @property
    def _float_model(self) -> Model:
        return self.made.float_model

    # ------------------------------------------------------------------ below the floor

    def _above_floor(self, data: Dataset) -> None:
        """Try groups of nodes in other forms, then all products at run time, at last weights alone."""
        if self._recipe.effort == "best":  # its further steps may not carry over to held-out samples
            plain = self._others.attempt(replace(self._recipe, effort="balanced"), option("effort", "balanced"))
            if plain is not None and not plain.inaccurate:
                return
        bases = [self._asked]
        if self.made.report.placed:  # what went back to float by its time may be needed in another form
            bases.append(replace(self._asked, layers=self.made.unplaced.layers, place=False))
        for asked in bases:
            if asked is self._asked or self._others.best() is None:
                self._in_other_forms(data, asked)
        if self._others.best() is None and self._recipe.mode != WEIGHTS:
            for recipe in self._in_mode(WEIGHTS, bases[-1]):
                self._others.attempt(recipe, self._words_of(recipe))

    def _in_other_forms(self, data: Dataset, asked: Recipe) -> None:
        """Try groups of nodes in other forms than a recipe gives them, then all products at run time."""
        if self.made.report.sqnr_db is not None:  # the search needs float outputs
            try:
                self._groups(data, asked)
            except OutOfTime:
                note = "there was no time to search among groups of nodes: [[search_seconds]]"
                self.made.report.notes.append(worded(note))
            except OnnxshotError as e:
                self.made.report.notes.append(f"groups of nodes were not tried in float: {e.message}")
        if self._recipe.mode == STATIC and (self._has_static_products or asked is not self._asked):
            for recipe in self._in_mode(DYNAMIC, asked):
                self._others.attempt(recipe, self._words_of(recipe))

    def _groups(self, data: Dataset, asked: Recipe) -> None:
        """Make the cheapest mixes of groups that reach the floor on a few samples, until one does on held-out ones."""
        trials = self._trials(data, asked)
        trials.choose_samples()
        trials.settle(self._wanted_db)
        groups = trials.groups()
        search = GroupSearch(trials, sum(trials.times[""].values()), _MOST_MODELS)
        wanted = self._wanted_db
        tried = set()
        for _ in range(_MOST_MIXES):
            mix = next(iter(search.find(groups, wanted)), None)
            if mix is None or not mix.forms or mix.forms in tried:
                break
            tried.add(mix.forms)
            found = self._others.attempt(trials.recipe_of(mix.forms, asked), _words(mix))
            if found is None or not found.inaccurate:
                break
            wanted = mix.sqnr_db + max(self._wanted_db - found.db, 0.0) + _SPARE_DB

    def _trials(self, data: Dataset, asked: Recipe) -> PlanTrials:
        final, prepared = self.made.final, self._prepared
        numbers = [i for i in range(len(data)) if i not in set(self.made.held_out)] or list(range(len(data)))
        samples = [data[numbers[i]] for i in spread(len(numbers))[:_LOOKED_AT]]
        judge = Judge(self.judged.reference, samples, self._settings.threads)
        evidence = Evidence({}) if final.evidence is None else final.evidence
        recipe, plan = replace(final.decided, layers=asked.layers), self.made.plan
        if recipe != final.decided:
            plan = make_plan(self._float_model, prepared.target, recipe, evidence, prepared.trained)
        stop = self._others.deadline - min(self._run_seconds, (self._others.deadline - time.perf_counter()) / 2)

        def in_time() -> None:
            if time.perf_counter() > stop:
                raise OutOfTime

        return PlanTrials(
            self._float_model, prepared.target, recipe, plan, evidence, prepared.trained, judge,
            range(len(samples)), [sample.feed for sample in samples], self._settings.threads,
            seconds=self._settings.bench_seconds, each=in_time,
        )  # fmt: skip

    @property
    def _low(self) -> list[str]:
        """Names of the outputs that are below the floor by themselves."""
        return [name for name, db in self.made.report.output_sqnr_db.items() if level_of(db) == BAD]

    @property
    def _wanted_db(self) -> float:
        """The floor in dB; for a result above it whose outputs disagree, half of its error: 6 dB more."""
        now = self.made.report.sqnr_db
        return FLOOR_DB if self._low or now is None or not now >= FLOOR_DB else now + _HALF_DB

    # ------------------------------------------------------------------ whole recipes

    def _in_mode(self, mode: Mode, asked: Recipe | None = None) -> Iterator[Recipe]:
        """The recipe in another mode; nothing if its rules for single layers cannot be combined with that mode."""
        with contextlib.suppress(UsageError):
            yield replace(asked or self._asked, mode=mode)

    @property
    def _has_static_products(self) -> bool:
        return any(n.how == STATIC and n.op in PRODUCTS for n in self.made.plan.nodes)

    def _quicker(self) -> Iterator[Recipe]:
        """Quantize products at run time, where the result is slower than the input, or hardly faster.

        Of products in blocks, those that many rows reach.
        """
        plan, speedup = self.made.plan, self.made.report.speedup
        if speedup is None or speedup >= _HARDLY_FASTER:
            return
        if self._recipe.mode == STATIC and self._has_static_products:
            yield from self._in_mode(DYNAMIC)
        in_blocks = (n for n in plan.nodes if n.how == WEIGHTS)
        if self._recipe.mode == WEIGHTS and any(plan.weights[n.node].form == OPERATOR for n in in_blocks):
            for recipe in self._in_mode(AUTO):
                settled, _ = settle_forms(
                    replace(self._prepared, model=self._float_model, recipe=recipe), self.made.samples.data
                )
                if settled.recipe.mode != WEIGHTS:  # else nothing would change
                    yield recipe

    def _faster_in_float(self) -> Iterator[Recipe]:
        """Quantize weights alone, where the normalized graph is faster in float than in int8; a note says so.

        Whatever speed the result gains over the input then comes from normalizing.
        """
        quantized = any(n.how != FLOAT for n in self.made.plan.nodes)
        if self.made.report.speedup is None or self._recipe.mode != STATIC or not quantized:
            return
        feeds = [self.judged.samples[i].feed for i in range(min(len(self.judged.samples), _TRIED_ON))]
        with scratch() as folder:
            plain, int8 = folder / "float.onnx", folder / "int8.onnx"
            write(self._float_model, plain)
            write(self.made.model, int8)
            try:
                plain_run, ours = bench(
                    [plain, int8], feeds, threads=self._settings.threads, seconds=self._settings.bench_seconds,
                    precision=NOISE, clear=CLEAR, faster=_CLEARLY,
                )  # fmt: skip
            except OnnxshotError:
                return
        if ours.sure and is_slower(ours.ratio) and plain_run.median_ms >= SHORTEST_MS:
            self.made.report.notes.append(
                f"the same graph in float, normalized but not quantized, is {1 / ours.ratio:.2f}x as fast as this file "
                "here: int8 brings no speed, " + worded("[[mode=weights]] stores its weights in 8 bits alone")
            )
            yield from self._in_mode(WEIGHTS)

    def _smaller(self) -> Iterator[Recipe]:
        """Quantize weights alone, where the file is larger than the input."""
        if self.written_bytes > self.made.report.input_bytes > 0 and self._recipe.mode != WEIGHTS:
            yield from self._in_mode(WEIGHTS)

    def _recurrent(self) -> Iterator[Recipe]:
        """Quantize weights alone, where float weights of recurrent layers are a large part of the file."""
        floats = {n.node for n in self.made.plan.nodes if n.how == FLOAT and n.op in RECURRENT}
        nodes = [node for _, node in self.made.model.walk() if node.label in floats]
        size = sum(weights.size_bytes(t) for node in nodes for t in node.inputs[1:3] if isinstance(t, Constant))
        if not nodes or size < _SHARE * self.made.model.weight_bytes():
            return
        if self._recipe.mode != WEIGHTS:
            yield from self._in_mode(WEIGHTS)


def _words(mix: Mix) -> str:
    """A mix in words: how many nodes of which groups moved, and to which form."""
    parts = []
    for said, forms in _FORMS.items():
        kinds: dict[str, int] = {}
        for group, its in mix.groups:
            if its in forms:
                kinds[group.kind] = kinds.get(group.kind, 0) + len(group.nodes)
        if kinds:
            which = ", ".join(f"{kind} {count}" for kind, count in kinds.items())
            parts.append(f"{sum(kinds.values())} nodes {said} ({which})")
    return ", ".join(parts)

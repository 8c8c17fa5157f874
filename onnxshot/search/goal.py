"""The goal of a search, and how candidates are measured against it on held-out samples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.arguments import check_fields, named_fields
from onnxshot.calibration.readers import Dataset
from onnxshot.calibration.user_functions import load, named, users_code
from onnxshot.comparison.balanced_sqnr import Sums, joined, sums_of, worst_of
from onnxshot.comparison.comparison_setup import CandidateRunner, ComparisonSetup, comparison_setup
from onnxshot.comparison.proto_edits import parsed
from onnxshot.comparison.token_outputs import TokenOutput, token_output
from onnxshot.comparison.token_scores import TokenScores
from onnxshot.errors import CalibrationError, UsageError
from onnxshot.files.messages import shown
from onnxshot.recipes.recipe import Recipe
from onnxshot.report.digits import apart
from onnxshot.runtimes.ort_bench import NOISE, Latency, bench
from onnxshot.runtimes.ort_runtime import Feed, Runner, stored_bytes
from onnxshot.runtimes.parallel import in_order, split_threads
from onnxshot.settings import Settings
from onnxshot.verification.causality import is_causal

_BENCH_FEEDS = 8
_ACCURACY = ("min_sqnr", "max_drop", "max_perplexity_rise")
_LIMITS_HINT = (
    "give [[min_sqnr|--min-sqnr]], [[max_drop|--max-drop]], [[max_perplexity_rise|--max-perplexity-rise]], "
    "[[max_latency|--max-latency]] or [[max_size|--max-size]]"
)
TIMES = 3
"""How many times a measurement that decides is repeated."""

Run = Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]
Evaluate = Callable[[Run], float]
"""Scores a model. Takes a function from a feed to the outputs by name, and returns a number; higher is better."""


@named_fields
@dataclass(frozen=True, slots=True)
class Goal:
    """What a quantized model must reach. None means no limit; at least one limit must be given.

    Attributes:
        min_sqnr: minimum SQNR of all outputs together and of each, on held-out samples, in dB.
        max_drop: maximum by which the score of `evaluate` may fall below the float model's, in units of the score.
        max_perplexity_rise: maximum share by which the perplexity of a language model may rise over the float model's
            on held-out samples: 0.02 for 2 %.
        max_latency: maximum milliseconds of one run: the median of the float model divided by the candidate's speedup.
        max_size: maximum size of the written file in megabytes (10^6 bytes).
        evaluate: scores a model; a function, or its place: 'file.py:function' or 'module:function'.
        budget: minutes after which the search ends with the best candidate so far.

    Raises:
        UsageError: no limit is given, a limit is not finite or negative, or only one of `max_drop` and `evaluate` is.

    Example:
        >>> Goal(min_sqnr=30.0, max_size=4.0).limits()
        {'min_sqnr': 30.0, 'max_size': 4.0}
    """

    min_sqnr: float | None = None
    max_drop: float | None = None
    max_perplexity_rise: float | None = None
    max_latency: float | None = None
    max_size: float | None = None
    evaluate: Evaluate | str | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name, value in self.limits().items():
            size = name in ("max_latency", "max_size")  # nothing takes no time or no place
            if not math.isfinite(value) or (name != "min_sqnr" and value < 0) or (size and value == 0):
                # Below 0 dB there is more error than signal.
                least = "" if name == "min_sqnr" else ", above 0" if size else ", 0 or above"
                raise UsageError(f"[[{name}]] is {value:g}", f"give a finite number{least}")
        if self.budget is not None and not self.budget >= 0:
            raise UsageError(f"the budget is {self.budget:g} minutes", "give 0 or more")
        if not self.limits():
            raise UsageError("there is no goal to search for", _LIMITS_HINT)
        if (self.max_drop is None) != (self.evaluate is None):
            lacking, given = ("evaluate", "max_drop") if self.evaluate is None else ("max_drop", "evaluate")
            what = f"[[{given}]] is given without [[{lacking}]]"
            raise UsageError(what, "a drop is of the score of a function: give both")

    def limits(self) -> dict[str, float]:
        """Return the limits that were given, by name."""
        every = {"min_sqnr": self.min_sqnr, "max_drop": self.max_drop}
        every |= {"max_perplexity_rise": self.max_perplexity_rise}
        every |= {"max_latency": self.max_latency, "max_size": self.max_size}
        return {name: value for name, value in every.items() if value is not None}

    @property
    def wants_accuracy(self) -> bool:
        """Whether a minimum accuracy is given; if not, the most accurate candidate within the limits is wanted."""
        return any(getattr(self, name) is not None for name in _ACCURACY)

    def missed(self, found: Measured) -> dict[str, str]:
        """Return the limits that a candidate misses: name -> what was found, in words."""
        texts = {name: missed_limit(name, limit, *found.value(name)) for name, limit in self.limits().items()}
        return {name: text for name, text in texts.items() if text}

    def inaccurate(self, found: Measured) -> bool:
        """Whether a candidate misses the minimum accuracy."""
        return bool(self.missed(found).keys() & set(_ACCURACY))

    def too_slow(self, found: Measured) -> bool:
        """Whether a candidate misses the maximum latency."""
        return "max_latency" in self.missed(found)

    def too_much(self, found: Measured) -> bool:
        """Whether a candidate misses the maximum latency or size."""
        return bool(self.missed(found).keys() & {"max_latency", "max_size"})


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of one candidate on held-out samples.

    Attributes:
        exclude: patterns of the nodes in float.
        sqnr_db: SQNR in dB of all outputs together, or of the worst one, whichever is lower.
        bytes: size of the file.
        latency_ms: milliseconds of one run; None where the goal does not limit it.
        drop: by how much the score falls below the float model's; None where nothing scores.
        levels: how many layers have each number of bits and size of blocks, in words; empty where those are not chosen.
        perplexity_rise: by which share the perplexity is above the float model's; None where the goal does not limit
            it, or where the candidate's is not finite.
        output: name of the worst output, where `sqnr_db` is of one; else empty.
    """

    exclude: tuple[str, ...]
    sqnr_db: float
    bytes: int
    latency_ms: float | None = None
    drop: float | None = None
    levels: Mapping[str, int] = field(default_factory=dict)
    perplexity_rise: float | None = None
    output: str = ""

    def value(self, limit: str) -> tuple[float | None, str]:
        """Return the figure that a limit applies to, and its unit."""
        return {
            "min_sqnr": (self.sqnr_db, f" dB of output {self.output!r}" if self.output else " dB"),
            "max_drop": (self.drop, ""),
            "max_perplexity_rise": (self.perplexity_rise, ""),
            "max_latency": (self.latency_ms, " ms"),
            "max_size": (self.bytes / 1e6, " MB"),
        }[limit]

    def beats(self, other: Measured) -> bool:
        """Whether no figure of this candidate is worse than the other's, and at least one is better."""
        pairs = [(-self.sqnr_db, -other.sqnr_db), (self.bytes, other.bytes)]
        given = ((getattr(self, name), getattr(other, name)) for name in ("latency_ms", "drop", "perplexity_rise"))
        pairs += [(a, b) for a, b in given if a and b]
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search found.

    Attributes:
        recipe: makes the best candidate.
        missed: in words, by name, what it misses beside the goal's limits: something must be quantized.
        floats: number of nodes in float.
        levels: as in `Measured`.
    """

    recipe: Recipe
    missed: Mapping[str, str]
    floats: int
    levels: Mapping[str, int] = field(default_factory=dict)


def pareto_front(found: list[Measured]) -> list[Measured]:
    """Return the candidates that no other one beats, the smallest file first."""
    front = [row for row in found if not any(other.beats(row) for other in found)]
    return sorted(front, key=lambda row: (row.bytes, -row.sqnr_db))


def missed_limit(name: str, limit: float, value: float | None, unit: str) -> str:
    """Say in words that a value misses a limit; empty where it does not. min_sqnr is a minimum, all others maxima."""
    missed = value is None or (value < limit if name == "min_sqnr" else value > limit)
    if not missed:
        return ""
    shown = "nothing"
    if value is not None:
        shown = f"{value:.4g}" if float(f"{value:.4g}") != limit else apart(value, limit, 4)
        shown += unit
    return f"{name} is {limit:g}{unit.partition(' of ')[0]}, found {shown}"


@dataclass(slots=True)
class Judge:
    """Compares files with the float model, all on the same samples.

    Holds one session of the float model, and one more during each measurement.

    Attributes:
        goal: decides what is measured.
        reference: path of the float model.
        samples: held-out samples.
        settings: threads, and seconds of each timing.
        float_score: the score of the float model; None where nothing scores.
    """

    goal: Goal
    reference: Path
    samples: Dataset
    settings: Settings
    float_score: float | None = field(init=False, default=None)
    _evaluate: Evaluate | None = field(init=False)
    _how: ComparisonSetup = field(init=False)
    _float: Runner = field(init=False)
    _float_ms: float = field(init=False, default=0.0)
    _workers: tuple[int, int] = field(init=False)
    _tokens: TokenOutput | None = field(init=False)

    def __post_init__(self) -> None:
        self._evaluate = function_of(self.goal.evaluate)
        self._workers = split_threads(self.settings.threads, len(self.samples))
        self._how = comparison_setup(self.reference, self.samples[0].feed)
        self._float = Runner(self._how.reference, threads=self._workers[1], whole=True)
        self._tokens = self._token_output()
        if self.goal.max_latency is not None:
            # The fastest of several counts: other work on the machine only makes a run slower.
            self._float_ms = min(self._timed(self.reference)[0].median_ms for _ in range(TIMES))
        if self._evaluate is not None:
            self.float_score = self._score(Runner(self.reference, threads=self.settings.threads))

    def measure(self, model: Path, exclude: tuple[str, ...]) -> Measured:
        """Measure what the goal limits.

        Raises:
            UsageError: the evaluation fails; `min_sqnr` is given and the model has no float output; or
                `max_perplexity_rise` is given and the samples give no perplexity.
        """
        latency = self.latency_ms(model) if self.goal.max_latency is not None else None
        drop = self.drop(model)
        output, db, rise = self._accuracy(model)
        return Measured(exclude, db, stored_bytes(model), latency, drop, perplexity_rise=rise, output=output)

    def drop(self, model: Path) -> float | None:
        """Return by how much the score falls below the float model's; None where nothing scores."""
        if self.float_score is None:
            return None
        return self.float_score - self._score(Runner(model, threads=self.settings.threads))

    def latency_ms(self, model: Path, *, times: int = 1) -> float:
        """Median milliseconds of a run, corrected for how fast the machine is now.

        The latency of the float model at the start, divided by the speedup over it in interleaved runs. A busy machine
        slows both models down alike, so candidates that were measured minutes apart can be compared.
        """
        ratios = [self._timed(self.reference, model)[-1].ratio for _ in range(times)]
        return self._float_ms / statistics.median(ratios)

    def _timed(self, *models: Path) -> list[Latency]:
        feeds = [self.samples[i].feed for i in range(min(len(self.samples), _BENCH_FEEDS))]
        threads, seconds = self.settings.threads, self.settings.bench_seconds
        return bench(models, feeds, threads=threads, rounds=10_000, seconds=seconds, precision=NOISE)

    def _accuracy(self, model: Path) -> tuple[str, float, float | None]:
        """What `worst_of` returns of the outputs, and the rise of the perplexity if the goal limits it."""
        workers, threads = self._workers
        candidate, how = CandidateRunner(self._how, model, threads=threads), self._how
        sums: list[Sums] = []
        tokens = TokenScores(self._tokens) if self._tokens is not None else None

        def both(index: int) -> tuple[Feed, dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
            feed = self.samples[index].feed
            wanted = self._float.run(feed)
            return feed, wanted, candidate.run(how.feed(feed, wanted))

        for feed, wanted, got in in_order(both, range(len(self.samples)), workers):
            sums.append(sums_of(wanted, got, how.compared(wanted, got)))
            if tokens is not None:
                tokens.add(feed, wanted[tokens.output.logits], got[tokens.output.logits])
        outputs = joined(sums)
        if not outputs and self.goal.min_sqnr is not None:
            hint = "use [[max_drop=POINTS]] with [[evaluate=FUNCTION]]"
            raise UsageError("the model has no float output, and so no SQNR", hint)
        if tokens is None:
            return *worst_of(outputs), None
        if not tokens.informative:
            what = "the float model has no perplexity on the samples, or one no better than chance"
            raise UsageError(what, "give text as samples: [[calib=DATA]]; or use [[min_sqnr=DB]]")
        return *worst_of(outputs), tokens.rise

    def _token_output(self) -> TokenOutput | None:
        """The logits whose perplexity the goal limits; None if it limits none."""
        if self.goal.max_perplexity_rise is None:
            return None
        found = token_output(parsed(self._how.reference))
        some = (self.samples[i] for i in range(len(self.samples)))
        if found is None or not is_causal(self._float.run, some, found):
            hint = "use [[min_sqnr=DB]], or [[max_drop=POINTS]] with [[evaluate=FUNCTION]]"
            raise UsageError("max_perplexity_rise is given, and the model does not predict next tokens", hint)
        return found

    def _score(self, runner: Runner) -> float:
        assert self._evaluate is not None
        return score(self._evaluate, runner.run, self.goal.evaluate)


def score(evaluate: Evaluate, run: Run, given: Evaluate | str | None) -> float:
    """Score a model.

    Args:
        evaluate: the function.
        run: the model.
        given: the function as the user named it, for messages.

    Raises:
        UsageError: the function fails, or returns no finite number.
    """
    def asked(*feeds: Any, **inputs: object) -> dict[str, NDArray[Any]]:
        if len(feeds) != 1 or inputs or not isinstance(feeds[0], Mapping):
            found = ", ".join([*map(shown, feeds), *(f"{name}={shown(value)}" for name, value in inputs.items())])
            what = f"run() was given {found or 'nothing'}"
            raise UsageError(what, "give one dict from input name to array: run({'x': x})")
        return run({name: np.asarray(value) for name, value in feeds[0].items()})

    where = given if isinstance(given, str) else "the evaluation"
    hint = "it is given a function from a feed to the outputs by name, and returns a number"
    with users_code(where, hint, UsageError, wrap=True):
        made = evaluate(asked)
    try:
        found = float(made)
    except (TypeError, ValueError) as e:
        what = "None" if made is None else f"a {type(made).__name__}"
        raise UsageError(f"{where} returned {what}", "it must return a finite number, higher is better") from e
    if not math.isfinite(found):
        raise UsageError(f"{where} returned {found}", "it must return a finite number, higher is better")
    return found


def name_of(given: Evaluate | str) -> str:
    """Return the name of an evaluation for a record: as it was given, without the folder of its file.

    A model that is passed on must not reveal paths of the machine that made it.
    """
    if isinstance(given, str):
        place, function = named(given) or ("", "")
        return f"{Path(place).name}:{function}" if place.endswith(".py") else given
    made = given if hasattr(given, "__qualname__") else type(given)
    return f"{made.__module__}:{made.__qualname__}"


def function_of(given: Evaluate | str | None) -> Evaluate | None:
    """Return the evaluation function itself.

    Raises:
        UsageError: there is no function of that name.
    """
    if not isinstance(given, str):
        return given
    found = named(given)
    if found is None:
        raise UsageError(f"the evaluation is {given!r}", "name it as file.py:function or module:function")
    try:
        function: Evaluate = load(*found)
    except CalibrationError as error:
        raise UsageError(error.message, error.hint) from error
    return function

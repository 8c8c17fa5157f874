"""Findings: what speaks against a result, one rule per fact of a report.

A rule is a function that reads one fact of a report, given as plain values, and yields findings. To add one, write it
here and add it to `RULES` where its weight puts it: of findings of the same level, the first decides what to do next.
Advice names what was measured to help, or a search that measures; no rule guesses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from onnxshot.maths.sqnr import CAP_DB
from onnxshot.report.advice import (
    BAD,
    CAUTION,
    FLOOR_AGREEMENT,
    FLOOR_DB,
    LEAST_INT8,
    Values,
    cases_of,
    decibels,
    faster,
    is_comparison,
    is_slower,
    level_of,
    megabytes,
    quantizes,
    searches,
    smaller,
    to_gain,
)
from onnxshot.report.token_figures import (
    FLOOR_RISE,
    judged_by_tokens,
    on_own_cache,
    perplexities,
    rise_of,
    rise_of_decoding,
)
from onnxshot.runtimes.ort_bench import CLEAR, NOISE
from onnxshot.targets import RUNTIMES

NOTHING = "nothing was quantized"
"""The reason of a result that is the float model unchanged."""

_TWICE_DB = 6.0  # twice the error
_LITTLE = 1 / 128  # of the loudest sample: 8 bits hardly distinguish a quieter one from silence
_HARDLY = 0.05  # share of the work in int8, below which a result computes in float
_KEEP = "keep the input"
_ASK_LESS = f"{_KEEP}, or ask for less accuracy"
_FEW_JUDGED = 2  # samples
_NAMED = 3  # outputs and nodes that are named; the others are counted


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that speaks against a result.

    Attributes:
        level: caution or bad.
        reason: in words.
        next: what to do about it.
    """

    level: str
    reason: str
    next: str


Rule = Callable[[Values], Iterator[Finding]]


# ---------------------------------------------------------------------- accuracy


def _not_finite(values: Values) -> Iterator[Finding]:
    for text in values.get("not_finite", ()):
        hint = "do not deploy it: [[compare INPUT RESULT calib=DATA]] lists the tensors, worst first"
        if is_comparison(values):
            hint = "do not deploy it: the fault begins at the listed tensor that comes first in the graph"
        yield Finding(BAD, str(text), hint)


def _contract(values: Values) -> Iterator[Finding]:
    if text := values.get("contract"):
        yield Finding(BAD, f"inputs or outputs differ: {text}", "give two models of the same inputs and outputs")


def _goal(values: Values) -> Iterator[Finding]:
    goal = values.get("goal") or {}
    spent = goal.get("budget_spent")
    hint = "the budget was spent: give more [[budget=MINUTES]]" if spent else "it is the best that was found"
    for text in goal.get("missed", ()):
        others = "[[report.pareto|--report FILE]] lists the other candidates"
        yield Finding(BAD, f"the goal was missed: {text}", f"{hint}; {others}")


def _outputs_below(values: Values) -> Iterator[Finding]:
    """SQNR of all outputs together and of each, agreement, and shares of equal values."""
    db, agreement, hint = values.get("sqnr_db"), values.get("agreement"), to_gain(values)
    outputs = values.get("output_sqnr_db") or {}
    if rise_of(values) is not None:  # a language model: next to each other, tokens may be equally likely
        outputs = {name: found for name, found in outputs.items() if not judged_by_tokens(values, name)}
        db, agreement = min(outputs.values(), default=None), None
    if level_of(db) == BAD:
        yield Finding(BAD, _below("SQNR", db), hint)
    below = {name: found for name, found in outputs.items() if len(outputs) > 1 and level_of(found) == BAD}
    for name in sorted(below, key=lambda name: below[name])[:_NAMED]:
        yield Finding(BAD, _below(f"SQNR of output {name!r}", below[name]), hint)
    if len(below) > _NAMED:
        yield Finding(BAD, f"{len(below) - _NAMED} more outputs are below {FLOOR_DB:g} dB", hint)
    if level_of(None, agreement, cases_of(values)) == BAD:
        yield Finding(BAD, _disagrees("agreement", agreement), hint)
    elif level_of(None, agreement) == BAD:
        few = f"{_disagrees('agreement', agreement)}, on {cases_of(values)} cases, which are too few to be sure"
        yield Finding(CAUTION, few, "more samples show whether it is below: [[compare INPUT RESULT calib=DATA]]")
    for name, share in ((values.get("judged") or {}).get("ordered") or {}).items():
        if level_of(None, share) == BAD:
            yield Finding(BAD, _disagrees(f"share of the same picks of output {name!r}", share), hint)
    for name, share in (values.get("output_equal") or {}).items():
        if level_of(None, share) == BAD:
            yield Finding(BAD, _disagrees(f"share of equal values of output {name!r}", share), hint)


def _perplexity(values: Values) -> Iterator[Finding]:
    """The perplexity of a language model, over all samples and on its own cache."""
    rise, tokens = rise_of(values), values.get("tokens") or {}
    if rise is not None and rise > FLOOR_RISE:
        what = f"the perplexity rises by {100 * rise:.1f} %, more than {100 * FLOOR_RISE:g} %"
        yield Finding(BAD, f"{what}: {perplexities(values)}", to_gain(values))
    own = rise_of_decoding(values)
    if own is not None and own > FLOOR_RISE:
        what = f"token by token on its own cache, the perplexity is {100 * own:.1f} % higher than at once"
        yield Finding(CAUTION, f"{what}: {on_own_cache(values)}", "compare what both models write, step by step")
    if rise is None and tokens.get("scored") and not tokens["informative"]:
        what = "the float model predicts the samples no better than chance: they are no text that it knows"
        yield Finding(CAUTION, what, "give text: [[calib=DATA]] with the model's own tokens")


def _samples_below(values: Values) -> Iterator[Finding]:
    """SQNR of the median sample, which a few loud samples may hide in the total."""
    outputs = values.get("sample_db") or {}
    whole = values.get("output_sqnr_db") or {}
    outputs = {name: own for name, own in outputs.items() if not judged_by_tokens(values, name)}
    below = {name: own for name, own in outputs.items() if level_of(own["median"]) == BAD}
    for name in [name for name in below if level_of(whole.get(name)) != BAD][:_NAMED]:
        own = below[name]
        level = BAD if own["held"] >= _LITTLE else CAUTION
        what = f"output {name!r}: SQNR of the median sample is {decibels(own['median'])}, below {FLOOR_DB:g} dB"
        total = decibels(whole.get(name))
        yield Finding(level, f"{what}; the {total} over all samples come from louder ones", to_gain(values))


def _parts_below(values: Values) -> Iterator[Finding]:
    """SQNR of channels that louder channels of an output hide, as boxes in pixels hide scores."""
    for name, part in (values.get("output_parts") or {}).items():
        for which in ("quiet", "loud"):
            if level_of(db := part[f"{which}_db"]) == BAD:
                count = part["quiet"] if which == "quiet" else part["channels"] - part["quiet"]
                what = f"the {count} {which} of {part['channels']} channels of output {name!r}: SQNR"
                yield Finding(CAUTION, _below(what, db), to_gain(values))


def _artifacts_below(values: Values) -> Iterator[Finding]:
    """What was measured in the runtimes of artifacts."""
    rows = [(f"the {a['format']} file", a) for a in values.get("outputs", ())]
    rows += [(f"in {row['runtime']}", row) for row in values.get("runtimes", ())]
    elsewhere = {**values, "tried": ()}  # other options were measured in ONNX Runtime only
    for name, row in rows:
        if level_of(db := row.get("sqnr_db")) == BAD:
            yield Finding(BAD, _below(f"{name}: SQNR", db), to_gain(elsewhere))
        if level_of(None, agreement := row.get("agreement"), cases_of(values)) == BAD:
            yield Finding(BAD, _disagrees(f"{name}: agreement", agreement), to_gain(elsewhere))
        if refused := row.get("refused"):
            yield Finding(CAUTION, f"{name} the file is refused: {refused}", "choose the target of that runtime")


def _stages_below(values: Values) -> Iterator[Finding]:
    """Stages of low accuracy, except for the last one, which is the result; and targets that were missed."""
    stages = values.get("stages") or ()
    for stage in stages[:-1]:
        if level_of(stage["sqnr_db"], stage["agreement"], cases_of(values)) == BAD:
            what = f"after stage {stage['name']!r}, SQNR is already {decibels(stage['sqnr_db'])}"
            hint = f"ask for less in stage {stage['name']!r}: later stages cannot recover the loss"
            yield Finding(BAD, what, hint)
    for stage in stages:
        own = stage["report"] or {}
        if own.get("reached") is False:
            what = f"stage {stage['name']!r} does not reach its target"
            yield Finding(BAD, what, "no more can be removed: ask for less")
        elif own and _nothing_quantized(own):
            yield Finding(BAD, NOTHING, "[[inspect MODEL]] says for each node why it stays float")


def _optimizer(values: Values) -> Iterator[Finding]:
    if not values.get("optimizer_changes_results"):
        return
    known = values.get("on_random_data") or values
    if known.get("token_inputs") or rise_of(values) is not None:
        return  # random tokens show nothing, and a perplexity is measured with the optimizations, as deployed
    with_them, without = known.get("sqnr_optimized_db"), known.get("sqnr_unoptimized_db")
    if with_them is not None and without is not None and with_them >= 2 * FLOOR_DB and without - with_them < _TWICE_DB:
        return  # the error is tiny either way, and on a few samples rounding alone can differ this much
    figures = f"{decibels(with_them)} with them, {decibels(without)} without"
    text = f"ONNX Runtime's graph optimizations change results: {figures}"
    plain = (values.get("recipe") or {}).get("target", "ort") == "ort"
    hint = "run [[onnxshot.doctor()|onnxshot doctor]] on the machine that will run it"
    if plain:
        hint = "this CPU may lack VNNI: try [[target=ort-avx2]]"
    yield Finding(CAUTION, text, hint)


# ---------------------------------------------------------------------- what it was judged on


def _data(values: Values) -> Iterator[Finding]:
    """No data, or random data: accuracy is unknown."""
    samples = values.get("samples") or {}
    if values.get("on_random_data") or samples.get("random"):
        learned = samples.get("random") and "calibration" in samples
        what = "it was compared on random data only"
        if learned:
            what = "it was made with random data: everything learned from them is a guess"
        yield Finding(CAUTION, what, "give [[calib=DATA]]: results on random inputs say nothing about real ones")
    elif values.get("sqnr_db") is None and not _compared_elsewhere(values):
        hint = "give [[calib=DATA]] to have the result compared with the input"
        if any("cannot be fed from arrays" in note for note in values.get("notes", ())):
            hint = "samples hold tensors, and an input is not a tensor: run both files on inputs of your own"
        elif "source" in samples:  # there was data
            skipped = any(note.startswith("not compared with") for note in values.get("notes", ()))
            hint = "a note says why: run [[onnxshot.compare|onnxshot compare]] where that reason does not apply"
            hint = hint if skipped else "leave out [[verify=False]] to have it compared with the input"
        elif "layers" in values:
            hint = "give [[calib=DATA]]: the remaining weights can then compensate for the removed ones"
        yield Finding(CAUTION, "it was not compared with the input", hint)


def _compared_elsewhere(values: Values) -> bool:
    """Whether outputs were compared although none is float, or were compared in another runtime."""
    elsewhere = any(artifact.get("sqnr_db") is not None for artifact in values.get("outputs", ()))
    return elsewhere or bool((values.get("samples") or {}).get("judged"))


def _own_samples(values: Values) -> Iterator[Finding]:
    """Judged on samples that ranges were taken from, as where there is only one."""
    samples = values.get("samples") or {}
    learned = samples.get("calibration") and samples.get("held_out") == 0
    if learned and samples.get("judged") and not samples.get("random"):
        of = "the one sample" if samples["judged"] == 1 else f"the {samples['judged']} samples"
        what = f"it was judged on {of} that it was calibrated on: its figures are better than on others"
        yield Finding(CAUTION, what, "give more samples with [[calib=DATA]]: a quarter of them is held out to judge by")
    elif not samples.get("random") and 0 < (samples.get("judged") or 0) <= _FEW_JUDGED:
        of = "one sample" if samples["judged"] == 1 else f"{samples['judged']} samples"
        what = f"it was judged on {of} alone, too few to be sure"
        yield Finding(CAUTION, what, "give more samples with [[calib=DATA]]: a quarter of them is held out to judge by")


def _cut(values: Values) -> Iterator[Finding]:
    """Removed channels: whether the target was reached, and whether the loss of accuracy was measured."""
    if not values.get("reached", True):
        hint = "no more can be removed: ask for less, or allow [[multiple=1]]"
        yield Finding(BAD, "the target was not reached", hint)
    if values.get("drop") is None:
        hint = "[[compare INPUT RESULT calib=DATA]]; or give [[evaluate=file.py:function]]"
        yield Finding(CAUTION, "the loss of accuracy was not measured", hint)


# ---------------------------------------------------------------------- what it is good for


def _nothing(values: Values) -> Iterator[Finding]:
    if _nothing_quantized(values):
        yield Finding(BAD, NOTHING, _to_quantize_more(values))


def _to_quantize_more(values: Values) -> str:
    return faster(values) or smaller(values) or "[[inspect MODEL]] says for each node why it stays float"


def _nothing_quantized(values: Values) -> bool:
    graph = values.get("graph") or ()
    if _computes_in_float(values.get("recipe") or {}):
        return False
    return bool(graph) and quantizes(values) and all(node["how"] in ("float", "half") for node in graph)


def _computes_in_float(recipe: Values) -> bool:
    """Whether layers were asked to compute in float with weights in 8 bits, as where int8 was measured to be slower."""
    return any(rule.get("mode") == "stored" for rule in (recipe.get("layers") or {}).values())


def _size_and_speed(values: Values) -> Iterator[Finding]:
    """Larger or slower than the input: bad if both."""
    size = values.get("input_bytes") or 0
    least = size * (1 if quantizes(values) else 1 + NOISE)  # the record in the metadata takes a few bytes
    larger = [a for a in values.get("outputs") or () if size and a["bytes"] > least]
    speed = (values.get("latency") or {}).get("speedup")
    slower = is_slower(speed) and (values.get("latency") or {}).get("sure", True)
    level = BAD if larger and slower else CAUTION
    for artifact in larger:
        sizes = f"{megabytes(size)} -> {megabytes(artifact['bytes'])}"
        what = f"the {artifact['format']} file is larger than the input: {sizes}"
        hint = smaller(values)
        if not hint and searches(values) and not _came_quantized(values):
            hint = f"[[max_size={size / 1e6:.3g}]] searches for what to leave in float"
        yield Finding(level, what, hint or "keep the input, unless the result is faster and that matters more")
    if slower:
        yield Finding(level, f"it is slower than the input: {speed:.2f}x as fast", _when_slower(values, larger))
    for artifact in values.get("outputs", ()):
        own = (artifact.get("latency") or {}).get("speedup")
        if is_slower(own) and artifact["latency"].get("sure", True):
            what = f"the {artifact['format']} file is slower than the input in {artifact['target']}: {own:.2f}x as fast"
            yield Finding(CAUTION, what, f"in {artifact['target']} keep the float model, unless size matters most")


def _came_quantized(values: Values) -> bool:
    """Whether the input was quantized already, so that leaving more of it in float makes it larger."""
    restored = any("integer operators of the input" in note for note in values.get("notes") or ())
    return restored or bool((values.get("recipe") or {}).get("complete"))


def _in_target(values: Values) -> Iterator[Finding]:
    """A target other than ONNX Runtime: what was measured in it, or that nothing was."""
    target = (values.get("recipe") or {}).get("target")
    if target not in RUNTIMES:
        return
    rows = [row for row in values.get("runtimes") or () if row.get("runtime") == target]
    emitted = [artifact for artifact in values.get("outputs") or () if artifact.get("format") == target]
    if not any(row.get("latency") for row in (*rows, *emitted)):
        hint = f"run the same command where {target} is installed: it then measures the file there"
        yield Finding(CAUTION, f"it was not run in {target}, its target", hint)
    for row in rows:
        if level_of(db := row.get("sqnr_db")) == BAD:
            yield Finding(BAD, _below(f"SQNR in {target}", db), to_gain(values))
        if is_slower(speed := (row.get("latency") or {}).get("speedup")):
            what = f"it is slower than the input in {target}: {speed:.2f}x as fast"
            yield Finding(CAUTION, what, f"in {target} keep the float model, unless size matters most")


def _when_slower(values: Values, larger: Sequence[Values]) -> str:
    if measured := faster(values):
        return measured
    return "keep the input" if larger else "keep the input, unless its size matters most, or it is for another machine"


def float_in_effect(values: Values) -> str:
    """Say in words that a result is the float model in all but name; empty where it is not, or that is not known.

    Hardly any work runs in int8, and the file is neither smaller nor faster than the input, by measurements.
    """
    latency, share = values.get("latency") or {}, values.get("int8_macs_share")
    speed, size = latency.get("speedup"), values.get("input_bytes")
    written = [a["bytes"] for a in values.get("outputs") or () if a["format"] == "onnx"]
    if not quantizes(values) or share is None or speed is None or not size or not written:
        return ""
    faster_than_input = speed > 1 + NOISE and latency.get("sure", True)
    if share >= _HARDLY or faster_than_input or min(written) < size * (1 - CLEAR) or _nothing_quantized(values):
        return ""
    return f"{100 * share:.0f} % of the work runs in int8, and the file is neither smaller nor faster than the input"


def _no_gain(values: Values) -> Iterator[Finding]:
    """Nothing to deploy a result for, though it is as accurate as the input."""
    keep = _ASK_LESS if values.get("goal") else _KEEP
    if text := float_in_effect(values):
        yield Finding(CAUTION, f"there is nothing to deploy it for: {text}", faster(values) or smaller(values) or keep)


def _coverage(values: Values) -> Iterator[Finding]:
    """Most of the work runs in float although it was to be quantized; only runtimes that were run are judged."""
    recipe = values.get("recipe") or {}
    if not quantizes(values) or recipe.get("mode") == "weights" or _nothing_quantized(values):
        return
    if float_in_effect(values):
        return
    if recipe.get("activation_type") not in (None, "int8", "uint8") or _computes_in_float(recipe):
        return
    shares = {a["format"]: a.get("int8_macs_share") for a in values.get("outputs", ())}
    if values.get("latency"):
        shares.setdefault("onnx", None)
        shares["onnx"] = values.get("int8_macs_share") if shares["onnx"] is None else shares["onnx"]
    for name, share in shares.items():
        if share is not None and share < LEAST_INT8:
            what = f"{100 * share:.0f} % of the work runs in int8" + ("" if name == "onnx" else f" in the {name} file")
            yield Finding(CAUTION, what, _to_quantize_more(values))


def _unplanned(values: Values) -> Iterator[Finding]:
    """Nodes that the plan leaves in float, but that the runtime quantizes by itself."""
    names = values.get("int8_unplanned") or ()
    if names:
        some = ", ".join(map(repr, names[:_NAMED]))
        some += f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        what = f"ONNX Runtime runs in int8 what the plan leaves in float: {some}"
        yield Finding(CAUTION, what, "the figures are those of the file as it runs: judge it by them, not by the plan")


def is_inaccurate(values: Values) -> bool:
    """Whether accuracy is below its floor: SQNR of an output or its median sample, agreement, or perplexity."""
    rules = (_outputs_below, _samples_below, _perplexity)
    return any(finding.level == BAD for rule in rules for finding in rule(values))


# ---------------------------------------------------------------------- words


def _below(what: str, db: float | None) -> str:
    if db is not None and db <= -CAP_DB:
        return f"{what} is {decibels(db)}: outputs are infinite or NaN, or those of the input are all zero"
    share = "" if db is None or not math.isfinite(db) else f": the error is {_noise(db)} of the signal"
    return f"{what} is {decibels(db)}, below {FLOOR_DB:g} dB{share}"


def _disagrees(what: str, share: float | None) -> str:
    return f"{what} is {100 * (share or 0.0):.1f} %, below {100 * FLOOR_AGREEMENT:g} %"


def _noise(db: float) -> str:
    share = 10 ** (-db / 20)
    return f"{100 * share:.0f} %" if share < 10 else "more than ten times the size"


RULES: tuple[Rule, ...] = (
    _not_finite, _contract, _goal, _perplexity, _outputs_below, _samples_below, _parts_below, _artifacts_below,
    _stages_below, _nothing, _data, _own_samples, _size_and_speed, _in_target, _no_gain, _coverage, _optimizer,
    _unplanned,
)  # fmt: skip
"""The rules for results of all verbs except shrink, in the order of their weight."""

ACCURACY_RULES: tuple[Rule, ...] = (_goal, _perplexity, _outputs_below, _samples_below, _parts_below)
"""The rules whose findings a user may accept."""

SHRINK_RULES: tuple[Rule, ...] = (_cut,)
"""The rules for results of shrink."""

"""Findings on accuracy: how close a result is to the float model, and what that was judged on."""

from __future__ import annotations

import re
from collections.abc import Iterator

from onnxshot.report.advice import (
    BAD,
    CAUTION,
    FLOOR_DB,
    Values,
    cases_of,
    decibels,
    is_comparison,
    level_of,
    to_gain,
    to_inspect,
)
from onnxshot.report.finding import MOST_NAMED, Finding, too_different, too_low
from onnxshot.report.gain_findings import NOTHING, nothing_quantized
from onnxshot.report.token_figures import (
    FLOOR_RISE,
    judged_by_tokens,
    on_own_cache,
    perplexities,
    rise_of,
    rise_of_decoding,
)
from onnxshot.report.values import GAP_DB

_TWICE_DB = 6.0  # twice the error
_LITTLE = 1 / 128  # of the loudest sample: 8 bits hardly distinguish a quieter one from silence
_FEW_JUDGED = 2  # samples
_PART_OF_ALL = re.compile(r"\d+ of \d+ samples, evenly spaced")  # a note


def not_finite(values: Values) -> Iterator[Finding]:
    """Outputs that hold infinities or NaN where those of the input do not."""
    for text in values.get("not_finite", ()):
        hint = "do not deploy it; list the tensors, worst first: [[compare INPUT RESULT calib=DATA]]"
        if is_comparison(values):
            hint = "do not deploy it: the fault begins at the listed tensor that comes first in the graph"
        yield Finding(BAD, str(text), hint)


def contract(values: Values) -> Iterator[Finding]:
    """Inputs or outputs that are not those of the input."""
    if text := values.get("contract"):
        yield Finding(BAD, f"inputs or outputs differ: {text}", "give two models of the same inputs and outputs")


def goal(values: Values) -> Iterator[Finding]:
    """Goals that were missed."""
    goal = values.get("goal") or {}
    spent = goal.get("budget_spent")
    hint = "the budget was spent: give more [[budget=MINUTES]]" if spent else "it is the best that was found"
    if len(values.get("pareto") or ()) > 1:
        hint += "; the report ([[report.pareto|--report FILE]]) lists the other candidates"
    for text in goal.get("missed", ()):
        yield Finding(BAD, f"the goal was missed: {text}", hint)


def outputs_below(values: Values) -> Iterator[Finding]:
    """SQNR of all outputs together and of each, agreement, and shares of equal values."""
    db, agreement, hint = values.get("sqnr_db"), values.get("agreement"), to_gain(values)
    outputs = values.get("output_sqnr_db") or {}
    if rise_of(values) is not None:  # a language model: next to each other, tokens may be equally likely
        outputs = {name: found for name, found in outputs.items() if not judged_by_tokens(values, name)}
        db, agreement = min(outputs.values(), default=None), None
    if level_of(db) == BAD:
        yield Finding(BAD, too_low("SQNR", db), hint)
    below = {name: found for name, found in outputs.items() if len(outputs) > 1 and level_of(found) == BAD}
    for name in sorted(below, key=lambda name: below[name])[:MOST_NAMED]:
        yield Finding(BAD, too_low(f"SQNR of output {name!r}", below[name]), hint)
    if len(below) > MOST_NAMED:
        yield Finding(BAD, f"{len(below) - MOST_NAMED} more outputs are below {FLOOR_DB:g} dB", hint)
    if level_of(None, agreement, cases_of(values)) == BAD:
        yield Finding(BAD, too_different("agreement", agreement), hint)
    elif level_of(None, agreement) == BAD:
        few = f"{too_different('agreement', agreement)}, on {cases_of(values)} cases, which are too few to be sure"
        yield Finding(CAUTION, few, _to_judge_by_more(values))
    for name, share in ((values.get("judged") or {}).get("ordered") or {}).items():
        if level_of(None, share) == BAD:
            yield Finding(BAD, too_different(f"share of the same picks of output {name!r}", share), hint)
    for name, share in (values.get("output_equal") or {}).items():
        if level_of(None, share) == BAD:
            yield Finding(BAD, too_different(f"share of equal values of output {name!r}", share), hint)


def _to_judge_by_more(values: Values) -> str:
    """How to judge by more samples: a comparison takes all that there are, and then only new ones help."""
    if is_comparison(values):
        return _to_give_more(values)
    return "judge by all samples: [[compare INPUT RESULT calib=DATA]]"


def perplexity(values: Values) -> Iterator[Finding]:
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


def samples_below(values: Values) -> Iterator[Finding]:
    """SQNR of the median sample, which a few loud samples may hide in the total."""
    outputs = values.get("sample_db") or {}
    whole = values.get("output_sqnr_db") or {}
    outputs = {name: own for name, own in outputs.items() if not judged_by_tokens(values, name)}
    below = {name: own for name, own in outputs.items() if level_of(own["median"]) == BAD}
    for name in [name for name in below if level_of(whole.get(name)) != BAD][:MOST_NAMED]:
        own = below[name]
        level = BAD if own["held"] >= _LITTLE else CAUTION
        what = f"output {name!r}: SQNR of the median sample is {decibels(own['median'])}, below {FLOOR_DB:g} dB"
        total = decibels(whole.get(name))
        yield Finding(level, f"{what}; the {total} over all samples come from louder ones", to_gain(values))


def parts_below(values: Values) -> Iterator[Finding]:
    """SQNR of channels that louder channels of an output hide, as boxes in pixels hide scores."""
    for name, part in (values.get("output_parts") or {}).items():
        for which in ("quiet", "loud"):
            if level_of(db := part[f"{which}_db"]) == BAD:
                count = part["quiet"] if which == "quiet" else part["channels"] - part["quiet"]
                what = f"the {count} {which} of {part['channels']} channels of output {name!r}: SQNR"
                yield Finding(CAUTION, too_low(what, db), to_gain(values))


def artifacts_below(values: Values) -> Iterator[Finding]:
    """What was measured in the runtimes of artifacts."""
    rows = [(f"the {a['format']} file", a) for a in values.get("outputs", ())]
    rows += [(f"in {row['runtime']}", row) for row in values.get("runtimes", ())]
    elsewhere = {**values, "tried": ()}  # other options were measured in ONNX Runtime only
    for name, row in rows:
        if level_of(db := row.get("sqnr_db")) == BAD:
            yield Finding(BAD, too_low(f"{name}: SQNR", db), to_gain(elsewhere))
        if level_of(None, agreement := row.get("agreement"), cases_of(values)) == BAD:
            yield Finding(BAD, too_different(f"{name}: agreement", agreement), to_gain(elsewhere))
        if refused := row.get("refused"):
            yield Finding(CAUTION, f"{name} the file is refused: {refused}", "choose the target of that runtime")


def stages_below(values: Values) -> Iterator[Finding]:
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
        elif own and nothing_quantized(own):
            yield Finding(BAD, NOTHING, f"see for each node why it stays float: {to_inspect(own)}")


def optimizer(values: Values) -> Iterator[Finding]:
    """ONNX Runtime's graph optimizations change what the result computes."""
    if not values.get("optimizer_changes_results"):
        return
    known = values.get("on_random_data") or values
    if known.get("token_inputs") or rise_of(values) is not None:
        return  # random tokens show nothing, and a perplexity is measured with the optimizations, as deployed
    with_them, without = known.get("sqnr_optimized_db"), known.get("sqnr_unoptimized_db")
    if with_them is not None and without is not None and with_them >= 2 * FLOOR_DB and without - with_them < _TWICE_DB:
        return  # the error is tiny either way, and on a few samples rounding alone can differ this much
    text = "ONNX Runtime's graph optimizations change results"
    if with_them is not None and without is not None and without - with_them <= GAP_DB:
        text += " of an output, which a note names"  # beside louder ones it changes no total
    else:
        text += f": {decibels(with_them)} with them, {decibels(without)} without"
    plain = (values.get("recipe") or {}).get("target", "ort") == "ort"
    then = "take [[target=ort-avx2]] if sums of int8 saturate on this CPU, else judge by the figures with them; "
    hint = f"{then if plain else ''}see whether sums of int8 saturate: [[onnxshot.doctor()|onnxshot doctor]]"
    yield Finding(CAUTION, text, hint)


# ---------------------------------------------------------------------- what it was judged on


def data(values: Values) -> Iterator[Finding]:
    """No data, or random data: accuracy is unknown."""
    samples = values.get("samples") or {}
    if values.get("on_random_data") or samples.get("random"):
        learned = samples.get("random") and "calibration" in samples
        what = "it was compared on random data only"
        if learned:
            what = "it was made with random data: everything learned from them is a guess"
        yield Finding(CAUTION, what, "give [[calib=DATA]]: results on random inputs say nothing about real ones")
    elif values.get("sqnr_db") is None and not _compared_elsewhere(values) and not _judged_by_goal(values):
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


def _judged_by_goal(values: Values) -> bool:
    """Whether a search measured its accuracy, as where nothing else is verified."""
    return "sqnr_db" in (values.get("goal") or {})


def _compared_elsewhere(values: Values) -> bool:
    """Whether outputs were compared although none is float, or were compared in another runtime."""
    elsewhere = any(artifact.get("sqnr_db") is not None for artifact in values.get("outputs", ()))
    return elsewhere or bool((values.get("samples") or {}).get("judged"))


def blank(values: Values) -> Iterator[Finding]:
    """Judged on samples of which the float model itself makes nothing."""
    samples = values.get("samples") or {}
    if found := samples.get("blank"):
        of = f"{found} of the {samples.get('judged')} samples that it was judged on"
        hint = "look at those samples, or at the float model: nothing can be said of a result there"
        yield Finding(BAD, f"the float model gives no finite number on {of}", hint)


def copies(values: Values) -> Iterator[Finding]:
    """Judged on copies of one sample or two."""
    samples = values.get("samples") or {}
    count = samples.get("judged") or 0
    distinct, seen, held_out = samples.get("distinct", count), samples.get("copies") or 0, samples.get("held_out") or 0
    if seen > held_out / 2:
        what = f"{seen} of the {held_out} held-out samples are copies of samples that it was calibrated on"
        what += ": its figures are better than on others"
        yield Finding(CAUTION, what, "give samples that differ: [[calib=DATA]]")
    if distinct <= _FEW_JUDGED < count and not (values.get("on_random_data") or samples.get("random")):
        what = "all are copies of one" if distinct == 1 else f"only {distinct} differ"
        hint = "give samples that differ, like those that it will see: [[calib=DATA]]"
        yield Finding(CAUTION, f"of the {count} samples that it was judged on, {what}", hint)


def own_samples(values: Values) -> Iterator[Finding]:
    """Judged on samples that ranges were taken from, as where there is only one; or on few."""
    samples = values.get("samples") or {}
    count = samples.get("judged") or 0
    if values.get("on_random_data") or samples.get("random") or not count:  # of which another finding says more
        return
    of = "the one sample" if count == 1 else f"the {count} samples"
    if samples.get("calibration") and samples.get("held_out") == 0:
        what = f"it was judged on {of} that it was calibrated on: its figures are better than on others"
        yield Finding(CAUTION, what, _to_give_more(values))
    elif count * ((values.get("recipe") or {}).get("batch") or 1) <= _FEW_JUDGED:
        of = "one sample" if count == 1 else f"{count} samples"
        yield Finding(CAUTION, f"it was judged on {of} alone, too few to be sure", _to_give_more(values))


def _to_give_more(values: Values) -> str:
    """How to judge on more samples: those that were left out, or new ones."""
    left_out = any(_PART_OF_ALL.fullmatch(str(note)) for note in values.get("notes") or ())
    hint = "take more of the samples: leave out [[samples]]" if left_out else "give more samples with [[calib=DATA]]"
    return hint if is_comparison(values) else f"{hint}; a quarter of them is held out to judge by"


def cut(values: Values) -> Iterator[Finding]:
    """Removed channels: whether the target was reached, and whether the loss of accuracy was measured."""
    if not values.get("reached", True):
        hint = "no more can be removed: ask for less, or allow [[multiple=1]] if it is above"
        yield Finding(BAD, "the target was not reached", hint)
    if values.get("drop") is not None:
        return
    db, agreement = values.get("sqnr_db"), values.get("agreement")
    hint = "ask for less, or give [[evaluate=file.py:function]]"
    if level_of(db) == BAD:
        yield Finding(BAD, too_low("SQNR", db), hint)
    if level_of(None, agreement, values.get("cases")) == BAD:
        yield Finding(BAD, too_different("agreement", agreement), hint)
    if db is None and agreement is None:
        hint = "give [[evaluate=file.py:function]], or compare it: [[compare INPUT RESULT calib=DATA]]"
        yield Finding(CAUTION, "the loss of accuracy was not measured", hint)


def is_inaccurate(values: Values) -> bool:
    """Whether accuracy is below its floor: SQNR of an output or its median sample, agreement, or perplexity."""
    rules = (outputs_below, samples_below, perplexity)
    return any(finding.level == BAD for rule in rules for finding in rule(values))

"""Advice: what to do next where a result falls short. It names what was measured to help, or a search that measures.

Reports are given as plain values, as `Report.to_dict` returns them.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from onnxshot.maths.sqnr import CAP_DB
from onnxshot.report.token_figures import FLOOR_RISE, rise_of
from onnxshot.runtimes.ort_bench import NOISE
from onnxshot.wording import is_command_line

Values = Mapping[str, Any]

READY, CAUTION, BAD = "ready", "caution", "bad"
"""Levels of a verdict."""
FLOOR_DB = 15.0
"""Least SQNR of outputs that are good enough; below it, the error is more than 18 % of the signal."""
FLOOR_AGREEMENT = 0.95
"""Least share of cases in which the position of the highest value must be that of the float model.

Few cases are below it only if that is no accident (`_surely_differ`): 5 of 32 that differ, but not 4.
"""
LEAST_INT8 = 0.5
"""Least share of the multiply-accumulates in int8; below it, a quantized model runs mostly in float."""

_SAME_BITS = 0.02  # share of bits a weight, by which float files of one model differ
_SAME_DB = 1.0  # smaller gains are not mentioned
_MUCH_SLOWER = 0.8  # times as fast as the input
_DEPLOY = "deploy it, or compare on your own data with [[onnxshot.compare|onnxshot compare]]"


def level_of(sqnr_db: float | None, agreement: float | None = None, cases: int | None = None) -> str:
    """The level of these figures: bad if one is below its floor, else ready. None means not measured.

    Args:
        sqnr_db: SQNR in dB.
        agreement: share of cases, 0..1.
        cases: how many there are; None if unknown.
    """
    low = sqnr_db is not None and not sqnr_db >= FLOOR_DB
    differ = agreement is not None and agreement < FLOOR_AGREEMENT
    if differ and cases and agreement is not None:
        differ = _surely_differ(round((1 - agreement) * cases), cases)
    return BAD if low or differ else READY


def _surely_differ(count: int, cases: int) -> bool:
    """Whether more cases differ than at the floor by chance.

    One-sided test at 5 %: the normal approximation of the binomial distribution, with continuity correction.
    """
    rate = 1.0 - FLOOR_AGREEMENT
    return count > rate * cases + 1.645 * math.sqrt(rate * FLOOR_AGREEMENT * cases) + 0.5


def cases_of(values: Values) -> int | None:
    """How many cases the agreement of a report is a share of; None if unknown."""
    return (values.get("samples") or {}).get("cases")


def is_slower(speedup: float | None) -> bool:
    """Whether a measured speedup is below 1 by more than the noise of measurements."""
    return speedup is not None and speedup < 1.0 - NOISE


def to_gain(values: Values) -> str:
    """How to gain accuracy: options that were measured to help, else a search that measures."""
    rows = [row for row in values.get("tried", ()) if not row.get("taken")]
    cures = [row for row in rows if _level(row) != BAD]
    if cures:
        best = max(cures, key=lambda row: (_level(row) == READY, _worst_db(row)))
        return f"{best['options']}: {_gained(values, best)}, measured here{_besides(best)}"
    search = _to_search(values)
    better = [row for row in rows if _worst_db(row) > _worst_db(values) + _SAME_DB]
    if better:
        best = max(better, key=_worst_db)
        still = "still below"
        if _worst_db(best) >= FLOOR_DB:  # another figure is below its floor
            still = f"but {next(iter(best.get('reasons') or ()), 'another figure is below its floor')}"
        return f"{best['options']} is not enough ({_gained(values, best)}, {still}); {search}"
    return search


def _level(row: Values) -> str:
    """The level of a row of `Report.tried`: its own if it has one, else by its SQNR and agreement."""
    return str(row.get("level") or level_of(row.get("sqnr_db"), row.get("agreement")))


def _worst_db(values: Values) -> float:
    """The SQNR of the worst output."""
    return min((db if math.isfinite(db) else -math.inf for db in _all_db(values)), default=-math.inf)


def _gained(values: Values, row: Values) -> str:
    """In words, what options that were tried gain for the figures that are below their floors."""
    outputs, tried = values.get("output_sqnr_db") or {}, row.get("output_sqnr_db") or {}
    low = [name for name in outputs if level_of(outputs[name]) == BAD and name in tried]
    if len(outputs) > 1 and low:
        still = [name for name in low if level_of(tried[name]) == BAD]
        worst = min(still or low, key=(tried if still else outputs).__getitem__)
        return f"SQNR of output {worst!r} {decibels(tried[worst])} in place of {decibels(outputs[worst])}"
    share, now = row.get("agreement"), values.get("agreement")
    close = level_of(values.get("sqnr_db")) != BAD
    if close and share is not None and now is not None and level_of(None, now, cases_of(values)) == BAD:
        return f"agreement {100 * share:.1f} % in place of {100 * now:.1f} %"
    if row.get("sqnr_db") is None or values.get("sqnr_db") is None:
        return "all figures of accuracy above their limits"
    return f"SQNR {decibels(row['sqnr_db'])} in place of {decibels(values['sqnr_db'])}"


def _to_search(values: Values) -> str:
    """A command that searches for more accuracy by measuring."""
    if "layers" in values:
        return _of_pruning(values)
    if stages := values.get("stages"):
        return _of_stages(stages)
    if (values.get("goal") or {}).get("missed"):
        return "measure what each node costs: [[sensitivity MODEL calib=DATA gains=True]]"
    if rise_of(values) is not None and not (values.get("goal") or {}):
        search = f"[[tune INPUT calib=DATA{_kept(values)} max_perplexity_rise={100 * FLOOR_RISE:g}%]]"
        return f"search for what to leave in float, by measuring: {search}"
    if not quantizes(values) and not is_comparison(values):
        return "list the tensors, worst first: [[compare INPUT RESULT calib=DATA]]"
    if is_comparison(values):
        return f"search for what to leave in float: [[tune INPUT calib=DATA min_sqnr={_asked_for(values)}]]"
    return with_goal(values, f"min_sqnr={_asked_for(values)}")


def with_goal(values: Values, goal: str) -> str:
    """How to run once more with a goal: the same command keeps all other options; in Python it is another function."""
    if is_command_line():
        return f"the same run with [[{goal}]] searches for what to leave in float, by measuring"
    return f"search for what to leave in float, by measuring: [[tune INPUT calib=DATA{_kept(values)} {goal}]]"


def _kept(values: Values) -> str:
    """What was asked for beside the goal, for a command that asks again: where it runs, and how it computes."""
    recipe = values.get("recipe") or {}
    usual = {"target": "ort", "mode": "weights" if recipe.get("bits") else "static", "bits": None}
    return _options(recipe, usual)


def _options(recipe: Values, usual: Mapping[str, str | None]) -> str:
    """These fields of a recipe where they are not as usual, and its globs, as options of a command."""
    kept = [(name, recipe.get(name)) for name, value in usual.items() if recipe.get(name) not in (None, value)]
    kept += [(name, glob) for name in ("exclude", "include") for glob in recipe.get(name) or ()]
    words = (shlex.quote(f"{name}={value}") for name, value in kept)
    return "".join(f" {word}" for word in words if not set(word) & set("[]|"))  # which no token may hold


def to_inspect(values: Values) -> str:
    """The command that says for each node what is done with it, by the recipe of a report."""
    recipe = values.get("recipe") or {}
    mode = "static" if recipe.get("mode") != "auto" else "auto"  # which inspect does not take
    return f"[[inspect MODEL{_options(recipe, {'target': 'ort', 'mode': mode, 'precision': 'int8'})}]]"


def _of_pruning(values: Values) -> str:
    """For pruning: less sparsity, or the data and the scope that were not given yet."""
    recipe = values.get("recipe") or {}
    asked = (recipe.get("stages") or [recipe])[0]
    given = "calibration" in (values.get("samples") or {})
    auto = asked.get("scope") == "auto" or (asked.get("scope") is None and given)
    more = [] if auto else ["[[scope=auto]]"]
    more += [] if given else ["[[calib=DATA]]"]
    return "a lower [[sparsity]]" + (f", or {' with '.join(more)}" if more else "")


def _asked_for(values: Values) -> str:
    """An SQNR to ask for: the floor or, above it, one with half the present error of the worst output.

    A goal holds for each output, so that one that is below the floor has to reach no more than that.
    """
    known = [db for db in _all_db(values) if db != math.inf]
    enough = bool(known) and all(db >= FLOOR_DB for db in known)  # NaN is not
    return f"{math.ceil(min(known) + 6)}" if enough else f"{FLOOR_DB:g}"


def _all_db(values: Values) -> list[float]:
    """The SQNR of all outputs together and of each."""
    total = [] if values.get("sqnr_db") is None else [values["sqnr_db"]]
    return [*total, *(values.get("output_sqnr_db") or {}).values()]


def _of_stages(stages: Sequence[Values]) -> str:
    """The stage that loses the most accuracy, by the noise that it adds to the stages before."""
    noise = [0.0 if s["sqnr_db"] is None else 10 ** (-s["sqnr_db"] / 10) for s in stages]
    costs = {after["name"]: now - before for after, now, before in zip(stages[1:], noise[1:], noise, strict=False)}
    worst = max(costs, key=lambda name: costs[name])
    what = "ask for less in it" if "quant" not in worst else "run it alone: [[tune INPUT calib=DATA min_sqnr=15]]"
    return f"stage {worst!r} costs the most accuracy: {what}"


def faster(values: Values) -> str:
    """The fastest options that were tried, if they are faster than both the input and the result; else empty."""
    speed = (values.get("latency") or {}).get("speedup") or 1.0
    rows = [row for row in _sound(values) if (row.get("speedup") or 0.0) > max(speed, 1.0) * (1 + NOISE)]
    return f"{words_of(max(rows, key=lambda row: row['speedup']))}, measured here" if rows else ""


def smaller(values: Values) -> str:
    """The smallest options that were tried, if they are smaller than both the input and the result; else empty.

    None that are much slower than the input: smaller is not better at any price.
    """
    size = min([_size(values) or math.inf, values.get("input_bytes") or math.inf])
    rows = [row for row in _sound(values) if row["bytes"] < size * (1 - NOISE)]
    rows = [row for row in rows if (row.get("speedup") or 1.0) >= _MUCH_SLOWER]
    return f"{words_of(min(rows, key=lambda row: row['bytes']))}, measured here" if rows else ""


def _sound(values: Values) -> list[Values]:
    """The options that were tried and are accurate enough."""
    return [row for row in values.get("tried", ()) if _level(row) != BAD and not row.get("taken")]


def words_of(row: Values) -> str:
    """Options that were tried, with their figures, in words."""
    db = f", SQNR {decibels(row['sqnr_db'])}" if row.get("sqnr_db") is not None else ""
    return f"{row['options']}: {megabytes(row['bytes'])}{db}{_speed(row)}"


def _besides(row: Values) -> str:
    """Size and speed of options that were tried, in parentheses."""
    return f" ({megabytes(row['bytes'])}{_speed(row)})" if row.get("bytes") else ""


def _speed(row: Values) -> str:
    return f", {row['speedup']:.2f}x as fast as the input" if row.get("speedup") else ""


def searches(values: Values) -> bool:
    """Whether a search for a goal is possible: int8, the user's own samples, and no goal yet."""
    recipe, samples = values.get("recipe") or {}, values.get("samples") or {}
    known = bool(samples.get("judged")) and not samples.get("random") and not values.get("on_random_data")
    return known and recipe.get("precision") == "int8" and not values.get("goal") and recipe.get("mode") != "weights"


def is_comparison(values: Values) -> bool:
    """Whether the report is of onnxshot compare, which makes no model."""
    return "reference" in (values.get("recipe") or {})


def quantizes(values: Values) -> bool:
    """Whether the recipe quantizes to int8."""
    return str((values.get("recipe") or {}).get("precision", "")).startswith("int8")


def int8_share(values: Values, artifact: Values | None = None) -> float | None:
    """The share of the work in int8, of the .onnx file or of an artifact; None where it says nothing.

    It says nothing where it is not known, and where nothing was to run in int8.
    """
    share, recipe = (values if artifact is None else artifact).get("int8_macs_share"), values.get("recipe") or {}
    if not share and (not quantizes(values) or recipe.get("mode") == "weights"):
        return None
    return share


def bits_before(values: Values) -> float | None:
    """Bits a weight of the input, by the size of its file; None if unknown, or if they say nothing beside the result's.

    The result's have to differ, and a candidate of a comparison has to be quantized: it may lack weights of the other.
    """
    now, parameters = values.get("bits_per_weight"), values.get("parameters")
    counted = not is_comparison(values) or values.get("int8_macs_share") or values.get("blocks")
    if now is None or not parameters or not counted:
        return None
    before = 8 * (values.get("input_bytes") or 0) / float(parameters)
    return None if abs(now - before) < _SAME_BITS * before else before


def when_ready(values: Values) -> str:
    """What to do with a result without findings."""
    if "layers" in values:
        keeps = "[[onnxshot.quantize|onnxshot quantize]] keeps them"
        return f"zeros make only the compressed file smaller; to run faster, quantize it: {keeps}"
    placed = values.get("placed") or {}
    if placed and placed["floats"] == placed["of"]:
        why = "it computes in float with weights in 8 bits, as int8 was measured to be no faster here"
        return f"ready: deploy it for its size: {why}"
    return "ready: deploy it" if is_comparison(values) else f"ready: {_DEPLOY}"


def with_paths(text: str, values: Values) -> str:
    """Put the paths of a report into the commands of a text: for INPUT and MODEL the input's, for RESULT the result's.

    A model in memory has no path, and a path that could not stand in a token is left out.
    """
    compared = (values.get("recipe") or {}).get("reference")
    given = str(compared or values.get("input") or "")
    made = str(values.get("input") or "") if compared else _path_of_result(values)
    for word, path in (("INPUT", given), ("MODEL", given), ("RESULT", made)):
        if path.isprintable() and path[:1] not in ("", "(") and not set(path) & set("[]|"):
            place = shlex.quote(path).replace("\\", "\\\\")  # a replacement has escapes of its own
            text = re.sub(rf"(?<=\[\[)([a-z]+ (?:[^\[\]]+ )?){word}\b", rf"\g<1>{place}", text)
    return text


def _path_of_result(values: Values) -> str:
    made = (str(a["path"]) for a in values.get("outputs") or () if a["format"] == "onnx" and a.get("path"))
    return next(made, str(values.get("output") or ""))


def decibels(db: float | None) -> str:
    """An SQNR in words."""
    if db is None:
        return "not measured"
    if db <= -CAP_DB:
        return "not a finite number"
    return f"{db:.1f} dB" if math.isfinite(db) and db < CAP_DB else "exact" if db > 0 else "not a number"


def megabytes(count: float, beside: float = 0) -> str:
    """Bytes in megabytes; in kilobytes below 100 kB; as they are below 100.

    Args:
        count: of bytes.
        beside: a count that stands beside this one: both have the unit of the larger one.
    """
    largest = max(count, beside)
    if largest < 100:
        return f"{count:.0f} B"
    return f"{count / 1e6:.2f} MB" if largest >= 1e5 else f"{count / 1e3:.1f} kB"


def sizes(before: float, after: float) -> tuple[str, str]:
    """Two sizes in bytes that stand beside each other, in one unit."""
    return megabytes(before, after), megabytes(after, before)


def size_change(before: float, after: float) -> str:
    """Two sizes in bytes as one text, such as "0.93 -> 0.26 MB"."""
    first, second = sizes(before, after)
    return f"{first.partition(' ')[0]} -> {second}"


def _size(values: Values) -> int:
    return sum(int(a["bytes"]) for a in values.get("outputs", ()) if a["format"] == "onnx")

"""Findings on what a result is good for: its size, its speed, and how much of the work runs in int8."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnxshot.report.advice import (
    BAD,
    CAUTION,
    LEAST_INT8,
    Values,
    faster,
    is_slower,
    level_of,
    quantizes,
    searches,
    sizes,
    smaller,
    to_gain,
    to_inspect,
    with_goal,
)
from onnxshot.report.finding import MOST_NAMED, Finding, too_low
from onnxshot.report.values import MEASURED, NOT_QUANTIZABLE
from onnxshot.runtimes.ort_bench import CLEAR, NOISE
from onnxshot.targets import RUNTIMES

NOTHING = "nothing was quantized"
"""The reason of a result that is the float model unchanged."""
_HARDLY = 0.05  # share of the work in int8, below which a result computes in float
_KEEP = "keep the input"
_ASK_LESS = f"{_KEEP}, or ask for less accuracy"


def nothing(values: Values) -> Iterator[Finding]:
    """Nothing was quantized."""
    if nothing_quantized(values):
        yield Finding(BAD, NOTHING, _to_quantize_more(values))


def _to_quantize_more(values: Values) -> str:
    if any(str(note).startswith(NOT_QUANTIZABLE) for note in values.get("notes") or ()):
        return _KEEP
    better = faster(values) or smaller(values)
    reasons = [str(skip.get("reason", "")) for skip in values.get("skips") or ()]
    if not better and any(reason.startswith(MEASURED) for reason in reasons):
        as_it_is = _KEEP if nothing_quantized(values) else "deploy it for what it gains"
        then = _ASK_LESS if values.get("goal") else as_it_is
        return f"{then}: in int8 the other nodes were measured to be slower here, or to cost too much accuracy"
    return better or f"see for each node why it stays float: {to_inspect(values)}"


def nothing_quantized(values: Values) -> bool:
    """Whether a result is the float model unchanged, although it was to be quantized."""
    graph = values.get("graph") or ()
    if _computes_in_float(values.get("recipe") or {}):
        return False
    return bool(graph) and quantizes(values) and all(node["how"] in ("float", "half") for node in graph)


def _computes_in_float(recipe: Values) -> bool:
    """Whether layers were asked to compute in float with weights in 8 bits, as where int8 was measured to be slower."""
    return any(rule.get("mode") == "stored" for rule in (recipe.get("layers") or {}).values())


def size_and_speed(values: Values) -> Iterator[Finding]:
    """Larger or slower than the input: bad if both."""
    size = values.get("input_bytes") or 0
    least = size * (1 if quantizes(values) else 1 + NOISE)  # the record in the metadata takes a few bytes
    larger = [a for a in values.get("outputs") or () if size and a["bytes"] > least]
    speed = (values.get("latency") or {}).get("speedup")
    slower = is_slower(speed) and (values.get("latency") or {}).get("sure", True)
    level = BAD if larger and slower else CAUTION
    for artifact in larger:
        change = " -> ".join(sizes(size, artifact["bytes"]))
        what = f"the {artifact['format']} file is larger than the input: {change}"
        hint = smaller(values)  # a search for a size would find the float model again where nothing was quantized
        if not hint and searches(values) and not (_came_quantized(values) or nothing_quantized(values)):
            hint = with_goal(values, f"max_size={size / 1e6:.3g}")
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


def in_target(values: Values) -> Iterator[Finding]:
    """A target other than ONNX Runtime: what was measured in it, or that nothing was."""
    target = (values.get("recipe") or {}).get("target")
    if target not in RUNTIMES:
        return
    rows = [row for row in values.get("runtimes") or () if row.get("runtime") == target]
    emitted = [artifact for artifact in values.get("outputs") or () if artifact.get("format") == target]
    if not any(row.get("latency") for row in (*rows, *emitted)):
        again = "[[make the same call|run the same command]]"
        hint = f"{again} where {target} is installed: it then measures the file there"
        yield Finding(CAUTION, f"it was not run in {target}, its target", hint)
    for row in rows:
        if level_of(db := row.get("sqnr_db")) == BAD:
            yield Finding(BAD, too_low(f"SQNR in {target}", db), to_gain(values))
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
    if share >= _HARDLY or faster_than_input or min(written) < size * (1 - CLEAR) or nothing_quantized(values):
        return ""
    return f"{100 * share:.0f} % of the work runs in int8, and the file is neither smaller nor faster than the input"


def no_gain(values: Values) -> Iterator[Finding]:
    """Nothing to deploy a result for, though it is as accurate as the input."""
    keep = _ASK_LESS if values.get("goal") else _KEEP
    if text := float_in_effect(values):
        yield Finding(CAUTION, f"there is nothing to deploy it for: {text}", faster(values) or smaller(values) or keep)


def coverage(values: Values) -> Iterator[Finding]:
    """Most of the work runs in float although it was to be quantized; only runtimes that were run are judged."""
    recipe = values.get("recipe") or {}
    if not quantizes(values) or recipe.get("mode") == "weights" or nothing_quantized(values):
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


def unplanned(values: Values) -> Iterator[Finding]:
    """Nodes that the plan leaves in float, but that the runtime quantizes by itself."""
    names = values.get("int8_unplanned") or ()
    if names:
        some = ", ".join(map(repr, names[:MOST_NAMED]))
        some += f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        what = f"ONNX Runtime runs in int8 what the plan leaves in float: {some}"
        yield Finding(CAUTION, what, "the figures are those of the file as it runs: judge it by them, not by the plan")

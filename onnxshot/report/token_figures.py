"""Read the figures of language models in a report, given as plain values, and say them in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxshot.report.digits import significant

Values = Mapping[str, Any]

_LEAST_SHARE = 0.005  # below it, a share would be said as 0 %
FLOOR_RISE = 0.1
"""Share by which the perplexity of a result that is good enough may rise over that of the float model."""


def rise_of(values: Values) -> float | None:
    """The rise of the perplexity as a share; None where there is none.

    Nor is there one where the float model predicts no better than chance: the samples are no text that it knows.
    """
    tokens = values.get("tokens") or {}
    return tokens.get("perplexity_rise") if tokens.get("informative") else None


def judged_by_tokens(values: Values, output: str) -> bool:
    """Whether the perplexity stands for the error of an output: the logits, and the caches that lead to them."""
    tokens = values.get("tokens") or {}
    return rise_of(values) is not None and (output == tokens["output"] or output in tokens["caches"])


def rises(share: float) -> str:
    """A rise in words, with its sign."""
    return f"{100 * share:+.1f} %"


def perplexities(values: Values) -> str:
    """The perplexity of the float model and of the result; empty where it was not measured."""
    tokens = values.get("tokens") or {}
    if "perplexity_rise" not in tokens:
        return ""
    before, after, rise = tokens["float_perplexity"], tokens["perplexity"], tokens["perplexity_rise"]
    return f"{before:.4g} -> {after:.4g} ({rises(rise)})"


def on_own_cache(values: Values) -> str:
    """The perplexity where the result decodes on its own cache, and at the same positions else; empty where unknown."""
    steps = (values.get("tokens") or {}).get("steps") or {}
    if not {"perplexity", "perplexity_at_once"} <= steps.keys():
        return ""
    return f"{steps['perplexity']:.4g} token by token, {steps['perplexity_at_once']:.4g} at once"


def rise_of_decoding(values: Values) -> float | None:
    """The share by which the perplexity is higher where the result decodes on its own cache; None where unknown."""
    steps = (values.get("tokens") or {}).get("steps") or {}
    if rise_of(values) is None or not {"perplexity", "perplexity_at_once"} <= steps.keys():
        return None
    return float(steps["perplexity"] / steps["perplexity_at_once"] - 1.0)


def divergence(values: Values) -> str:
    """The divergence of the logits, or of the first output that is class scores; empty where none was measured."""
    found = (values.get("tokens") or {}).get("kl_nats")
    if found is None:
        found = next(iter((values.get("output_kl") or {}).values()), None)
    return "" if found is None else f"{found:.3g} nats"


def in_one_line(values: Values) -> str:
    """Perplexity and divergence in one line for the terminal; empty where neither was measured."""
    tokens = values.get("tokens") or {}
    parts = [f"perplexity {text}" for text in [perplexities(values)] if text]
    steps = tokens.get("steps") or {}
    parts += [f"of {steps['scored']} decoded tokens {text}" for text in [on_own_cache(values)] if text]
    parts += [f"divergence {text}" for text in [divergence(values)] if text]
    if tokens.get("perplexity") and not tokens["informative"]:
        parts.append("the float model predicts these samples no better than chance")
    return ", ".join(parts)


def blocks_in_words(values: Values) -> str:
    """The work by weights in blocks; empty where there is none."""
    return ", ".join(
        f"{row['bits']}-bit weights and {row['activations']} activations in {_percent(row['macs_share'])} of the work"
        for row in values.get("blocks") or ()
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= _LEAST_SHARE else "less than 1 %"


def decoding_in_one_line(values: Values) -> str:
    """Time of a token and of a prompt in one line for the terminal; empty where they were not measured."""
    found = values.get("decoding") or {}
    if not found:
        return ""
    parts = []
    for name, what in (("token", "a token"), ("prompt", f"a prompt of {found['prompt_tokens']} tokens")):
        times = found[name]
        cpu = f", CPU time {times['cpu_speedup']:.2f}x" if "cpu_speedup" in times else ""
        unsure = "" if times["sure"] else ", not certain because runs scatter"
        before, after = significant(times["float_ms"]), significant(times["ms"])
        parts.append(f"{what} {before} -> {after} ms ({times['speedup']:.2f}x{cpu}{unsure})")
    return ", ".join(parts)

"""The top of the page: the verdict in one sentence, its figures, and size and latency compared with float."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnxshot.report.advice import BAD, CAUTION, READY, bits_before, int8_share
from onnxshot.report.counts import counts
from onnxshot.report.html import figures
from onnxshot.report.html.charts import bar
from onnxshot.report.html.markup import Markup, el, join
from onnxshot.report.token_figures import divergence, on_own_cache, perplexities
from onnxshot.report.verdict import WORDS

Values = Mapping[str, Any]

_SOME_ZEROS = 0.05  # fewer zeros are due to rounding

_MEANINGS = {
    "SQNR": "how strong the outputs are against their error. 20 dB is an error of a tenth of the signal, 40 dB of a "
    "hundredth; higher is better",
    "equal answers": "share of the cases in which both models score the same class highest; agreement in JSON and "
    "on the terminal",
    "perplexity": "how unsure the models are of the next token, the float model's first; lower is better",
    "divergence": "how far the probabilities are from those of the float model (Kullback-Leibler); 0 is the same",
    "work in int8": "share of the multiply-accumulates (MACs) that ONNX Runtime computes in int8",
    "bits a weight": "size of the whole file over the number of weights; about 32 in float",
    "zeros": "share of the weights that are zero",
    "speed": "time of the float model over that of the result, in turns on the machine of this run",
    "samples": "how many samples the outputs were compared on",
}
"""What a figure means, by the beginning of its name."""

CLASSES = {READY: "good", CAUTION: "watch", BAD: "bad"}
"""The CSS class of each level of a verdict."""


def verdict(values: Values) -> Markup:
    """The verdict: its level, what speaks against the result, what was gained, and what to do next."""
    found = values["verdict"]
    gained = [text for text in (_smaller(values), _faster(values), _alike(values)) if text]
    sentence = ", ".join(gained) or "nothing was measured"
    said = [*([_sentence("; ".join(found["reasons"]))] if found["reasons"] else []), _sentence(sentence)]
    parts = [el("strong", f"{_sentence(WORDS[found['level']])}: "), " ".join(f"{text}." for text in said)]
    shown = el("p", parts, class_=f"verdict {CLASSES[found['level']]}")
    return join(shown, next_step(found))


def next_step(verdict: Values) -> Markup:
    """What to do next; that the result is ready is said above it."""
    return el("p", el("b", "Next: "), verdict["next"].removeprefix("ready: "), class_="next")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def tiles(values: Values) -> Markup:
    """The main figures, one tile each."""
    speedup = values["latency"].get("speedup")
    found = [
        ("SQNR", _sqnr(values)),
        ("equal answers", figures.percent(values.get("agreement"))),
        ("the same as float", ", ".join(counts(values.get("matches") or {}))),
        ("perplexity", perplexities(values).replace("->", "→")),
        ("perplexity of decoded tokens", on_own_cache(values)),
        ("divergence, nats", divergence(values).removesuffix(" nats")),
        ("work in int8", figures.percent(int8_share(values), 0)),
        ("bits a weight", "" if bits_before(values) is None else f"{values['bits_per_weight']:.2f}"),
        ("zeros", figures.percent(values.get("sparsity")) if values.get("sparsity", 0) >= _SOME_ZEROS else ""),
        ("speed" + _unsure(values), figures.times(speedup) if speedup else _untimed(values)),
        ("samples", _judged_on(values)),
    ]
    shown = [(name, text) for name, text in found if text]
    said = [el("li", el("b", word), f": {_MEANINGS[word]}") for word in _MEANINGS if _has(word, shown)]
    parts = [el("dl", [el("div", el("dt", name), _value(text)) for name, text in shown], class_="tiles")]
    if said:
        parts.append(el("details", el("summary", "What these figures mean"), el("ul", said), class_="meanings"))
    return join(*parts)


def _has(word: str, shown: Sequence[tuple[str, str]]) -> bool:
    return any(name.startswith(word) for name, _ in shown)


def _value(text: str) -> Markup:
    """A figure, or in plain type what is said instead of one."""
    return el("dd", text, class_="words" if text.startswith("not ") else None)


def _sqnr(values: Values) -> str:
    """The SQNR; that it was not measured, where something was written and nothing says how good it is."""
    if values.get("sqnr_db") is not None:
        return figures.decibels(values["sqnr_db"])
    random = (values.get("on_random_data") or {}).get("sqnr_db")
    if random is not None:
        return f"{figures.decibels(random)} on random data"
    known = values.get("matches") or values.get("output_equal") or values.get("agreement") is not None
    return "" if known or not (values["outputs"] or values["graph"]) else figures.UNKNOWN


def _untimed(values: Values) -> str:
    """What is said instead of a speed: that it was not measured, where a file was written that could be timed."""
    timed_elsewhere = any(artifact["latency"] for artifact in values["outputs"])
    return "" if timed_elsewhere or not (values["outputs"] or values["graph"]) else figures.UNKNOWN


def against_float(values: Values) -> Markup:
    """Bars of size and latency, of the float model and of the result."""
    blocks = []
    if values["input_bytes"] and values["outputs"]:
        rows = [("float", values["input_bytes"], "was")]
        several = len(values["outputs"]) > 1
        rows += [(_kind(a) if several else "result", a["bytes"], "now") for a in values["outputs"]]
        blocks.append(_bars("Size", rows, figures.megabytes))
    times = values["latency"]
    if times:
        rows = [("float", times["float_ms"], "was"), ("result", times["ms"], "now")]
        blocks.append(_bars("Latency of one run", rows, figures.milliseconds))
    if decoding := values.get("decoding"):
        for part, name in (("prompt", f"a prompt of {decoding['prompt_tokens']} tokens"), ("token", "a token")):
            own = decoding[part]
            rows = [("float", own["float_ms"], "was"), ("result", own["ms"], "now")]
            blocks.append(_bars(f"Time of {name}", rows, figures.milliseconds))
    for artifact in values["outputs"]:
        if own := artifact["latency"]:
            rows = [("float", own["float_ms"], "was"), (artifact["format"], own["ms"], "now")]
            blocks.append(_bars(f"Latency in {artifact['target']}", rows, figures.milliseconds))
    return el("div", blocks, class_="pair")


def _bars(title: str, rows: Sequence[tuple[str, float, str]], shown: Callable[[float], str]) -> Markup:
    most = max(value for _, value, _ in rows) or 1
    lines = []
    for name, value, kind in rows:
        lines.append(el("div", el("span", name), bar(value / most, kind), el("b", shown(value)), class_="line"))
    return el("figure", el("figcaption", title), lines)


def _kind(artifact: Values) -> str:
    return (
        str(artifact["format"])
        if artifact["format"] == artifact["target"]
        else f"{artifact['format']}, {artifact['target']}"
    )


def _smaller(values: Values) -> str:
    before, after = values["input_bytes"], values["outputs"][0]["bytes"] if values["outputs"] else 0
    if not (before and after):
        return ""
    factor = before / after
    return f"{factor:.1f}× smaller" if factor > 1.05 else f"{figures.percent(after / before, 0)} of the size"


def _faster(values: Values) -> str:
    speedup = values["latency"].get("speedup")
    return f"{figures.times(speedup)} as fast as float{_unsure(values)}" if speedup else ""


def _unsure(values: Values) -> str:
    """A remark where the runs do not show which of the two is faster."""
    return "" if values["latency"].get("sure", True) else " (not sure: runs scatter)"


def _judged_on(values: Values) -> str:
    """The number of samples that the figures are computed on."""
    return "" if values["on_random_data"] else str(values["samples"].get("judged", ""))


def _alike(values: Values) -> str:
    samples = values["samples"]
    count, held_out = samples.get("judged"), samples.get("held_out")
    on = f" on {count} {'held-out ' if held_out == count else ''}samples" if count else ""
    if text := perplexities(values):
        return f"perplexity {text.replace('->', '→')}{on}"
    if values["agreement"] is not None:
        return f"same answer as float in {figures.percent(values['agreement'])} of cases{on}"
    return f"SQNR {figures.decibels(values['sqnr_db'])}{on}" if values["sqnr_db"] is not None else ""

"""The compatibility table as Markdown, and which rows fall short of which floor."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

SHARE, SIZE, WEIGHTS = 0.90, 0.35, 0.90
"""Floors: least share of work in int8; most size, where floats, of 4 bytes each, are at least WEIGHTS of the file."""
NOISE = 0.03  # speeds that are this near are alike
KEPT = 0.86  # of the work, where channels are cut to 0.85
DB = 0.5  # SQNR that is this near counts as equal
PEERS = {"ort_static": "ORT static", "ort_dynamic": "ORT dynamic"}

HEAD = (
    "model", "MB", "int8", "dB", "speed", "size", "`--mode dynamic`", "channels 85 %", "fp16", "OpenVINO",
    "ORT static", "ORT dynamic",
)  # fmt: skip

Row = dict[str, Any]


def markdown(known: dict[str, Any]) -> str:
    """The page: what it is, the table, and the rows that fall short."""
    m, rows = known["machine"], known["rows"]
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    lines = [
        "# Compatibility", "",
        f"{len(rows)} models, measured by `python benchmarks/compatibility.py FOLDER` with `--effort {m['effort']}`",
        f"on {m['cpu']}, {m['threads']} thread of {m['cores']} cores; {versions}.",
        *([m["note"]] if m.get("note") else []), "",
        "**int8**: share of the multiply-accumulates that integer kernels did in a run of the file, by ONNX Runtime's",
        "profile; *w* is the share of products whose weights alone have 8 bits. **dB**: SQNR of all float outputs",
        "against the given file, on held-out samples. **speed**: time of the given file over the file's, in",
        "interleaved runs on the same samples, as CPU time of one thread. **size**: bytes over the given file's.",
        "**channels**: work that is left where 85 % was asked for, by a run of both files; with effort `fast` they",
        "are chosen by their norm. Other columns: dB / speed / size, as far as they are of interest, or why not; -:",
        "not measured. ORT static and dynamic are onnxruntime's own quantizers by default, behind its pre-processing,",
        "with the same samples.", "",
        "| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|",
        *(line(name, rows[name]) for name in sorted(rows)), "",
        *shortfalls(rows), "",
        *models(rows),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def models(rows: dict[str, Row]) -> Iterator[str]:
    """Where the models are from."""
    groups: dict[str, list[str]] = {}
    for name in sorted(rows):
        groups.setdefault(rows[name].get("about", ""), []).append(f"`{name}`")
    yield "## The models"
    yield ""
    for about in sorted(filter(None, groups)):
        yield f"- {about}: {', '.join(groups[about])}."


def line(name: str, row: Row) -> str:
    given = row.get("given", {})
    size = given.get("bytes")
    cells = [f"`{name}`", f"{size / 1e6:.2f}" if size else cut(given.get("why", "-"))]
    int8 = row.get("int8", {})
    if "db" in int8:
        cells += [share(int8), decibels(int8), speed(row, "int8"), ratio(int8, size)]
    else:
        cells += [cut(int8.get("why", "-")), "", "", ""]
    cells.append(triple(row, "dynamic", size))
    channels = row.get("channels", {})
    if channels.get("kept") is None:
        cells.append(cut(channels.get("why", "-")))
    else:
        cells.append(f"{100 * channels['kept']:.1f} %, {decibels(channels)} dB")
    for stage in ("fp16", "openvino"):
        values = row.get(stage, {})
        cells.append(f"{decibels(values)} / {ratio(values, size)}" if "db" in values else cut(values.get("why", "-")))
    cells += [triple(row, peer, size) for peer in PEERS]
    return "| " + " | ".join(cells) + " |"


def share(int8: Row) -> str:
    alone = int8.get("weights_alone") or 0
    if int8["share"] is None:
        return "-"
    return f"{100 * int8['share']:.1f} %" + f" + {100 * alone:.0f} % w" * (alone > 0)


def triple(row: Row, stage: str, size: int | None) -> str:
    values = row.get(stage, {})
    if "db" not in values:
        return cut(values.get("why", "-"))
    return f"{decibels(values)} / {speed(row, stage)} / {ratio(values, size)}"


def decibels(values: Row) -> str:
    other = f" ({values['other_shapes']} of other shapes)" if values.get("other_shapes") else ""
    return ("-" if values["db"] is None else f"{values['db']:.1f}") + other


def speed(row: Row, stage: str) -> str:
    found = row.get("speed", {}).get(stage)
    return f"{found[0]:.2f}x" if found else "-"


def ratio(values: Row, size: int | None) -> str:
    return f"{values['bytes'] / size:.3f}" if size and "bytes" in values else "-"


def cut(text: str) -> str:
    """A reason, short and without what would break a table; of places, the last part."""
    text = " ".join(re.sub(r"(?:/[\w.+-]+)+/", "", text).replace("|", "/").replace("`", "'").split())
    return text if len(text) <= 70 else text[:67] + "..."


def shortfalls(rows: dict[str, Row]) -> Iterator[str]:
    """What falls short of the floors, by kind of floor."""
    yield "## Rows that fall short"
    yield ""
    yield (
        f"Floors: int8 share at least {100 * SHARE:.0f} %; size at most {SIZE} where floats are {100 * WEIGHTS:.0f} %"
        f" of the file, {2 * SIZE} where they have 16 bits; not slower than float or its own `--mode dynamic`;"
        f" channels at most {100 * KEPT:.0f} %; at or"
        f" above onnxruntime's quantizers in dB, speed and size. Within {100 * NOISE:.0f} % of time, or {DB} dB, is"
        " alike."
    )
    yield ""
    found: dict[str, list[str]] = {}
    for name in sorted(rows):
        for floor, what in faults(rows[name]):
            found.setdefault(floor, []).append(f"`{name}` {what}".strip())
    for floor, names in found.items():
        yield f"- **{floor}** ({len(names)}): {'; '.join(names)}."
    if not found:
        yield "None."
    whole = sum(not any(faults(row)) for row in rows.values())
    yield ""
    yield f"{whole} of {len(rows)} rows meet every floor."


def faults(row: Row) -> Iterator[tuple[str, str]]:
    """(floor, how far) of a row."""
    given, int8, times = row.get("given", {}), row.get("int8", {}), row.get("speed", {})
    if "why" in given:
        yield "the given file does not run", cut(given["why"])
        return
    if "db" not in int8:
        yield "not quantized", cut(int8.get("why", ""))
        return
    done = (int8["share"] or 0) + (int8.get("weights_alone") or 0)
    if int8["share"] is not None and done < SHARE:
        left = ", ".join(f"{op} {100 * share:.0f} %" for op, share in int8["float"].items())
        yield "share", f"{100 * int8['share']:.0f} % (float: {left})"
    most = SIZE * 4 / (given.get("float_bytes") or 4)  # a file of float16 cannot shrink as much
    if given["float_share"] >= WEIGHTS and int8["bytes"] > most * given["bytes"]:
        yield "size", f"{int8['bytes'] / given['bytes']:.2f}"
    elif int8["bytes"] > given["bytes"]:
        yield "larger than the input", f"{int8['bytes'] / given['bytes']:.2f}"
    if int8.get("db") is not None and int8["db"] < 0:
        yield "worse than silence", f"{int8['db']:.1f} dB"
    if "int8" in times:
        value, width, _ = times["int8"]
        if value + width < 1 - NOISE:
            yield "slower than float", f"{value:.2f}x"
        if "dynamic" in times and value + width + times["dynamic"][1] < times["dynamic"][0] * (1 - NOISE):
            yield "slower than its own dynamic", f"{value:.2f}x against {times['dynamic'][0]:.2f}x"
    yield from against_peers(row)
    channels = row.get("channels", {})
    if (given.get("macs") or 0) > 0 and not (channels.get("kept") is not None and channels["kept"] <= KEPT):
        left = cut(channels.get("why", "")) if channels.get("kept") is None else f"{100 * channels['kept']:.1f} %"
        yield "channels", left
    for stage, floor in (("fp16", "fp16"), ("openvino", "OpenVINO")):
        if "why" in row.get(stage, {}):
            yield floor, cut(row[stage]["why"])


def against_peers(row: Row) -> Iterator[tuple[str, str]]:
    int8, times = row["int8"], row.get("speed", {})
    for peer, told in PEERS.items():
        other = row.get(peer, {})
        if other.get("db") is None or int8["db"] is None or peer not in times or "int8" not in times:
            continue
        worse = []
        if other["db"] > int8["db"] + DB:
            worse.append(f"{int8['db']:.1f} against {other['db']:.1f} dB")
        mine, its = times["int8"], times[peer]
        if mine[0] + mine[1] + its[1] < its[0] * (1 - NOISE):
            worse.append(f"{mine[0]:.2f}x against {its[0]:.2f}x")
        if int8["bytes"] > other["bytes"] * 1.02:
            worse.append(f"{int8['bytes'] / other['bytes']:.2f} of its size")
        if worse:
            beyond = other["db"] >= int8["db"] - DB and its[0] >= mine[0] * (1 - NOISE)
            sure = beyond and other["bytes"] <= int8["bytes"] * 1.02
            yield f"below {told} in every respect" if sure else f"below {told} in something", ", ".join(worse)

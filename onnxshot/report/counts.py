"""What two models have in common, in words that a user would count in: boxes, lines of text, masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WORDS = {
    "mask": "mask IoU", "segmentation": "segmentation IoU", "sequences": "lines of text", "boxes": "boxes matched",
}  # fmt: skip
_IN_NUMBERS = "sequences"
_MOST = 2
_FEWEST = 32  # values of a mask: of fewer, a share says nothing


def counts(matches: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Counts of `Report.matches` in words, of those kinds that have no agreement; of each kind the lowest one.

    Example:
        >>> counts({"head": {"kind": "boxes", "same": 87, "of": 90}, "text": {"kind": "sequences", "same": 9, "of": 9}})
        ['boxes matched 96.7 %', 'lines of text 9 of 9']
    """
    masks = ("mask", "segmentation")
    rows = [row for row in matches.values() if row["kind"] in _WORDS]
    rows = [row for row in rows if row["kind"] not in masks or row["of"] >= _FEWEST]
    rows.sort(key=lambda row: float(row["same"] / row["of"]), reverse=True)
    lowest = {row["kind"]: row for row in rows}
    found = []
    for row in sorted(lowest.values(), key=lambda row: float(row["same"] / row["of"]))[:_MOST]:
        share = f"{100 * row['same'] / row['of']:.1f} %"
        text = f"{row['same']} of {row['of']}" if row["kind"] == _IN_NUMBERS else share
        found.append(f"{_WORDS[row['kind']]} {text}")
    return found

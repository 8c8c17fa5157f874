"""How much of what two orderings pick is the same, whatever the order: shares 0..1."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[Any]
Boxes = NDArray[np.float64]

_OVERLAP = 0.5  # intersection over union from which two boxes are the same detection, as of Pascal VOC


def picked_rows(wanted: Indices, got: Indices, axis: int) -> tuple[int, int]:
    """(indices along an axis that are in both, indices), row by row: of TopK, where no index is twice in a row."""
    rows = [np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]) for x in (wanted, got)]
    if len(rows[0]) != len(rows[1]):
        return 0, max(wanted.size, got.size)
    same = sum(np.intersect1d(a, b).size for a, b in zip(*rows, strict=True))
    return same, max(wanted.size, got.size)


def picked_places(wanted: Indices, got: Indices) -> tuple[int, int]:
    """(columns that are in both, columns): of NonZero [rank, n], a column a place."""
    sets = [set(map(tuple, x.T.tolist())) for x in (wanted, got)]
    return len(sets[0] & sets[1]), max(len(sets[0]), len(sets[1]))


def picked_boxes(wanted: Indices, got: Indices, boxes: tuple[Boxes, Boxes], *, centres: bool) -> tuple[int, int]:
    """(detections of the same class that overlap, detections): of NonMaxSuppression, rows of (batch, class, box).

    boxes: [batch, n, 4] of both models; centres: (x, y, width, height) instead of two corners. Each detection is
    matched once, in the order of their scores, with the one that overlaps most.
    """
    others: defaultdict[tuple[int, int], list[NDArray[np.float64]]] = defaultdict(list)
    for batch, kind, box in got.tolist():
        others[batch, kind].append(_corners(boxes[1][batch, box], centres))
    matched = 0
    for batch, kind, box in wanted.tolist():
        left = others[batch, kind]
        if not left:
            continue
        overlaps = _overlap(_corners(boxes[0][batch, box], centres), np.stack(left))
        best = int(overlaps.argmax())
        if overlaps[best] >= _OVERLAP:
            left.pop(best)
            matched += 1
    return matched, max(len(wanted), len(got))


def _corners(box: NDArray[Any], centres: bool) -> NDArray[np.float64]:
    """(low, low, high, high) of a box."""
    a, b = np.asarray(box[:2], np.float64), np.asarray(box[2:], np.float64)
    if centres:
        a, b = a - b / 2, a + b / 2
    return np.concatenate([np.minimum(a, b), np.maximum(a, b)])


def _overlap(box: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of a box [4] with others [n, 4]; 1 where both are empty at the same place."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=1)
    sizes = np.prod(others[:, 2:] - others[:, :2], axis=1) + np.prod(box[2:] - box[:2]) - common
    same = (others == box).all(axis=1)
    found: NDArray[np.float64] = np.where(same, 1.0, common / np.where(sizes > 0, sizes, 1.0))
    return found

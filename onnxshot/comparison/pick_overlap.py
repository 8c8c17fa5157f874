"""Count the picks that two models share, regardless of their order."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[Any]
Boxes = NDArray[np.float64]

_OVERLAP = 0.5  # intersection over union from which two boxes are the same detection, as in Pascal VOC


def picked_rows(wanted: Indices, got: Indices, axis: int) -> tuple[int, int]:
    """Count the indices of TopK that both models have, row by row along an axis.

    Args:
        wanted: Indices of the float model, unique within a row.
        got: Indices of the candidate.
        axis: Axis of the rows.

    Returns:
        Number of shared indices, and number of indices.
    """
    rows = [np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]) for x in (wanted, got)]
    if len(rows[0]) != len(rows[1]):
        return 0, max(wanted.size, got.size)
    same = sum(np.intersect1d(a, b).size for a, b in zip(*rows, strict=True))
    return same, max(wanted.size, got.size)


def picked_places(wanted: Indices, got: Indices) -> tuple[int, int]:
    """Count the columns of NonZero [rank, n] that both models have: shared columns, and columns."""
    sets = [set(map(tuple, x.T.tolist())) for x in (wanted, got)]
    return len(sets[0] & sets[1]), max(len(sets[0]), len(sets[1]))


def picked_boxes(wanted: Indices, got: Indices, boxes: tuple[Boxes, Boxes], *, centres: bool) -> tuple[int, int]:
    """Count the detections of NonMaxSuppression that both models have.

    A detection is shared if the other model has one of the same class that overlaps it by half. Each detection is
    matched once, in the order of the scores, with the one that overlaps it most.

    Args:
        wanted: Rows of (batch, class, box) of the float model.
        got: The same of the candidate.
        boxes: Boxes [batch, n, 4] of both models.
        centres: True if boxes are (x, y, width, height), False if they are two corners.

    Returns:
        Number of shared detections, and number of detections.
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
    """Intersection over union of a box [4] with others [n, 4]; 1 if both are empty and at the same place."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=1)
    sizes = np.prod(others[:, 2:] - others[:, :2], axis=1) + np.prod(box[2:] - box[:2]) - common
    same = (others == box).all(axis=1)
    found: NDArray[np.float64] = np.where(same, 1.0, common / np.where(sizes > 0, sizes, 1.0))
    return found

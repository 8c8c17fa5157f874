"""Count the detections that two models share, from boxes and scores before non-maximum suppression.

Two forms are known. One output holds a box (x, y, width, height) in pixels and its scores: [batch, channels, boxes], as
YOLOv8 and later write it, or [batch, boxes, channels] with an objectness in front of the scores, as YOLOv5 does. Or two
outputs hold corners [batch, boxes, 4] and scores [batch, boxes, classes]. Anything else is left alone, such as offsets
from anchors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_SCORE = 0.25  # of a detection, as detectors are shown with by default
_UNSURE = 0.5  # share of it that is enough in the other model: a score next to the threshold is no other detection
_OVERLAP = 0.5  # intersection over union from which two boxes are the same, as in Pascal VOC
_MOST = 300  # detections of a sample that are looked at, those of the highest scores
_FEWEST = 64  # boxes of an output of corners: fewer rows of four values are something else
_BOX = 4
_MOST_CLASSES = 1024
_PIXELS = 2.0  # boxes that are wider, as most, are not relative to the picture


@dataclass(frozen=True, slots=True)
class Detections:
    """Candidates for detections of one picture: corners [n, 4], the highest score [n] and its class [n]."""

    boxes: Floats
    scores: Floats
    classes: NDArray[np.intp]

    def kept(self, least: float) -> Detections:
        """What is left of those of a score of at least `least` after non-maximum suppression, class by class."""
        order = np.argsort(-self.scores, kind="stable")
        order = order[self.scores[order] >= least][:_MOST]
        boxes, classes = self.boxes[order], self.classes[order]
        rivals = (overlaps(boxes, boxes) >= _OVERLAP) & (classes[:, None] == classes)
        alive = np.ones(len(order), np.bool_)
        for i in range(len(order)):
            if alive[i]:
                alive[i + 1 :] &= ~rivals[i, i + 1 :]
        return Detections(boxes[alive], self.scores[order][alive], classes[alive])

    def found_in(self, other: Detections) -> int:
        """How many of these the other model has too: of the same class, overlapping by half, each one once."""
        same = (overlaps(self.boxes, other.boxes) >= _OVERLAP) & (self.classes[:, None] == other.classes)
        count = 0
        for row in same:
            if row.any():
                same[:, int(row.argmax())] = False
                count += 1
        return count


def shared(wanted: Detections, got: Detections) -> tuple[int, int]:
    """Number of detections of either model that the other one has too, and number of detections of both."""
    sure = wanted.kept(_SCORE), got.kept(_SCORE)
    loose = wanted.kept(_SCORE * _UNSURE), got.kept(_SCORE * _UNSURE)
    same = sure[0].found_in(loose[1]) + sure[1].found_in(loose[0])
    return same, len(sure[0].scores) + len(sure[1].scores)


def overlaps(some: Floats, others: Floats) -> Floats:
    """Intersection over union [n, m] of corners [n, 4] and [m, 4]; 0 for empty boxes."""
    low = np.maximum(some[:, None, :2], others[None, :, :2])
    high = np.minimum(some[:, None, 2:], others[None, :, 2:])
    common = np.prod(np.maximum(high - low, 0.0), axis=-1)
    sizes = [np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0), axis=-1) for boxes in (some, others)]
    union = sizes[0][:, None] + sizes[1] - common
    found: Floats = common / np.where(union > 0, union, 1.0)
    return found


def whole_heads(values: Mapping[str, NDArray[Any]]) -> dict[str, tuple[str, ...]]:
    """The outputs that hold detections, by the name that the figures go by: one output, or scores and corners."""
    found: dict[str, tuple[str, ...]] = {}
    floats = {name: one for name, one in values.items() if one.dtype.kind == "f" and one.ndim == 3 and one.size}
    for name, one in floats.items():
        if _in_pixels(one):
            found[name] = (name,)
    corners = [name for name, one in floats.items() if one.shape[-1] == _BOX and one.shape[1] >= _FEWEST]
    for name, one in floats.items():
        rivals = [box for box in corners if box != name and floats[box].shape[:2] == one.shape[:2]]
        if not found and len(rivals) == 1 and _are_scores(one) and _are_corners(floats[rivals[0]], one):
            return {name: (name, rivals[0])}
    return found


def pictures(values: tuple[NDArray[Any], ...]) -> list[Detections]:
    """The detections of each picture of a batch, from what `whole_heads` names."""
    if len(values) == 2:
        return [_of_corners(scores, boxes) for scores, boxes in zip(*values, strict=True)]
    return [_of_head(one) for one in values[0]]


def _in_pixels(values: NDArray[Any]) -> bool:
    """Whether rows or columns of this output are boxes in pixels, followed by scores."""
    table = _table(values[0])
    if table is None or not np.isfinite(table).all():
        return False
    boxes, scores = table[:, :_BOX], _scores(table)
    large = np.median(boxes[:, 2:]) > _PIXELS and (boxes[:, 2:] >= 0).all()
    return bool(large and scores.shape[1] and np.abs(scores).max() <= 1 < np.abs(boxes[:, 2:]).max())


def _table(values: NDArray[Any]) -> Floats | None:
    """A head [boxes, channels]; None if neither axis is one of channels."""
    short, long = sorted(values.shape)
    if not _BOX < short <= min(_BOX + _MOST_CLASSES, long - 1):
        return None
    return (values if values.shape[1] == short else values.T).astype(np.float64)


def _scores(table: Floats) -> Floats:
    """The channels behind the box that stay within 0..1, up to the first that does not."""
    rest = table[:, _BOX:]
    inside = np.asarray(((rest >= 0) & (rest <= 1)).all(axis=0), np.bool_)
    return rest[:, : inside.size if inside.all() else int(inside.argmin())]


def _of_head(values: NDArray[Any]) -> Detections:
    table = _table(values)
    assert table is not None
    scores = _scores(table)
    if values.shape[1] == table.shape[1] and scores.shape[1] > 1:  # [boxes, channels]: objectness and classes
        scores = scores[:, :1] * scores[:, 1:]
    if not scores.shape[1]:
        scores = np.zeros((len(table), 1))
    middle, half = table[:, :2], table[:, 2:_BOX] / 2
    return _best(np.concatenate([middle - half, middle + half], axis=1), scores)


def _of_corners(scores: NDArray[Any], boxes: NDArray[Any]) -> Detections:
    return _best(boxes.astype(np.float64), _foreground(scores.astype(np.float64)))


def _best(boxes: Floats, scores: Floats) -> Detections:
    classes = scores.argmax(axis=1)
    return Detections(boxes, scores[np.arange(len(scores)), classes], classes)


def _are_scores(values: NDArray[Any]) -> bool:
    return values.shape[-1] <= _MOST_CLASSES and bool(np.min(values) >= 0 and np.max(values) <= 1)


def _are_corners(boxes: NDArray[Any], scores: NDArray[Any]) -> bool:
    """Whether boxes are pairs of corners, by those of the highest scores."""
    best = np.argsort(-_foreground(scores[0].astype(np.float64)).max(axis=1))[:_MOST]
    some = boxes[0][best]
    return bool(np.isfinite(some).all() and (some[:, 2:] > some[:, :2]).all())


def _foreground(scores: Floats) -> Floats:
    """The scores without the background, which a softmax of at least two classes has in front."""
    soft = scores.shape[1] > 1 and bool((np.abs(scores.sum(axis=1) - 1) < 1e-2).all())
    return scores[:, 1:] if soft else scores

"""Detections of two models, against a count that does one box at a time."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxshot.comparison.box_matches import whole_heads
from onnxshot.comparison.output_matches import Match, Matches

RNG = np.random.default_rng(9)
Boxes = list[tuple[tuple[float, ...], float, int]]


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (areas - width * height)


def kept(boxes: Boxes, least: float) -> Boxes:
    left: Boxes = []
    for box in sorted((b for b in boxes if b[1] >= least), key=lambda b: -b[1]):
        if all(b[2] != box[2] or iou(b[0], box[0]) < 0.5 for b in left):
            left.append(box)
    return left


def found_in(some: Boxes, others: Boxes) -> int:
    left, count = list(others), 0
    for box in some:
        for other in left:
            if other[2] == box[2] and iou(box[0], other[0]) >= 0.5:
                left.remove(other)
                count += 1
                break
    return count


def expected(pairs: list[tuple[Boxes, Boxes]]) -> tuple[int, int]:
    same = of = 0
    for one, other in pairs:
        sure, loose = [kept(b, 0.25) for b in (one, other)], [kept(b, 0.125) for b in (one, other)]
        same += found_in(sure[0], loose[1]) + found_in(sure[1], loose[0])
        of += len(sure[0]) + len(sure[1])
    return same, of


def scene(count: int = 200, classes: int = 3) -> tuple[NDArray[Any], NDArray[Any]]:
    """Boxes (x, y, width, height) in pixels [count, 4] in heaps, and scores [count, classes], few of them high."""
    heap = RNG.integers(0, 6, count)
    middle = RNG.uniform(40, 280, (6, 2))[heap] + RNG.normal(0, 3, (count, 2))
    boxes = np.concatenate([middle, RNG.uniform(30, 40, (count, 2))], axis=1)
    scores = RNG.random((count, classes)) ** 6
    return boxes, scores


def moved(boxes: NDArray[Any], scores: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    return boxes + RNG.normal(0, 4, boxes.shape), np.clip(scores + RNG.normal(0, 0.05, scores.shape), 0, 1)


def listed(boxes: NDArray[Any], scores: NDArray[Any]) -> Boxes:
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
    return [(tuple(b), float(s.max()), int(s.argmax())) for b, s in zip(corners.tolist(), scores, strict=True)]


@pytest.mark.parametrize("form", ["channels first", "with objectness", "coefficients behind", "two outputs"])
def test_detections_are_matched(form: str) -> None:
    matches, wanted = Matches({}), []
    name = "scores" if form == "two outputs" else "head"
    for _ in range(4):
        sides = [scene()]
        sides.append(moved(*sides[0]))
        sides = [(b.astype("f").astype(np.float64), s.astype("f").astype(np.float64)) for b, s in sides]
        outputs = []
        for boxes, scores in sides:
            parts = [boxes, scores]
            if form == "with objectness":
                parts = [boxes, np.ones((len(boxes), 1)), scores]
            if form == "coefficients behind":
                parts.append(RNG.normal(0, 2, (len(boxes), 8)))
            table = np.concatenate(parts, axis=1).astype("f")
            if form == "two outputs":
                corners = np.asarray([box for box, _, _ in listed(boxes, scores)])
                outputs.append({"boxes": corners[None].astype("f"), "scores": scores[None].astype("f")})
            else:
                outputs.append({"head": table[None] if form == "with objectness" else table.T[None]})
        matches.add(outputs[0], outputs[1])
        wanted.append((listed(*sides[0]), listed(*sides[1])))
    same, of = expected(wanted)
    assert 0 < same < of
    assert matches.found() == {name: Match("boxes", same, of)}


def test_offsets_from_anchors_are_no_boxes() -> None:
    offsets = RNG.normal(0, 0.3, (1, 100, 4)).astype("f")
    scores = RNG.random((1, 100, 5)).astype("f")
    matches = Matches({})
    matches.add({"loc": offsets, "conf": scores}, {"loc": offsets, "conf": scores})
    assert matches.found() == {}


def test_a_picture_without_detections_counts_nothing() -> None:
    boxes, scores = scene()
    head = np.concatenate([boxes, scores * 0.1], axis=1).T[None].astype("f")
    matches = Matches({})
    matches.add({"head": head}, {"head": head})
    assert matches.found() == {}


def test_features_with_a_few_large_values_are_no_boxes() -> None:
    """Features behind a Relu: many zeros, some above 2 among the first four, all others up to 1."""
    features = np.maximum(np.random.default_rng(0).normal(size=(1, 200, 24)), 0.0).clip(0, 1).astype(np.float32)
    features[:, ::20, :4] = 5.0
    assert whole_heads({"features": features}) == {}

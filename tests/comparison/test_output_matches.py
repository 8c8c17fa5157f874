"""What is counted in outputs of a known kind, against counts in plain numpy."""

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxshot.comparison.output_matches import Match, Matches

RNG = np.random.default_rng(3)


def sigmoid(x: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(1 / (1 + np.exp(-x)), np.float32)


def softmax(x: NDArray[Any], axis: int = -1) -> NDArray[np.float32]:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(e / e.sum(axis=axis, keepdims=True), np.float32)


def found(pairs: list[tuple[NDArray[Any], NDArray[Any]]], maker: str = "") -> Match | None:
    matches = Matches({"y": maker})
    for wanted, got in pairs:
        matches.add({"y": wanted}, {"y": got})
    return matches.found().get("y")


def logits(*shape: int, count: int = 4, noise: float = 1.0) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    rng = np.random.default_rng(7)
    wanted = [6 * rng.standard_normal(shape) for _ in range(count)]
    return [(one, one + noise * rng.standard_normal(shape)) for one in wanted]


@pytest.mark.parametrize(("shape", "kind"), [((3, 1), "decisions"), ((7,), "decisions"), ((3, 9), "labels")])
def test_sigmoids_are_decisions_or_labels(shape: tuple[int, ...], kind: str) -> None:
    pairs = [(sigmoid(a - 5), sigmoid(b - 5)) for a, b in logits(*shape, count=20, noise=3.0)]
    one, other = (np.concatenate([pair[i].reshape(-1) for pair in pairs]) > 0.5 for i in (0, 1))
    expected = (one == other).sum(), one.size
    if kind == "labels":
        expected = (one & other).sum(), (one | other).sum()
    assert expected[0] < expected[1]
    assert found(pairs, "Sigmoid") == Match(kind, *map(int, expected))


def test_masks_are_compared_by_intersection_over_union() -> None:
    pairs = [(sigmoid(a), sigmoid(b)) for a, b in logits(1, 1, 20, 20, noise=3.0)]
    on = [[one > 0.5 for one in pair] for pair in pairs]
    expected = sum((a & b).sum() for a, b in on), sum((a | b).sum() for a, b in on)
    assert found(pairs, "Sigmoid") == Match("mask", *map(int, expected))


def test_runs_of_a_sigmoid_are_a_mask() -> None:
    """Speech along time, or the bins around a pitch."""
    wanted, got = np.full((2, 40), 0.01, np.float32), np.full((2, 40), 0.01, np.float32)
    wanted[:, 5:15], got[:, 6:15] = 0.99, 0.99
    assert found([(wanted, got)], "Sigmoid") == Match("mask", 18, 20)


def test_sigmoids_that_are_measures_are_not_decisions() -> None:
    """Coordinates, depths and the like lie anywhere between 0 and 1."""
    wanted = RNG.random((4, 10)).astype(np.float32)
    assert found([(wanted, wanted)], "Sigmoid") is None
    assert found([(np.full((1, 1, 4, 4), 0.01, np.float32),) * 2], "Sigmoid") is None, "nothing is on in either"


@pytest.mark.parametrize("soft", [True, False])
def test_segmentation_leaves_out_the_background(soft: bool) -> None:
    pairs = logits(1, 5, 16, 16, noise=2.0)
    for wanted, got in pairs:
        wanted[:, 2] += 8
        got[:, 2] += 8
    pairs = [(softmax(a, 1), softmax(b, 1)) if soft else (a.astype("f"), b.astype("f")) for a, b in pairs]
    one, other = (np.concatenate([pair[i].argmax(1).reshape(-1) for pair in pairs]) for i in (0, 1))
    inside = [c for c in range(5) if c != np.bincount(one).argmax()]
    same = sum(int(((one == c) & (other == c)).sum()) for c in inside)
    union = sum(int(((one == c) | (other == c)).sum()) for c in inside)
    assert found(pairs, "" if soft else "Resize") == Match("segmentation", same, union)
    assert found(pairs, "Conv") == (Match("segmentation", same, union) if soft else None)


def collapsed(row: list[int], blank: int) -> list[int]:
    return [one for one, _ in itertools.groupby(row) if one != blank]


@pytest.mark.parametrize("blank", [0, 11])
@pytest.mark.parametrize("layout", ["batch", "time", "codes"])
def test_sequences_are_equal_lines(blank: int, layout: str) -> None:
    if layout == "codes" and blank:
        pytest.skip("the number of classes is not known")
    pairs = logits(1, 12, 12, count=30, noise=0.7)
    for pair in pairs:
        for one in pair:
            one[..., blank] += 10
    rows = [[one[0].argmax(-1).tolist() for one in pair] for pair in pairs]
    read = [[collapsed(row, blank) for row in pair] for pair in rows]
    same, lines = sum(a == b != [] for a, b in read), sum(bool(a or b) for a, b in read)
    assert 0 < same < lines
    turned: list[tuple[NDArray[Any], NDArray[Any]]] = [(softmax(a), softmax(b)) for a, b in pairs]
    if layout == "time":
        turned = [(a.transpose(1, 0, 2), b.transpose(1, 0, 2)) for a, b in turned]
    if layout == "codes":
        turned = [(a.argmax(-1), b.argmax(-1)) for a, b in turned]
    assert found(turned, "ArgMax" if layout == "codes" else "Softmax") == Match("sequences", same, lines)


def test_steps_without_a_blank_are_no_sequences() -> None:
    assert found([(softmax(a), softmax(b)) for a, b in logits(1, 40, 12)], "Softmax") is None


def test_another_shape_is_no_match() -> None:
    wanted = softmax(np.eye(12)[None, [0, 3, 0, 0, 5, 0]] * 20)
    assert found([(wanted, wanted[:, 1:])], "Softmax") == Match("sequences", 0, 1)
    on = np.ones((2, 3), np.float32)
    assert found([(on, on[:1])], "Sigmoid") == Match("mask", 0, 6)


@pytest.mark.parametrize("shape", [(1, 10), (2, 3, 8, 8), (1, 6, 9), (1, 1000, 4), (4,)])
def test_other_outputs_have_no_count(shape: tuple[int, ...]) -> None:
    values = RNG.standard_normal(shape).astype(np.float32)
    assert found([(values, values)], "Conv") is None
    assert Matches({}, ["y"]).found() == {}

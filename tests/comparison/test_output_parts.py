"""Quiet channels that loud ones would hide have an SQNR of their own."""

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxshot.comparison.output_parts import Parts

RNG = np.random.default_rng(5)
Values = NDArray[np.float32]


def heads(*scales: float, count: int = 4, axis: int = 1) -> list[Values]:
    """Samples [1, channels, 50], or [1, 50, channels], with channels of these scales."""
    found = [RNG.normal(0, 1, (1, len(scales), 50)) * np.asarray(scales)[:, None] for _ in range(count)]
    return [np.moveaxis(one, 1, axis).astype(np.float32) for one in found]


def added(samples: list[Values], noise: float) -> tuple[Parts, list[Values]]:
    parts, others = Parts(), [(s + RNG.normal(0, noise, s.shape)).astype(np.float32) for s in samples]
    for one, other in zip(samples, others, strict=True):
        parts.add(one, other)
    return parts, others


@pytest.mark.parametrize("axis", [1, 2])
def test_the_quiet_channels_have_an_sqnr_of_their_own(axis: int) -> None:
    samples = heads(300, 200, 1, 0.5, 2, axis=axis)
    parts, others = added(samples, 0.7)
    part = parts.found
    assert part is not None
    assert (part.axis, part.quiet, part.channels) == (axis, 3, 5)
    for db, at in ((part.quiet_db, [2, 3, 4]), (part.loud_db, [0, 1])):
        ref = np.concatenate([np.take(s, at, axis).reshape(-1) for s in samples]).astype(np.float64)
        got = np.concatenate([np.take(s, at, axis).reshape(-1) for s in others]).astype(np.float64)
        assert db == pytest.approx(10 * np.log10(np.sum(ref**2) / np.sum((ref - got) ** 2)), abs=1e-6)
    assert part.quiet_db < 15 < part.loud_db


def test_channels_of_one_scale_are_one_part() -> None:
    assert added(heads(1, 5, 2, 10), 0.1)[0].found is None


def test_channels_that_are_quiet_now_and_then_are_not_a_part() -> None:
    assert added(heads(300, 1) + heads(1, 300), 0.1)[0].found is None


def test_rare_classes_are_not_a_part() -> None:
    assert added([np.abs(s) / 2000 for s in heads(300, 1, 1)], 0.0001)[0].found is None


def test_one_sample_is_not_enough() -> None:
    assert added(heads(300, 1, count=1), 0.1)[0].found is None

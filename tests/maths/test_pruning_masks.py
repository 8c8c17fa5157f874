"""Pruning masks have exactly the requested pattern, and remove the lowest scores."""

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxshot.maths.pruning_masks import Pattern, lowest_scores


def scores(outputs: int, inputs: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((outputs, inputs), np.float32)


@pytest.mark.parametrize("count", [0, 1, 17, 60, 119, 120, 500])
def test_unstructured_masks_select_exactly_the_lowest_scores(count: int) -> None:
    given = scores(10, 12)
    gone = lowest_scores(given, Pattern(), count)
    assert gone.sum() == min(count, 120)
    if 0 < count < 120:
        assert given[gone].max() <= given[~gone].min()


def test_equal_scores_do_not_add_zeros() -> None:
    assert lowest_scores(np.ones((8, 8), np.float32), Pattern(), 13).sum() == 13


@pytest.mark.parametrize(("keep", "of"), [(2, 4), (1, 4), (1, 2), (4, 8), (3, 4)])
def test_n_of_every_m_columns_are_kept(keep: int, of: int) -> None:
    given = scores(7, 3 * of)
    gone = lowest_scores(given, Pattern(keep, of), 0)
    assert ((~gone).reshape(7, 3, of).sum(2) == keep).all()
    groups, out = given.reshape(7, 3, of), gone.reshape(7, 3, of)
    assert (np.where(out, groups, -1).max(2) <= np.where(out, 2, groups).min(2)).all()


def test_columns_after_the_last_whole_group_are_kept() -> None:
    gone = lowest_scores(scores(3, 10), Pattern(2, 4), 0)
    assert not gone[:, 8:].any()
    assert (gone[:, :8].reshape(3, 2, 4).sum(2) == 2).all()


@pytest.mark.parametrize(("rows", "columns"), [(4, 1), (1, 4), (2, 3)])
def test_blocks_are_pruned_as_a_whole(rows: int, columns: int) -> None:
    gone = lowest_scores(scores(12, 12), Pattern(rows=rows, columns=columns), 72)
    blocks = gone.reshape(12 // rows, rows, 12 // columns, columns).transpose(0, 2, 1, 3).reshape(-1, rows * columns)
    assert set(blocks.sum(1)) == {0, rows * columns}
    assert gone.sum() == 72


def test_blocks_at_the_edges_are_smaller_and_the_count_is_met_within_half_a_block() -> None:
    gone = lowest_scores(scores(10, 7), Pattern(rows=4, columns=2), 33)
    assert abs(int(gone.sum()) - 33) <= 4


def test_scores_of_minus_infinity_are_pruned_first() -> None:
    given = scores(6, 6)
    given[2, 3] = given[5, 5] = -np.inf
    gone = lowest_scores(given, Pattern(), 2)
    assert gone[2, 3]
    assert gone[5, 5]


@pytest.mark.parametrize("text", ["unstructured", "2:4", "1:16", "block:4x1", "block:2x8"])
def test_a_pattern_round_trips_through_its_text(text: str) -> None:
    assert str(Pattern.parse(text)) == text


@pytest.mark.parametrize("text", ["", "4:2", "4:4", "0:4", "2:4:8", "block", "block:0x1", "block:4", "channels", "x"])
def test_an_invalid_pattern_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no pattern"):
        Pattern.parse(text)

"""Structured pruning: the order of removal, its cost, and the compensation by the other weights."""

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxshot.channels.error_importance import scaled
from onnxshot.maths.channel_removal import Reader, compensated_weights, damped, removal_order

Floats = NDArray[np.float64]


def reader(
    rng: np.random.Generator, channels: int = 6, kernel: int = 3, groups: int = 1
) -> tuple[Reader, Floats]:
    columns = channels * kernel
    x = rng.standard_normal((groups, 400, columns)) @ rng.standard_normal((groups, columns, columns))
    moments = x.transpose(0, 2, 1) @ x / 400
    weight = rng.standard_normal((groups, 4, columns))
    return Reader(weight, moments, np.arange(channels).repeat(kernel)), x


def loss(given: Reader, weight: Floats) -> float:
    change = given.weight - weight
    return float(np.einsum("gok,gkl,gol->", change, damped(given.moments), change)) / given.energy


@pytest.mark.parametrize("groups", [1, 2])
def test_errors_are_those_after_least_squares_compensation(groups: int) -> None:
    given, _ = reader(np.random.default_rng(0), groups=groups)
    order, errors = removal_order([given], 6, 4, 1)
    for n in range(1, 5):
        gone = np.isin(np.arange(6), order[:n])
        repaired = compensated_weights(given, gone)
        assert not repaired[:, :, gone.repeat(3)].any()
        assert errors[n] == pytest.approx(loss(given, repaired), rel=1e-6)
    assert errors[0] == 0
    assert (np.diff(errors) >= 0).all()


def test_compensated_weights_are_numpys_ridge_solution() -> None:
    rng = np.random.default_rng(1)
    given, x = reader(rng)
    gone = np.asarray([False, True, False, False, True, False])
    kept = np.flatnonzero(~gone.repeat(3))
    mean = np.einsum("kk->k", given.moments[0]).mean()
    # Ridge as least squares on more rows: one for each input, of the size of the damping.
    rows = np.concatenate([x[0] / np.sqrt(400), np.sqrt(0.01 * mean) * np.eye(18)])
    wanted = rows @ given.weight[0].T
    expected = np.linalg.lstsq(rows[:, kept], wanted, rcond=None)[0].T
    np.testing.assert_allclose(compensated_weights(given, gone)[0][:, kept], expected, rtol=1e-6, atol=1e-9)


def test_the_cheapest_channel_is_removed_first_and_costs_of_readers_add_up() -> None:
    rng = np.random.default_rng(2)
    one, other = reader(rng)[0], reader(rng)[0]
    order, errors = removal_order([one, other], 6, 1, 1)
    alone = []
    for i in range(6):
        gone = np.arange(6) == i
        alone.append(sum(loss(r, compensated_weights(r, gone)) for r in (one, other)))
    assert order[0] == np.argmin(alone)
    assert errors[1] == pytest.approx(min(alone), rel=1e-6)


def test_a_duplicate_and_an_unread_channel_cost_nothing() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((500, 5))
    x[:, 3] = x[:, 0]
    weight = rng.standard_normal((1, 3, 5))
    weight[:, :, 2] = 0
    given = Reader(weight, (x.T @ x / 500)[None], np.arange(5))
    order, errors = removal_order([given], 5, 2, 1)
    assert order[0] == 2
    assert order[1] in (0, 3)
    assert errors[2] < 0.02


def test_columns_without_an_owner_stay_and_compensate() -> None:
    rng = np.random.default_rng(4)
    given, _ = reader(rng)
    mixed = Reader(given.weight, given.moments, np.where(given.owner > 2, -1, given.owner))
    order, errors = removal_order([mixed], 3, 2, 2)
    assert set(order.tolist()) <= {0, 1, 2}
    gone = np.isin(np.arange(3), order)
    assert errors[2] == pytest.approx(loss(mixed, compensated_weights(mixed, gone)), rel=1e-6)


def test_cost_curves_interpolate_the_measured_points() -> None:
    local = np.asarray([0.0, 0.01, 0.04, 0.16, 0.64])
    np.testing.assert_allclose(scaled(local, [(0.01, 0.002), (0.16, 0.008)])[[1, 3]], [0.002, 0.008])
    np.testing.assert_allclose(scaled(local, [(0.01, 0.002), (0.16, 0.008)])[2], 0.004)
    np.testing.assert_allclose(scaled(local, [(0.04, 0.02)]), local / 2)
    np.testing.assert_array_equal(scaled(local, []), local)

"""Zeros divided among layers: the total is met exactly, and costly layers get fewest."""

import itertools

import numpy as np
import pytest

from onnxshot.maths.sparsity_allocation import Curve, cheapest_allocation, erdos_renyi, exact_counts

SHARES = (0.25, 0.5, 0.75, 0.95)


def curve(size: int, height: float, power: float = 3.0, least: int = 0) -> Curve:
    return Curve(size, SHARES, tuple(height * s**power for s in SHARES), least)


def test_a_curve_interpolates_the_measured_points() -> None:
    found = curve(100, 2.0).at(np.array([0.0, 0.1, 0.25, 0.6, 0.95, 0.97]))
    np.testing.assert_allclose(found, 2.0 * np.array([0.0, 0.1, 0.25, 0.6, 0.95, 0.97]) ** 3, rtol=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.83, 0.97, 0.995])
def test_the_total_is_met_exactly(share: float) -> None:
    curves = [curve(1001, 1.0), curve(37, 50.0), curve(20011, 0.1), curve(300, 5.0, 1.5)]
    count = round(share * sum(c.size for c in curves))
    found = cheapest_allocation(curves, count)
    assert sum(found) == count
    assert all(0 <= n <= c.size for n, c in zip(found, curves, strict=True))


def test_the_most_costly_layer_gets_the_fewest_zeros() -> None:
    cheap, dear, same = curve(1000, 0.1), curve(1000, 10.0), curve(1000, 0.1)
    found = cheapest_allocation([cheap, dear, same], 1500)
    assert found[1] < 200 < 600 < found[0]
    assert abs(found[0] - found[2]) <= 10


def test_the_cost_is_that_of_exhaustive_search() -> None:
    curves = [curve(200, 1.0), curve(200, 4.0, 2.0), curve(200, 0.3, 4.0)]

    def cost(counts: tuple[int, ...]) -> float:
        return sum(float(c.at(np.array([n / c.size]))[0]) for c, n in zip(curves, counts, strict=True))

    grid = range(0, 197, 4)
    best = min(cost((a, b, 300 - a - b)) for a, b in itertools.product(grid, grid) if 0 <= 300 - a - b <= 196)
    assert cost(tuple(cheapest_allocation(curves, 300))) <= best * 1.01


def test_existing_zeros_count() -> None:
    found = cheapest_allocation([curve(1000, 1.0, least=400), curve(1000, 1.0)], 800)
    assert sum(found) == 800
    assert found[0] >= 400
    assert cheapest_allocation([curve(1000, 1.0, least=900), curve(1000, 1.0)], 500) == [900, 0]


def test_a_layer_without_cost_is_pruned_first() -> None:
    free = Curve(1000, SHARES, (0.0, 0.0, 0.0, 0.0))
    found = cheapest_allocation([free, curve(1000, 1.0)], 900)
    assert sum(found) == 900
    assert found[0] > 800


def test_small_layers_stay_denser_by_erdos_renyi_kernel() -> None:
    shapes = [(16, 3, 3, 3), (64, 64, 3, 3), (10, 64)]
    sizes = [int(np.prod(s)) for s in shapes]
    found = erdos_renyi(shapes, sum(sizes) // 2)
    assert sum(found) == sum(sizes) // 2
    assert found[0] == found[2] == 0, "their density would be above 1"
    found = erdos_renyi(shapes, round(0.99 * sum(sizes)))
    density = [1 - n / size for n, size in zip(found, sizes, strict=True)]
    expected = [sum(s) / size for s, size in zip(shapes, sizes, strict=True)]
    assert density[0] / density[1] == pytest.approx(expected[0] / expected[1], rel=0.05)


@pytest.mark.parametrize("count", [0, 1, 50, 149, 160])
def test_rounded_counts_add_up_to_the_total(count: int) -> None:
    found = exact_counts([100, 30, 30], [count / 160] * 3, count)
    assert sum(found) == count
    assert all(abs(n - size * count / 160) <= 1 for n, size in zip(found, [100, 30, 30], strict=True))

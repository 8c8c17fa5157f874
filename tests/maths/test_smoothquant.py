"""The search for a strength of SmoothQuant looks at a part of wide weights, and finds what all columns show."""

import numpy as np
import pytest

from onnxshot.maths.affine import INT8, UINT8, PerChannel, PerTensor, QuantScheme
from onnxshot.maths.smoothquant import Rows, search_smoothing

ACTIVATION = QuantScheme(UINT8)


def _case(seed: int, columns: int) -> tuple[Rows, np.ndarray]:
    """Rows with a few loud channels, and a weight."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((128, 64)).astype(np.float32) * np.where(np.arange(64) % 16 == 3, 40, 1).astype(np.float32)
    w = rng.standard_normal((64, columns)).astype(np.float32) / np.float32(8)
    table = x.reshape(4, 32, 64)
    return Rows(x, np.repeat(np.arange(4), 32), table.min(axis=1), table.max(axis=1)), w


@pytest.mark.parametrize("seed", range(4))
def test_some_columns_show_the_strength_that_all_show(seed: int) -> None:
    rows, w = _case(seed, 1024)
    scheme = QuantScheme(INT8, symmetric=True, granularity=PerChannel(1))
    found = search_smoothing(rows, [w], ACTIVATION, [scheme], columns=256)
    whole = search_smoothing(rows, [w], ACTIVATION, [scheme])
    assert whole.db > whole.plain_db + 3  # there is something to find
    assert abs(found.strength - whole.strength) < 0.11
    assert abs(found.db - whole.db) < 0.5
    assert abs(found.plain_db - whole.plain_db) < 0.5


def test_columns_of_a_wide_weight_count_as_much_as_if_all_were_looked_at() -> None:
    """Beside a narrow weight of the same size of values, a wide one decides: its share of the energy is kept."""
    scheme = QuantScheme(INT8, symmetric=True, granularity=PerChannel(1))
    rows, wide = _case(0, 4096)
    _, narrow = _case(1, 16)
    alone = search_smoothing(rows, [wide], ACTIVATION, [scheme], columns=256)
    both = search_smoothing(rows, [wide, narrow], ACTIVATION, [scheme, scheme], columns=256)
    assert both.plain_db == pytest.approx(alone.plain_db, abs=0.05)


def test_all_columns_are_looked_at_where_they_share_a_scale() -> None:
    rows, w = _case(0, 1024)
    w[:, 1] = 0
    w[3, 1] = 100  # not among those that would be looked at: (0, 4, 8, ...)
    scheme = QuantScheme(INT8, symmetric=True, granularity=PerTensor())
    found = search_smoothing(rows, [w], ACTIVATION, [scheme], columns=256)
    assert found.plain_db == search_smoothing(rows, [w], ACTIVATION, [scheme]).plain_db
    without = search_smoothing(rows, [np.delete(w, 1, axis=1)], ACTIVATION, [scheme], columns=256)
    assert found.plain_db < without.plain_db - 3

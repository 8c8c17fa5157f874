"""Layers seen as products of matrices."""

import numpy as np
import pytest

from onnxshot.execution.layer_rows import product


@pytest.mark.parametrize(("groups", "outputs", "inputs"), [(1, 5, 7), (3, 4, 2), (6, 1, 9), (1, 1, 3)])
def test_a_product_multiplies_every_group(groups: int, outputs: int, inputs: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(groups, 11, inputs)).astype(np.float32)
    table = rng.normal(size=(groups, outputs, inputs)).astype(np.float32)
    wanted = np.concatenate([x[g] @ table[g].T for g in range(groups)], axis=1)
    np.testing.assert_allclose(product(x, table), wanted, rtol=1e-5, atol=1e-5)

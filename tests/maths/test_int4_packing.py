"""int4 packing compared with ONNX's own, and unpacking as its inverse."""

import ml_dtypes
import numpy as np
import pytest
from onnx import numpy_helper

from onnxshot.graph import Constant, weights
from onnxshot.maths.int4_packing import pack_int4, unpack_bits

SHAPES = [(), (1,), (3,), (4, 4), (5, 7), (0,)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "low", "high"), [(ml_dtypes.int4, -8, 8), (ml_dtypes.uint4, 0, 16)])
def test_int4_is_packed_as_onnx_packs_it(dtype: type, low: int, high: int, shape: tuple[int, ...]) -> None:
    integers = np.random.default_rng(0).integers(low, high, shape, np.int8)
    values = np.asarray(integers, dtype)
    expected = numpy_helper.from_array(values, "w")
    assert pack_int4(values) == pack_int4(integers) == expected.raw_data
    assert weights.to_proto(Constant("w", values)).SerializeToString() == expected.SerializeToString()


def test_unpacking_gives_the_packed_values_back() -> None:
    values = np.arange(16, dtype=np.uint8).reshape(2, 8)
    stored = np.frombuffer(pack_int4(values), np.uint8)
    np.testing.assert_array_equal(unpack_bits(stored.reshape(2, 4), 4), values)

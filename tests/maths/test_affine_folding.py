import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxshot.maths.affine_folding import fold_bias, pass_shift, scale_axis


def normal(*shape: int) -> NDArray[np.float64]:
    return np.random.default_rng(shape).normal(size=shape)


@given(st.sampled_from([1, 4]), st.booleans())
def test_scale_and_shift_of_a_matrix(scales: int, with_bias: bool) -> None:
    w, b, x = normal(4, 3), normal(4) if with_bias else None, normal(3)
    scale, shift = normal(scales), normal(4)
    new_w, new_b = scale_axis(w, scale, axis=0), fold_bias(b, scale, shift, channels=4)
    expected = scale * (w @ x + (0 if b is None else b)) + shift
    np.testing.assert_allclose(new_w @ x + new_b, expected)


def test_groups_on_the_second_axis() -> None:
    w, scale = normal(6, 2, 3), normal(4)  # 2 groups of 3 rows, 2 channels each
    scaled = scale_axis(w, scale, axis=1, groups=2)
    np.testing.assert_allclose(scaled[:3], w[:3] * scale[None, :2, None])
    np.testing.assert_allclose(scaled[3:], w[3:] * scale[None, 2:, None])


def test_shift_of_the_input() -> None:
    w, x, shift = normal(4, 3), normal(3), normal(3)
    np.testing.assert_allclose(w @ x + pass_shift(w, shift, axis=1, out_axis=0), w @ (x + shift))
    np.testing.assert_allclose(pass_shift(w, np.ones(1), axis=1, out_axis=0), w.sum(1))


def test_scalar_and_matrix_biases() -> None:
    one = np.ones(1)
    assert fold_bias(np.array(2.0), one, one, channels=3).tolist() == [3, 3, 3]
    assert fold_bias(np.array([[1.0], [2.0]]), one, one, channels=3).tolist() == [[2, 2, 2], [3, 3, 3]]

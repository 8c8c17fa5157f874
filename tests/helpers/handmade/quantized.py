"""Models that somebody has quantized already."""

import numpy as np
from numpy.typing import NDArray

from handmade.core import Case, Feed, case, feeds, model, vector, weight


def int8(w: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 values of w and their scales, one per channel of axis 0."""
    scale = np.abs(w).max(axis=tuple(range(1, w.ndim))) / np.float32(127)
    shaped = scale.reshape(-1, *[1] * (w.ndim - 1))
    return np.clip(np.rint(w / shaped), -127, 127).astype(np.int8), scale


def conv_constants() -> Feed:
    """x in -4..4 as uint8, per-channel int8 weights, int32 bias, y in 0..8 as uint8."""
    values, scale = int8(weight(8, 4, 3, 3))
    x_scale = np.float32(8 / 255)
    return {
        "x_scale": np.array(x_scale),
        "x_zero": np.array(128, np.uint8),
        "w": values,
        "w_scale": scale,
        "w_zero": np.zeros(8, np.int8),
        "b": np.rint(vector(8) / (x_scale * scale)).astype(np.int32),
        "y_scale": np.array(8 / 255, np.float32),
        "y_zero": np.array(0, np.uint8),
    }


@case
def already_qdq() -> Case:
    """Hand-placed QuantizeLinear and DequantizeLinear around a convolution, and a float one after it."""
    text = """g (float[batch, 4, 8, 8] x) => (float[batch, 8, 8, 8] y) {
        x_q = QuantizeLinear(x, x_scale, x_zero)
        x_dq = DequantizeLinear(x_q, x_scale, x_zero)
        w_dq = DequantizeLinear<axis = 0>(w, w_scale, w_zero)
        b_dq = DequantizeLinear<axis = 0>(b, b_scale)
        c = Conv<pads = [1, 1, 1, 1]>(x_dq, w_dq, b_dq)
        r = Relu(c)
        y_q = QuantizeLinear(r, y_scale, y_zero)
        y_dq = DequantizeLinear(y_q, y_scale, y_zero)
        y = Conv<pads = [1, 1, 1, 1]>(y_dq, w_float)
    }"""
    constants = conv_constants()
    constants |= {"b_scale": constants["x_scale"] * constants["w_scale"], "w_float": weight(8, 8, 3, 3)}
    return Case(model(text, constants), feeds(x=(2, 4, 8, 8)))


@case
def already_qoperator() -> Case:
    """QLinearConv between QuantizeLinear and DequantizeLinear."""
    text = """g (float[batch, 4, 8, 8] x) => (float[batch, 8, 8, 8] y) {
        x_q = QuantizeLinear(x, x_scale, x_zero)
        y_q = QLinearConv<pads = [1, 1, 1, 1]>(x_q, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, b)
        y = DequantizeLinear(y_q, y_scale, y_zero)
    }"""
    return Case(model(text, conv_constants()), feeds(x=(2, 4, 8, 8)))


@case
def already_dynamic() -> Case:
    """DynamicQuantizeLinear and MatMulInteger, as dynamic quantization leaves them."""
    text = """g (float[batch, 16] x) => (float[batch, 8] y) {
        x_q, x_scale, x_zero = DynamicQuantizeLinear(x)
        acc = MatMulInteger(x_q, w, x_zero)
        acc_f = Cast<to = 1>(acc)
        scale = Mul(x_scale, w_scale)
        y = Mul(acc_f, scale)
    }"""
    values, scale = int8(weight(1, 128))
    return Case(model(text, {"w": values.reshape(16, 8), "w_scale": scale[0].reshape(())}), feeds(x=(4, 16)))

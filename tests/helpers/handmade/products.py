"""One product of dequantized factors, in every form that runtimes tell apart."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmade.core import Case, Feed, feeds, model, vector, weight

_OPSET = 21  # 16-bit integers


def integers(values: NDArray[np.float32], kind: str, axis: int | None, zero: int) -> Feed:
    """values as integers of this type with this zero point: w, w_scale, w_zero; axis None for one scale."""
    info, others = np.iinfo(kind), tuple(i for i in range(values.ndim) if i != axis)
    span = min(info.max - zero, zero - info.min)
    absmax = np.abs(values).max(others if axis is not None else None, keepdims=True)
    scale = (absmax / span).astype(np.float32)
    stored = np.clip(np.rint(values / scale) + zero, info.min, info.max).astype(kind)
    shape = (-1,) if axis is not None else ()
    return {"w": stored, "w_scale": scale.reshape(shape), "w_zero": np.full_like(scale, zero, kind).reshape(shape)}


def grid(kind: str, zero: int, high: float = 4.0) -> Feed:
    """Scale and zero point of values up to this: x_scale, x_zero."""
    return {"x_scale": np.array(high / (np.iinfo(kind).max - zero), np.float32), "x_zero": np.array(zero, kind)}


def conv(
    x: tuple[str, int] = ("uint8", 128),
    w: tuple[str, int] = ("int8", 0),
    axis: int | None = 0,
    *,
    op: str = "Conv",
    group: int = 1,
    bias: str = "float",
    output: bool = False,
    relu: bool = False,
    rounded: bool = False,
    opset: int = _OPSET,
) -> Case:
    """A Conv or ConvTranspose named product, of 16 channels.

    x, w: type and zero point of input and weight; bias: float, int32 or none; output: a pair on the output;
    rounded: the weight is float, with a QuantizeLinear behind it.
    """
    values = weight(16, 16 // group, 3, 3)
    along = "" if axis is None else f"<axis = {axis}>"
    constants: dict[str, Any] = integers(values, w[0], axis, w[1]) | grid(*x)
    lines = ["xq = QuantizeLinear(x, x_scale, x_zero)", "xd = DequantizeLinear(xq, x_scale, x_zero)"]
    stored = "w"
    if rounded:
        constants["w"], stored = values, "wq"
        lines.append(f"wq = QuantizeLinear{along}(w, w_scale, w_zero)")
    lines.append(f"wd = DequantizeLinear{along}({stored}, w_scale, w_zero)")
    if bias == "float":
        constants["b"] = vector(16)
    elif bias == "int32":
        scale = constants["b_scale"] = constants["x_scale"] * constants["w_scale"]
        constants["b_int"] = np.rint(vector(16) / scale).astype(np.int32)
        lines.append("b = DequantizeLinear<axis = 0>(b_int, b_scale)")
    last = "r" if output else "y"
    made = "c" if relu else last
    lines.append(f"[product] {made} = {op}<pads = [1, 1, 1, 1], group = {group}>(xd, wd{', b' * (bias != 'none')})")
    lines += [f"{last} = Relu(c)"] if relu else []
    lines += ["q = QuantizeLinear(r, x_scale, x_zero)", "y = DequantizeLinear(q, x_scale, x_zero)"] if output else []
    text = "g (float[n, 16, 8, 8] x) => (float[n, 16, 8, 8] y) {\n" + "\n".join(lines) + "\n}"
    return Case(model(text, constants, opset=opset, ir=10), feeds(2, x=(2, 16, 8, 8)))


def matmul(
    x: tuple[str, int] = ("uint8", 128),
    w: tuple[str, int] = ("int8", 0),
    axis: int | None = 1,
    *,
    op: str = "MatMul",
    rank: int = 2,
    output: bool = False,
) -> Case:
    """A MatMul, or a Gemm with a float bias, named product: x [.., 64] times w [64, 48]."""
    along = "" if axis is None else f"<axis = {axis}>"
    constants: dict[str, Any] = integers(weight(64, 48, channel_axis=1), w[0], axis, w[1]) | grid(*x)
    bias = ", b" if op == "Gemm" else ""
    if bias:
        constants["b"] = vector(48)
    sizes = ", ".join(["n", "5"][: rank - 1])
    made = "y" if not output else "m"
    pair = "q = QuantizeLinear(m, x_scale, x_zero)\ny = DequantizeLinear(q, x_scale, x_zero)" if output else ""
    text = f"""g (float[{sizes}, 64] x) => (float[{sizes}, 48] y) {{
        xq = QuantizeLinear(x, x_scale, x_zero)
        xd = DequantizeLinear(xq, x_scale, x_zero)
        wd = DequantizeLinear{along}(w, w_scale, w_zero)
        [product] {made} = {op}(xd, wd{bias})
        {pair}
    }}"""
    return Case(model(text, constants, opset=_OPSET, ir=10), feeds(2, x=(3, 5, 64)[3 - rank :]))


def activations(kind: str, zero: int) -> Case:
    """The product of two activations, quantized alike."""
    text = """g (float[n, 2, 8, 64] x, float[n, 2, 64, 8] k) => (float[n, 2, 8, 8] y) {
        xq = QuantizeLinear(x, x_scale, x_zero)
        xd = DequantizeLinear(xq, x_scale, x_zero)
        kq = QuantizeLinear(k, x_scale, x_zero)
        kd = DequantizeLinear(kq, x_scale, x_zero)
        [product] y = MatMul(xd, kd)
    }"""
    return Case(model(text, grid(kind, zero), opset=_OPSET, ir=10), feeds(2, x=(1, 2, 8, 64), k=(1, 2, 64, 8)))


def residuals(kind: str, zero: int) -> Case:
    """Three Convs in a row, each added to the quantized input of the one before it."""
    lines, constants, last = [], dict[str, Any](), "x"
    for i in range(3):
        stored = integers(weight(16, 16, 3, 3, seed=i), "int8", 0, 0)
        constants |= {f"{name}{i}": values for name, values in stored.items()}
        lines += [
            f"q{i} = QuantizeLinear({last}, x_scale, x_zero)",
            f"d{i} = DequantizeLinear(q{i}, x_scale, x_zero)",
            f"f{i} = DequantizeLinear<axis = 0>(w{i}, w_scale{i}, w_zero{i})",
            f"[product{i}] c{i} = Conv<pads = [1, 1, 1, 1]>(d{i}, f{i})",
            f"a{i} = Add(c{i}, d{max(i - 1, 0)})",
        ]
        last = f"a{i}"
    text = "g (float[n, 16, 8, 8] x) => (float[n, 16, 8, 8] y) {\n" + "\n".join([*lines, "y = Identity(a2)"]) + "\n}"
    return Case(model(text, constants | grid(kind, zero), opset=_OPSET, ir=10), feeds(2, x=(2, 16, 8, 8)))

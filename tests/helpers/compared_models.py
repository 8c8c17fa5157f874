"""Models with random numbers, ordered outputs and copied inputs, and the samples to compare them on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from handmade.core import model, vector, weight
from numpy.typing import NDArray
from onnx import ModelProto

from onnxshot.calibration.readers import Sample
from onnxshot.runtimes.ort_runtime import Runner


def run(made: ModelProto | Path, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The outputs of a model on one sample."""
    return Runner(made if isinstance(made, Path) else made.SerializeToString(), threads=1).run(feed)


def db(wanted: NDArray[Any], got: NDArray[Any]) -> float:
    """SQNR in dB."""
    wanted, got = wanted.astype(np.float64), got.astype(np.float64)
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum()))


def samples(count: int, *shape: int, **others: NDArray[Any]) -> list[Sample]:
    """Random samples with an input x of this shape, and other inputs."""
    rng = np.random.default_rng(3)
    return [Sample(str(i), {"x": rng.normal(size=shape).astype(np.float32), **others}) for i in range(count)]


def noisy_net(seed: float | None = None) -> ModelProto:
    """Two Convs with random noise between them."""
    text = f"""g (float[1, 8, n] x) => (float[1, 8, n] y) {{
        a = Conv <pads = [1, 1]> (x, w1, b1)  r = Relu(a)
        z = RandomNormalLike {"" if seed is None else f"<seed = {seed}>"} (r)
        m = Add(r, z)  y = Conv <pads = [1, 1]> (m, w2, b2) }}"""
    constants = {"w1": weight(16, 8, 3), "b1": vector(16), "w2": weight(8, 16, 3, seed=1), "b2": vector(8)}
    return model(text, constants)


HEAD = """
    f = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  r = Relu(f)  s = Conv(r, w2, b2)  heat = Sigmoid(s)
    flat = Reshape(heat, row)  v, i = TopK <axis = 1> (flat, k)
    at = Cast <to = 1> (i)  up = Unsqueeze(at, one)  vu = Unsqueeze(v, one)  dets = Concat <axis = 1> (up, vu)
"""


def head(*, noise: float = 0.0, opset: int = 17, axes: str = "") -> ModelProto:
    """A heat map with its 20 highest places and values. `noise` is added to the weight of the last Conv."""
    rng = np.random.default_rng(9)
    body = (
        HEAD
        if not axes
        else HEAD.replace("Unsqueeze(at, one)", "Unsqueeze <axes = [1]> (at)").replace(
            "Unsqueeze(v, one)", "Unsqueeze <axes = [1]> (v)"
        )
    )
    last = weight(1, 8, 1, 1, seed=1)
    constants = {
        "w1": weight(8, 3, 3, 3), "b1": vector(8), "w2": last + noise * rng.normal(size=last.shape).astype(np.float32),
        "b2": vector(1), "row": np.int64([0, -1]), "k": np.int64([20]), "one": np.int64([1]),
    }  # fmt: skip
    if axes:
        del constants["one"]
    text = f"g (float[n, 3, 24, 24] x) => (float[n, 2, 20] dets, int64[n, 20] i) {{ {body} }}"
    return model(text, constants, opset=opset)


CACHE = """g (float[1, 4] x, float[1, 2, p, 4] past) => (float[1, 2, t, 4] present, float[1, 8] y) {{
    k = MatMul(x, w)  new = Reshape(k, shape)  moved = {moved}
    present = {join}  y = MatMul(x, w) }}"""


def cache(join: str, noise: float = 0.0, moved: str = "Identity(past)") -> ModelProto:
    w = weight(4, 8)
    w = w + noise * np.random.default_rng(4).normal(size=w.shape).astype(np.float32)
    constants = {"w": w, "shape": np.int64([1, 2, 1, 4]), "at": np.int64([0]), "scale": np.float32(0.05)}
    constants |= {"where": np.int64([[[[0] * 4], [[0] * 4]]])}
    return model(CACHE.format(join=join, moved=moved), constants)

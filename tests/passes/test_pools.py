"""Every form of pooling between two Convs in int8: the file loads, and gives what the given one does."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from handmade.core import Feed, feeds, model, vector, weight

import onnxshot
from onnxshot.maths.sqnr import sqnr_db
from onnxshot.settings import Settings

FORMS = {
    "average": ("AveragePool<kernel_shape = {k}, strides = {s}>", 17),
    "average_pads": ("AveragePool<kernel_shape = {k}, strides = {s}, pads = {p}>", 17),
    "average_uneven_pads": ("AveragePool<kernel_shape = {k}, strides = {s}, pads = {q}, count_include_pad = 1>", 17),
    "average_counts_pads": ("AveragePool<kernel_shape = {k}, strides = {s}, pads = {p}, count_include_pad = 1>", 17),
    "average_ceil": ("AveragePool<kernel_shape = {k}, strides = {s}, ceil_mode = 1>", 17),
    "average_ceil_pads": (
        "AveragePool<kernel_shape = {k}, strides = {s}, pads = {p}, ceil_mode = 1, count_include_pad = 1>", 17,
    ),
    "average_ceil_counts": ("AveragePool<kernel_shape = {k}, strides = {s}, ceil_mode = 1, count_include_pad = 1>", 19),
    "average_dilated": ("AveragePool<kernel_shape = {k}, dilations = {s}>", 19),
    "average_dilated_pads": ("AveragePool<kernel_shape = {k}, dilations = {s}, pads = {p}, count_include_pad = 1>", 22),
    "average_same_upper": ('AveragePool<kernel_shape = {k}, strides = {s}, auto_pad = "SAME_UPPER">', 17),
    "average_same_lower": ('AveragePool<kernel_shape = {e}, auto_pad = "SAME_LOWER", count_include_pad = 1>', 17),
    "average_valid": ('AveragePool<kernel_shape = {k}, auto_pad = "VALID">', 11),
    "largest": ("MaxPool<kernel_shape = {k}, strides = {s}>", 17),
    "largest_ceil": ("MaxPool<kernel_shape = {k}, strides = {s}, pads = {p}, ceil_mode = 1>", 17),
    "largest_uneven_pads": ("MaxPool<kernel_shape = {k}, strides = {s}, pads = {q}>", 17),
    "largest_dilated": ("MaxPool<kernel_shape = {k}, dilations = {s}>", 17),
    "largest_same": ('MaxPool<kernel_shape = {e}, strides = {s}, auto_pad = "SAME_LOWER">', 11),
    "norm": ("LpPool<kernel_shape = {k}, strides = {s}, p = 2>", 17),
    "norm_ceil": ("LpPool<kernel_shape = {k}, strides = {s}, ceil_mode = 1, dilations = {s}>", 18),
}  # fmt: skip
DEFAULT = {("average_dilated", 1), ("average_dilated_pads", 2), ("average_ceil_pads", 2), ("average_ceil_counts", 3)}
SIZE = {1: 101, 2: 11, 3: 7}


def net(line: str, rank: int, opset: int) -> onnx.ModelProto:
    """Conv, Relu, the pool, Conv; an odd number of positions along each axis, so that windows reach over the edge."""
    values = {"k": [3], "s": [2], "p": [1, 1], "q": [0, 2], "e": [4]}
    filled = {name: [v for v in value for _ in range(rank)] for name, value in values.items()}
    dims, around = ", ".join([str(SIZE[rank])] * rank), [1] * 2 * rank
    text = f"""g (float[n, 4, {dims}] x) => (float[n, 8, {", ".join("uvw"[:rank])}] y) {{
        a = Conv<pads = {around}>(x, w, b)
        c = Relu(a)
        d = {line.format(**filled)}(c)
        e = Conv<pads = {around}>(d, v, b)
        y = Relu(e)
    }}"""
    held = {"w": weight(8, 4, *[3] * rank), "v": weight(8, 8, *[3] * rank), "b": vector(8)}
    return model(text, held, opset=opset, ir=8 if opset < 19 else 9)


def unoptimized(proto: onnx.ModelProto, fed: list[Feed]) -> np.ndarray:
    """What the given file gives without the runtime's optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.stack([session.run(None, feed)[0] for feed in fed])


@pytest.mark.parametrize(
    ("form", "rank"),
    [
        pytest.param(form, rank, marks=() if (form, rank) in DEFAULT else pytest.mark.slow)
        for form in FORMS
        for rank in (1, 2, 3)
    ],
)
def test_the_written_file_gives_what_was_told(form: str, rank: int, tmp_path: Path) -> None:
    import onnxruntime

    line, opset = FORMS[form]
    proto, fed = net(line, rank, opset), feeds(16, x=(1, 4, *[SIZE[rank]] * rank))
    settings = Settings(bench_seconds=0.01, use_cache=False)
    # Thin Convs in 3 dimensions and average pools are float where nobody asks for them.
    asked = ("Conv", "AveragePool") if "AveragePool" in line else ("Conv",)
    result = onnxshot.quantize(proto, fed, effort="fast", include=asked, output=tmp_path / "q.onnx", settings=settings)
    session = onnxruntime.InferenceSession(str(tmp_path / "q.onnx"), providers=["CPUExecutionProvider"])
    found = np.stack([session.run(None, feed)[0] for feed in fed])
    told = result.report.sqnr_db
    assert told is not None
    assert told > 25  # a pool that is computed otherwise gives less
    assert sqnr_db(unoptimized(proto, fed), found) > told - 3
    share = result.report.int8_macs_share
    assert share == 1

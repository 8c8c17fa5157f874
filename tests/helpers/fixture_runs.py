"""Runs that several tests share: fixtures compressed with their own data, the command line, ONNX Runtime sessions."""

import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fixture_data import FIXTURES, facts, fixture
from handmade.core import Feed
from numpy.typing import NDArray

from onnxshot import Settings, quantize
from onnxshot.cli import app as cli
from onnxshot.results.quantized import Result
from onnxshot.runtimes.ort_bench import Latency
from onnxshot.verification import proof

QUICK = Settings(verify=False, use_cache=False, threads=1)
PROVEN = Settings(samples=12, use_cache=False, threads=1, bench_seconds=0.01, search_seconds=0.0)


def data_of(name: str) -> dict[str, Any]:
    """calib and preset of a fixture, as `quantize` takes them."""
    known = facts()[name]
    preset = None if known["preset"] == "none" else str(FIXTURES / known["preset"])
    return {"calib": str(FIXTURES / known["calib"]), "preset": preset}


@cache
def compressed(name: str, settings: Settings = PROVEN, **options: Any) -> Result:
    """A fixture quantized with 12 samples of its own data; kept for the tests of one file, which must not change it."""
    return quantize(fixture(name), **data_of(name), settings=settings, **options)


def command(*arguments: str | Path) -> int:
    """Exit code of `onnxshot ARGUMENTS`, run in this process; what it prints goes where capsys looks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["onnxshot", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def clock(patch: pytest.MonkeyPatch, ratio: float) -> None:
    """Replace the measured latencies: the result is `ratio` times as fast as the source, whatever the machine does."""

    def timed(paths: Sequence[Path], feeds: Sequence[Feed], **_: object) -> list[Latency]:
        assert len(paths) == 2
        assert feeds
        return [Latency(path, 1 / r, 1.0, 1.0, r, 5) for path, r in zip(paths, (1.0, ratio), strict=True)]

    patch.setattr(proof, "bench", timed)


def stored(proto: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Values of the initializers by name."""
    return {t.name: np.asarray(onnx.numpy_helper.to_array(t)) for t in proto.graph.initializer}


def every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of subgraphs included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from every_node(inner)


def makers(proto: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Tensor name -> the top-level node that makes it."""
    return {name: node for node in proto.graph.node for name in node.output}


def readers(proto: onnx.ModelProto, tensor: str) -> list[onnx.NodeProto]:
    """Top-level nodes that read the tensor."""
    return [node for node in proto.graph.node if tensor in node.input]


def sqnr(wanted: Sequence[NDArray[Any]], got: Sequence[NDArray[Any]]) -> float:
    """Signal over noise in dB of all arrays together, written out here so that it does not trust onnxshot's own."""
    signal = sum(float(np.square(a, dtype=np.float64).sum()) for a in wanted)
    noise = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(wanted, got, strict=True))
    return 10 * np.log10(signal / noise) if noise else 200.0


def outputs(model: onnx.ModelProto | Path, feeds: Sequence[Feed], *, optimize: bool = True) -> list[NDArray[Any]]:
    """First output of the model for every feed, in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    run = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return [run.run(None, feed)[0] for feed in feeds]

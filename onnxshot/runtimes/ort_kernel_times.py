"""Measure how long each node of a whole network takes in ONNX Runtime, from kernel times in its profile."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from onnxshot.files.atomic_write import scratch
from onnxshot.runtimes.ort_executed import name_nodes
from onnxshot.runtimes.ort_runtime import Feed, run_session, session

_LEAST_ROUNDS, _MOST_ROUNDS = 5, 200
_QUANTILE = 0.25  # of the runs of one kernel: other load only ever adds time
_RENAMED = re.compile(r"_nchwc$|_token_\d+$")
"""Suffix that ONNX Runtime adds for another layout, to the output of a float Conv or to the name of an int8 node."""
_FAR = 4  # nodes that a kernel may contain after the one it is named after: Add, Relu, QuantizeLinear


def kernel_times(
    models: Sequence[ModelProto],
    parts: Mapping[str, str],
    feeds: Sequence[Feed],
    *,
    threads: int = 2,
    seconds: float = 3.0,
) -> list[dict[str, float]]:
    """Measure the kernel that each part of a network became.

    ONNX Runtime merges nodes. A kernel counts for the part it is named after, or for the last part before its output.
    Models run interleaved until `seconds` are over, for at least 5 and at most 200 rounds. The result is the lower
    quartile of each kernel's runs.

    Args:
        models: Models to measure.
        parts: Name of a node -> the tensor that it makes.
        feeds: Samples.
        threads: CPU threads of each inference.
        seconds: Time limit for all models together.

    Returns:
        For each model, milliseconds by part; 0 for a part without a kernel.

    Raises:
        ModelError: A model does not load.
    """
    protos = [ModelProto() for _ in models]
    for copy, model in zip(protos, models, strict=True):
        copy.CopyFrom(model)
        name_nodes(copy.graph, set())
    with scratch() as folder:
        runs = [
            session(p.SerializeToString(), threads=threads, profile=folder / str(i), save_optimized=_graph(folder, i))
            for i, p in enumerate(protos)
        ]
        end, rounds = time.perf_counter() + seconds, 0
        while rounds < _MOST_ROUNDS and (rounds < _LEAST_ROUNDS or time.perf_counter() < end):
            feed = feeds[rounds % len(feeds)]
            for run in runs:
                run_session(run, None, {arg.name: feed[arg.name] for arg in run.get_inputs()})
            rounds += 1
        profiles = [json.loads(Path(run.end_profiling()).read_bytes()) for run in runs]
        makers = [_makers(onnx.load(str(_graph(folder, i)), load_external_data=False)) for i in range(len(runs))]
    return [
        _by_part(proto, parts, maker, _node_times(events))
        for proto, maker, events in zip(protos, makers, profiles, strict=True)
    ]


def _graph(folder: Path, number: int) -> Path:
    return folder / f"{number}.onnx"


def _makers(optimized: ModelProto) -> dict[str, str]:
    """The node of the optimized graph for each node name and each tensor it makes."""
    found: dict[str, str] = {}
    for node in optimized.graph.node:
        for name in (_RENAMED.sub("", node.name), *node.output):
            found.setdefault(name, node.name)
    return found


def _node_times(events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Milliseconds of each node. The first run plans memory and is left out."""
    times = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["name"].removesuffix("_kernel_time")].append(event["dur"])
    return {name: float(np.quantile(runs[1:] or runs, _QUANTILE)) / 1e3 for name, runs in times.items()}


def _by_part(
    proto: ModelProto, parts: Mapping[str, str], makers: Mapping[str, str], times: Mapping[str, float]
) -> dict[str, float]:
    readers = defaultdict(list)
    for node in proto.graph.node:
        for name in node.input:
            readers[name].append(node)
    found, ends = {}, set(parts.values())
    for part, tensor in parts.items():
        names = (part, *_downstream(tensor, readers, ends))
        kernel = next((makers[name] for name in names if name in makers), "")
        found[part] = times.get(kernel, 0.0)
    return found


def _downstream(tensor: str, readers: Mapping[str, Sequence[onnx.NodeProto]], ends: Container[str]) -> Iterator[str]:
    """The tensor, tensors computed from it, and so on, until another part begins."""
    front = [tensor]
    for _ in range(_FAR + 1):
        yield from front
        made = (name for given in front for node in readers.get(given, ()) for name in node.output)
        front = [name for name in made if name and name not in ends]

"""Which kernels ONNX Runtime runs for a model, what each of them reads and makes, and how long it takes."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import GraphProto

from onnxshot.files.atomic_write import scratch
from onnxshot.graph.lean_model import LeanModel
from onnxshot.runtimes.mapped_weights import serialized
from onnxshot.runtimes.ort_executed import name_nodes
from onnxshot.runtimes.ort_runtime import Feed
from onnxshot.runtimes.ort_session import SessionRunner

_ENDS = "_kernel_time"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A node of an optimized graph.

    Attributes:
        name: its name; of a node that several became, that of one of them.
        op: its operator.
        inputs: names of the tensors that it reads.
        outputs: names of the tensors that it makes.
        shape: of its output; None where it has several or did not run.
        microseconds: the least time of its runs: other load on the machine only ever adds to it.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shape: tuple[int, ...] | None
    microseconds: float


def kernels_of(
    models: Sequence[LeanModel], feed: Feed, *, threads: int, rounds: tuple[int, int], seconds: float
) -> list[list[Kernel]]:
    """The kernels of the top-level graph of each model, in the order in which they run.

    Args:
        models: the models. They run in turns.
        feed: a sample.
        threads: CPU threads of each inference.
        rounds: how often each runs, at least and at most; the first run plans memory and is not counted.
        seconds: no round begins when each of them has run so long.

    Returns:
        The kernels of each model; none of a model whose profile and optimized graph do not match.

    Raises:
        ModelError: a model does not load or run.
    """
    with scratch() as folder:
        runners = []
        for number, model in enumerate(models):
            named = model.edited(lambda proto: name_nodes(proto.graph, set()))
            with serialized(named) as (source, place):
                runners.append(SessionRunner(
                    source, threads=threads, folder=place, profile=folder / str(number),
                    save_optimized=folder / f"{number}.onnx",
                ))  # fmt: skip
        least, most = rounds
        end, done = time.perf_counter() + seconds * len(models), 0
        while done < most and (done < least or time.perf_counter() < end):
            for runner in runners:
                runner.run(feed)
            done += 1
        profiles = [json.loads(runner.end_profiling().read_bytes()) for runner in runners]
        graphs = [_graph(folder / f"{number}.onnx") for number in range(len(models))]
    return [_kernels(events, graph) for events, graph in zip(profiles, graphs, strict=True)]


def _graph(path: Path) -> GraphProto:
    return onnx.load(str(path), load_external_data=False).graph


def _kernels(events: Sequence[dict[str, Any]], graph: GraphProto) -> list[Kernel]:
    """The nodes of the graph with their times.

    The graph is saved in the order in which it runs. Nodes that ONNX Runtime has made may lack a name, so that they are
    found by their place; where loops or branches run other nodes in between, by their name.
    """
    ran = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(_ENDS)]
    ops = [node.op_type for node in graph.node]
    count = len(ops)
    in_order = bool(count) and len(ran) % count == 0 and all(
        e["args"]["op_name"] == ops[i % count] for i, e in enumerate(ran)
    )  # fmt: skip
    runs = defaultdict[int, list[dict[str, Any]]](list)
    place = {node.name: i for i, node in enumerate(graph.node) if node.name}
    for number, event in enumerate(ran):
        at = number % count if in_order else place.get(event["name"].removesuffix(_ENDS))
        if at is not None:
            runs[at].append(event)
    found = []
    for i, node in enumerate(graph.node):
        times = [float(event["dur"]) for event in runs[i]]
        taken = min(times[1:] or times or [0.0])
        made = runs[i][-1]["args"].get("output_type_shape", []) if times else []
        shape = tuple(next(iter(made[0].values()))) if len(made) == 1 else None
        found.append(Kernel(node.name, node.op_type, tuple(node.input), tuple(node.output), shape, taken))
    return found

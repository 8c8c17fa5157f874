"""Measure how long each node of a whole network takes in ONNX Runtime, from kernel times in its profile."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from onnxshot import memory
from onnxshot.files.atomic_write import scratch
from onnxshot.graph.lean_model import LeanModel
from onnxshot.runtimes.mapped_weights import serialized
from onnxshot.runtimes.ort_executed import name_nodes
from onnxshot.runtimes.ort_runtime import Feed, is_large
from onnxshot.runtimes.ort_session import SessionRunner
from onnxshot.runtimes.part_session import PartSession
from onnxshot.runtimes.parts import Parts
from onnxshot.runtimes.spool import Spool

_LEAST_ROUNDS, _MOST_ROUNDS = 5, 200
_SHARE = 8  # of the memory budget, as in `ort_bench`: larger models are timed in parts
_MOST_FEEDS = 4  # samples that are timed in parts: of each, what crosses from part to part is held
_QUANTILE = 0.25  # of the runs of one kernel: other load only ever adds time
_RENAMED = re.compile(r"_nchwc$|_token_\d+$")
"""Suffix that ONNX Runtime adds for another layout, to the output of a float Conv or to the name of an int8 node."""
_FAR = 4  # nodes that a kernel may contain after the one it is named after: Add, Relu, QuantizeLinear


def kernel_times(
    models: Sequence[ModelProto | LeanModel],
    parts: Mapping[str, str],
    feeds: Sequence[Feed],
    *,
    threads: int = 2,
    seconds: float = 3.0,
) -> list[dict[str, float]]:
    """Measure the kernel that each part of a network became.

    ONNX Runtime merges nodes. A kernel counts for the part it is named after, or for the last part before its output.
    Of a product that was merged with others, each part counts for its share of the outputs.

    Models run interleaved until `seconds` are over, for at least 5 and at most 200 rounds. The result is the lower
    quartile of each kernel's runs.

    Models over a share of the memory budget are timed part by part, each part for its share of the seconds.

    Args:
        models: Models to measure; the first one is the largest.
        parts: Name of a node -> the tensor that it makes.
        feeds: Samples.
        threads: CPU threads of each inference.
        seconds: Time limit for all models together.

    Returns:
        For each model, milliseconds by part; 0 for a part without a kernel.

    Raises:
        ModelError: A model does not load.
    """
    lean = [LeanModel.of(model).edited(lambda proto: name_nodes(proto.graph, set())) for model in models]
    times = (_in_parts if timed_in_parts(lean[0]) else _whole)(lean, feeds, threads, seconds)
    return [_by_part(model.proto, parts, found) for model, found in zip(lean, times, strict=True)]


def timed_in_parts(model: LeanModel) -> bool:
    """Whether a model, and another one of at most its size beside it, are timed part by part."""
    return is_large(model) and 2 * model.weight_bytes > memory.budget() // _SHARE


def _whole(models: Sequence[LeanModel], feeds: Sequence[Feed], threads: int, seconds: float) -> list[dict[str, float]]:
    """For each model, milliseconds of the kernel by the names of its nodes and of the tensors it makes."""
    with scratch() as folder:
        runners = []
        for number, model in enumerate(models):
            with serialized(model) as (source, place):
                graph = _graph(folder, number)
                runners.append(SessionRunner(
                    source, threads=threads, folder=place, profile=folder / str(number), save_optimized=graph
                ))  # fmt: skip
        _run([partial(_of, runner.run, feeds) for runner in runners], len(feeds), seconds)
        return [_kernels(runner.end_profiling(), _graph(folder, i)) for i, runner in enumerate(runners)]


def _in_parts(
    models: Sequence[LeanModel], feeds: Sequence[Feed], threads: int, seconds: float
) -> list[dict[str, float]]:
    """The same part by part, all models cut where the first one is."""
    feeds = feeds[:_MOST_FEEDS]
    first = Parts(models[0], memory.part_bytes())
    cut = [first, *(Parts(model, memory.part_bytes(), first.stops) for model in models[1:])]
    ends = [[info.name for info in model.proto.graph.output] for model in models]
    found: list[dict[str, float]] = [{} for _ in models]
    with contextlib.ExitStack() as stack:
        spools = [stack.enter_context(Spool()) for _ in models]
        for number in range(len(first)):
            with scratch() as folder:
                own = [
                    PartSession(
                        parts, number, feeds, spool, names, threads=threads, profile=folder / str(i),
                        save_optimized=_graph(folder, i),
                    )
                    for i, (parts, spool, names) in enumerate(zip(cut, spools, ends, strict=True))
                ]  # fmt: skip
                given = [[part.feed(sample) for sample in range(len(feeds))] for part in own]
                runs = [partial(_of, part.run, of_part) for part, of_part in zip(own, given, strict=True)]
                _run(runs, len(feeds), seconds / len(first))
                for i, part in enumerate(own):
                    for sample in range(len(feeds)):
                        part.leave(sample, part.run(given[i][sample]))
                    profile = part.end_profiling()
                    if profile is not None:  # of a node that parts compute again, the first run counts
                        found[i] = _kernels(profile, _graph(folder, i)) | found[i]
                del own, runs, given
            memory.release()
    return found


def _of(run: Callable[[Feed], object], feeds: Sequence[Feed], sample: int) -> None:
    run(feeds[sample])


def _run(runs: Sequence[Callable[[int], None]], samples: int, seconds: float) -> None:
    """Run models interleaved until the time is over."""
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < _MOST_ROUNDS and (rounds < _LEAST_ROUNDS or time.perf_counter() < end):
        for run in runs:
            run(rounds % samples)
        rounds += 1


def _kernels(profile: Path, optimized: Path) -> dict[str, float]:
    """Milliseconds of the kernel by the names of its nodes and of the tensors it makes."""
    times = _node_times(json.loads(profile.read_bytes()))
    makers = _makers(onnx.load(str(optimized), load_external_data=False))
    return {name: times.get(node, 0.0) for name, node in makers.items()}


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


def _by_part(proto: ModelProto, parts: Mapping[str, str], times: Mapping[str, float]) -> dict[str, float]:
    readers = defaultdict(list)
    makers = {name: node for node in proto.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        for name in node.input:
            readers[name].append(node)
    found, ends = {}, set(parts.values())
    for part, tensor in parts.items():
        maker = makers.get(tensor)
        if maker is not None and maker.op_type == "Split" and maker.name != part:
            found[part] = _share_of_merged(maker, tensor, makers, constants, times)
            continue
        names = (part, *_downstream(tensor, readers, ends))
        found[part] = next((times[name] for name in names if name in times), 0.0)
    return found


def _share_of_merged(
    split: onnx.NodeProto,
    tensor: str,
    makers: Mapping[str, onnx.NodeProto],
    constants: Mapping[str, onnx.TensorProto],
    times: Mapping[str, float],
) -> float:
    """The time of a part whose product was merged with others of the same input: its share by its number of outputs."""
    total, name = 0.0, split.input[0]
    for _ in range(_FAR + 1):  # from the Split back to the product
        total += times.get(name, 0.0)
        maker = makers.get(name)
        if maker is None or "MatMul" in maker.op_type or maker.op_type == "Gemm":
            break
        name = maker.input[0]
    given = constants.get(split.input[1]) if len(split.input) > 1 else None
    sizes = [1] * len(split.output) if given is None else onnx.numpy_helper.to_array(given).tolist()
    return total * float(sizes[list(split.output).index(tensor)]) / max(sum(sizes), 1)


def _downstream(tensor: str, readers: Mapping[str, Sequence[onnx.NodeProto]], ends: Container[str]) -> Iterator[str]:
    """The tensor, tensors computed from it, and so on, until another part begins."""
    front = [tensor]
    for _ in range(_FAR + 1):
        yield from front
        made = (name for given in front for node in readers.get(given, ()) for name in node.output)
        front = [name for name in made if name and name not in ends]

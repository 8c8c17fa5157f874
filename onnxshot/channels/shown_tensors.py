"""Show inner tensors of a model on samples, without holding those of all depths at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from numpy.typing import NDArray

from onnxshot.comparison.random_nodes import with_fixed_randomness
from onnxshot.execution.layer_rows import Feeds
from onnxshot.graph.lean_model import LeanModel
from onnxshot.runtimes.ort_runtime import Feed, Runner
from onnxshot.runtimes.parallel import in_order

Result = TypeVar("Result")


def shown(
    model: LeanModel,
    names: Iterable[str],
    feeds: Feeds,
    threads: int,
    see: Callable[[int, Mapping[str, NDArray[Any]]], Result],
) -> Iterator[tuple[int, Result]]:
    """Run a model and yield (sample, what `see` returns), for each sample once per part of the model.

    Args:
        model: The model; random nodes draw the same numbers in every run.
        names: Tensors to show; inputs of the model are allowed.
        feeds: Samples.
        threads: Samples that run at a time.
        see: Called with the number of a sample and those of the tensors that a part makes; inputs of the model come
            first, and may come with others.

    Raises:
        ModelError: The model does not run.
    """
    model = replace(model, proto=with_fixed_randomness(model.proto))
    given = {info.name for info in model.proto.graph.input}
    wanted = dict.fromkeys(names)
    runner = Runner(model.with_outputs(name for name in wanted if name not in given), threads=1, inner=True)
    inputs = [name for name in wanted if name in given]

    def picked(feed: Feed) -> dict[str, NDArray[Any]]:
        return {name: feed[name] for name in inputs if name in feed}

    if runner.in_parts == 1:

        def work(numbered: tuple[int, Feed]) -> tuple[int, Result]:
            number, feed = numbered
            return number, see(number, picked(feed) | runner.run(feed))

        yield from in_order(work, enumerate(feeds), threads)
        return
    if inputs:
        yield from ((number, see(number, picked(feed))) for number, feed in enumerate(feeds))
    for number, values in runner.events(feeds, threads):
        yield number, see(number, values)

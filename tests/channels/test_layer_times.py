"""Times of layers at any width, from those measured at full and half width."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from channel_removal import grouped
from handmade.core import model, weight
from onnx import ModelProto

from onnxshot import memory
from onnxshot.channels.costs import Cost, Product
from onnxshot.channels.layer_times import LayerTime, halved, latency_cost
from onnxshot.graph.macs import concrete_shapes
from onnxshot.runtimes import ort_layer_times

BLOCK = 8
TEXT = """net (float[1,4,6,6] x) => (float[1,3] y) {
    a = Conv<pads=[1,1,1,1]>(x, w1) b = Relu(a) d = Conv<group=48, pads=[1,1,1,1]>(b, w2) e = Conv(d, w3)
    g = Conv<group=2>(e, w6) p = GlobalAveragePool(g) q = Flatten(p) h = Gemm<transB=1>(q, w4) y = MatMul(h, w5) }"""
WEIGHTS = {
    "w1": weight(48, 4, 3, 3), "w2": weight(48, 1, 3, 3), "w3": weight(32, 48, 1, 1), "w6": weight(32, 16, 1, 1),
    "w4": weight(20, 32), "w5": weight(20, 3),
}  # fmt: skip


def blocks(width: int) -> int:
    return -(-width // BLOCK) * BLOCK


def pretended(shape: Sequence[int], op: str, group: int) -> float:
    """Time with a part for every run, and one that goes with channels read times made, in blocks in a Conv."""
    if op != "Conv":
        return 5.0 + 0.1 * shape[0] * shape[1]
    read, made = shape[1] * group, shape[0]
    per_group = 0.1 * blocks(made) if group == read == made else 0.01 * blocks(read) * blocks(made) / group
    return 5.0 + per_group * shape[2] * shape[3]


def table(monkeypatch: pytest.MonkeyPatch) -> tuple[Cost, Any, list[ModelProto]]:
    given: list[ModelProto] = []

    def layer_times(models: Iterable[ModelProto], **_: object) -> list[float]:
        given.extend(models)
        nodes = [(m.graph.node[0], m.graph.initializer[0].dims) for m in given]
        return [
            pretended(dims, node.op_type, next((a.i for a in node.attribute if a.name == "group"), 1))
            for node, dims in nodes
        ]

    monkeypatch.setattr("onnxshot.channels.layer_times.layer_times", layer_times)
    monkeypatch.setattr("onnxshot.channels.layer_times.conv_block", lambda: BLOCK)
    proto = model(TEXT, WEIGHTS)
    for i, node in enumerate(proto.graph.node):
        node.name = f"n{i}"
    ready, groups = grouped(proto)
    return latency_cost(ready.to_proto(), groups.axes, concrete_shapes(ready)), groups, given


def test_times_are_those_of_the_layers_as_they_will_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times here go with the product of the widths, in blocks: the surface through four of them is right everywhere."""
    work, groups, _ = table(monkeypatch)
    of, rng = groups.axes.of, np.random.default_rng(0)
    for _ in range(20):
        alive = rng.random(groups.axes.count) < rng.uniform(0.1, 1)
        alive[list(groups.axes.fixed)] = True
        a, e, q, h = (int(alive[of[w][axis]].sum()) for w, axis in (("w1", 0), ("w3", 0), ("w4", 1), ("w4", 0)))
        if min(a, e, q, h) == 0:
            continue
        want = [
            pretended((a, 4, 3, 3), "Conv", 1), pretended((a, 1, 3, 3), "Conv", a), pretended((e, a, 1, 1), "Conv", 1),
            pretended((h, q), "Gemm", 1), pretended((h, 3), "MatMul", 1),
        ]  # fmt: skip
        np.testing.assert_allclose([part.left(alive) for part in work.parts if isinstance(part, LayerTime)], want)
        whole = pretended((32, 16, 1, 1), "Conv", 2)
        (grouped_conv,) = (part for part in work.parts if isinstance(part, Product))
        assert grouped_conv.left(alive) <= whole
    assert grouped_conv.left(np.ones(groups.axes.count, bool)) == whole
    assert work.left(np.zeros(groups.axes.count, bool)) == 0


def test_layers_are_timed_in_models_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, given = table(monkeypatch)
    shapes = {tuple(m.graph.initializer[0].dims) for m in given}
    assert {(48, 4, 3, 3), (24, 4, 3, 3), (48, 1, 3, 3), (24, 1, 3, 3), (16, 24, 1, 1), (10, 16), (10, 3)} <= shapes
    assert all(np.isfinite(t) and t > 0 for t in ort_layer_times.layer_times(given, threads=1, seconds=0.0))


def test_layers_over_the_budget_are_timed_with_fewer_outputs_and_a_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, groups, _ = table(monkeypatch)
    monkeypatch.setattr(memory, "part_bytes", lambda: 2000)
    runs: list[list[int]] = []

    def layer_times(models: Iterable[ModelProto], **_: object) -> list[float]:
        sizes = [int(np.prod(m.graph.initializer[0].dims)) for m in models]
        runs.append([4 * size for size in sizes])
        return [0.5 * size for size in sizes]  # proportional to the weight

    monkeypatch.setattr("onnxshot.channels.layer_times.layer_times", layer_times)
    proto = model(TEXT, WEIGHTS)
    for i, node in enumerate(proto.graph.node):
        node.name = f"n{i}"
    ready, _ = grouped(proto)
    cost = latency_cost(ready.to_proto(), groups.axes, concrete_shapes(ready))
    assert all(sum(run) <= 2000 or len(run) == 1 for run in runs)
    assert len(runs) > 1
    alive = np.ones(groups.axes.count, bool)
    times = [part.left(alive) for part in cost.parts if isinstance(part, LayerTime)]
    shapes = [w.size for name, w in WEIGHTS.items() if name != "w6"]
    np.testing.assert_allclose(sorted(times), sorted(0.5 * size for size in shapes))


def test_halves_are_whole_blocks() -> None:
    assert [halved(n, 16) for n in (8, 16, 17, 24, 32, 48, 64, 144)] == [8, 16, 16, 16, 16, 32, 32, 80]
    assert [halved(n, 1) for n in (1, 2, 3, 10)] == [1, 1, 2, 5]


def test_a_block_is_what_onnx_runtime_stores() -> None:
    assert ort_layer_times.conv_block() in (1, 4, 8, 16)

"""Channels removed from models that run in parts, and layers whose second moments exceed the memory budget."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from channel_removal import grouped
from handmade.core import feeds, model, vector, weight
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from onnxshot import memory
from onnxshot.api.shrink import shrink
from onnxshot.channels import error_importance, layer_fit, layer_inputs
from onnxshot.channels.layer_fit import fit
from onnxshot.channels.layer_inputs import layers_of
from onnxshot.graph import weights
from onnxshot.graph.weight_pieces import rows
from onnxshot.maths.channel_removal import Reader, compensated_weights, removal_order
from onnxshot.passes.cut_channels import CutChannels
from onnxshot.results.shrunk import ShrinkResult
from onnxshot.settings import Settings

QUICK = Settings(verify=False, use_cache=False, threads=1, bench_seconds=0.02)
CALIB = feeds(24, x=(4, 32))


def mlps() -> ModelProto:
    """Two MLPs with weights that a LeanModel does not hold in its proto."""
    text = """net (float[4, 32] x) => (float[4, 32] y) {
        a = Gemm<transB=1>(x, w1, b1) b = Relu(a) c = MatMul(b, w2) d = Add(c, x)
        e = Gemm<transB=1>(d, w3, b3) f = Relu(e) y = Gemm<transB=1>(f, w4, b4) }"""
    shapes = {"w1": (64, 32), "w2": (64, 32), "w3": (64, 32), "w4": (32, 64)}
    values: dict[str, Any] = {name: weight(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    proto = model(text, values | {"b1": vector(64), "b3": vector(64), "b4": vector(32)})
    for node in proto.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return proto


def shrunk(**options: Any) -> ShrinkResult:
    return shrink(mlps(), CALIB, **{"settings": QUICK, "multiple": 1, "target_params": 0.7, **options})


def constants(result: ShrinkResult) -> dict[str, NDArray[Any]]:
    return {t.name: numpy_helper.to_array(t) for t in result.model.to_proto().graph.initializer}


@pytest.mark.parametrize("importance", ["error", "activation", "l2"])
def test_models_in_parts_lose_the_same_channels_and_get_the_same_weights(
    importance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = constants(shrunk(importance=importance))
    monkeypatch.setattr(memory, "part_bytes", lambda: 9000)
    monkeypatch.setattr(memory, "held_bytes", lambda: 5000)
    parts = constants(shrunk(importance=importance))
    assert whole.keys() == parts.keys()
    assert whole["w1"].shape[0] < 64 or whole["w3"].shape[0] < 64
    for name, values in whole.items():
        np.testing.assert_allclose(parts[name], values, rtol=1e-4, atol=1e-5)


def test_large_weights_are_cut_when_they_are_read_and_by_rows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    removed = frozenset(i for group in grouped(mlps())[1].rows for i in group.ids[::3].tolist())
    found = []
    for limit in (memory.part_bytes(), 0):
        monkeypatch.setattr(memory, "part_bytes", lambda limit=limit: limit)
        net, groups = grouped(mlps())
        CutChannels(groups.axes, removed).run(net)
        found.append({constant.name: constant for constant in net.constants()})
    whole, lazy = found
    assert whole["w1"].shape[0] < 64
    for name, constant in lazy.items():
        values = weights.read(whole[name])
        np.testing.assert_array_equal(weights.read(constant), values)
        np.testing.assert_array_equal(rows(constant, 3, 9), values[3:9])
    assert isinstance(lazy["w1"]._values, weights.ComputedValues)
    assert isinstance(whole["w1"]._values, np.ndarray)


def test_inputs_that_count_as_independent_have_the_costs_of_diagonal_moments() -> None:
    rng = np.random.default_rng(1)
    table, diagonal = rng.normal(size=(1, 5, 8)), rng.uniform(0.1, 2, (1, 8))
    owner = np.asarray([0, 0, 1, 1, 2, 2, 3, -1])
    full, alone = (Reader(table, second, owner) for second in (diagonal[:, :, None] * np.eye(8), diagonal))
    for one, other in zip(removal_order([full], 4, 3, 1), removal_order([alone], 4, 3, 1), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)
    gone = np.asarray([True, False, False, True])
    expected = table.copy()
    expected[:, :, [0, 1, 6]] = 0
    np.testing.assert_array_equal(compensated_weights(alone, gone), expected)
    np.testing.assert_allclose(compensated_weights(full, gone), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("place", "name", "most"), [(layer_inputs, "_MOST_COLUMNS", 48), (error_importance, "_GROUP_SHARE", 1 << 40)]
)
def test_layers_whose_second_moments_are_too_large_are_named(
    place: Any, name: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compensated = shrunk()
    assert not any("compensation" in note for note in compensated.report.notes)
    monkeypatch.setattr(place, name, most)
    found = shrunk()
    (note,) = (note for note in found.report.notes if "without compensation" in note)
    assert "'MatMul_c'" in note
    assert "'Gemm_y'" in note
    assert constants(found).keys() == constants(compensated).keys()


def rows_of(values: NDArray[np.float32]) -> Callable[[slice], NDArray[np.float32]]:
    return lambda piece: values[:, piece]


def case(centred: bool) -> tuple[Any, ...]:
    """A Gemm with 12 outputs of 16 inputs, rows of them on eight samples, and what it should give."""
    text = "net (float[4, 16] x) => (float[4, 12] y) { y = Gemm<transB=1>(x, w, b) }"
    proto = model(text, {"w": weight(12, 16), "b": vector(12)})
    proto.graph.node[0].name = "one"
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(40, 1, 16)).astype(np.float32) for _ in range(8)]
    true = rng.normal(size=(12, 16)).astype(np.float32)
    wanted = np.concatenate(x)[:, 0] @ true.T + 1
    bias = vector(12) if centred else None
    return layers_of(proto)["one"], weight(12, 16), bias, x, wanted, true


@pytest.mark.parametrize("centred", [True, False])
def test_a_layer_fitted_a_piece_of_its_outputs_at_a_time_is_the_same(
    centred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, old, bias, x, wanted, _ = case(centred)
    whole = fit(layer, old, bias, x, rows_of(wanted), None, lambda values: values)
    monkeypatch.setattr(layer_fit, "output_pieces", lambda _: [slice(0, 5), slice(5, 10), slice(10, 12)])
    pieces = fit(layer, old, bias, x, rows_of(wanted), None, lambda values: values)
    assert whole.keys() == pieces.keys() == ({"w", "b"} if centred else {"w"})
    for name, values in whole.items():
        np.testing.assert_allclose(pieces[name], values, rtol=1e-4, atol=1e-5)


def test_a_layer_fitted_a_block_of_its_inputs_at_a_time_is_nearly_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, old, bias, x, wanted, true = case(centred=True)
    errors = []
    for most in (3072, 6):
        monkeypatch.setattr(layer_inputs, "_MOST_COLUMNS", most)
        found = fit(layer, old, bias, x, rows_of(wanted), None, lambda values: values)
        errors.append(float(np.square(found["w"] - true).mean()))
    before = float(np.square(old - true).mean())
    assert errors[0] < 1e-3 * before
    assert errors[0] < errors[1] < 0.05 * before

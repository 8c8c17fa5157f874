"""What channels are worth by scales of BatchNormalizations and by activations, against numpy; which of them go."""

from typing import Any

import numpy as np
import pytest
from channel_removal import grouped
from handmade.core import feeds, model, vector, weight
from onnx import ModelProto, numpy_helper
from pass_checks import loaded

from onnxshot.api.shrink import shrink
from onnxshot.channels.activation_scores import activation_scores
from onnxshot.channels.weight_scores import batchnorm_scales, batchnorm_scores
from onnxshot.errors import UsageError
from onnxshot.results.shrunk import ShrinkResult
from onnxshot.settings import Settings

QUICK = Settings(verify=False, use_cache=False, threads=1, bench_seconds=0.02)
CALIB = feeds(12, x=(2, 4, 6, 6))


def norm(size: int, seed: int, prefix: str) -> dict[str, Any]:
    values = {"g": vector(size, seed, -1, 1), "b": vector(size, seed + 1), "m": vector(size, seed + 2)}
    return {f"{prefix}{k}": v for k, v in (values | {"v": vector(size, seed + 3, 0.5, 2)}).items()}


def named(text: str, constants: dict[str, Any]) -> ModelProto:
    proto = model(text, constants)
    for node in proto.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return proto


def blocks() -> ModelProto:
    """An inverted residual block with a BatchNormalization behind each Conv, and a Conv without."""
    text = """net (float[2,4,6,6] x) => (float[2,3,6,6] y) {
        a = Conv(x, w1) an = BatchNormalization(a, pg, pb, pm, pv) ar = Relu(an)
        d = Conv<group=16, pads=[1,1,1,1]>(ar, w2) dn = BatchNormalization(d, qg, qb, qm, qv) dr = Relu(dn)
        e = Conv(dr, w3) f = Relu(e) y = Conv(f, w4) }"""
    constants = {
        "w1": weight(16, 4, 1, 1),
        "w2": weight(16, 1, 3, 3),
        "w3": weight(8, 16, 1, 1),
        "w4": weight(3, 8, 1, 1),
    }
    return named(text, {**constants, **norm(16, 1, "p"), **norm(16, 5, "q")})


def scales_of(proto: ModelProto) -> dict[str, Any]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def shrunk(proto: ModelProto, calib: Any = None, **options: Any) -> ShrinkResult:
    return shrink(proto, calib, **{"settings": QUICK, "multiple": 1, **options})


def test_scales_of_all_layers_a_channel_is_in_are_added_up() -> None:
    proto = blocks()
    values = scales_of(proto)
    scales = batchnorm_scales(loaded(proto))
    assert {name: gamma.tolist() for name, gamma in scales.items()} == {
        "a": np.abs(values["pg"]).tolist(), "d": np.abs(values["qg"]).tolist(),
    }  # fmt: skip
    _, groups = grouped(proto)
    scores = batchnorm_scores(groups.axes, scales)
    np.testing.assert_allclose(scores[groups.axes.of["a"][1]], np.abs(values["pg"]) + np.abs(values["qg"]))
    assert np.isnan(scores[groups.axes.of["e"][1]]).all()


def test_what_is_multiplied_by_the_least_scales_goes_though_they_are_folded_by_then() -> None:
    proto = blocks()
    values = scales_of(proto)
    found = shrunk(proto, target_flops=0.7, importance="batchnorm")
    (row,) = found.report.groups
    assert (row.group, row.before) == ("Conv_a", 16)
    assert row.after < 16
    assert {"Conv_e"} == {s.node for s in found.report.skips if "importance 'batchnorm'" in s.reason}
    stays = np.sort(np.argsort(np.abs(values["pg"]) + np.abs(values["qg"]))[16 - row.after :])
    (first,) = (node for node in found.model.graph.nodes if node.name == "Conv_a")
    assert not any(node.op == "BatchNormalization" for node in found.model.graph.nodes)
    wanted = values["w1"] * (values["pg"] / np.sqrt(values["pv"] + np.float32(1e-5)))[:, None, None, None]
    np.testing.assert_allclose(first.inputs[1].values, wanted[stays], rtol=1e-5)


def test_a_model_without_batch_normalization_has_no_scales() -> None:
    text = "net (float[1,4,6,6] x) => (float[1,3,6,6] y) { a = Conv(x, w1) y = Conv(a, w2) }"
    proto = named(text, {"w1": weight(8, 4, 1, 1), "w2": weight(3, 8, 1, 1)})
    with pytest.raises(UsageError, match="is followed by a BatchNormalization") as caught:
        shrunk(proto, target_flops=0.7, importance="batchnorm")
    assert "folded" in caught.value.hint


def test_activations_are_the_energy_that_a_channel_brings_into_its_readers() -> None:
    """A Conv, a Conv of two groups, and a MatMul: numpy's mean squares of what they read, times their weights'."""
    text = """net (float[2,4,6,6] x) => (float[2,3] y) { a = Conv(x, w1) b = Relu(a) c = Conv<group=2>(b, w2)
        d = Conv(b, w3) e = Add(c, d) p = GlobalAveragePool(e) q = Flatten(p) y = MatMul(q, w4) }"""
    constants = {"w1": weight(8, 4, 1, 1), "w2": weight(6, 4, 3, 3), "w3": weight(6, 8, 3, 3), "w4": weight(6, 3)}
    proto = named(text, constants)
    ready, groups = grouped(proto)
    found = activation_scores(ready.to_proto(), groups.axes, CALIB, 2)
    wanted = np.zeros(groups.axes.count)

    def add(name: str, axis: int, energy: Any) -> None:
        np.add.at(wanted, groups.axes.of[name][axis], energy / energy.sum())

    x = np.concatenate([feed["x"] for feed in CALIB])
    b = np.maximum(np.einsum("nchw,oc->nohw", x, constants["w1"][:, :, 0, 0]), 0)
    of_b = np.square(b).mean(axis=(0, 2, 3))
    halves = np.square(constants["w2"]).reshape(2, 3, 4, 9).sum(axis=(1, 3)).reshape(8)
    add("b", 1, halves * of_b)
    add("b", 1, np.square(constants["w3"]).sum(axis=(0, 2, 3)) * of_b)
    windows = np.lib.stride_tricks.sliding_window_view(b, (3, 3), (2, 3))  # [N, C, H, W, 3, 3]
    first = np.einsum(
        "ngchwij,gocij->ngohw", windows.reshape(-1, 2, 4, 4, 4, 3, 3), constants["w2"].reshape(2, 3, 4, 3, 3)
    )
    second = np.einsum("nchwij,ocij->nohw", windows, constants["w3"])
    q = (first.reshape(second.shape) + second).mean(axis=(2, 3))
    add("q", 1, np.square(constants["w4"]).sum(axis=1) * np.square(q).mean(axis=0))
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_what_is_large_by_its_weights_and_small_on_the_samples_goes() -> None:
    text = "net (float[2,4,6,6] x) => (float[2,3,6,6] y) { a = Conv(x, w1, b1) b = Relu(a) y = Conv(b, w2) }"
    first, second = weight(8, 4, 1, 1), weight(3, 8, 1, 1)
    bias = np.zeros(8, np.float32)
    bias[2:4], second[:, 2:4] = -50.0, 9.0  # never above zero
    proto = named(text, {"w1": first, "b1": bias, "w2": second})
    for importance, gone in (("activation", True), ("l2", False)):
        found = shrunk(proto, CALIB, target_flops=0.75, importance=importance)
        (row,) = found.report.groups
        assert row.after == 6
        (node,) = (node for node in found.model.graph.nodes if node.name == "Conv_a")
        assert (node.inputs[2].values > -40).all() == gone


def test_activations_need_samples() -> None:
    with pytest.raises(UsageError, match="importance 'activation' needs data"):
        shrunk(blocks(), target_flops=0.7, importance="activation")

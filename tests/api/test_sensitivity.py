"""The table of sensitivities against models quantized by hand and run in ONNX Runtime."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from fixture_data import fixture, heldout
from fixture_runs import command, data_of, outputs, sqnr
from handmade import Case
from handmade.core import Feed, feeds, model, weight
from parted import others
from planned_models import planned

from onnxshot import Settings, errors, memory, quantize, sensitivity
from onnxshot.api.sensitivity import Sensitivity
from onnxshot.calibration.sampling import spread

SEEN = [others(range(12))[i] for i in sorted(spread(9)[:8])]  # 9 of 12 are calibrated on, and 8 of them measured on
QUICK = Settings(samples=12, verify=False, use_cache=False, threads=1)
ADD = "/blocks/blocks.1/Add"


@pytest.fixture(scope="module")
def given() -> list[Feed]:
    return heldout("digits_resnet")[0][:12]


@pytest.fixture(scope="module")
def table(given: list[Feed]) -> Sensitivity:
    return sensitivity(fixture("digits_resnet"), given, gains=True, method="minmax", settings=QUICK, effort="fast")


def made(given: list[Feed], **options: object) -> float:
    """SQNR over the samples that are measured on, of what `quantize` makes."""
    found = quantize(fixture("digits_resnet"), given, method="minmax", settings=QUICK, effort="fast", **options)
    seen = [given[i] for i in SEEN]
    return sqnr(outputs(fixture("digits_resnet"), seen), outputs(found.model.to_proto(), seen))


def test_every_figure_is_that_of_a_model_made_by_hand(table: Sensitivity, given: list[Feed]) -> None:
    weighted = [row.node for row in table.nodes if row.op == "Conv"]
    assert table.samples == 8
    assert table.sqnr_db == pytest.approx(made(given), abs=0.01)
    for node in (weighted[0], weighted[-1]):
        (row,) = (row for row in table.nodes if row.node == node)
        others = [name for name in weighted if name != node]
        assert row.per_channel_db == pytest.approx(made(given, exclude=others, include=[node]), abs=0.01)
        rough = made(given, exclude=others, include=[node], per_channel=False)
        assert row.per_tensor_db == pytest.approx(rough, abs=0.01)
        assert row.float_gain_db == pytest.approx(made(given, exclude=[node]) - table.sqnr_db, abs=0.01)


def test_rows_are_the_nodes_of_the_plan_worst_first(table: Sensitivity) -> None:
    _, plan = planned(Case(onnx.load(str(fixture("digits_resnet"))), []))
    convs = {n.node for n in plan.nodes if n.op == "Conv" and n.how == "static"}
    assert len(convs) > 3, "all but the thin stem"
    assert {row.node for row in table.nodes if row.op in ("Conv", "Gemm")} == convs, "the small Gemm stays float"
    figures = [row.per_channel_db for row in table.nodes if row.per_channel_db is not None]
    assert figures == sorted(figures)
    assert sum(row.macs_share for row in table.nodes) == pytest.approx(1, abs=0.01)
    add = next(row for row in table.nodes if row.node == ADD)
    assert add.per_channel_db is not None, "the followers that are int8 have rows of their own"
    assert add.per_tensor_db is None, "it has no weight"
    assert not any(row.op == "Relu" for row in table.nodes), "it is fused with the Conv before"


def test_a_node_with_one_scale_costs_more_where_channels_differ() -> None:
    """On a target that quantizes no outputs: the scale of one would hide that of the weight."""
    w = weight(8, 8, 3, 3) * np.geomspace(1, 100, 8).reshape(8, 1, 1, 1).astype(np.float32)
    text = """g (float[1, 8, 8, 8] x) => (float[1, 8, 8, 8] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w1) n = InstanceNormalization(a, one, zero)
        y = Conv<pads = [1, 1, 1, 1]>(n, w2)
    }"""
    ones = {"one": np.ones(8, np.float32), "zero": np.zeros(8, np.float32)}
    proto = model(text, {"w1": w, "w2": weight(8, 8, 3, 3)} | ones)
    proto.graph.node[0].name, proto.graph.node[2].name = "a[0]*", "Conv"
    found = sensitivity(proto, feeds(8, x=(1, 8, 8, 8)), target="tensorrt", settings=QUICK)
    first = next(row for row in found.nodes if row.node == "a[0]*")
    assert first.per_channel_db is not None
    assert first.per_tensor_db is not None
    assert first.per_channel_db > first.per_tensor_db + 10
    patterns = {row.node: row.exclude for row in found.nodes}
    assert patterns == {"a[0]*": "a[[]0][*]", "Conv": "y"}, "a name that is an op type would pick both"


def test_what_a_stored_weight_costs_is_in_the_table() -> None:
    """Against numpy: the weight of a Gemm in float, rounded to 8 bits by row, all else being as it was."""
    text = """g (float[n, 16, 8, 8] x) => (float[n, 32] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w) r = Relu(a) p = GlobalAveragePool(r) f = Flatten(p)
        y = Gemm<transB = 1>(f, head)
    }"""
    head = weight(32, 32)
    given = model(text, {"w": weight(32, 16, 3, 3, seed=1), "head": head})
    given.graph.node[4].name = "head"
    samples = feeds(12, x=(1, 16, 8, 8))
    seen = [samples[i] for i in SEEN]
    wanted = outputs(given, seen)
    found = sensitivity(given, samples, settings=QUICK, effort="fast", gains=True)
    assert found.samples == 8
    row = next(row for row in found.nodes if row.op == "Gemm")
    assert (row.node, row.how, row.exclude) == ("head", "stored", "head")
    rounded = onnx.ModelProto()
    for axis, measured in ((1, row.per_channel_db), (None, row.per_tensor_db)):
        scale = np.abs(head).max(axis=axis, keepdims=True) / np.float32(127)
        rounded.CopyFrom(given)
        (stored,) = (t for t in rounded.graph.initializer if t.name == "head")
        stored.CopyFrom(onnx.numpy_helper.from_array(np.rint(head / scale) * scale, "head"))
        assert measured == pytest.approx(sqnr(wanted, outputs(rounded, seen)), abs=0.01)
    (conv,) = (row for row in found.nodes if row.op == "Conv")
    without = quantize(given, samples, settings=QUICK, effort="fast", exclude=["head"]).model.to_proto()
    alone = sqnr(wanted, outputs(without, seen))
    assert conv.per_channel_db == pytest.approx(alone, abs=0.01), "the stored weight is no part of what the Conv costs"
    assert row.float_gain_db == pytest.approx(alone - found.sqnr_db, abs=0.01)


@pytest.mark.parametrize("mode", ["dynamic", "weights"])
def test_other_modes_have_a_table_too(mode: str) -> None:
    given = heldout("licence_encoder")[0][:8]
    found = sensitivity(fixture("licence_encoder"), given, mode=mode, settings=QUICK)
    assert {row.how for row in found.nodes} <= {"dynamic", "weights"}
    assert all(row.per_channel_db is not None and row.per_channel_db > 20 for row in found.nodes)


def test_the_command_prints_a_table_and_writes_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = data_of("digits_mobile")
    common = ["--calib", data["calib"], "--preset", data["preset"], "--samples", "12", "--threads", "1"]
    report = tmp_path / "s.json"
    assert command("sensitivity", fixture("digits_mobile"), *common, "--json", "--report", report) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {k: v for k, v in printed.items()} == json.loads(report.read_text())
    assert printed["nodes"][0]["float_gain_db"] is None
    assert command("sensitivity", fixture("digits_mobile"), *common) == 0
    text = capsys.readouterr().err
    assert printed["nodes"][0]["node"].split("/")[-1] in text
    assert "per tensor" in text


def test_data_is_needed() -> None:
    with pytest.raises(errors.UsageError, match="give calib=DATA"):
        sensitivity(fixture("digits_resnet"), None, mode="weights")


def test_a_model_in_parts_has_the_same_table_and_says_that_its_nodes_are_timed_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = """net (float[4, 64] x) => (float[4, 16] y) {
        a = Gemm<transB=1>(x, w1) b = Relu(a) c = Gemm<transB=1>(b, w2) d = Relu(c) y = Gemm<transB=1>(d, w3) }"""
    proto = model(text, {"w1": weight(64, 64), "w2": weight(64, 64, seed=1), "w3": weight(16, 64, seed=2)})
    for i, node in enumerate(proto.graph.node):
        node.name = f"n{i}"
    given = feeds(8, x=(4, 64))
    whole = sensitivity(proto, given, method="minmax", settings=QUICK, effort="fast")
    monkeypatch.setattr(memory, "part_bytes", lambda: 20_000)
    monkeypatch.setattr(memory, "budget", lambda: 200_000)
    parts = sensitivity(proto, given, method="minmax", settings=QUICK, effort="fast")
    assert not any("timed in parts" in note for note in whole.notes)
    assert any("timed in parts" in note for note in parts.notes)
    assert [row.node for row in parts.nodes] == [row.node for row in whole.nodes]
    for one, other in zip(whole.nodes, parts.nodes, strict=True):
        assert other.per_channel_db == pytest.approx(one.per_channel_db, abs=0.1)
        assert other.float_ms > 0
        assert other.int8_ms > 0

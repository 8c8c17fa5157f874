"""One file for every runtime: what it holds, what each runtime is asked, and what it costs is told."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from copying_runtime import Copying
from handmade import HANDMADE
from handmade.core import vector, weight
from parted import held_out
from planned_models import FAST, PROVEN, initializers, maker, nodes_of, run, small

from onnxshot import quantize
from onnxshot.delivery import artifacts, portability
from onnxshot.errors import TargetError
from onnxshot.graph.skip import Skip
from onnxshot.targets import TARGETS

BLOCKS = ("resnet_block", "mbconv_block", "squeeze_excite", "attention_block", "embedding")


@pytest.fixture
def copying(monkeypatch: pytest.MonkeyPatch) -> Copying:
    """The only runtime there is beside ONNX Runtime."""
    runtime = Copying()
    for name in list(artifacts.RUNTIMES):
        monkeypatch.delitem(artifacts.RUNTIMES, name)
    monkeypatch.setitem(artifacts.RUNTIMES, "copy", runtime)
    return runtime


@pytest.mark.parametrize("name", BLOCKS)
def test_it_holds_what_every_runtime_takes(name: str) -> None:
    case = HANDMADE[name]()
    proto = quantize(case.model, case.feeds, target="portable", settings=FAST).model.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    values = initializers(proto)
    for node in (*nodes_of(proto, "QuantizeLinear"), *nodes_of(proto, "DequantizeLinear")):
        zero = values[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
        assert values.get(node.input[0], zero).dtype == np.int8
    assert {n.domain for n in proto.graph.node} <= {"", "ai.onnx"}
    for conv in nodes_of(proto, "Conv"):
        axes = [a.i for a in maker(proto, conv.input[1]).attribute if a.name == "axis"]
        assert axes == [0]


def test_onnx_runtime_fuses_a_chain_of_it() -> None:
    """A pair stands before each Relu too: with zero point 0 the Q behind it does not do its work."""
    text = """g (float[1, 8, 12, 12] x) => (float[1, 8, 12, 12] y) {
        a = Conv(x, w1, b)
        r = Relu(a)
        c = Conv(r, w2, b)
        s = Relu(c)
        d = Conv(s, w3)
        y = Relu(d)
    }"""
    constants = {f"w{i}": weight(8, 8, 1, 1, seed=i) for i in (1, 2, 3)}
    case = small(text, {**constants, "b": vector(8)}, x=(1, 8, 12, 12))
    result = quantize(case.model, case.feeds, target="portable", effort="fast", settings=PROVEN)
    assert result.report.int8_macs_share == pytest.approx(1.0)
    proto = result.model.to_proto()
    for relu in nodes_of(proto, "Relu"):
        assert maker(proto, relu.input[0]).op_type == "DequantizeLinear"
    # Taking the pair before a Relu out again changes no bit.
    plain = onnx.ModelProto()
    plain.CopyFrom(proto)
    for relu in nodes_of(plain, "Relu"):
        dq = maker(plain, relu.input[0])
        relu.input[0] = maker(plain, dq.input[0]).input[0]
    for feed in case.feeds:
        for wanted, got in zip(run(proto, feed, optimize=False), run(plain, feed, optimize=False), strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_every_runtime_is_asked_and_the_price_is_told(copying: Copying, tmp_path: Path) -> None:
    case = HANDMADE["resnet_block"]()
    result = quantize(case.model, case.feeds, target="portable", settings=PROVEN, output=tmp_path / "one.onnx")
    report = result.report
    (row,) = report.runtimes
    assert row["runtime"] == "copy"
    assert row["int8_macs_share"] == pytest.approx(0.75)
    assert row["sqnr_db"] == pytest.approx(report.sqnr_db)
    alone = quantize(case.model, case.feeds, target="ort", settings=PROVEN)
    assert report.single["target"] == "ort"
    assert report.single["sqnr_db"] == pytest.approx(alone.report.sqnr_db, abs=1e-6)
    assert report.single["speedup"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.onnx", "one.recipe.yaml"]
    assert any(note.startswith("in copy: 75 % of the work in int8") for note in report.notes)
    assert any(note.startswith("for ort alone: SQNR") for note in report.notes)
    assert report.to_dict()["runtimes"][0]["runtime"] == "copy"


def test_runtimes_that_want_sizes_get_those_of_the_samples(copying: Copying) -> None:
    text = "g (float[N, 4, W] x, float[1] t) => (float[N, 4, W] y) { c = Conv(x, w) y = Mul(c, t) }"
    case = small(text, {"w": weight(4, 4, 1)}, x=(1, 4, 8), t=(1,))
    for i, feed in enumerate(case.feeds):
        feed["x"] = feed["x"][..., : 8 - i]
    settings = replace(PROVEN, samples="all")
    given = [*case.feeds, *case.feeds]
    quantize(case.model, given, target="portable", settings=settings)
    (options,) = copying.made
    lengths = [feed["x"].shape[2] for feed in held_out(given)]
    least, usual, most = options.sampled["x"]
    assert (least, most) == ((1, 4, min(lengths)), (1, 4, max(lengths)))
    assert usual in [(1, 4, length) for length in lengths]


def test_what_is_missing_or_refuses_is_told(copying: Copying) -> None:
    case = HANDMADE["resnet_block"]()
    copying.absent = True
    report = quantize(case.model, case.feeds, target="portable", settings=PROVEN).report
    assert report.runtimes == [{"runtime": "copy", "missing": "copy is not installed (pip install copy)"}]
    assert any(note.startswith("not checked in copy") for note in report.notes)
    copying.absent, copying.failing = False, True
    copying.preflight = lambda model: [Skip("c1", "Conv", "it is odd")]  # type: ignore[method-assign,return-value,list-item]
    report = quantize(case.model, case.feeds, target="portable", settings=PROVEN).report
    assert "copy refuses node 'c1'" in report.runtimes[0]["refused"]
    assert report.runtimes[0]["findings"] == ["c1 (Conv): it is odd"]
    assert any(note.startswith("not portable: copy does not take it") for note in report.notes)


def test_the_words() -> None:
    row: dict[str, Any] = {"int8_macs_share": None, "sqnr_db": None, "notes": ["a"], "findings": ["b"]}
    assert portability.in_words([{"runtime": "x", **row}], {}) == ["in x: a, b"]


def test_types_it_has_not_are_refused() -> None:
    case = HANDMADE["resnet_block"]()
    with pytest.raises(TargetError, match="non-zero zero point"):
        quantize(case.model, case.feeds, target="portable", activation_type="uint8", settings=FAST)
    assert TARGETS["portable"].everywhere

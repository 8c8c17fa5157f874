"""Kernels read from a builder's log, with lines as TensorRT-RTX 1.7 writes them."""

from pathlib import Path

import numpy as np
from handmade.core import model, weight

from onnxshot.graph.load import load_model
from onnxshot.runtimes.tensorrt_log import execution, kernels


def tensors(*kinds: str) -> str:
    return ", ".join(f"{{ Name: t{i}, Dimensions: [1,8], Datatype: {k}, Format: (NHWC) Channel major format }}"
                     for i, k in enumerate(kinds))  # fmt: skip


def line(name: str, kind: str, inputs: tuple[str, ...], constants: tuple[str, ...], nodes: tuple[str, ...]) -> str:
    stated = f"Constants: [ {tensors(*constants)}], " if constants else ""
    of = "\x1f".join(f"[ONNX Layer: {n}]" for n in nodes)
    return (
        f"VERBOSE|Name: {name}, LayerType: {kind}, Inputs: [ {tensors(*inputs)}], {stated}"
        f"Outputs: [ {tensors('Float')}], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: {of}\n"
    )


LOG = (
    "VERBOSE|Parsing node: a [Conv]\n",
    line("__myl_MulMinMaxRounCast_myl0_0", "kgen", ("Float",), ("Float",), ("x_quantize", "a")),
    line("a_myl0_1", "correlation", ("Int8",), ("Int8", "Float"), ("a", "x_dequantize", "w_dequantize")),
    line("__myl_MulAdd_myl0_2", "kgen", ("Float",), ("Float",), ("a", "b")),
    line("c+b_myl0_3", "gemm", ("Int8",), ("Int8",), ("c", "b")),
    line("d_myl0_4", "correlation", ("Float", "Float"), (), ("d",)),
    line("__myl_CastMulCastFc_myl0_5", "runtime_fusion", ("Int8",), ("Float", "Int8"), ("e", "w")),
    "VERBOSE| Name: x, IOMode: Input, DataType: Float, Dimensions: [1,8], Location: Device\n",
)


def test_kernels_their_types_and_the_nodes_they_stand_for() -> None:
    found = kernels(LOG)
    assert [k.kind for k in found] == ["kgen", "correlation", "kgen", "gemm", "correlation", "runtime_fusion"]
    assert [k.precision for k in found] == ["float", "int8", "float", "int8", "float", "float"]
    assert found[1].nodes == ("a", "x_dequantize", "w_dequantize")
    assert found[1].inputs == ("Int8",)
    assert [n for n in "abcde" if found[3].computes(n)] == ["b", "c"]
    assert not found[2].computes("a")  # it only rescales what another has computed


def test_every_product_is_told_with_its_work_and_what_was_asked_for_in_vain(tmp_path: Path) -> None:
    text = """net (float[1,8,4,4] x) => (float y) {
        q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  wd = DequantizeLinear(w, s, z)
        [a] p = Conv(d, wd)
        [d] r = Conv(d, wd)
        [lost] y = Conv(p, w2)
    }"""
    proto = model(
        text,
        {"s": np.float32(0.1), "z": np.int8(0), "w": np.ones((8, 8, 1, 1), np.int8), "w2": weight(4, 8, 1, 1)},
    )
    (tmp_path / "log").write_text("".join(LOG), encoding="utf-8")
    told = execution(load_model(proto), {}, tmp_path / "log")
    assert [(n.name, n.precision, n.macs) for n in told.nodes] == [
        ("a", "int8", 8 * 8 * 16), ("d", "float", 8 * 8 * 16), ("lost", "float", 4 * 8 * 16)
    ]  # fmt: skip
    assert told.float_between == ("Conv d",)
    assert told.ops == {"kgen": 2, "correlation": 2, "gemm": 1, "runtime_fusion": 1}
    assert told.share == 1024 / 2560


def test_a_log_without_kernels_says_so(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("INFO|nothing\n", encoding="utf-8")
    told = execution(load_model(model("net (float[4] x) => (float[4] y) { y = Relu(x) }")), {}, tmp_path / "log")
    assert "not known" in told.note

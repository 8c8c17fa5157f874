"""Models that ONNX Runtime's transformer optimizer has fused come out like the models that they were."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from handmade.bert import WORDS, bert
from handmade.core import Feed, feeds, model
from planned_models import FAST

from onnxshot import quantize


def _samples() -> list[Feed]:
    rng, found = np.random.default_rng(0), []
    for i in range(6):
        mask = np.ones((1, 24), np.int64)
        mask[0, 12 + 2 * i :] = 0
        ids = rng.integers(0, WORDS, (1, 24))
        found.append({"input_ids": ids, "token_type_ids": (ids > 99).astype(np.int64), "attention_mask": mask})
    return found


def _integers(path: Path) -> int:
    return sum(node.op_type == "MatMulInteger" for node in onnx.load(path).graph.node)


def test_a_saved_transformer_is_quantized_like_its_source(tmp_path: Path) -> None:
    proto, options = bert(1), onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, str(tmp_path / "saved.onnx")
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    fused = {node.op_type for node in onnx.load(tmp_path / "saved.onnx").graph.node}
    assert {"BiasGelu", "FusedMatMul", "LayerNormalization"} <= fused
    made = [
        quantize(source, _samples(), output=tmp_path / name, mode="dynamic", settings=FAST).report
        for source, name in ((tmp_path / "saved.onnx", "q.onnx"), (proto, "same.onnx"))
    ]
    assert made[0].sqnr_db == pytest.approx(made[1].sqnr_db, abs=1.5)
    assert _integers(tmp_path / "q.onnx") == _integers(tmp_path / "same.onnx") > 0


@pytest.mark.slow
def test_attention_and_embeddings_of_the_transformer_optimizer_are_quantized(tmp_path: Path) -> None:
    pytest.importorskip("sympy", reason="the optimizer of ONNX Runtime needs it")
    from onnxruntime.transformers.optimizer import optimize_model

    proto = bert(2)
    onnx.save(proto, tmp_path / "float.onnx")
    found = optimize_model(str(tmp_path / "float.onnx"), "bert", num_heads=0, hidden_size=0, opt_level=0)
    found.save_model_to_file(str(tmp_path / "fused.onnx"))
    fused = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    assert fused.count("Attention") == 2
    assert {"EmbedLayerNormalization", "SkipLayerNormalization", "BiasGelu"} <= set(fused)
    report = quantize(
        tmp_path / "fused.onnx", _samples(), output=tmp_path / "q.onnx", mode="dynamic", settings=FAST
    ).report
    same = quantize(proto, _samples(), output=tmp_path / "same.onnx", mode="dynamic", settings=FAST).report
    ops = [node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node]
    assert (ops.count("MultiHeadAttention"), ops.count("Attention")) == (2, 0)
    assert report.sqnr_db == pytest.approx(same.sqnr_db, abs=1.5)
    assert not [row for row in report.float_weights if row.op in ("Attention", "MultiHeadAttention")]


def test_a_model_of_trees_is_told_to_have_nothing_to_quantize(tmp_path: Path) -> None:
    text = 'g (float[n, 4] x) => (float[n, 4] y) { y = ai.onnx.ml.Normalizer<norm = "L2">(x) }'
    proto = model(text, imports=', "ai.onnx.ml": 3')
    report = quantize(proto, feeds(2, x=(3, 4)), output=tmp_path / "y.onnx", settings=FAST).report
    assert any("nothing to quantize" in note and "Normalizer" in note for note in report.notes)

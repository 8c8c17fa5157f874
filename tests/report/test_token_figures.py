"""Reports of language models: JSON, page, console and trackers show perplexity, divergence, and times of decoding."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from jsonschema import Draft202012Validator
from onnx import numpy_helper
from tiny_decoders import decoder, encoder, no_past, texts

import onnxshot
from onnxshot.cli.latency_table import show_latencies
from onnxshot.cli.tables import show_report
from onnxshot.report.html.page import page
from onnxshot.report.report import Report
from onnxshot.report.token_figures import decoding_in_one_line, in_one_line
from onnxshot.report.trackers.send import _records
from onnxshot.settings import Settings

QUICK = Settings(use_cache=False, threads=1, bench_seconds=0.01)
SCHEMA: dict[str, Any] = json.loads((resources.files("onnxshot.report") / "report.schema.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("decoders")
    for name, noise in (("float", 0.0), ("other", 0.05)):
        (folder / f"{name}.onnx").write_bytes(decoder(noise, cache=True))
    feeds = [{"input_ids": ids, **no_past()} for ids in texts()]
    return onnxshot.compare(folder / "float.onnx", folder / "other.onnx", feeds, settings=QUICK)


def test_reports_of_decoders_are_valid(found: Report) -> None:
    values = found.to_dict()
    Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(values)))
    assert values["tokens"]["scored"] == 3 * 11 and values["tokens"]["steps"]["steps"] == 3 * 6
    assert values["tokens"]["caches"] == ["present.key", "present.value"]
    assert values["decoding"]["prompt_tokens"] == 64
    assert values["decoding"]["token"]["float_cpu_ms"] > 0


def test_the_page_the_terminal_and_the_trackers_show_them(found: Report, capsys: pytest.CaptureFixture[str]) -> None:
    values = found.to_dict()
    html = page(values)
    for text in ("<dt>perplexity</dt>", "<dt>divergence, nats</dt>"):
        assert text in html
    for text in ("Time of a token", "Time of a prompt of 64 tokens"):
        assert text in html
    show_report(found)
    shown = " ".join(capsys.readouterr().err.split())
    assert f"perplexity {values['tokens']['float_perplexity']:.4g} -> " in shown
    assert "of 15 decoded tokens" in shown and "a token " in shown and "a prompt of 64 tokens " in shown
    (record,) = _records(values)
    assert record.figures["tokens/perplexity"] == values["tokens"]["perplexity"]
    assert record.figures["tokens/steps/kl_nats"] == values["tokens"]["steps"]["kl_nats"]
    assert record.figures["decoding/token/speedup"] > 0


def test_the_error_along_the_network_is_drawn_for_two_files_too(found: Report) -> None:
    rows = {row.tensor: row.depth for row in found.worst}
    assert rows["h"] is not None and rows["q0"] is not None and rows["logits"] is not None
    assert rows["h"] < rows["q0"] < rows["logits"]
    assert "Along the network, input to output" in page(found.to_dict())


def test_random_tokens_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(decoder(cache=True))
    report = onnxshot.quantize(tmp_path / "m.onnx", mode="weights", settings=QUICK).report
    assert report.tokens == {} and in_one_line(report.to_dict()) == ""
    assert report.on_random_data["token_inputs"] == ["input_ids"]
    assert report.verdict.level == "caution"
    assert "exclude" not in report.verdict.next


def test_class_scores_have_a_divergence(tmp_path: Path) -> None:
    text = "(float[N,8] x) => (float[N,5] logits, float[N,5] p) { logits = MatMul(x, w)  p = Softmax(logits) }"
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(6, 8)).astype(np.float32), rng.normal(size=(8, 5)).astype(np.float32)
    other = w + np.float32(0.1) * rng.normal(size=w.shape).astype(np.float32)
    for name, weight in (("a", w), ("b", other)):
        proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]>\ng {text}')
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
        onnx.save(proto, tmp_path / f"{name}.onnx")
    report = onnxshot.compare(tmp_path / "a.onnx", tmp_path / "b.onnx", [{"x": x}], settings=QUICK)
    p, q = (np.exp(x @ v) / np.exp(x @ v).sum(-1, keepdims=True) for v in (w, other))
    wanted = (p * np.log(p / q)).sum(-1).mean()
    assert report.output_kl == {"logits": pytest.approx(wanted, rel=1e-3), "p": pytest.approx(wanted, rel=1e-3)}
    assert report.tokens == {}


def test_an_encoder_has_a_divergence_and_no_perplexity(tmp_path: Path) -> None:
    for name, noise in (("a", 0.0), ("b", 0.05)):
        (tmp_path / f"{name}.onnx").write_bytes(encoder(noise))
    feeds = [{"input_ids": ids} for ids in texts()]
    values = onnxshot.compare(tmp_path / "a.onnx", tmp_path / "b.onnx", feeds, settings=QUICK).to_dict()
    Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(values)))
    assert "perplexity" not in values["tokens"] and values["tokens"]["kl_nats"] > 0
    assert in_one_line(values).startswith("divergence ") and decoding_in_one_line(values) == ""


def test_the_size_of_weights_is_that_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(decoder(cache=True))
    how = Settings(use_cache=False, threads=1, bench_seconds=0.01)
    report = onnxshot.quantize(tmp_path / "m.onnx", mode="weights", output=tmp_path / "q.onnx", settings=how).report
    given = onnx.load(tmp_path / "m.onnx")
    sizes = [numpy_helper.to_array(t).nbytes for t in given.graph.initializer]
    assert sum(row["before"] for row in report.weight_kinds) == sum(sizes)
    floats = sum(np.prod(t.dims, dtype=int) for t in given.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    assert report.parameters == floats
    assert report.bits_per_weight == 8 * (tmp_path / "q.onnx").stat().st_size / floats
    after = [numpy_helper.to_array(t).nbytes for t in onnx.load(tmp_path / "q.onnx").graph.initializer]
    assert sum(row["after"] for row in report.weight_kinds) == sum(after)
    bits = {row.node: row.bits for row in report.graph if row.bits is not None}
    assert set(bits.values()) <= {8, 32} and len(bits) == 5
    html = page(report.to_dict())
    assert "Bits along the network" in html and "Size by kind" in html and "bits a weight" in html


def test_bench_times_prompts_and_tokens_of_decoders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, model in (("a", decoder(cache=True)), ("b", decoder(0.05, cache=True)), ("c", encoder())):
        (tmp_path / f"{name}.onnx").write_bytes(model)
    feeds = [{"input_ids": ids, **no_past()} for ids in texts()]
    first, other = onnxshot.bench([tmp_path / "a.onnx", tmp_path / "b.onnx"], feeds, seconds=0.01, threads=1)
    assert first.prompt is not None and first.token is not None and other.token is not None
    assert first.token.ratio == 1.0 and other.token.rounds >= 3 and other.token.path == other.path
    (alone,) = onnxshot.bench([tmp_path / "c.onnx"], [{"input_ids": ids} for ids in texts()], seconds=0.01, threads=1)
    assert alone.prompt is None and alone.cpu_ms is not None
    show_latencies([first, other])
    shown = capsys.readouterr().err
    assert "one token behind a prompt of 64 tokens:" in shown and "a prompt of 64 tokens:" in shown
    assert "CPU speedup" in shown

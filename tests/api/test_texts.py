"""Verbs, manifests and the page on samples of text, from files to results."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tokenizers")
from texts import BERT, encoder, ids_of, write_tokenizer
from typer.testing import CliRunner

import onnxshot
from onnxshot import Recipe, Settings, TextPreset
from onnxshot.batch.cells import Cell
from onnxshot.batch.manifest import load_manifest
from onnxshot.batch.resume import CellKeys
from onnxshot.cli.app import app
from onnxshot.errors import CalibrationError, OnnxshotError, UsageError
from onnxshot.ui.jobs import Job
from onnxshot.ui.request import Asked
from onnxshot.ui.worker import make

LETTERS = BERT[4:]
TEXTS = [" ".join(LETTERS[(i * k) % 26] for k in range(1, 4 + i % 5)) for i in range(1, 17)]
QUIET = Settings(threads=1, use_cache=False, verify=False)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An encoder with its tokenizer one folder above."""
    write_tokenizer(tmp_path / "net")
    return encoder(tmp_path / "net" / "onnx" / "model.onnx", width=64)


def written(texts: list[str], path: Path) -> Path:
    path.write_text("\n".join(texts) + "\n")
    return path


def test_a_model_from_texts_has_the_bytes_of_one_from_arrays_of_their_ids(model: Path, tmp_path: Path) -> None:
    feeds = []
    for text in TEXTS:
        ids = np.array([[2, *ids_of(text), 3]])
        feeds.append({"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)})
    result = onnxshot.quantize(model, TEXTS, settings=QUIET)
    result.save(tmp_path / "texts.onnx")
    onnxshot.quantize(model, feeds, settings=QUIET).save(tmp_path / "arrays.onnx")
    assert (tmp_path / "texts.onnx").read_bytes() == (tmp_path / "arrays.onnx").read_bytes()
    assert any(note.startswith("16 texts from list") for note in result.report.notes)


def test_where_samples_were_given_the_advice_is_not_to_give_some(model: Path, tmp_path: Path) -> None:
    texts = written(TEXTS, tmp_path / "t.txt")
    recipe = Recipe(mode="weights", bits=4, effort="fast")
    assert onnxshot.quantize(model, bits=4, effort="fast", settings=QUIET).report.recipe == recipe.to_dict()
    assert "Settings(verify=False)" in onnxshot.quantize(model, texts, recipe=recipe, settings=QUIET).report.next_step()
    assert "calib=DATA" in onnxshot.quantize(model, recipe=recipe, settings=QUIET).report.next_step()


def test_a_result_from_texts_is_replayed_and_another_tokenizer_is_refused(model: Path, tmp_path: Path) -> None:
    given, out = written(TEXTS, tmp_path / "t.txt"), tmp_path / "out" / "a.onnx"
    onnxshot.quantize(model, given, output=out, preset=TextPreset(length=5), settings=QUIET)
    again = tmp_path / "again.onnx"
    assert onnxshot.replay(model, out.with_suffix(".recipe.yaml"), again).same is True
    with pytest.raises(OnnxshotError, match="preset"):
        onnxshot.replay(model, out.with_suffix(".recipe.yaml"), again, preset=TextPreset(length=6))
    write_tokenizer(tmp_path / "net", [*BERT[:4], *reversed(LETTERS)])
    with pytest.raises(OnnxshotError, match="preset"):
        onnxshot.replay(model, out.with_suffix(".recipe.yaml"), again)


def test_the_stages_of_compress_find_the_tokenizer_of_the_given_model(model: Path, tmp_path: Path) -> None:
    found = onnxshot.compress(
        model, written(TEXTS, tmp_path / "t.txt"), sparsity=0.3, output=tmp_path / "small.onnx",
        settings=Settings(threads=1, use_cache=False, bench_seconds=0.01),
    )  # fmt: skip
    assert [stage.name for stage in found.report.stages] == ["input", "pruned", "quantized"]


def test_without_samples_the_hint_names_the_tokenizer(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError) as raised:
        onnxshot.quantize(model, settings=QUIET)
    assert 'calib="texts.txt"' in raised.value.hint
    notes = onnxshot.quantize(model, recipe=Recipe(mode="weights"), settings=QUIET).report.notes
    assert any('calib="texts.txt"' in note for note in notes)
    (tmp_path / "net" / "tokenizer.json").unlink()
    with pytest.raises(CalibrationError) as raised:
        onnxshot.quantize(model, settings=QUIET)
    assert "texts.txt" not in raised.value.hint


def test_the_options_of_the_command_line_are_passed_on(model: Path, tmp_path: Path) -> None:
    given = str(written(TEXTS, tmp_path / "t.txt"))
    told = CliRunner().invoke(app, ["inspect", str(model), "--calib", given, "--length", "5"])
    assert told.exit_code == 0 and "data 'input_ids': int64 1x5" in told.output
    (tmp_path / "net" / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    missing = CliRunner().invoke(app, ["inspect", str(model), "--calib", given])
    assert isinstance(missing.exception, CalibrationError) or "--tokenizer" in missing.output
    named = ["inspect", str(model), "--calib", given, "--tokenizer", str(tmp_path)]
    assert CliRunner().invoke(app, named).exit_code == 0


def test_options_of_text_beside_a_preset_of_pictures_are_refused() -> None:
    from onnxshot.cli.options import preset_of

    with pytest.raises(UsageError, match="--length is for texts"):
        preset_of("imagenet", None, 8)
    assert preset_of(None, None, None) is None
    assert preset_of(None, Path("t"), 8) == TextPreset(Path("t"), 8)


def test_a_manifest_takes_tokenizer_and_length(model: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.yaml"
    entry = f"model: {model}, calib: t.txt, tokenizer: net/tokenizer.json, length: 5"
    manifest.write_text(f"output: out\nmodels:\n  - {{{entry}}}\n")
    (found,) = load_manifest(manifest).entries
    assert found.reading == TextPreset(str(tmp_path / "net" / "tokenizer.json"), 5)
    written(TEXTS, tmp_path / "t.txt")
    key = CellKeys().key(Cell(found, "ort"))
    assert CellKeys().key(Cell(found, "ort")) == key
    write_tokenizer(tmp_path / "net", [*BERT[:4], *reversed(LETTERS)])
    assert CellKeys().key(Cell(found, "ort")) != key
    for wrong in ("length: 0", "length: many", "preset: imagenet, length: 5", "tokenizer: https://x.org/tokenizer.json"):
        manifest.write_text(f"output: out\nmodels:\n  - {{model: {model}, calib: t.txt, {wrong}}}\n")
        with pytest.raises(UsageError, match=r"models\[0\]\."):
            load_manifest(manifest)


def test_the_page_takes_texts_and_a_tokenizer(model: Path, tmp_path: Path) -> None:
    job = Job(10_000_000)
    try:
        (job.folder / "model" / "net.onnx").write_bytes(model.read_bytes())
        written(TEXTS, job.folder / "calib" / "t.txt")
        (job.folder / "calib" / "tokenizer.json").write_bytes((tmp_path / "net" / "tokenizer.json").read_bytes())
        asked = job._described(Asked.from_json({"length": 6}))
        assert (asked["calib"], asked["tokenizer"], asked["length"]) == ("calib/t.txt", "calib/tokenizer.json", 6)
        for key in ("model", "calib", "tokenizer", "output"):
            asked[key] = str(job.folder / asked[key])
        made = make(asked, QUIET)
        assert any("6 at most in one" in note for note in made.notes)
    finally:
        job.close()


def test_results_depend_on_the_texts_alone_not_on_the_form_they_come_in(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    forms = {
        "t.txt": written(TEXTS, tmp_path / "t.txt"),
        "t.jsonl": written([f'{{"text": "{text}"}}' for text in TEXTS], tmp_path / "t.jsonl"),
        "folder": written(TEXTS, folder / "t.md").parent,
    }
    found = set()
    for name, calib in forms.items():
        path = onnxshot.quantize(model, calib, settings=QUIET).save(tmp_path / f"{name}.onnx")
        found.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(found) == 1

"""The models with random weights that benchmarks make."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import generated_models


def run(path, feeds):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [session.run(None, feed) for feed in feeds]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("encoder", {}),
        ("encoder", {"classes": 10, "dtype": "float16"}),
        ("decoder", {}),
        ("decoder", {"dtype": "float16", "past": True, "external": True}),
        ("decoder", {"dtype": "bfloat16", "past": True}),
    ],
)
def test_generated_models_run_and_activations_stay_sane(kind, options, tmp_path):
    size = generated_models.SIZES[kind]["tiny"]
    path = generated_models.generate(kind, size, tmp_path, **options)
    onnx.checker.check_model(str(path), full_check=True)
    assert (tmp_path / "model.onnx.data").exists() == bool(options.get("external"))
    past, dtype = options.get("past", False), options.get("dtype", "float32")
    for found in run(path, generated_models.samples(kind, size, 4, past, dtype, 0)):
        assert all(np.isfinite(values).all() for values in found)
        assert 0.5 < found[0].astype(np.float32).std() < 6


def test_the_seed_decides_the_bytes_and_both_forms_hold_the_same_weights(tmp_path):
    size = generated_models.SIZES["decoder"]["tiny"]
    paths = [
        generated_models.generate("decoder", size, tmp_path / name, external=external, seed=seed)
        for name, external, seed in (("a", False, 3), ("b", False, 3), ("c", False, 4), ("d", True, 3))
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()
    inside, apart = (
        {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
        for path in (paths[0], paths[3])
    )
    assert inside.keys() == apart.keys()
    assert all(np.array_equal(values, apart[name]) for name, values in inside.items())


def test_a_decoder_that_goes_on_gives_what_the_whole_sequence_gives(tmp_path):
    size = generated_models.SIZES["decoder"]["tiny"]
    path = generated_models.generate("decoder", size, tmp_path, past=True)
    whole = generated_models.samples("decoder", size, 1, True, "float32", 0)[0]
    ((logits, *present),) = run(path, [whole])
    half = whole["input_ids"].shape[1] // 2
    names = [name for name in whole if name.startswith("past")]
    rest = {"input_ids": whole["input_ids"][:, half:], "attention_mask": whole["attention_mask"]}
    rest |= {name: values[:, :, :half] for name, values in zip(names, present, strict=True)}
    ((after, *_),) = run(path, [rest])
    np.testing.assert_allclose(after, logits[:, half:], atol=1e-3)


def test_memory_is_measured_and_results_of_budgets_compared(tmp_path):
    size = generated_models.SIZES["encoder"]["tiny"]
    model = generated_models.generate("encoder", size, tmp_path / "entry")
    (tmp_path / "entry" / "calib").mkdir()
    for i, feed in enumerate(generated_models.samples("encoder", size, 4, False, "float32", 0)):
        np.savez(tmp_path / "entry" / "calib" / f"{i}.npz", **feed)
    script = [sys.executable, str(Path(generated_models.__file__).with_name("memory.py")), str(tmp_path)]
    script += ["--modes", "weights", "--memory", "512M", "2G"]
    rows = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
    head, _, *found = ([cell.strip() for cell in row.strip("|").split("|")] for row in rows)
    first, second = (dict(zip(head, row, strict=True)) for row in found)
    assert (first["memory"], second["memory"]) == ("512M", "2G")
    assert float(first["peak MB"]) > float(first["private MB"]) > model.stat().st_size / 1e6
    assert float(first["SQNR dB"]) == float(second["SQNR dB"]) > 20
    assert (first["result"], second["result"]) == ("", "same bytes")

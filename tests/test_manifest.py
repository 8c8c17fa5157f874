"""Manifests: what they mean, and what is said of one that is wrong."""

import random
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from onnxshot.batch.manifest import Thresholds, load_manifest
from onnxshot.cli import app as cli
from onnxshot.errors import UsageError
from onnxshot.recipes.files import load_stages
from onnxshot.recipes.recipe import Recipe
from onnxshot.recipes.stages import PruneStage, Stages

GOOD: dict[str, Any] = {
    "models": [
        {"model": "a.onnx", "calib": "data", "preset": "imagenet", "thresholds": {"min_sqnr": 20}},
        {"model": "b.onnx", "name": "two", "effort": "best", "exclude": ["Conv"], "samples": 16, "emit": ["onnx"]},
        {"model": "c.onnx", "recipe": {"stages": [{"prune": {"sparsity": 0.5}}, {"quantize": {"effort": "fast"}}]}},
    ],
    "targets": ["ort", "openvino"],
    "output": "out",
    "defaults": {"effort": "balanced", "calib": "random", "seed": 3},
    "thresholds": {"max_size_mb": 10, "max_drop": 1, "eval": "score.py:top1"},
}
RECIPE: dict[str, Any] = {
    "stages": [
        {"prune": {"sparsity": 0.5, "pattern": "unstructured", "scope": "layer", "layers": {"c*": 0.3}}},
        {"quantize": {"effort": "best", "exclude": ["Conv"], "shapes": {"x": [1, 3]}, "batch": 2, "method": "mse"}},
    ]
}


def written(folder: Path, values: object, name: str = "m.yaml") -> Path:
    path = folder / name
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
    return path


def changed(**values: object) -> dict[str, Any]:
    return GOOD | values


def test_entries_are_joined_with_defaults_and_start_at_the_manifest(tmp_path: Path) -> None:
    found = load_manifest(written(tmp_path, GOOD))
    one, two, three = found.entries
    assert (found.targets, found.output) == (("ort", "openvino"), str(tmp_path / "out"))
    assert (one.name, two.name, three.name) == ("a", "two", "c")
    assert (one.model, one.calib, two.calib) == (str(tmp_path / "a.onnx"), str(tmp_path / "data"), "random")
    assert one.stages == Stages((Recipe(effort="balanced"),))
    assert two.stages == Stages((Recipe(effort="best", exclude=("Conv",)),))
    assert (two.samples, two.seed, two.emit) == (16, 3, ("onnx",))
    assert one.thresholds == Thresholds(20, 1, None, 10, f"{tmp_path}/score.py:top1")


def test_options_of_defaults_do_not_overrule_the_recipe_of_an_entry_but_its_own_do(tmp_path: Path) -> None:
    stages = [{"prune": {"sparsity": 0.5}}, {"quantize": {"effort": "fast"}}]
    models = [{"model": "c.onnx", "recipe": {"stages": stages}}, {"model": "d.onnx", "recipe": "r.yaml", "grid": True}]
    written(tmp_path, {"effort": "best"}, "r.yaml")
    three, four = load_manifest(written(tmp_path, changed(models=models))).entries
    assert three.stages == Stages((PruneStage(0.5), Recipe(effort="fast")))
    assert four.stages == Stages((Recipe(effort="best", grid=True),))


def test_a_glob_is_many_models_named_after_what_differs(tmp_path: Path) -> None:
    for name in ("b.onnx", "a.onnx", "x/model.onnx", "y/model.onnx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    models = ["*.onnx", {"model": "*/model.onnx"}]
    assert [e.name for e in load_manifest(written(tmp_path, changed(models=models))).entries] == ["a", "b", "x", "y"]


def test_arguments_and_extends_are_those_of_recipes(tmp_path: Path) -> None:
    written(tmp_path, GOOD, "base.yaml")
    path = written(tmp_path, "extends: base.yaml\ntargets: [${target:ort}]\n")
    assert load_manifest(path).targets == ("ort",)
    assert load_manifest(path, {"target": "tensorrt"}).targets == ("tensorrt",)
    with pytest.raises(UsageError, match="no argument 'targt'"):
        load_manifest(path, {"targt": "ort"})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (changed(models=[]), "models is []"),
        (changed(models=[{}]), "models[0].model is missing"),
        (changed(models=[{"model": "a.onnx", "calib": 3}]), "models[0].calib is 3"),
        (changed(models=["a.onnx", {"model": "a.onnx"}]), "models[1].name is 'a', as that of models[0]"),
        (changed(models=[{"model": "*.nothing"}]), "models[0].model is '*.nothing' (it matches no file)"),
        (changed(models=[{"model": "a.onnx", "name": "../up"}]), "models[0].name is '../up'"),
        (changed(models=[{"model": "a.onnx", "efort": "best"}]), "models[0].efort is no key"),
        (changed(models=[{"model": "a.onnx", "effort": "bst"}]), "models[0].effort is 'bst'"),
        (changed(models=[{"model": "a.onnx", "samples": 0}]), "models[0].samples is 0"),
        (changed(models=[{"model": "a.onnx", "emit": ["xml"]}]), "models[0].emit is ['xml']"),
        (changed(models=[{"model": "a.onnx", "recipe": "no.yaml"}]), "models[0].recipe: recipe "),
        (
            changed(models=[{"model": "a.onnx", "recipe": {"stages": [{"prune": {"sparsity": 2}}]}}]),
            "models[0].recipe.stages[0].prune.sparsity is 2",
        ),
        (
            changed(models=[{"model": "a.onnx", "thresholds": {"min_sqnr": "x"}}]),
            "models[0].thresholds.min_sqnr is 'x'",
        ),
        (
            changed(models=[{"model": "a.onnx", "thresholds": {"eval": None}}]),
            "models[0].thresholds.max_drop is given without eval",
        ),
        (changed(thresholds={"max_size": 1, "max_size_mb": 2}), "thresholds.max_size_mb is 2 (the same as"),
        (changed(targets=["ort", "trt"]), "targets[1] is 'trt'"),
        (changed(targets=["ort", "ort"]), "targets[1] is 'ort' (name it once)"),
        (changed(output=None), "output is missing"),
        (changed(defaults={"target": "ort"}), "defaults.target is no key"),
        (changed(speed=1), "speed is no key"),
    ],
)
def test_what_is_wrong_is_told_with_the_path_of_its_key(tmp_path: Path, values: object, said: str) -> None:
    path = written(tmp_path, values)
    with pytest.raises(UsageError) as caught:
        load_manifest(path)
    assert str(caught.value).startswith(f"{path}: {said}")


BAD: tuple[object, ...] = (
    None, "", "\n\n", [], {}, [[]], {"a": 1}, {1: {2: 3}}, -1, 0, 1e400, float("nan"), True, "nowhere.yaml", "x" * 5000,
    [None], ["a", 3], {"": ""}, b"\x00\xff", "2001-01-01", {"stages": 3},
)  # fmt: skip
TORN = (
    "[",
    "\t",
    "{",
    "&a [*a]",
    "!!python/object:os.system x",
    "2001-99-99",
    "<<: 3",
    "*no",
    "${x}",
    "\x00",
    "[" * 3000,
)


def mutated(values: Any, rng: random.Random) -> Any:
    """A copy with one key or value, anywhere, replaced, renamed or taken away, so that it is no longer right."""
    if isinstance(values, dict) and values and rng.random() < 0.9:
        key = rng.choice(sorted(values, key=str))
        if rng.random() < 0.15:
            return {(f"{k}x" if k == key else k): v for k, v in values.items()}
        return values | {key: mutated(values[key], rng)}
    if isinstance(values, list) and values and rng.random() < 0.9:
        i = rng.randrange(len(values))
        return [*values[:i], mutated(values[i], rng), *values[i + 1 :]]
    return rng.choice([bad for bad in BAD if bad != values])


def malformed(good: dict[str, Any], rng: random.Random) -> str:
    """YAML of a file that is wrong, or was broken as text."""
    text = yaml.safe_dump(mutated(good, rng))
    if rng.random() < 0.25:
        at = rng.randrange(len(text))
        return text[:at] + rng.choice(TORN) + text[at:]
    return text


def refused(args: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One clear line, and the code of wrong usage, whatever was given."""
    monkeypatch.setattr(sys, "argv", ["onnxshot", *args])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert len(err) < 1000
    assert "internal error" not in err
    assert "Traceback" not in err


@pytest.mark.parametrize("seed", range(10))
def test_malformed_manifests_are_one_line_each(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, bad = random.Random(seed), 0
    while bad < 20:
        path = written(tmp_path, malformed(GOOD, rng))
        try:
            load_manifest(path)
        except UsageError:
            refused(["batch", str(path)], capsys, monkeypatch)
            bad += 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", range(10))
def test_malformed_recipes_are_one_line_each(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, bad = random.Random(seed), 0
    while bad < 20:
        path = written(tmp_path, malformed(RECIPE, rng), "r.yaml")
        try:
            load_stages(path)
        except UsageError:
            refused(["compress", "net.onnx", "--recipe", str(path)], capsys, monkeypatch)
            bad += 1

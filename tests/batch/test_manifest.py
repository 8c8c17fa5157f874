"""Manifests: what they mean, and what is said of one that is wrong."""

import random
import sys
from pathlib import Path
from typing import Any

import malformed_yaml
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
        {"shrink": {"target_flops": 0.5, "include": ["Conv", "head*"], "importance": "l2", "multiple": 8}},
        {"shrink": {"max_drop": 0.5, "evaluate": "score.py:top1", "scope": "mlp"}},
        {"quantize": {"effort": "best", "exclude": ["Conv"], "shapes": {"x": [1, 3]}, "batch": 2, "method": "mse"}},
        {"emit": {"to": ["openvino"], "hardware": ["sm89"], "half_weights": True}},
        {"half": {"precision": "bf16"}},
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


def test_bits_of_an_entry_mean_weights_in_blocks_where_nothing_names_a_mode(tmp_path: Path) -> None:
    entries = [
        {"model": "a.onnx", "bits": 4}, {"model": "b.onnx", "recipe": {"bits": 8}},
        {"model": "c.onnx", "bits": 8, "recipe": {"mode": "auto"}},
    ]  # fmt: skip
    found = load_manifest(written(tmp_path, {"models": entries, "output": "out"})).entries
    wanted = [Recipe(mode="weights", bits=4), Recipe(mode="weights", bits=8), Recipe(mode="auto", bits=8)]
    assert [entry.stages.stages for entry in found] == [(recipe,) for recipe in wanted]


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
        (changed(models=[{"model": "a.onnx", "emit": ["xml"]}]), "models[0].emit[0] is 'xml'"),
        (changed(models=[{"model": "a.onnx", "recipe": "no.yaml"}]), "models[0].recipe is 'no.yaml': recipe "),
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
            "thresholds.max_drop is given without models[0].thresholds.eval",
        ),
        (
            changed(thresholds={"max_size": 1, "max_size_mb": 2}),
            "thresholds.max_size_mb is 2, and also given as thresholds.max_size (keep one)",
        ),
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


def test_keys_that_do_not_go_together_are_told_where_they_stand(tmp_path: Path) -> None:
    half = {"models": ["a.onnx", {"model": "b.onnx", "precision": "fp16"}], "output": "out"}
    staged = {"stages": [{"prune": {"sparsity": 0.5}}, {"quantize": {"mode": "dynamic"}}]}
    cases: list[tuple[dict[str, Any], str]] = [
        (
            half | {"defaults": {"mode": "dynamic"}},
            "defaults.mode is 'dynamic', which does not go with models[1].precision",
        ),
        (
            {"models": [{"model": "a.onnx", "precision": "bf16", "recipe": staged}], "output": "out"},
            "models[0].recipe.stages[1].quantize.mode is 'dynamic', which does not go with models[0].precision",
        ),
        (
            {"models": [{"model": "a.onnx", "recipe": staged}], "output": "out", "defaults": {"stats": "s.npz"}},
            "defaults.stats is 's.npz', beside the stages of models[0].recipe",
        ),
    ]
    for values, said in cases:
        path = written(tmp_path, values)
        with pytest.raises(UsageError) as caught:
            load_manifest(path)
        assert caught.value.message == f"{path}: {said}"


def refused(args: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the command says: one clear line, and the code of wrong usage, whatever was given."""
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
    return err


@pytest.mark.usefixtures("worded_as_options")
@pytest.mark.parametrize("seed", range(10))
def test_malformed_manifests_are_one_line_with_the_path_of_the_key(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = malformed_yaml.manifest(GOOD, RECIPE, "one", tmp_path)
    for said in malformed_yaml.refused(load_manifest, layout, 20, random.Random(seed)):
        assert said in refused(["batch", str(tmp_path / "m.yaml")], capsys, monkeypatch)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("worded_as_options")
@pytest.mark.parametrize("seed", range(10))
def test_malformed_recipes_are_one_line_with_the_path_of_the_key(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["compress", "net.onnx", "--recipe", str(tmp_path / "r.yaml")]
    layout = malformed_yaml.recipe(RECIPE, "one", tmp_path)
    for said in malformed_yaml.refused(load_stages, layout, 20, random.Random(seed)):
        assert said in refused(args, capsys, monkeypatch)


@pytest.mark.parametrize("layout", ["extends", "recipe", "report"])
def test_malformed_files_behind_a_manifest_are_named_with_the_path_of_the_key_there(
    layout: str, tmp_path: Path
) -> None:
    files = malformed_yaml.manifest(GOOD, RECIPE, layout, tmp_path)
    assert len(list(malformed_yaml.refused(load_manifest, files, 100, random.Random(layout)))) == 100


@pytest.mark.parametrize("layout", ["extends", "report"])
def test_malformed_files_behind_a_recipe_are_named_with_the_path_of_the_key_there(layout: str, tmp_path: Path) -> None:
    files = malformed_yaml.recipe(RECIPE, layout, tmp_path)
    assert len(list(malformed_yaml.refused(load_stages, files, 100, random.Random(layout)))) == 100

"""Channels that were cut are cut again from the record, whatever was measured when they were chosen."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from channel_removal import residual
from fixture_runs import command
from handmade.core import feeds, model, weight
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper

from onnxshot import Settings, compress, errors, quantize, replay, shrink
from onnxshot.channels import candidate_models, importance
from onnxshot.channels.allocation import Allocation
from onnxshot.channels.error_importance import ErrorImportance
from onnxshot.channels.removal import positions, spans
from onnxshot.delivery.record import RECIPE_KEY, RUNS_KEY, load_records
from onnxshot.graph.load import load_model
from onnxshot.graph.macs import macs
from onnxshot.recipes.recipe import Recipe
from onnxshot.recipes.stages import ShrinkStage, Stages

QUICK = Settings(verify=False, use_cache=False, threads=1, bench_seconds=0.02)
OTHER = Settings(verify=False, use_cache=False, threads=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples as files, so that a record can say where they lie."""
    made = tmp_path_factory.mktemp("data")
    for i, feed in enumerate(feeds(24, x=(1, 4, 8, 8))):
        np.savez(made / f"{i:02}.npz", **feed)
    return made


@pytest.fixture
def given_model(tmp_path: Path) -> Path:
    return saved(residual(), tmp_path)


def saved(proto: ModelProto, folder: Path) -> Path:
    onnx.save(proto, folder / "net.onnx")
    return folder / "net.onnx"


def metadata(path: Path, key: str) -> Any:
    return json.loads(next(p.value for p in onnx.load(str(path)).metadata_props if p.key == key))


@contextmanager
def nothing_measured() -> Iterator[None]:
    """Whatever decides what is cut fails: layers are not timed, channels not weighed, and no target is searched for."""

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("it was decided again")

    deciding = (
        (importance, "latency_cost"), (importance, "norm_scores"), (ErrorImportance, "curves"),
        (candidate_models, "bench"),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for place, name in (*deciding, (Allocation, "remove_until")):
            patch.setattr(place, name, refused)
        yield


def test_the_command_leaves_a_record_and_the_same_channels_are_cut_again(
    given_model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, again = tmp_path / "a.onnx", tmp_path / "b.onnx"
    cut = ["--pattern", "channels", "--target-flops", "0.7", "--multiple", "1", "--calib", str(folder)]
    assert command("prune", given_model, *cut, "-o", made, "--no-verify", "--json") == 0
    asked = ShrinkStage(target_flops=0.7, multiple=1, importance="error")
    assert Stages.from_dict(metadata(made, RECIPE_KEY)) == Stages((asked,))
    values = yaml.safe_load((tmp_path / "a.recipe.yaml").read_text())
    assert values["recipe"] == metadata(made, RECIPE_KEY)
    assert values["runs"] == metadata(made, RUNS_KEY)
    assert values["source"]["calib"] == str(folder)
    capsys.readouterr()
    with nothing_measured():
        assert command("replay", given_model, tmp_path / "a.recipe.yaml", "-o", again, "--json") == 0
    assert json.loads(capsys.readouterr().out)["same"] is True
    assert again.read_bytes() == made.read_bytes()


def test_the_record_says_which_channels_went(given_model: Path, folder: Path, tmp_path: Path) -> None:
    """They are those whose weights a cut without a fit has no more: of each layer, the others are what they were."""
    found = shrink(
        given_model, target_params=0.7, multiple=1, importance="l2", output=tmp_path / "a.onnx", settings=QUICK
    )
    (run,) = metadata(tmp_path / "a.onnx", RUNS_KEY)
    assert run["sampled"] is False
    assert run["decided"]["samples"] == 0
    assert run["decided"]["branches"] == []
    before, after = (
        {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        for proto in (residual(), found.model.to_proto())
    )
    biases = {"Conv_0": "b0", "Conv_2": "b1", "Conv_4": "b2", "Conv_7": "b3", "Conv_9": "b4"}
    assert run["decided"]["channels"]
    for layer, gone in run["decided"]["channels"].items():
        wanted = np.delete(before[biases[layer]], positions(gone, 16, layer))
        np.testing.assert_array_equal(after[biases[layer]], wanted)


def score(run: Any) -> float:
    return float(sum(run(feed)["y"].sum() for feed in feeds(4, x=(1, 4, 8, 8))))


@pytest.mark.parametrize(
    "options",
    [
        {"target_latency": 0.9},
        {"max_drop": 1e9, "evaluate": score},
        {"max_drop": 0.0, "evaluate": lambda run: -run({"x": np.ones((1, 4, 8, 8), np.float32)})["y"].size},
        {"target_params": 0.8, "importance": "activation", "exclude": ["Conv_9"]},
        {"target_params": 0.8, "calib": None},
        {"target_flops": 0.05},
    ],
    ids=["latency", "drop", "no drop", "activation", "no samples", "out of reach"],
)
def test_every_target_is_cut_to_again(options: dict[str, Any], given_model: Path, folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "a.onnx"
    found = shrink(given_model, **{"calib": folder, "multiple": 1, "output": made, "settings": QUICK, **options})
    with nothing_measured():
        again = replay(given_model, tmp_path / "a.recipe.yaml", tmp_path / "b.onnx", settings=OTHER)
    assert again.same is True
    assert (tmp_path / "b.onnx").read_bytes() == made.read_bytes()
    assert sum(macs(load_model(made)).values()) == found.report.macs[1]


def test_a_branch_that_was_left_out_is_left_out_again(folder: Path, tmp_path: Path) -> None:
    proto = residual()
    for t in proto.graph.initializer:
        if t.name in ("w4", "b4"):
            t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t) * np.float32(1e-3), t.name))
    path, made = saved(proto, tmp_path), tmp_path / "a.onnx"
    found = shrink(path, folder, target_flops=0.5, multiple=1, output=made, settings=QUICK)
    assert found.report.branches == ["Conv_7"]
    (run,) = load_records(made).runs
    assert run.decided["branches"] == ["Conv_7"]
    assert "Conv_7" not in run.decided["channels"]
    with nothing_measured():
        assert replay(path, tmp_path / "a.recipe.yaml", tmp_path / "b.onnx").same is True


def test_where_nothing_can_be_cut_the_record_says_so(tmp_path: Path) -> None:
    proto = model("net (float[1,4] x) => (float[1,4] y) { y = Gemm(x, w) }", {"w": weight(4, 4)})
    path = saved(proto, tmp_path)
    shrink(path, feeds(4, x=(1, 4)), target_flops=0.5, output=tmp_path / "a.onnx", settings=QUICK)
    (run,) = load_records(tmp_path / "a.onnx").runs
    assert run.decided == {"samples": 4, "branches": [], "channels": {}}
    again = replay(path, tmp_path / "a.onnx", tmp_path / "b.onnx", calib=feeds(4, x=(1, 4)))
    assert again.same is True


def test_a_cut_comes_before_what_is_quantized_of_it(given_model: Path, folder: Path, tmp_path: Path) -> None:
    cut, made = tmp_path / "cut.onnx", tmp_path / "a.onnx"
    few = Settings(samples=12, verify=False, use_cache=False)
    shrink(given_model, folder, target_flops=0.8, multiple=1, output=cut, settings=few)
    quantize(cut, folder, output=made, settings=QUICK, effort="fast")
    stages = Stages.from_dict(metadata(made, RECIPE_KEY)).stages
    assert [type(stage) for stage in stages] == [ShrinkStage, Recipe]
    assert [run["decided"].get("samples") for run in metadata(made, RUNS_KEY)] == [12, None]
    with nothing_measured():
        again = replay(given_model, tmp_path / "a.recipe.yaml", tmp_path / "b.onnx", settings=OTHER)
    assert again.runs == ("shrink", "quantize")
    assert (tmp_path / "b.onnx").read_bytes() == made.read_bytes()


def test_a_cut_among_stages_learns_from_what_it_learned_from(given_model: Path, folder: Path, tmp_path: Path) -> None:
    recipe = Stages((ShrinkStage(target_flops=0.8, multiple=1), Recipe(effort="fast")))
    compress(given_model, folder, recipe=recipe, output=tmp_path / "a.onnx", settings=QUICK)
    assert load_records(tmp_path / "a.onnx").runs[0].decided["samples"] == 18, "a quarter judges"
    with nothing_measured():
        assert replay(given_model, tmp_path / "a.recipe.yaml", tmp_path / "b.onnx").same is True


def test_the_input_is_not_written_over(given_model: Path) -> None:
    with pytest.raises(errors.UsageError, match="the input itself"):
        shrink(given_model, target_params=0.8, output=given_model, settings=QUICK)


def test_an_evaluation_is_recorded_by_its_name_alone(given_model: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text("def one(run):\n    return 1.0\n")
    found = []
    for evaluate in (f"{tmp_path}/score.py:one", score, lambda _: 1.0):
        asked: dict[str, Any] = {"max_drop": 0.0, "evaluate": evaluate, "scope": "heads"}
        shrink(given_model, folder, output=tmp_path / "a.onnx", settings=QUICK, **asked)
        (stage,) = metadata(tmp_path / "a.onnx", RECIPE_KEY)["stages"]
        found.append(stage["shrink"]["evaluate"])
    here = f"{__name__}:test_an_evaluation_is_recorded_by_its_name_alone.<locals>.<lambda>"
    assert found == ["score.py:one", f"{__name__}:score", here]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ([1], r"runs\[0\].decided is \[1\]"),
        ({"samples": "all"}, "decided.samples is 'all'"),
        ({"samples": 24}, "without branches and channels"),
        ({"samples": 24, "branches": ["Conv_1"], "channels": {}}, "'Conv_1', which is no branch"),
        ({"samples": 24, "branches": [], "channels": {"Conv_99": "1"}}, r"\['Conv_99'\] names no layer"),
        ({"samples": 24, "branches": [], "channels": {"Conv_7": "1-99999999"}}, "the layer produces 16 channels"),
        ({"samples": 24, "branches": [], "channels": {"Conv_7": "3-1"}}, "the layer produces 16 channels"),
        ({"samples": 24, "branches": [], "channels": {"Conv_7": 3}}, "is 3, and the layer produces 16 channels"),
        ({"samples": 24, "branches": [], "channels": {"Gemm_13": "0"}}, "1 channels that cannot be removed"),
    ],
    ids=str,
)
def test_a_record_that_does_not_fit_is_refused(
    changed: Any, said: str, given_model: Path, folder: Path, tmp_path: Path
) -> None:
    shrink(
        given_model, folder, target_params=0.9, multiple=1, scope="heads", output=tmp_path / "a.onnx", settings=QUICK
    )
    record = tmp_path / "a.recipe.yaml"
    values = yaml.safe_load(record.read_text())
    values["runs"][0]["decided"] = changed
    values["runs"][0]["stage"]["shrink"]["scope"] = "all"
    record.write_text(yaml.safe_dump(values))
    with pytest.raises(errors.UsageError, match=said):
        replay(given_model, record, tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


@given(st.sets(st.integers(0, 70)))
def test_channels_go_to_text_and_back(numbers: set[int]) -> None:
    assert positions(spans(np.asarray(sorted(numbers), np.int64)), 71, "layer") == sorted(numbers)


def test_neighbours_are_one_span() -> None:
    assert spans(np.asarray([0, 1, 2, 7, 9, 10])) == "0-2 7 9-10"

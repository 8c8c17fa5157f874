"""What a run leaves beside its result, and making the same bytes again from it."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from fixture_data import fixture, heldout
from fixture_runs import command
from handmade.core import Feed

from onnxshot import Settings, calibrate, compress, errors, prune, quantize, replay
from onnxshot.delivery.record import RECIPE_KEY, RUNS_KEY, load_records
from onnxshot.delivery.write_results import RANDOM_KEY
from onnxshot.recipes.files import load_stages
from onnxshot.recipes.recipe import Recipe
from onnxshot.recipes.stages import PruneStage, Stages

NAME = "digits_resnet"
QUICK = Settings(samples=12, verify=False, use_cache=False, bench_seconds=0.05)


@pytest.fixture(scope="module")
def given() -> list[Feed]:
    return heldout(NAME)[0][:16]


@pytest.fixture(scope="module")
def folder(given: list[Feed], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples as files, so that a record can say where they lie."""
    made = tmp_path_factory.mktemp("data")
    for i, feed in enumerate(given):
        np.savez(made / f"{i:02}.npz", **feed)
    return made


def metadata(path: Path) -> dict[str, str]:
    return {p.key: p.value for p in onnx.load(str(path)).metadata_props}


def test_a_quantized_model_is_made_again_from_the_file_beside_it(folder: Path, tmp_path: Path) -> None:
    made, again = tmp_path / "a.onnx", tmp_path / "again" / "b.onnx"
    quantize(fixture(NAME), folder, output=made, settings=QUICK)
    found = replay(fixture(NAME), tmp_path / "a.recipe.yaml", again)
    assert again.read_bytes() == made.read_bytes()
    assert found.same is True
    assert found.runs == ("quantize",)
    assert found.changed == {}
    assert load_records(again.parent / "b.recipe.yaml").runs == load_records(tmp_path / "a.recipe.yaml").runs


def test_a_result_is_made_again_from_the_result_itself(given: list[Feed], tmp_path: Path) -> None:
    made = tmp_path / "a.onnx"
    quantize(fixture(NAME), given, output=made, settings=QUICK, effort="fast")
    with pytest.raises(errors.CalibrationError, match="no path of its samples"):
        replay(fixture(NAME), made, tmp_path / "b.onnx")
    assert replay(fixture(NAME), made, tmp_path / "b.onnx", calib=given).same is True
    assert (tmp_path / "b.onnx").read_bytes() == made.read_bytes()


def test_a_result_in_memory_is_made_again(given: list[Feed], folder: Path, tmp_path: Path) -> None:
    result = quantize(fixture(NAME), given, settings=QUICK, effort="fast")
    assert replay(fixture(NAME), result, tmp_path / "b.onnx", calib=given).same is True
    written = quantize(fixture(NAME), folder, output=tmp_path / "a.onnx", settings=QUICK, effort="fast")
    again = replay(fixture(NAME), written, tmp_path / "c.onnx")  # the record beside the file says where samples are
    assert again.same is True
    assert repr(again) == "Replayed(c.onnx, quantize, the recorded bytes)"
    (tmp_path / "a.recipe.yaml").unlink()
    with pytest.raises(errors.CalibrationError, match="no path of its samples"):
        replay(fixture(NAME), written, tmp_path / "c.onnx")


def test_a_run_on_statistics_takes_them_again(given: list[Feed], tmp_path: Path) -> None:
    made, stats = tmp_path / "a.onnx", tmp_path / "s.npz"
    calibrate(fixture(NAME), given, output=stats, settings=QUICK)
    quantize(fixture(NAME), stats=stats, output=made, settings=QUICK)
    with pytest.raises(errors.CalibrationError, match="statistics that it was given"):
        replay(fixture(NAME), made, tmp_path / "b.onnx")
    assert replay(fixture(NAME), tmp_path / "a.recipe.yaml", tmp_path / "b.onnx", stats=stats).same is True


def test_stages_are_replayed_one_after_the_other(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "a.onnx"
    compress(fixture(NAME), folder, sparsity=0.5, scope="layer", output=made, settings=QUICK, effort="fast")
    found = replay(fixture(NAME), tmp_path / "a.recipe.yaml", tmp_path / "b.onnx")
    assert found.runs == ("prune", "quantize")
    assert (tmp_path / "b.onnx").read_bytes() == made.read_bytes()


def test_a_new_run_comes_behind_those_that_a_model_has_been_through(folder: Path, tmp_path: Path) -> None:
    prune(fixture(NAME), folder, sparsity=0.4, scope="layer", output=tmp_path / "p.onnx", settings=QUICK)
    quantize(tmp_path / "p.onnx", folder, output=tmp_path / "q.onnx", settings=QUICK, effort="fast")
    stages = load_stages(tmp_path / "q.recipe.yaml")
    assert [type(stage) for stage in stages.stages] == [PruneStage, Recipe]
    assert Stages.from_dict(json.loads(metadata(tmp_path / "q.onnx")[RECIPE_KEY])) == stages
    replay(fixture(NAME), tmp_path / "q.recipe.yaml", tmp_path / "r.onnx")
    assert (tmp_path / "r.onnx").read_bytes() == (tmp_path / "q.onnx").read_bytes()


def test_the_record_says_what_was_given_and_what_was_decided(folder: Path, tmp_path: Path) -> None:
    result = quantize(fixture(NAME), folder, output=tmp_path / "a.onnx", settings=QUICK, effort="fast", exclude=["Add"])
    (run,) = json.loads(metadata(tmp_path / "a.onnx")[RUNS_KEY])
    assert run["versions"]["onnx"] == onnx.__version__
    assert run["settings"]["samples"] == 12
    assert run["decided"] == {"static": [n.node for n in result.plan.nodes if n.how == "static"]}
    assert not any("Add" in node.rpartition("/")[2] for node in run["decided"]["static"])
    assert str(folder) not in json.dumps(run), "a model that is passed on does not tell where somebody's files lay"
    values = yaml.safe_load((tmp_path / "a.recipe.yaml").read_text())
    assert values["source"]["calib"] == str(folder)
    assert values["runs"] == [run]


def test_another_model_and_other_samples_are_refused_with_both_hashes(folder: Path, tmp_path: Path) -> None:
    quantize(fixture(NAME), folder, output=tmp_path / "a.onnx", settings=QUICK, effort="fast")
    records = load_records(tmp_path / "a.recipe.yaml")
    run, data = records.runs[0], records.source["data_sha256"]
    with pytest.raises(errors.CalibrationError, match=f"another model: {run.model[:12]} and"):
        replay(fixture("digits_mobile"), tmp_path / "a.recipe.yaml", tmp_path / "b.onnx")
    with pytest.raises(errors.CalibrationError, match=f"another data: {data[:12]} and"):
        replay(fixture(NAME), tmp_path / "a.recipe.yaml", tmp_path / "b.onnx", calib=heldout(NAME)[0][20:30])
    assert not (tmp_path / "b.onnx").exists()


def test_other_bytes_are_told_and_exit_with_3(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantize(fixture(NAME), folder, output=tmp_path / "a.onnx", settings=QUICK, effort="fast")
    record = tmp_path / "a.recipe.yaml"
    values = yaml.safe_load(record.read_text())
    values["outputs"]["a.onnx"] = "0" * 64
    values["runs"][0]["versions"]["onnx"] = "1.0.0"
    record.write_text(yaml.safe_dump(values))
    code = command("replay", str(fixture(NAME)), str(record), "-o", str(tmp_path / "b.onnx"), "--json")
    found = json.loads(capsys.readouterr().out)
    assert code == 3
    assert found["same"] is False
    assert found["changed"] == {"onnx": ["1.0.0", onnx.__version__]}
    assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "a.onnx").read_bytes(), "written all the same"


def test_a_file_that_somebody_else_wrote_is_left_as_it_is(given: list[Feed], tmp_path: Path) -> None:
    (tmp_path / "a.recipe.yaml").write_text("effort: best\n")
    result = quantize(fixture(NAME), given, output=tmp_path / "a.onnx", settings=QUICK, effort="fast")
    assert (tmp_path / "a.recipe.yaml").read_text() == "effort: best\n"
    assert any("left as it is" in note for note in result.report.notes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no runs"),
        ("runs: []", "holds no runs"),
        ("runs: [1]", r"runs\[0\] is 1"),
        ("runs: [{}]", r"runs\[0\] is no record"),
        ("runs: [{stage: {quantize: {}}, oops: 1}]", r"runs\[0\].oops is no key"),
        ("runs: [", "cannot be read"),
        ("source: [1]\nruns: [{}]", "source and outputs"),
    ],
)
def test_a_broken_record_is_one_clear_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(errors.UsageError, match=said):
        load_records(tmp_path / "r.yaml")


def test_random_samples_are_the_same_again(tmp_path: Path) -> None:
    quantize(fixture(NAME), "random", output=tmp_path / "a.onnx", settings=QUICK, effort="fast")
    assert metadata(tmp_path / "a.onnx")[RANDOM_KEY] == "true"
    assert replay(fixture(NAME), tmp_path / "a.recipe.yaml", tmp_path / "b.onnx").same is True

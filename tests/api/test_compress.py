"""Stages in one run: each against the input, no zero is lost on the way, and the recipe makes the same file again."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fixture_data import fixture, heldout, session
from fixture_runs import command, data_of
from planned_models import FAST

import onnxshot
from onnxshot.cli import app as cli
from onnxshot.delivery.record import RECIPE_KEY
from onnxshot.errors import ModelError, UsageError
from onnxshot.graph.load import load_model
from onnxshot.graph.macs import macs
from onnxshot.graph.weight_sparsity import layers_of, lost_zeros
from onnxshot.maths.sqnr import SqnrSum
from onnxshot.recipes.stages import PruneStage, ShrinkStage, Stages
from onnxshot.results.compressed import CompressResult

SETTINGS = replace(FAST, samples=32, bench_seconds=0.01)


def made(*, verify: bool = False, **options: Any) -> CompressResult:
    settings = replace(SETTINGS, verify=verify)
    return onnxshot.compress(fixture("digits_resnet"), **data_of("digits_resnet"), settings=settings, **options)


def small(**options: Any) -> CompressResult:
    """Of a smaller model and fewer samples, where it does not matter."""
    settings = replace(SETTINGS, samples=16)
    return onnxshot.compress(fixture("digits_mobile"), **data_of("digits_mobile"), settings=settings, **options)


def test_all_zeros_are_there_at_the_end_and_every_stage_is_measured(tmp_path: Path) -> None:
    result = made(sparsity=0.5, output=tmp_path / "small.onnx", keep_stages=tmp_path / "stages", effort="best")
    stages = {stage.name: stage for stage in result.report.stages}
    assert list(stages) == ["input", "pruned", "quantized"]
    assert stages["input"].sqnr_db is None
    for name in ("pruned", "quantized"):
        path = tmp_path / "stages" / f"{name}.onnx"
        assert Path(stages[name].path) == path
        assert stages[name].bytes == path.stat().st_size
        assert stages[name].latency_ms > 0
    assert (tmp_path / "small.onnx").read_bytes() == (tmp_path / "stages" / "quantized.onnx").read_bytes()
    assert stages["quantized"].bytes < 0.4 * stages["input"].bytes
    pruned, small = (load_model(tmp_path / "stages" / f"{name}.onnx") for name in ("pruned", "quantized"))
    shares = [(x.sparsity, y.sparsity) for x, y in zip(layers_of(pruned, {}), layers_of(small, {}), strict=True)]
    assert all(after >= before for before, after in shares)
    assert lost_zeros(pruned, small) == []
    assert stages["pruned"].report.sparsity == pytest.approx(0.5, abs=0.01)


def test_figures_are_against_the_input_not_against_the_stage_before() -> None:
    result = made(sparsity=0.6, effort="fast", verify=True)
    wanted, got = session(fixture("digits_resnet")), session(result.model.to_proto().SerializeToString())
    total = SqnrSum()
    for feed in heldout("digits_resnet")[0]:
        total.add(wanted.run(None, feed)[0], got.run(None, feed)[0])
    last = result.report.stages[-1]
    assert last.sqnr_db == pytest.approx(total.db, abs=3.0), "other samples, the same reference"
    assert last.report.sqnr_db > last.sqnr_db + 3, "quantization alone costs much less than both"


def test_a_zero_that_is_lost_is_found() -> None:
    pruned = made(sparsity=0.5, effort="fast").model
    other = load_model(pruned.to_proto())
    assert lost_zeros(pruned, other) == []
    proto = pruned.to_proto()
    for t in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(t)
        if values.dtype == np.int8 and values.ndim == 4:
            values = values.copy()
            values[tuple(np.argwhere(values == 0)[0])] = 1
            t.CopyFrom(onnx.numpy_helper.from_array(values, t.name))
            break
    assert len(lost_zeros(pruned, load_model(proto))) == 1


def test_without_samples_it_says_what_is_missing() -> None:
    with pytest.raises(UsageError, match="there are no samples"):
        onnxshot.compress(fixture("digits_resnet"), None, sparsity=0.5)


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_the_recipe_of_the_report_makes_the_same_bytes(effort: str, tmp_path: Path) -> None:
    first = small(sparsity=0.5, layers={"Gemm": 0.25}, effort=effort, output=tmp_path / "first.onnx")
    first.report.save(tmp_path / "report.json")
    again = small(recipe=tmp_path / "report.json", output=tmp_path / "again.onnx")
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()
    assert again.report.recipe == first.report.recipe
    metadata = {p.key: p.value for p in onnx.load(tmp_path / "first.onnx").metadata_props}
    assert Stages.from_dict(json.loads(metadata[RECIPE_KEY])) == Stages(
        (PruneStage(0.5, layers={"Gemm": 0.25}).resolved(True), onnxshot.Recipe(effort=effort))
    )


def test_any_stages_in_any_number(tmp_path: Path) -> None:
    first, other = ({"sparsity": 0.5, "include": ("Conv",)}, {"sparsity": 0.25, "include": ("Gemm",)})
    stages = Stages(
        (
            ShrinkStage(target_flops=0.8, multiple=1), PruneStage.from_dict(first), PruneStage.from_dict(other),
            onnxshot.Recipe(effort="fast"),
        )
    )  # fmt: skip
    result = small(recipe=stages, keep_stages=tmp_path)
    names = ["shrunk", "pruned1", "pruned2", "quantized"]
    assert [stage.name for stage in result.report.stages] == ["input", *names]
    shrunk, one, two, last = (load_model(tmp_path / f"{name}.onnx") for name in names)
    assert sum(macs(shrunk).values()) < 0.81 * sum(macs(load_model(fixture("digits_mobile"))).values())
    for op, after in (("Conv", [False, True, True, True]), ("Gemm", [False, False, True, True])):
        layers = [[x for x in layers_of(found, {}) if x.op == op] for found in (shrunk, one, two, last)]
        shares = [np.average([x.sparsity for x in rows], weights=[x.parameters for x in rows]) for rows in layers]
        assert [bool(share > 0.2) for share in shares] == after
    resolved = tuple(s.resolved(True) if isinstance(s, PruneStage | ShrinkStage) else s for s in stages.stages)
    for number, name in enumerate(names, 1):
        metadata = {p.key: p.value for p in onnx.load(tmp_path / f"{name}.onnx").metadata_props}
        assert Stages.from_dict(json.loads(metadata[RECIPE_KEY])) == Stages(resolved[:number])


def test_what_a_stage_has_made_is_emitted_and_held_against_the_input(tmp_path: Path) -> None:
    stages = {
        "stages": [
            {"prune": {"sparsity": 0.3}}, {"emit": {"to": "openvino"}},
            {"quantize": {"effort": "fast", "target": "openvino"}}, {"emit": {"to": ["openvino"]}},
        ]
    }  # fmt: skip
    result = made(recipe=Stages.from_dict(stages), output=tmp_path / "net.onnx", verify=True)
    paths = [Path(artifact.path).name for artifact in result.report.outputs]
    assert paths == ["net.onnx", "net.pruned.xml", "net.xml"]
    _, pruned, last = result.report.outputs
    assert pruned.int8_macs_share == 0
    assert last.int8_macs_share is not None and last.int8_macs_share > 0.9
    by_name = {row.name: row for row in result.report.stages}
    assert pruned.sqnr_db == pytest.approx(by_name["pruned"].sqnr_db, abs=3), "against the input, not the pruned model"
    assert {p.name for p in tmp_path.iterdir()} >= {"net.bin", "net.pruned.bin", "net.recipe.yaml"}


def test_what_is_emitted_needs_a_place() -> None:
    stages = Stages.from_dict({"stages": [{"quantize": None}, {"emit": {"to": "openvino"}}]})
    with pytest.raises(UsageError, match="no output to emit openvino to"):
        small(recipe=stages)


def test_zeros_outlive_a_cut_of_channels_behind_them(tmp_path: Path) -> None:
    stages = Stages((PruneStage(0.5), ShrinkStage(target_params=0.8, multiple=1), onnxshot.Recipe(effort="fast")))
    small(recipe=stages, keep_stages=tmp_path)
    shrunk, last = (load_model(tmp_path / f"{name}.onnx") for name in ("shrunk", "quantized"))
    rows = layers_of(shrunk, {})
    assert np.average([x.sparsity for x in rows], weights=[x.parameters for x in rows]) > 0.4
    assert lost_zeros(shrunk, last) == []


def test_zeros_that_a_second_pruning_would_lose_are_an_error() -> None:
    with pytest.raises(ModelError, match=r"stage 2 \(prune\): zeros of .* are lost.*keep_zeros"):
        small(recipe=Stages((PruneStage(0.5), PruneStage(0.3))))
    small(recipe=Stages((PruneStage(0.3), PruneStage(0.5, keep_zeros=True))))


def test_an_error_says_which_stage_it_is_of() -> None:
    with pytest.raises(UsageError, match=r"stage 2 \(quantize\): .*quantized already"):
        small(recipe=Stages((onnxshot.Recipe(effort="fast"), onnxshot.Recipe(effort="fast"))))


def test_how_to_quantize_may_come_from_a_recipe_and_stages_stand_alone() -> None:
    recipe = onnxshot.Recipe(effort="fast", exclude=("Gemm",))
    (alone,) = Stages.from_dict(small(recipe=recipe).report.recipe).stages
    assert alone == recipe
    both = Stages.from_dict(small(recipe=recipe, sparsity=0.5, method="minmax").report.recipe).stages
    assert both == (PruneStage(0.5), replace(recipe, method="minmax"))
    for options in ({"sparsity": 0.5}, {"effort": "fast"}, {"spare": ("Gemm",)}):
        with pytest.raises(UsageError, match=f"{next(iter(options))} is given beside a recipe of stages"):
            small(recipe=Stages(both), **options)


def test_samples_may_be_given_one_by_one() -> None:
    feeds = heldout("digits_mobile")[0][:24]
    result = onnxshot.compress(fixture("digits_mobile"), iter(feeds), sparsity=0.5, effort="fast", settings=SETTINGS)
    assert result.report.samples["held_out"] == 6


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    calib = data_of("digits_resnet")
    arguments = [
        "onnxshot", "compress", str(fixture("digits_resnet")), "--calib", str(calib["calib"]), "--pattern", "2:4",
        "--samples", "16", "--effort", "fast", "-o", str(tmp_path / "out.onnx"), "--no-cache", "--json",
    ]  # fmt: skip
    if calib.get("preset"):
        arguments += ["--preset", str(calib["preset"])]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None)
    values = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in values["stages"]] == ["input", "pruned", "quantized"]
    assert {"outputs", "sqnr_db", "samples", "seconds", "latency", "skips", "recipe"} <= values.keys()
    assert values["sqnr_db"] == values["stages"][-1]["sqnr_db"]
    assert values["outputs"][0]["bytes"] == (tmp_path / "out.onnx").stat().st_size
    patterns = {layer.pattern for layer in layers_of(load_model(tmp_path / "out.onnx"), {})}
    assert "2:4" in patterns
    assert patterns <= {"2:4", "1:4", "dense", "channels"}


def test_the_command_runs_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "stages:\n- prune: {pattern: channels, sparsity: ${cut:0.99}, multiple: 1}\n- quantize: {effort: fast}\n"
    (tmp_path / "r.yaml").write_text(text)
    calib = data_of("digits_mobile")
    given = ["compress", fixture("digits_mobile"), "--calib", calib["calib"], "--preset", calib["preset"]]
    given += ["--samples", "16", "--no-cache", "--json", "-o", tmp_path / "out.onnx", "--recipe", tmp_path / "r.yaml"]
    assert command(*given, "--set", "cut=0.2") == 0
    values = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in values["stages"]] == ["input", "shrunk", "quantized"]
    assert values["recipe"]["stages"][0]["shrink"]["target_flops"] == 0.8
    assert command(*given) == 3, "so little work cannot be reached"
    assert (tmp_path / "out.onnx").is_file()
    for wrong, said in (
        (["--set", "cat=0.2"], "no argument 'cat' (arguments: cut)"), (["--set", "cut"], "--set is 'cut'"),
        (["--effort", "best"], "effort is given beside a recipe of stages"),
    ):  # fmt: skip
        assert command(*given, *wrong) == 2
        assert said in capsys.readouterr().err

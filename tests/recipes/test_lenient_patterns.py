"""One recipe for a family of models: a glob that begins with `?` may match nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from fixture_data import fixture
from fixture_runs import QUICK, data_of

from onnxshot import Recipe, compress, inspect, prune, quantize, replay
from onnxshot.batch import run
from onnxshot.errors import UsageError

RECIPE = Recipe(effort="fast", exclude=("?*detect*", "?Gemm"), layers={"?LSTM": {"mode": "float"}})
FAMILY = ("digits_mobile", "licence_gru")


def test_what_matches_is_taken_and_what_does_not_is_told() -> None:
    mobile, gru = (inspect(fixture(name), recipe=RECIPE) for name in FAMILY)
    note = "nothing in this model has the name of '?*detect*' or '?LSTM', which may match nothing"
    assert note in mobile.plan.notes
    assert [skip.reason for skip in mobile.plan.skips if skip.op == "Gemm"] == ["excluded by '?Gemm'"]
    assert not any("excluded" in skip.reason for skip in inspect(fixture(FAMILY[0])).plan.skips)
    assert any("'?LSTM'" in text for text in gru.plan.notes)


def test_includes_and_sparsities_of_layers_are_lenient_too() -> None:
    model = fixture("digits_mobile")
    found = prune(model, sparsity=0.3, layers={"?LSTM": 0.9, "?Relu": 0.2}, exclude=["?*detect*"], settings=QUICK)
    assert found.report.sparsity == pytest.approx(0.3, abs=0.02)
    with pytest.raises(UsageError, match="'LSTM' matches no node name"):
        prune(model, sparsity=0.3, layers={"LSTM": 0.9}, settings=QUICK)
    plan = inspect(model, recipe=Recipe(include=("?LSTM",))).plan
    assert plan.skips == inspect(model).plan.skips


def test_a_run_is_replayed_by_its_record(tmp_path: Path) -> None:
    name = FAMILY[0]
    quantize(fixture(name), **data_of(name), recipe=RECIPE, output=tmp_path / "a.onnx", settings=QUICK)
    found = replay(fixture(name), tmp_path / "a.recipe.yaml", tmp_path / "b.onnx", settings=QUICK)
    assert found.same is True
    assert "?*detect*" in (tmp_path / "b.recipe.yaml").read_text()


def test_a_recipe_serves_all_models_of_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXSHOT_CACHE", str(tmp_path / "cache"))
    options = {"mode": "weights", "exclude": ["?Gemm"], "layers": {"?*detect*": {"mode": "float"}}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"stages": [{"quantize": options}]}))
    models = [{"model": str(fixture(name))} for name in FAMILY]
    manifest = {"models": models, "output": "out", "defaults": {"recipe": "r.yaml"}}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(manifest))
    assert [row["verdict"] for row in run(tmp_path / "m.yaml").rows] == ["ok", "ok"]


@pytest.mark.parametrize("verb", [compress, quantize])
def test_without_the_mark_it_stays_an_error(verb: Callable[..., object]) -> None:
    strict = Recipe(effort="fast", exclude=("*detect*",))
    with pytest.raises(UsageError, match=r"exclude pattern '\*detect\*' matches no node name"):
        verb(fixture("digits_mobile"), **data_of("digits_mobile"), recipe=strict, settings=QUICK)

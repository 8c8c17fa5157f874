"""Reports are what their JSON Schema says: no key is missing, of another type, or undocumented."""

import copy
import json
import re
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from fixture_data import fixture
from fixture_runs import command
from jsonschema import Draft202012Validator
from sample_reports import KINDS, NAME, report_of

from onnxshot.api.sensitivity import NodeSensitivity, Sensitivity
from onnxshot.graph.skip import Skip
from onnxshot.report.report import Report
from onnxshot.report.values import SCHEMA_VERSION, Artifact, NodeReport, TensorReport, ValueCounts
from onnxshot.results.compressed import CompressReport, StageRow
from onnxshot.results.pruned import LayerSparsity, PruneReport
from onnxshot.results.shrunk import GroupRow, ShrinkReport
from onnxshot.search.goal import Measured

SCHEMA: dict[str, Any] = json.loads((resources.files("onnxshot.report") / "report.schema.json").read_text("utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)
DOCS = (Path(__file__).parents[2] / "docs" / "reports.md").read_text("utf-8")
DEFINED = {
    "report": Report, "artifact": Artifact, "skip": Skip, "tensor": TensorReport, "values": ValueCounts,
    "node": NodeReport, "candidate": Measured, "layer": LayerSparsity, "shrink": ShrinkReport, "group": GroupRow,
    "stage": StageRow, "sensitivity": Sensitivity, "sensitive": NodeSensitivity,
}  # fmt: skip


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("kind", KINDS)
def test_reports_are_valid(kind: str) -> None:
    VALIDATOR.validate(json.loads(json.dumps(report_of(kind))))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_documented_is_not_valid(kind: str) -> None:
    assert not VALIDATOR.is_valid({**report_of(kind), "undocumented": 1})
    assert not VALIDATOR.is_valid({**report_of(kind), "input": 1})
    assert not VALIDATOR.is_valid({k: v for k, v in report_of(kind).items() if k != "input"})


def test_nor_is_it_inside() -> None:
    for path in (("worst", 0), ("graph", 0), ("latency",), ("samples",), ("worst", 0, "values")):
        report = copy.deepcopy(report_of("quantize"))
        inner: Any = report
        for step in path:
            inner = inner[step]
        inner["undocumented"] = 1
        assert not VALIDATOR.is_valid(report), path


@pytest.mark.parametrize("name", DEFINED)
def test_every_field_is_documented_and_nothing_else(name: str) -> None:
    described = SCHEMA["$defs"][name]["properties"]
    made = {"verdict", "schema_version"} & set(described)  # not fields
    assert ("verdict" in made) == (name in ("report", "shrink"))
    assert ("schema_version" in made) == (name in ("report", "shrink", "sensitivity"))
    assert set(described) - made == {field.name for field in fields(DEFINED[name])}
    for key, value in described.items():
        assert "$ref" in value or value["description"], key


@pytest.mark.parametrize(("name", "made"), [("prune", PruneReport), ("compress", CompressReport)])
def test_what_a_report_has_beyond_the_others(name: str, made: type[Report]) -> None:
    own = {field.name for field in fields(made)} - {field.name for field in fields(Report)}
    assert set(SCHEMA["$defs"][name]["properties"]) == own


# ---------------------------------------------------------------------- what is stable


def versions(part: Any) -> list[int]:
    """Every `schema_version` that a schema or a report holds, at any depth."""
    if isinstance(part, list):
        return [found for one in part for found in versions(one)]
    if not isinstance(part, dict):
        return []
    own = part.get("schema_version")
    here = [own["const"] if isinstance(own, dict) else own] if own is not None else []
    return here + [found for one in part.values() for found in versions(one)]


def test_the_schema_the_reports_and_the_docs_name_one_version() -> None:
    assert set(versions(SCHEMA)) == {SCHEMA_VERSION}
    for kind in KINDS:
        report = report_of(kind)
        assert next(iter(report)) == "schema_version"
        assert set(versions(report)) == {SCHEMA_VERSION}
    (told,) = re.findall(r"`schema_version` \(now (\d+)\)", DOCS)
    assert int(told) == SCHEMA_VERSION


def test_every_key_of_a_report_is_in_the_docs() -> None:
    section = DOCS.split("## JSON")[1].split("### What results are held against")[0]
    named = set(re.findall(r"`(\w+)`", section))
    of_reports = ("report", "sensitivity", "targets", "compress", "prune", "shrink")
    for kind in (*of_reports, "sensitive", "node", "tensor", "skip", "artifact", "layer", "group"):
        assert set(SCHEMA["$defs"][kind]["properties"]) <= named, kind


def test_other_commands_carry_the_version_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("inspect", fixture(NAME), "--json") == 0
    assert json.loads(capsys.readouterr().out)["schema_version"] == SCHEMA_VERSION

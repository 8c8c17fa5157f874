"""Reports are what their JSON Schema says: no key is missing, of another type, or undocumented."""

import copy
import json
from dataclasses import fields
from importlib import resources
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from sample_reports import KINDS, report_of

from onnxshot.api.sensitivity import NodeSensitivity, Sensitivity
from onnxshot.graph.skip import Skip
from onnxshot.report.report import Report
from onnxshot.report.values import Artifact, NodeReport, TensorReport, ValueCounts
from onnxshot.results.compressed import CompressReport, StageRow
from onnxshot.results.pruned import LayerSparsity, PruneReport
from onnxshot.results.shrunk import GroupRow, ShrinkReport
from onnxshot.search.goal import Measured

SCHEMA: dict[str, Any] = json.loads((resources.files("onnxshot.report") / "report.schema.json").read_text("utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)
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
    judged = {"verdict"} & set(described)  # made of the fields
    assert bool(judged) == (name in ("report", "shrink"))
    assert set(described) - judged == {field.name for field in fields(DEFINED[name])}
    for key, value in described.items():
        assert "$ref" in value or value["description"], key


@pytest.mark.parametrize(("name", "made"), [("prune", PruneReport), ("compress", CompressReport)])
def test_what_a_report_has_beyond_the_others(name: str, made: type[Report]) -> None:
    own = {field.name for field in fields(made)} - {field.name for field in fields(Report)}
    assert set(SCHEMA["$defs"][name]["properties"]) == own

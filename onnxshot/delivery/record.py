"""What a run was given and what it decided, in the metadata of its model and in a file beside it: enough to replay it.

A model that has been through several runs holds a record of each; its recipe is theirs, stage after stage.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from onnxshot.calibration.preset import Preset
from onnxshot.calibration.readers import Dataset
from onnxshot.calibration.statistics_file import data_hash
from onnxshot.errors import UsageError
from onnxshot.files.atomic_write import write_file
from onnxshot.files.links import follow_link
from onnxshot.files.regular_files import RECORD_BYTES, read_regular
from onnxshot.files.yaml_text import NoYaml, decoded, values_of
from onnxshot.graph import Model
from onnxshot.graph.load import load_model
from onnxshot.planning.plan import FLOAT, Plan
from onnxshot.recipes.plain_values import Plain
from onnxshot.recipes.stages import EmitStage, ModelStage, Stages, kind_of
from onnxshot.settings import Settings

VERSION_KEY, RECIPE_KEY, RUNS_KEY = "onnxshot.version", "onnxshot.recipe", "onnxshot.runs"
SUFFIX = ".recipe.yaml"
SETTINGS = ("samples", "seed", "device", "keep_overridable", "requantize")
"""Of the settings, those that may change a byte."""
_LIBRARIES = ("onnxshot", "onnx", "onnxruntime", "numpy")
_KEYS = ("recipe", "source", "outputs", "runs")
_HEAD = "# What {name} was made of, and how. onnxshot replay MODEL {file} makes the same bytes again.\n"
_HEAD_OF = re.compile(r"# What .+ was made of, and how\. onnxshot replay MODEL .+ makes the same bytes again\.")
_MOST_BYTES = 64 << 20  # of a record


@dataclass(frozen=True, slots=True)
class Record(Plain):
    """One run.

    Attributes:
        stage: what was asked for, as `{kind: fields}`.
        model: SHA-256, hex, of the graph and weights that were given.
        sampled: there were samples, or statistics of some. What they were is not here: as files and as arrays they make
            the same bytes.
        settings: those of `SETTINGS`.
        versions: of onnxshot and of the libraries that compute.
        decided: what the run found out. Of one that quantizes: precision -> nodes; what stayed float is in none of
            them. Of one that cuts channels: how many samples it was given, the first ones, and `Removal.to_record`.
    """

    stage: Mapping[str, Any]
    model: str
    sampled: bool
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    decided: Mapping[str, Any] = field(default_factory=dict)

    def parsed(self) -> ModelStage:
        """The stage. Raises UsageError where it is none that makes a model."""
        (stage,) = Stages.from_dict({"stages": [dict(self.stage)]}).stages
        if isinstance(stage, EmitStage):
            raise UsageError("stage.emit makes no model")
        return stage


def record(
    stage: ModelStage,
    given: str,
    settings: Settings,
    decided: Mapping[str, Any] | None = None,
    *,
    sampled: bool,
) -> Record:
    """The record of a run; given: `model_hash` of what it was given."""
    return Record(
        {kind_of(stage): stage.to_dict()}, given, sampled,
        {name: getattr(settings, name) for name in SETTINGS}, versions(), decided or {},
    )  # fmt: skip


def precisions(plan: Plan) -> dict[str, list[str]]:
    """Precision -> nodes, as a record holds it."""
    decided: dict[str, list[str]] = {}
    for node in plan.nodes:
        if node.how != FLOAT:
            decided.setdefault(node.how, []).append(node.node)
    return decided


def source_of(calib: Any, preset: str | Preset | None, data: Dataset | None) -> dict[str, Any]:
    """What a run's samples were, and where they lay and how pictures became inputs as far as that can be written down.

    data: the samples, opened; SHA-256, hex, over them, whatever their order, and of all that the preset holds.
    """
    return {
        "calib": str(calib) if isinstance(calib, str | Path) else None,
        "preset": preset if isinstance(preset, str) else None,
        "data_sha256": data_hash(data.digests()) if data is not None else None,
        "preset_sha256": data.preset_hash if data is not None else None,
    }


def versions() -> dict[str, str]:
    """Of what decides the bytes of a result.

    They are the modules' own: distributions of onnxruntime have several names, and a clone need not be installed.
    """
    return {name: str(import_module(name).__version__) for name in _LIBRARIES}


def stamp(model: Model, made: Record) -> None:
    """Put a run into the metadata, behind those that the model has been through: the recipe, and what it took."""
    metadata = model.metadata
    earlier, runs = _json(metadata.get(RECIPE_KEY)), _json(metadata.get(RUNS_KEY))
    ((kind, values),) = made.stage.items()
    before = _stages(earlier) if isinstance(earlier, dict) else []
    alone = values if kind == "quantize" else {"stages": [made.stage]}
    model.set_metadata(VERSION_KEY, made.versions["onnxshot"])
    model.set_metadata(RECIPE_KEY, json.dumps({"stages": [*before, made.stage]} if before else alone))
    model.set_metadata(RUNS_KEY, json.dumps([*(runs if isinstance(runs, list) else []), made.to_dict()]))


def _stages(recipe: dict[str, Any]) -> list[Any]:
    listed = recipe.get("stages")
    return listed if isinstance(listed, list) else [{"quantize": recipe}]


def _json(text: str | None) -> Any:
    """What a metadata entry holds; None where somebody else wrote it."""
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None


def beside(path: Path) -> Path:
    """Where the record of a file lies."""
    return path.with_name((path.stem if path.suffix.lower() == ".onnx" else path.name) + SUFFIX)


def leave_beside(model: Model, output: Path, source: Mapping[str, Any], files: Sequence[Path]) -> list[str]:
    """Write the file beside a result: its recipe, its runs, and what its files hash to; why not, where that cannot be.

    source: `source_of` the last run.
    """
    output = follow_link(output)
    path, metadata = beside(output), model.metadata
    if not _is_own(path):
        return [f"{path} is there already, and onnxshot has not written it: left as it is"]
    values = {
        "recipe": _json(metadata.get(RECIPE_KEY)), "source": dict(source),
        "outputs": {file.name: sha256(file) for file in files}, "runs": _json(metadata.get(RUNS_KEY)),
    }  # fmt: skip
    head = _HEAD.format(name=output.name, file=path.name)
    text = head + _text(values)
    try:
        write_file(path, lambda part: part.write_text(text, encoding="utf-8", errors="backslashreplace"))
    except UsageError as e:
        return [f"{path} was not written: {e.message}"]
    except OSError as e:
        return [f"{path} was not written: {e.strerror}"]
    return []


def _is_own(path: Path) -> bool:
    """Whether nothing is there, or a file that a run has written beside its output, and nobody has changed."""
    return not os.path.lexists(follow_link(path)) or _untouched(path) is not None


def outputs_of(path: Path) -> dict[str, str]:
    """File name -> SHA-256, hex, of what a record that a run has left there tells of; empty where it has left none."""
    values = _untouched(path)
    return {} if values is None else {str(name): str(found) for name, found in values["outputs"].items()}


def _untouched(path: Path) -> dict[str, Any] | None:
    """What a record holds, where every byte of it is what a run writes; else None."""
    try:
        if path.stat().st_size > _MOST_BYTES or not path.is_file():
            return None
        head, _, text = path.read_bytes().decode("utf-8").partition("\n")
        if not _HEAD_OF.fullmatch(head):
            return None
        values = values_of(text)
        own = isinstance(values, dict) and tuple(values) == _KEYS and _text(values) == text
        if own:
            _parsed(path, values)
        return values if own else None
    except (OSError, UnicodeDecodeError, NoYaml, UsageError):
        return None


def _text(values: Mapping[str, Any]) -> str:
    """The text of a record below its first line."""
    return str(yaml.safe_dump(dict(values), sort_keys=False, width=110, allow_unicode=True))


@dataclass(frozen=True, slots=True)
class Records:
    """The runs behind a file.

    Attributes:
        runs: in order.
        source: `source_of` the last one; empty where only the model was at hand.
        outputs: file name -> SHA-256, hex; empty where only the model was at hand.
    """

    runs: tuple[Record, ...]
    source: Mapping[str, Any]
    outputs: Mapping[str, str]


def load_records(path: Path) -> Records:
    """Read the file beside a result, or the metadata of the result itself. Raises UsageError where there is none."""
    hint = f"give the {SUFFIX} file beside a result of onnxshot, or the result"
    if path.suffix == ".onnx":
        values: Any = {"runs": _json(load_model(path).metadata.get(RUNS_KEY))}
    else:
        try:
            values = values_of(decoded(read_regular(path, "the record", UsageError, RECORD_BYTES)))
        except (OSError, NoYaml) as e:
            raise UsageError(f"{path} cannot be read: {e}", hint) from e
    return _parsed(path, values)


def _parsed(path: Path, values: Any) -> Records:
    """The runs of a file that was read. Raises UsageError where it holds none."""
    hint = f"give the {SUFFIX} file beside a result of onnxshot, or the result"
    runs = values.get("runs") if isinstance(values, dict) else None
    if not isinstance(runs, list) or not runs:
        raise UsageError(f"{path} holds no runs", hint)
    source, outputs = (values.get(key) or {} for key in ("source", "outputs"))
    if not isinstance(source, dict) or not isinstance(outputs, dict):
        raise UsageError(f"{path}: source and outputs must be keys and values", hint)
    return Records(tuple(_record(path, i, run) for i, run in enumerate(runs)), source, outputs)


def _record(path: Path, number: int, values: Any) -> Record:
    where = f"{path}: runs[{number}]"
    if not isinstance(values, dict):
        raise UsageError(f"{where} is {values!r}", "it was changed by hand: take the one the run wrote")
    try:
        found = Record.from_dict(values)
        if not isinstance(found.decided, dict):
            raise UsageError(f"decided is {found.decided!r}", "it was changed by hand: take the one the run wrote")
        found.parsed()
        Settings(**found.settings)
    except UsageError as e:
        raise UsageError(f"{where}.{e.message}", e.hint) from e
    except (TypeError, AttributeError) as e:
        raise UsageError(f"{where} is no record: {e}", "it was changed by hand: take the one the run wrote") from e
    return found


def sha256(path: Path) -> str:
    """SHA-256, hex, of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

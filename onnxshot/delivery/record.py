"""Record what a run was given and what it decided, so that it can be replayed.

Records are stored in the metadata of the model (`stamp`) and in a .recipe.yaml file beside it (`leave_beside`, which
writes that file). A model that went through several runs has one record per run, and a recipe with the stages of all.
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
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.statistics_file import data_hash
from onnxshot.calibration.text_preset import TextPreset
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
"""The settings that can change the bytes of the result."""
_LIBRARIES = ("onnxshot", "onnx", "onnxruntime", "numpy")
_KEYS = ("recipe", "source", "outputs", "runs")
_HEAD = "# What {name} was made of, and how. onnxshot replay MODEL {file} makes the same bytes again.\n"
_HEAD_OF = re.compile(r"# What .+ was made of, and how\. onnxshot replay MODEL .+ makes the same bytes again\.")
_MOST_BYTES = 64 << 20  # of a record file


@dataclass(frozen=True, slots=True)
class Record(Plain):
    """The record of one run.

    Attributes:
        stage: what was asked for, as `{kind: fields}`.
        model: SHA-256 (hex) of the graph and the weights that were given.
        sampled: whether there were samples, or calibration statistics. Which samples is not recorded here, because the
            same samples from files or from arrays must give the same bytes.
        settings: the settings listed in `SETTINGS`.
        versions: versions of onnxshot and of the libraries that compute.
        decided: what the run decided. For quantization, precision -> nodes; nodes that stayed float are not listed. For
            removed channels, the number of samples given and what `to_record` of the removal returns.
    """

    stage: Mapping[str, Any]
    model: str
    sampled: bool
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    decided: Mapping[str, Any] = field(default_factory=dict)

    def parsed(self) -> ModelStage:
        """The stage as a value. Raises UsageError where it is not a stage that makes a model."""
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
    """Make the record of a run; `given`: the `model_hash` of its input."""
    return Record(
        {kind_of(stage): stage.to_dict()}, given, sampled,
        {name: getattr(settings, name) for name in SETTINGS}, versions(), decided or {},
    )  # fmt: skip


def precisions(plan: Plan) -> dict[str, list[str]]:
    """The nodes of a plan by precision, as stored in a record."""
    decided: dict[str, list[str]] = {}
    for node in plan.nodes:
        if node.how != FLOAT:
            decided.setdefault(node.how, []).append(node.node)
    return decided


def source_of(
    calib: Any, preset: str | Path | Preset | SoundPreset | TextPreset | None, data: Dataset | None
) -> dict[str, Any]:
    """Describe a run's samples: their path and preset where these are text, and SHA-256 (hex) of both contents.

    Args:
        calib: the samples, as given.
        preset: the preset, as given.
        data: the opened samples; None where there are none.
    """
    return {
        "calib": str(calib) if isinstance(calib, str | Path) else None,
        "preset": str(preset) if isinstance(preset, str | Path) else None,
        **({"text": preset.to_dict()} if isinstance(preset, TextPreset) and not preset.implied else {}),
        "data_sha256": data_hash(data.digests()) if data is not None else None,
        "preset_sha256": data.preset_hash if data is not None else None,
    }


def versions() -> dict[str, str]:
    """Versions of onnxshot and of the libraries that decide the bytes of a result.

    They are read from the modules: onnxruntime is distributed under several names, and a clone may not be installed.
    """
    return {name: str(import_module(name).__version__) for name in _LIBRARIES}


def stamp(model: Model, made: Record) -> None:
    """Append the record of a run to the metadata of its model."""
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
    """The value of a metadata entry; None where it is not JSON."""
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None


def beside(path: Path) -> Path:
    """The path of the record file that belongs to a model file."""
    return path.with_name((path.stem if path.suffix.lower() == ".onnx" else path.name) + SUFFIX)


def leave_beside(model: Model, output: Path, source: Mapping[str, Any], files: Sequence[Path]) -> list[str]:
    """Write the record file beside a result: its recipe, its runs, and the hashes of its files.

    Args:
        model: whose metadata holds the runs.
        output: path of the model file.
        source: `source_of` the last run.
        files: the files of the result.

    Returns:
        Notes for the report: why the file was not written; empty where it was.
    """
    output = follow_link(output)
    path, metadata = beside(output), model.metadata
    if not _is_own(path):
        return [f"{path} exists already, and onnxshot has not written it: left as it is"]
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
    """Whether the path is free, or holds a record file that nobody has changed since a run wrote it."""
    return not os.path.lexists(follow_link(path)) or _untouched(path) is not None


def record_of(model: Model, output: Path) -> Path | None:
    """The record file beside an output, where nobody has changed it and it holds the runs of this model."""
    path = beside(follow_link(output))
    values = _untouched(path)
    return path if values is not None and values["runs"] == _json(model.metadata.get(RUNS_KEY)) else None


def outputs_of(path: Path) -> dict[str, str]:
    """The outputs that a record file lists: file name -> SHA-256 (hex); empty where it is missing or was changed."""
    values = _untouched(path)
    return {} if values is None else {str(name): str(found) for name, found in values["outputs"].items()}


def _untouched(path: Path) -> dict[str, Any] | None:
    """The content of a record file, if every byte of it is as a run writes it; else None."""
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
    """The text of a record file below its first line."""
    return str(yaml.safe_dump(dict(values), sort_keys=False, width=110, allow_unicode=True))


@dataclass(frozen=True, slots=True)
class Records:
    """The records of the runs that made a file.

    Attributes:
        runs: in the order in which they were run.
        source: `source_of` the last run; empty where the records come from the metadata of a model.
        outputs: file name -> SHA-256 (hex); empty where the records come from the metadata of a model.
    """

    runs: tuple[Record, ...]
    source: Mapping[str, Any]
    outputs: Mapping[str, str]


def load_records(path: Path) -> Records:
    """Load records from a record file, or from the metadata of an .onnx file. Raises UsageError if there are none."""
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
    """Parse the content of a record file. Raises UsageError where it has no runs, or is not valid."""
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
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Names of the files that a run of several stages reads and writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from onnxshot.delivery import artifacts
from onnxshot.delivery.input_files import of_function
from onnxshot.delivery.output_files import data_suffix, of_model, of_result
from onnxshot.files.conflicts import Read, Write
from onnxshot.files.links import follow_link, named_file
from onnxshot.graph import Model
from onnxshot.recipes.recipe import Recipe
from onnxshot.recipes.stages import EmitStage, ShrinkStage, Stage, Stages, kind_of
from onnxshot.report.values import Artifact
from onnxshot.wording import worded

_DONE = {"prune": "pruned", "shrink": "shrunk", "quantize": "quantized"}


def stage_names(stages: Stages) -> list[str]:
    """Name of the model that each stage makes, numbered if there are several of a kind; empty for an emit stage."""
    names = [_name(stage) for stage in stages.stages]
    numbers = [names[: i + 1].count(name) if name and names.count(name) > 1 else "" for i, name in enumerate(names)]
    return [f"{name}{number}" for name, number in zip(names, numbers, strict=True)]


def _name(stage: Stage) -> str:
    return "halved" if isinstance(stage, Recipe) and not stage.quantizes else _DONE.get(kind_of(stage), "")


def stage_output(output: Path, stem: str) -> Path:
    """Path of the artifacts of the model of an earlier stage: `output` with the stage name before its suffix."""
    return output.with_name(f"{output.stem}.{stem}{output.suffix}")


def evaluation_files(stages: Stages) -> Iterator[Read]:
    """The code that scores models in shrink stages."""
    for stage in stages.stages:
        if isinstance(stage, ShrinkStage):
            yield from of_function(stage.evaluate, "the evaluation")


def stage_writes(stages: Stages, model: Model, output: str | Path | None, kept: str | Path | None) -> Iterator[Write]:
    """All files that a run of these stages writes. kept: the folder for the model of every stage, if there is one."""
    names, data = stage_names(stages), data_suffix(model)
    if kept is not None:
        for name in filter(None, names):
            place = Path(kept) / f"{name}.onnx"
            yield from of_model(place, "the kept stage", data=data, named=False, option=worded("[[keep_stages]]"))
    if output is None:
        return
    output, final = follow_link(named_file(output)), [name for name in names if name][-1]
    yield from of_result(output, data=data)
    for i, stage in enumerate(stages.stages):
        if isinstance(stage, EmitStage):
            stem = model.path.stem if model.path is not None else "input"
            before = next((name for name in reversed(names[:i]) if name), stem)
            place = output if before == final else stage_output(output, before)
            for name in stage.to:
                if name != artifacts.ONNX or place != output:
                    yield from of_result(place, (name,), data=data, recorded=False, named=place == output)


def artifact_files(artifacts: Sequence[Artifact]) -> Iterator[Path]:
    """The files of artifacts, with the weights file of OpenVINO models."""
    for path in (Path(artifact.path) for artifact in artifacts):
        yield path
        if path.suffix == ".xml":
            yield path.with_suffix(".bin")

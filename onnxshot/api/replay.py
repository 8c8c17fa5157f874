"""`replay`: repeat the runs of a record on the same model, and compare the bytes of the result."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from onnxshot.api.recipe_stages import StageResult, run_recipe_stage
from onnxshot.arguments import checked
from onnxshot.blas_threads import one_blas_thread
from onnxshot.calibration.calib_types import Calib
from onnxshot.calibration.given import Transform, repeatable, with_transform
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.statistics_file import data_hash, refuse_other
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.calibration.tokenizer import with_tokenizer
from onnxshot.delivery.input_files import of_model_file, of_run
from onnxshot.delivery.output_files import data_suffix, of_result
from onnxshot.delivery.record import (
    Record,
    Records,
    leave_beside,
    load_records,
    record_of,
    sha256,
    versions,
)
from onnxshot.delivery.write_results import Made
from onnxshot.errors import CalibrationError, OnnxshotError, UsageError
from onnxshot.execution.statistics_cache import model_hash
from onnxshot.execution.statistics_source import open_calib
from onnxshot.files.atomic_write import scratch
from onnxshot.files.conflicts import Files
from onnxshot.files.links import named_file
from onnxshot.files.messages import shown
from onnxshot.graph.load import load_model
from onnxshot.recipes.recipe import Recipe
from onnxshot.report.advice import BAD, CAUTION, READY
from onnxshot.report.html import figures
from onnxshot.report.html.notebook import EDGES, Rows, card, folded, sentences, table
from onnxshot.results.model_source import ModelSource, model_files
from onnxshot.rewriting.model_inputs import plain_preset
from onnxshot.runtimes.invalid_model import blames_model
from onnxshot.settings import Settings, budgeted

_BYTES = {True: "the recorded bytes", False: "other bytes than recorded", None: "no recorded bytes to compare with"}


@dataclass(frozen=True, slots=True)
class Replayed:
    """The outcome of a replay.

    Attributes:
        output: The file that was written.
        runs: Kind of every run that was repeated, in order, such as 'prune'.
        sha256: SHA-256 of the file, hexadecimal.
        same: Whether the file has the recorded bytes; None if the record has no hash of it.
        changed: Library -> (recorded version, current version), where they differ.
        seconds: Wall time.
        notes: What the user should know.
    """

    output: Path
    runs: tuple[str, ...]
    sha256: str
    same: bool | None
    changed: dict[str, tuple[str, str]]
    seconds: float
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """One line: the file, its runs, and whether its bytes are the recorded ones."""
        return f"Replayed({self.output.name}, {', '.join(self.runs)}, {_BYTES[self.same]})"

    def _repr_html_(self) -> str:
        """A card, which notebooks show."""
        rows = [(name, then, now) for name, (then, now) in self.changed.items()]
        facts = [("runs", ", ".join(self.runs)), ("time", figures.seconds(self.seconds)), ("SHA-256", self.sha256[:12])]
        versions = folded("versions that differ", table(Rows(("library", "recorded", "now"), rows)))
        edge = EDGES[READY if self.same else CAUTION if self.same is None else BAD]
        return card(f"{self.output.name}: {_BYTES[self.same]}", facts, versions, sentences(self.notes), edge=edge)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values under stable keys."""
        return {**asdict(self), "output": str(self.output)}


@checked
@budgeted
@one_blas_thread()
@blames_model
def replay(
    model: ModelSource,
    recorded: str | Path | Made,
    output: str | Path,
    *,
    calib: Calib | None = None,
    stats: str | Path | None = None,
    preset: str | Path | Preset | SoundPreset | TextPreset | None = None,
    transform: Transform | None = None,
    settings: Settings | None = None,
) -> Replayed:
    """Make a result again from the model it was made from.

    Nothing is searched or verified again: what the runs decided is read from the record.

    Args:
        model: The model that the first run was given, as `quantize` takes it.
        recorded: The .recipe.yaml file beside the result, or the result: its .onnx file, or what the call returned.
        output: Path to write to.
        calib: The samples. Default: the path in the record.
        stats: The statistics, if the run was given a statistics file and no samples.
        preset: How samples become inputs. Default: the name in the record.
        transform: Called on each item of `calib`; makes an array, a tuple or a dict of it. See docs/calibration.md.
        settings: How to run it. Settings that can change the bytes are read from the record.

    Returns:
        The file, and whether its bytes are the recorded ones.

    Raises:
        UsageError, CalibrationError: The model, the samples or the preset are not those of the record; the message has
            both hashes.
        OnnxshotError: What the recorded runs raise.

    Example:
        >>> again = onnxshot.replay("model.onnx", "model.int8.recipe.yaml", "again.onnx")
        >>> again.same
        True
    """
    calib = with_transform(calib, transform)
    found = _record_of(recorded) if isinstance(recorded, Made) else recorded
    with model_files(model, found) as (path, record):
        return _replayed(path, record, named_file(output), calib, stats, preset, settings or Settings())


def _record_of(result: Made) -> Path | Made:
    """The record beside the file that a result was written to; the result itself where there is none."""
    written = [Path(made.path) for made in getattr(getattr(result, "report", None), "outputs", ())]
    return next(filter(None, (record_of(result.model, path) for path in written)), result)


def _replayed(
    model: Path,
    recorded: Path,
    output: Path,
    calib: Calib,
    stats: str | Path | None,
    preset: str | Path | Preset | SoundPreset | TextPreset | None,
    settings: Settings,
) -> Replayed:
    """The result of the runs on a file."""
    started = time.perf_counter()
    records = load_records(recorded)
    calib = records.source.get("calib") if calib is None else calib
    preset = _recorded_preset(records.source) if preset is None else preset
    loaded = load_model(model)
    files = settings.files.reading(*of_run(loaded, calib, preset, stats=stats), *of_model_file(recorded, "the record"))
    files.writing(*of_result(output, data=data_suffix(loaded))).check()
    settings, preset = replace(settings, files=Files()), with_tokenizer(plain_preset(preset), model)
    calib = repeatable(calib)
    with scratch() as folder:
        path = model
        for number, run in enumerate(records.runs, 1):
            try:
                # The hashes are those of the last run's samples; earlier runs may have used others.
                known = records.source if run.settings == records.runs[-1].settings else {}
                made = _repeated(run, known, path, calib, stats, preset, settings)
            except OnnxshotError as e:
                e.message = f"run {number} ({next(iter(run.stage))}): {e.message}"
                raise
            path = made.save(output if number == len(records.runs) else folder / f"{number}.onnx")
    source = {**records.source, **({"calib": str(calib)} if isinstance(calib, str | Path) else {})}
    notes = leave_beside(made.model, path, source, [path])
    return Replayed(
        output, tuple(next(iter(run.stage)) for run in records.runs), sha256(output),
        _same(records, recorded, output),
        _changed(records.runs), time.perf_counter() - started, tuple(notes),
    )  # fmt: skip


def _recorded_preset(source: Mapping[str, Any]) -> str | TextPreset | None:
    """The preset that a record names. Raises UsageError where it was changed by hand."""
    if (values := source.get("text")) is None:
        return source.get("preset")
    if not isinstance(values, dict) or not values.keys() <= {"tokenizer", "length", "field"}:
        hint = "give [[tokenizer=FILE]] and [[length=TOKENS]]"
        raise UsageError(f"the record's preset of texts is {shown(values)}", hint)
    return TextPreset(**values)


def _repeated(
    run: Record,
    source: Mapping[str, Any],
    path: Path,
    calib: Calib,
    stats: str | Path | None,
    preset: str | Path | Preset | SoundPreset | TextPreset | None,
    settings: Settings,
) -> StageResult:
    """The result of one run. source: paths and hashes of the samples in the record."""
    settings, decided = replace(settings, verify=False, **run.settings), run.decided
    loaded = load_model(path)
    refuse_other("model", run.model, "the record", model_hash(loaded), str(path))
    if not run.sampled:
        return run_recipe_stage(run.parsed(), path, None, None, preset=preset, settings=settings, decided=decided)
    if calib is None and (stats is None or not isinstance(run.parsed(), Recipe)):
        hint = "give them with [[calib=DATA]], or the statistics that it was given with [[stats=FILE]]"
        raise CalibrationError("the record has no path of its samples", hint)
    if calib is None:
        return run_recipe_stage(run.parsed(), path, None, None, preset=preset, settings=settings, stats=stats)
    with open_calib(calib, loaded, preset, settings) as data:
        for what, found in (("preset", data.preset_hash), ("data", data_hash(data.digests()))):
            wanted = source.get(f"{what}_sha256")
            if wanted is not None:
                refuse_other(what, str(wanted), "the record", found, data.source)
        return run_recipe_stage(
            run.parsed(), path, calib, data, preset=preset, settings=settings, stats=stats, decided=decided
        )


def _same(records: Records, recorded: Path, output: Path) -> bool | None:
    """Whether the output has the recorded bytes; None if there is no recorded hash."""
    if recorded.suffix == ".onnx":
        return sha256(recorded) == sha256(output)
    wanted = next((found for name, found in records.outputs.items() if name.endswith(".onnx")), None)
    return None if wanted is None else wanted == sha256(output)


def _changed(runs: Sequence[Record]) -> dict[str, tuple[str, str]]:
    """Library -> (recorded version, current version), where they differ."""
    now = versions()
    then = {name: version for run in runs for name, version in run.versions.items()}
    return {name: (then[name], now[name]) for name in now if then.get(name, now[name]) != now[name]}

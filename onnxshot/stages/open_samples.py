"""Open the calibration samples of a run, or check the statistics that stand for them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from onnxshot import memory
from onnxshot.calibration.batches import refuse_copies
from onnxshot.calibration.language_inputs import takes_text
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.readers import Dataset, open_data, split
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.statistics_file import load_statistics
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.calibration.tokenizer import tokenizer_beside
from onnxshot.errors import CalibrationError
from onnxshot.execution.statistics_source import open_calib
from onnxshot.rewriting.model_inputs import input_specs
from onnxshot.stages.prepare_model import Prepared
from onnxshot.wording import worded

_KEPT = 32  # share of `memory.held_bytes()` that samples may take, so that they are read once


@dataclass(frozen=True, slots=True)
class Samples:
    """What the model is observed on. Leaving a `with` block closes the data.

    Attributes:
        data: the opened samples, or None.
        stats: path of a statistics file that `calibrate` wrote, or None.
        trial: the result is measured and not kept; neither its record nor its notes mention the samples.
        hint: what could be given as samples, where nothing was; may be empty.
    """

    data: Dataset | None = None
    stats: str | Path | None = None
    trial: bool = False
    hint: str = ""

    @property
    def recorded(self) -> bool:
        """Whether a replay of the result needs samples, or statistics of some."""
        return not self.trial and (self.data is not None or self.stats is not None)

    @property
    def notes(self) -> list[str]:
        """What a user should know of the data."""
        if self.trial:
            return []
        return [self.hint] * bool(self.hint) if self.data is None else list(self.data.notes)

    def __enter__(self) -> Samples:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.data is not None:
            self.data.close()


def open_samples(
    prepared: Prepared,
    calib: Any,
    preset: str | Path | Preset | SoundPreset | TextPreset | None,
    stats: str | Path | None = None,
) -> Samples:
    """Open the calibration data of a model, where there is any.

    Raises:
        CalibrationError: the data does not fit the model, the statistics file cannot be read, or there is neither and
            the plan needs ranges.
    """
    if stats is not None:
        load_statistics(stats)  # reports a bad file now, even if nothing reads it later
    if calib is None:
        if stats is None:
            _refuse_missing(prepared)
        return Samples(None, stats, hint=_texts_would_do(prepared))
    data = open_calib(calib, prepared.model, preset, prepared.settings, prepared.fixed_shapes)
    if prepared.fixed_shapes:  # reported now, not after the work
        refuse_copies(data, prepared.fixed_shapes.inputs, len(split(len(data))[1]))
    data.keep(memory.held_bytes() // _KEPT)
    return Samples(data, stats)


def _refuse_missing(prepared: Prepared) -> None:
    """Raise CalibrationError where the plan needs ranges of activations; there are no samples."""
    if prepared.recipe.mode == "auto":
        open_data(None, input_specs(prepared.model))  # raises, and says what --calib takes
    unknown = prepared.plan().observe if prepared.recipe.mode == "static" else ()
    if unknown and prepared.trained:
        what = f"{len(unknown)} tensors came without a scale, such as {unknown[0]!r}"
        raise CalibrationError(what, "give [[calib=DATA]] to complete them, or leave their ops out with [[exclude=OP]]")
    if unknown:
        try:
            open_data(None, input_specs(prepared.model))  # raises, and says what --calib takes
        except CalibrationError as e:
            e.hint = _texts_would_do(prepared) or e.hint
            raise


def _texts_would_do(prepared: Prepared) -> str:
    """Says that texts are samples, where the model takes tokens and its tokenizer is there; else empty."""
    found = tokenizer_beside(prepared.model.path)
    with contextlib.suppress(CalibrationError):  # an input that is no tensor
        if found is not None and takes_text(input_specs(prepared.model)):
            how = worded("[[calib=texts.txt]], a file of typical texts, gives samples")
            return f"{found.name} lies beside the model: {how}"
    return ""

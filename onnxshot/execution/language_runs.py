"""Run language models for their own samples: prompts for pasts, and the encoder beside a decoder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot import memory
from onnxshot.calibration.checks import InputSpec, is_float
from onnxshot.calibration.language_inputs import LanguageInputs, language_inputs, takes_text
from onnxshot.calibration.sound import open_sounds
from onnxshot.calibration.token_windows import Window
from onnxshot.errors import CalibrationError
from onnxshot.graph.lean_model import LeanModel
from onnxshot.runtimes.ort_runtime import Runner
from onnxshot.runtimes.spool import Spool

Values = dict[str, NDArray[Any]]
_KEPT = 32  # share of `memory.held_bytes()` that pasts take in memory; the others wait in a file
_ENCODERS = ("encoder_model.onnx", "encoder.onnx", "encoder_model_fp16.onnx")
_FIRSTS = ("decoder_model.onnx", "decoder.onnx")


@dataclass(frozen=True, slots=True)
class Made:
    """What models have made for a window."""

    pasts: Values | None = None
    crosses: Values | None = None
    source_mask: Sequence[int] | None = None


@dataclass
class LanguageRuns:
    """Runs the model on prompts, and the encoder beside it on sources, once for all windows; keeps what they make."""

    model: LeanModel
    path: Path | None
    specs: Sequence[InputSpec]
    inputs: LanguageInputs
    threads: int
    pad: int
    _spool: Spool | None = None
    _lock: Lock = field(default_factory=Lock)
    _names: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    _source_masks: dict[int, list[int]] = field(default_factory=dict)

    @cached_property
    def encoder(self) -> Path | None:
        """The file of the encoder; None where the model needs none. Raises CalibrationError where there is none."""
        if not self.inputs.needs_encoder:
            return None
        names = [spec.name for spec in self.inputs.crosses] or [p.spec.name for p in self.inputs.pasts if p.cross]
        what = f"input {names[0]!r} takes what an encoder makes"
        return self._file(_ENCODERS, what)

    @cached_property
    def first(self) -> Path | None:
        """The file that decodes a prompt, where the model itself only takes steps; else None."""
        return self._file(_FIRSTS, "the model takes steps only") if self.inputs.steps_only else None

    def _file(self, names: Sequence[str], what: str) -> Path:
        folder = self.path.parent if self.path is not None else None
        for name in names if folder is not None else ():
            assert folder is not None
            if (folder / name).is_file():
                return folder / name
        at = f"beside {self.path}" if folder is not None else "beside a model in memory"
        raise CalibrationError(f"{what}: there is no {' or '.join(names[:2])} {at}", "put it there, or give .npz files")

    @cached_property
    def beside(self) -> bytes:
        """Hash of the other files that are run."""
        found = hashlib.sha256()
        for path in (self.encoder, self.first):
            if path is not None:
                with path.open("rb") as file:
                    found.update(hashlib.file_digest(file, "sha256").digest())
        return found.digest()

    def of(self, windows: Sequence[Window], index: int) -> Made:
        """What was made for a window."""
        with self._lock:
            if self._spool is None:
                self._spool = Spool(memory.held_bytes() // _KEPT)
                try:
                    self._fill(windows, self._spool)
                except BaseException:
                    self._spool.close()
                    self._spool = None
                    raise
        return Made(self._get("past", index), self._get("cross", index), self._source_masks.get(index))

    def close(self) -> None:
        """Remove the file of what does not fit into memory."""
        if self._spool is not None:
            self._spool.close()

    def _get(self, kind: str, index: int) -> Values | None:
        names = self._names.get((kind, index))
        assert self._spool is not None
        return None if names is None else {name: self._spool.get((kind, index, name)) for name in names}

    def _put(self, spool: Spool, kind: str, index: int, values: Mapping[str, NDArray[Any]]) -> None:
        self._names[kind, index] = list(values)
        for name, value in values.items():
            spool.put((kind, index, name), value)

    def _fill(self, windows: Sequence[Window], spool: Spool) -> None:
        if self.encoder is not None:
            self._encode(windows, self.encoder, spool)
        for index, window in enumerate(windows if self.inputs.sounds else ()):
            heard = self._heard(window, self.inputs.sounds, "the model")
            self._put(spool, "cross", index, {spec.name: heard[spec.name] for spec in self.inputs.sounds})
        prompted = [i for i, window in enumerate(windows) if window.before]
        if not prompted:
            return
        if self.first is not None:
            runner = Runner(self.first, threads=self.threads)
            inputs = language_inputs(runner.inputs, runner.outputs)
            shown = language_inputs(self.specs, [*_only(self.specs, runner.outputs)])
            self._prompt(windows, prompted, spool, runner, inputs, shown)
            return
        presents = [past.present for past in self.inputs.pasts if past.present is not None]
        runner = Runner(self.model, threads=self.threads, outputs=presents)
        self._prompt(windows, prompted, spool, runner, self.inputs, self.inputs)

    def _encode(self, windows: Sequence[Window], file: Path, spool: Spool) -> None:
        """Run the encoder on the source of every window."""
        runner = Runner(file, threads=self.threads)
        inputs = language_inputs(runner.inputs, runner.outputs) if takes_text(runner.inputs) else None
        wide = inputs.window if inputs is not None else None
        feeds = (
            self._heard(w, runner.inputs, f"the encoder {file}") if inputs is None
            else inputs.feed(w.source[:wide], pad=self.pad)
            for w in windows
        )  # fmt: skip
        for index, made in enumerate(runner.run_all(feeds, 1)):
            tokens = windows[index].source[:wide]
            self._source_masks[index] = [*[1] * len(tokens), *[0] * ((wide or len(tokens)) - len(tokens))]
            if inputs is None:  # the sound is filled up, and the encoder has seen all of it
                self._source_masks[index] = [1] * next((v.shape[1] for v in made.values() if v.ndim == 3), 1)
            crosses = {spec.name: _made_for(spec, made, file) for spec in self.inputs.crosses}
            if self.first is not None:
                hidden = InputSpec("encoder_hidden_states", np.dtype(np.float32), None)
                crosses = {hidden.name: _made_for(hidden, made, file)}
            self._put(spool, "cross", index, crosses)

    def _heard(self, window: Window, specs: Sequence[InputSpec], what: str) -> Values:
        """The first window of the sound of a text, as the inputs take it. Raises CalibrationError without a sound."""
        if window.sound is None:
            hint = 'give .jsonl records such as {"audio": "a.wav", "text": "what is said"}'
            raise CalibrationError(f"{what} takes sound, and {window.where} names none", hint)
        folder = self.path.parent if self.path is not None else None
        sounds = open_sounds(window.where, [window.sound], specs, None, folder, None)
        try:
            return dict(sounds.load(0).feed)
        finally:
            sounds.close()

    def _prompt(
        self, windows: Sequence[Window], numbers: Sequence[int], spool: Spool, runner: Runner, inputs: LanguageInputs,
        shown: LanguageInputs,
    ) -> None:  # fmt: skip
        """Run a model on what is before each window, in pieces of the number of tokens that it takes."""
        size = inputs.window
        longest = max(len(windows[i].before) for i in numbers)
        for start in range(0, longest, size or longest):
            left = [i for i in numbers if len(windows[i].before) > start]
            feeds = (self._piece(windows[i], i, start, size, inputs) for i in left)
            for i, made in zip(left, runner.run_all(feeds, 1), strict=True):
                self._put(spool, "past", i, shown.pasts_of(made, self._get("past", i)))

    def _piece(self, window: Window, index: int, start: int, size: int | None, inputs: LanguageInputs) -> Values:
        ids = window.before[start : start + size] if size is not None else window.before
        return inputs.feed(
            ids, seen=start, pasts=self._get("past", index), pad=self.pad, source=window.source,
            crosses=self._get("cross", index), source_mask=self._source_masks.get(index),
        )  # fmt: skip


def _only(specs: Sequence[InputSpec], outputs: Sequence[str]) -> Iterator[str]:
    """The outputs of the file that decodes prompts, which are the pasts of the other file."""
    yield from (name for name in outputs if "present" in name.lower())


def _made_for(spec: InputSpec, made: Mapping[str, NDArray[Any]], file: Path) -> NDArray[Any]:
    """The output of the encoder that an input takes: of its name, else its hidden state."""
    if spec.name in made:
        return made[spec.name]
    if "hidden" in spec.name or spec.name.startswith("encoder"):
        for name in ("encoder_hidden_states", "last_hidden_state", "hidden_states", "encoder_output"):
            if name in made:
                return made[name]
        with suppress(StopIteration):
            return next(value for value in made.values() if value.ndim == 3 and is_float(value.dtype))
    listed = ", ".join(map(repr, made))
    raise CalibrationError(f"{file} makes nothing for input {spec.name!r}: {listed}", "give .npz files")

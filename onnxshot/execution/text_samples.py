"""Samples made of texts: tokens, masks and positions, and pasts and encoder outputs that come from running models."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot import memory
from onnxshot.calibration.checks import InputSpec, Sample, is_float
from onnxshot.calibration.language_inputs import LanguageInputs, language_inputs
from onnxshot.calibration.sources import Digest, Source
from onnxshot.calibration.text_files import Text
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.calibration.token_windows import (
    LENGTH,
    Window,
    check_ids,
    windows_of_lines,
    windows_of_pairs,
    windows_of_stream,
)
from onnxshot.calibration.tokenizer import Tokenizer, find_tokenizer
from onnxshot.errors import CalibrationError
from onnxshot.graph import Model
from onnxshot.graph.embedding_tables import table_rows
from onnxshot.graph.lean_model import LeanModel
from onnxshot.runtimes.ort_runtime import Runner
from onnxshot.runtimes.spool import Spool

Values = dict[str, NDArray[Any]]
WINDOWS = 128
"""Most windows of a stream where the user names no number."""
_FEW_TOKENS, _FEW_IN_LINES = 4096, 1024
_KEPT = 32  # share of `memory.held_bytes()` that pasts take in memory; the others wait in a file
_ENCODERS = ("encoder_model.onnx", "encoder.onnx", "encoder_model_fp16.onnx")
_FIRSTS = ("decoder_model.onnx", "decoder.onnx")


@dataclass(frozen=True)
class TextOpener:
    """Opens texts as samples of a model.

    Attributes:
        model: the model.
        threads: CPU threads of its inferences.
        automatic: whether the number of samples is onnxshot's to choose.
    """

    model: Model
    threads: int = 2
    automatic: bool = True

    def __call__(
        self, label: str, read: Callable[[str | None], list[Text]], specs: Sequence[InputSpec],
        preset: TextPreset | None, limit: int | None,
    ) -> Source:  # fmt: skip
        """Make samples of texts.

        Args:
            label: the texts in messages.
            read: gives the texts; its argument is the field of the text in a .jsonl file.
            specs: inputs of the model.
            preset: tokenizer, length and field; None for the defaults.
            limit: most samples.

        Raises:
            CalibrationError: the model takes no text, there is no tokenizer or it is of another model, or a text cannot
                be read.
            UsageError: the library of tokenizers is not installed.
        """
        asked = preset or TextPreset()
        outputs = {tensor.name: self.model.shape(tensor) for tensor in self.model.graph.outputs}
        language_inputs(specs, list(outputs), _AnySize())  # a model that takes no text says so first
        tokenizer = Tokenizer.load(find_tokenizer(asked.tokenizer, self.model.path), self.model.path)
        inputs = language_inputs(specs, list(outputs), _sizes(tokenizer))
        rows = table_rows(self.model, [s.name for s in (inputs.ids, inputs.source) if s is not None])
        check_ids((), rows, tokenizer)
        reading = _Reading(inputs, tokenizer, tuple(outputs.values()), asked, self.automatic)
        windows, total = reading.windows(read(asked.field), limit)
        if not windows:
            raise CalibrationError(f"{label} holds no text", "one text a line, or a .jsonl file")
        check_ids(windows, rows, tokenizer)
        runs = None
        if inputs.needs_encoder or any(window.before for window in windows):
            # a copy of the graph: this one may change before the samples are read
            runs = _Runs(LeanModel.of(self.model), self.model.path, specs, inputs, self.threads, tokenizer.pad)
        return TextSource(label, windows, inputs, reading, runs, reading.notes(label, windows, total))


class _AnySize(dict[str, int]):
    """Sizes that are all known, to check the other inputs."""

    def get(self, key: str, default: Any = None) -> int:
        return 1


def _sizes(tokenizer: Tokenizer) -> dict[str, int]:
    """Sizes of pasts that config.json tells."""
    def first(*names: str) -> int | None:
        found = (tokenizer.config(name) for name in names)
        return next((value for value in found if type(value) is int and value > 0), None)

    heads = first("num_key_value_heads", "num_attention_heads", "n_head", "num_heads", "decoder_attention_heads")
    hidden, queries = first("hidden_size", "n_embd", "d_model"), first("num_attention_heads", "n_head", "num_heads")
    head = first("head_dim", "d_kv") or (hidden // queries if hidden and queries else None)
    return {key: value for key, value in (("heads", heads), ("head", head)) if value is not None}


@dataclass(frozen=True)
class _Reading:
    """How texts become windows for a model."""

    inputs: LanguageInputs
    tokenizer: Tokenizer
    outputs: tuple[tuple[int | str | None, ...] | None, ...]
    asked: TextPreset
    automatic: bool

    @cached_property
    def kind(self) -> str:
        """'pairs' for a model that decodes what an encoder has read, 'stream' for a decoder, else 'lines'."""
        inputs = self.inputs
        if inputs.source is not None or inputs.needs_encoder:
            return "pairs"
        if inputs.pasts:
            return "stream"
        if inputs.types:
            return "lines"
        names = self.tokenizer.config("architectures")
        if isinstance(names, list) and names:
            return "stream" if any("CausalLM" in str(n) or "LMHead" in str(n) for n in names) else "lines"
        wide = any(shape and len(shape) == 3 and shape[-1] == self._vocabulary(shape) for shape in self.outputs)
        return "stream" if wide and not self.tokenizer.masks else "lines"

    def _vocabulary(self, shape: Sequence[int | str | None]) -> int | str | None:
        last = shape[-1]
        return last if isinstance(last, int) and last >= self.tokenizer.size > 0 else None

    @cached_property
    def length(self) -> int:
        """Tokens of a window."""
        most = self.tokenizer.limit
        if self.asked.length is not None and most is not None and self._said_limit < self.asked.length:
            what = f"--length is {self.asked.length}; the model takes {self._said_limit} tokens"
            raise CalibrationError(what, "as its tokenizer_config.json or config.json says: ask for fewer")
        chosen = self.asked.length or min(LENGTH, most or LENGTH)
        fixed = self.inputs.window
        if fixed is None or fixed == 1:
            return chosen
        if self.asked.length is not None and self.asked.length > fixed:
            what = f"--length is {self.asked.length}; input {self.inputs.ids.name!r} takes {fixed} tokens"
            raise CalibrationError(what, f"--length {fixed}, or less: the rest is filled up")
        return min(self.asked.length or fixed, fixed)

    @cached_property
    def _said_limit(self) -> int:
        """What configurations say, without the tokenizer's own truncation, which users may pass."""
        config = self.tokenizer.config("max_position_embeddings")
        return config if type(config) is int and config > 0 else 1 << 62

    @cached_property
    def steps(self) -> str:
        """Which windows become a prompt and a step of one token."""
        if not self.inputs.grows:
            return "none"
        only = any(past.cross for past in self.inputs.pasts) and not self.inputs.crosses and self.inputs.branch is None
        if self.inputs.window == 1 or only:
            return "all"
        return "some" if self.inputs.window is None else "none"

    def windows(self, texts: Sequence[Text], limit: int | None) -> tuple[list[Window], int]:
        """The windows of the texts, and how many there would be without a limit."""
        if self.kind == "lines":
            return windows_of_lines(texts, self.tokenizer, self.length, limit)
        if self.kind == "pairs":
            lengths = self.inputs.source_window or self.length, self.length
            return windows_of_pairs(texts, self.tokenizer, lengths, limit, self.steps)
        most = WINDOWS if self.automatic and (limit is None or limit > WINDOWS) else limit
        length = 1 if self.inputs.window == 1 and self.steps == "none" else self.length
        return windows_of_stream(texts, self.tokenizer, length, most, self.steps)

    def notes(self, label: str, windows: Sequence[Window], total: int) -> tuple[str, ...]:
        """What was made of the texts, and a warning where they are short."""
        tokens = sum(window.tokens for window in windows)
        what = "texts" if self.kind == "lines" else "pairs of texts" if self.kind == "pairs" else "windows"
        of = f" of {total}, evenly spaced," if len(windows) < total else ""
        found = [
            f"{len(windows)} {what}{of} from {label}: {tokens} tokens, {self.length} at most in one, "
            f"by {self.tokenizer.path}"
        ]
        if steps := sum(bool(window.before) for window in windows):
            found.append(f"{steps} of the samples are one token behind a prompt that the model itself has read")
        if tokens < (few := _FEW_IN_LINES if self.kind == "lines" else _FEW_TOKENS):
            found.append(f"{tokens} tokens are few: what is measured on them may not hold for other texts; give {few}")
        return tuple(found)

    @property
    def made_by(self) -> bytes:
        """All that decides the ids beside the texts, for a hash."""
        return f"text {self.kind} {self.length} {self.tokenizer.sha256} {self.asked.field}".encode()


class TextSource(Source):
    """Samples of a language model, made of windows of tokens."""

    def __init__(
        self, label: str, windows: Sequence[Window], inputs: LanguageInputs, reading: _Reading, runs: _Runs | None,
        notes: tuple[str, ...],
    ) -> None:  # fmt: skip
        self._label, self._windows, self._inputs, self._runs = label, windows, inputs, runs
        self._pad, self._kind, self._width = reading.tokenizer.pad, reading.kind, reading.inputs.window
        self.notes, self.made_by = notes, reading.made_by

    def __len__(self) -> int:
        return len(self._windows)

    def load(self, index: int) -> Sample:
        """The arrays of a window; the first one that needs a past or an encoder runs the models for all of them."""
        window = self._windows[index]
        made = self._runs.of(self._windows, index) if self._runs is not None else _Made()
        feed = self._inputs.feed(
            window.ids, seen=len(window.before), pasts=made.pasts, pad=self._pad, types=window.types or None,
            source=window.source, crosses=made.crosses, source_mask=made.source_mask,
        )  # fmt: skip
        return Sample(self.where(index), feed)

    def where(self, index: int) -> str:
        """The file, and the line or the first token."""
        return self._windows[index].where

    def digest(self, index: int, sha: Digest) -> None:
        """Hash the tokens; what models make of them is decided by the models."""
        window = self._windows[index]
        for ids in (window.ids, window.before, window.types, window.source):
            sha.update(f"{len(ids)}\0".encode() + np.asarray(ids, np.int64).tobytes())
        if self._runs is not None:
            sha.update(self._runs.beside)

    def close(self) -> None:
        """Remove the file of pasts."""
        if self._runs is not None:
            self._runs.close()


@dataclass(frozen=True, slots=True)
class _Made:
    """What models have made for a window."""

    pasts: Values | None = None
    crosses: Values | None = None
    source_mask: Sequence[int] | None = None


@dataclass
class _Runs:
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
        only = self.inputs.needs_encoder and not self.inputs.crosses and self.inputs.branch is None
        crossed = any(past.cross for past in self.inputs.pasts)
        return self._file(_FIRSTS, "the model takes steps only") if only and crossed else None

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

    def of(self, windows: Sequence[Window], index: int) -> _Made:
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
        return _Made(self._get("past", index), self._get("cross", index), self._source_masks.get(index))

    def close(self) -> None:
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
        try:
            inputs = language_inputs(runner.inputs, runner.outputs)
        except CalibrationError as e:
            what = f"the encoder {file} reads no text: {e.message}"
            raise CalibrationError(what, "give .npz files that hold every input of the decoder") from e
        wide = inputs.window
        feeds = (inputs.feed(w.source[:wide], pad=self.pad) for w in windows)
        for index, made in enumerate(runner.run_all(feeds, 1)):
            tokens = windows[index].source[:wide]
            self._source_masks[index] = [*[1] * len(tokens), *[0] * ((wide or len(tokens)) - len(tokens))]
            crosses = {spec.name: _made_for(spec, made, file) for spec in self.inputs.crosses}
            if self.first is not None:
                hidden = InputSpec("encoder_hidden_states", np.dtype(np.float32), None)
                crosses = {hidden.name: _made_for(hidden, made, file)}
            self._put(spool, "cross", index, crosses)

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

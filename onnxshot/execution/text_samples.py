"""Samples made of texts: tokens, masks and positions, and pasts and encoder outputs that come from running models."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from onnxshot.calibration.checks import InputSpec, Sample
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
from onnxshot.calibration.tokenizer import Tokenizer, find_tokenizer, from_here
from onnxshot.errors import CalibrationError
from onnxshot.execution.language_runs import LanguageRuns, Made
from onnxshot.graph import Model
from onnxshot.graph.embedding_tables import table_rows
from onnxshot.graph.lean_model import LeanModel

WINDOWS = 128
"""Most windows of a stream, and most pairs, where the user names no number."""
_FEW_TOKENS, _FEW_IN_LINES = 4096, 1024


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
        texts = read(asked.field)
        if not any(text.text.strip() for text in texts):
            raise CalibrationError(f"{label} holds no text", "one text a line, or a .jsonl file")
        windows, total = reading.windows(texts, limit)
        if not windows:
            what = f"the tokenizer {tokenizer.path} finds no token in {label}"
            what += f": its vocabulary has {tokenizer.size} tokens"
            raise CalibrationError(what, "give the tokenizer of the model with [[tokenizer=FILE]]")
        check_ids(windows, rows, tokenizer)
        pad, runs = tokenizer.pad if tokenizer.pad < min(rows, default=1 << 31) else 0, None
        if inputs.needs_encoder or inputs.sounds or any(window.before for window in windows):
            # a copy of the graph: this one may change before the samples are read
            runs = LanguageRuns(LeanModel.of(self.model), self.model.path, specs, inputs, self.threads, pad)
        return TextSource(label, windows, inputs, reading, runs, pad, reading.notes(label, windows, total))


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
        if inputs.source is not None or inputs.sounds or inputs.needs_encoder:
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
            what = f"[[length]] is {self.asked.length}; the model takes {self._said_limit} tokens"
            raise CalibrationError(what, "as its tokenizer_config.json or config.json says: ask for fewer")
        chosen = self.asked.length or min(LENGTH, most or LENGTH)
        fixed = self.inputs.window
        if fixed is None or fixed == 1:
            return chosen
        if self.asked.length is not None and self.asked.length > fixed:
            what = f"[[length]] is {self.asked.length}; input {self.inputs.ids.name!r} takes {fixed} tokens"
            raise CalibrationError(what, f"[[length={fixed}]], or less: the rest is filled up")
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
        if self.inputs.window == 1 or self.inputs.steps_only:
            return "all"
        return "some" if self.inputs.window is None else "none"

    def windows(self, texts: Sequence[Text], limit: int | None) -> tuple[list[Window], int]:
        """The windows of the texts, and how many there would be without a limit."""
        if self.kind == "lines":
            return windows_of_lines(texts, self.tokenizer, self.length, limit)
        most = WINDOWS if self.automatic and (limit is None or limit > WINDOWS) else limit
        if self.kind == "pairs":
            lengths = self.inputs.source_window or self.length, self.length
            found, total = windows_of_pairs(texts, self.tokenizer, lengths, most, self.steps)
            kept = [w for w in found if w.before or not self.inputs.steps_only]
            if found and not kept:
                what = "the texts have one token each; the model takes one token behind others"
                raise CalibrationError(what, "give longer texts")
            return kept, total
        length = 1 if self.inputs.window == 1 and self.steps == "none" else self.length
        return windows_of_stream(texts, self.tokenizer, length, most, self.steps)

    def notes(self, label: str, windows: Sequence[Window], total: int) -> tuple[str, ...]:
        """What was made of the texts, and a warning where they are short."""
        tokens = sum(window.tokens for window in windows)
        s = "" if len(windows) == 1 else "s"
        what = f"text{s}" if self.kind == "lines" else f"pair{s} of texts" if self.kind == "pairs" else f"window{s}"
        about = "about " if self.kind == "stream" else ""  # a long stream is not tokenized as a whole
        of = f" of {about}{total}, evenly spaced," if len(windows) < total else ""
        found = [
            f"{len(windows)} {what}{of} from {label}: {tokens} tokens, {self.length} at most in one, "
            f"by {from_here(self.tokenizer.path)}"
        ]
        if steps := sum(bool(window.before) for window in windows):
            are = "is" if steps == 1 else "are"
            found.append(f"{steps} of the samples {are} one token behind a prompt that the model itself has read")
        if tokens < (few := _FEW_IN_LINES if self.kind == "lines" else _FEW_TOKENS):
            found.append(f"{tokens} tokens are few: what is measured on them may not hold for other texts; give {few}")
        return (*found, *self.tokenizer.notes)

    @property
    def made_by(self) -> bytes:
        """All that decides the ids beside the texts, for a hash."""
        return f"text {self.kind} {self.length} {self.tokenizer.sha256} {self.asked.field}".encode()


class TextSource(Source):
    """Samples of a language model, made of windows of tokens."""

    def __init__(
        self, label: str, windows: Sequence[Window], inputs: LanguageInputs, reading: _Reading,
        runs: LanguageRuns | None, pad: int, notes: tuple[str, ...],
    ) -> None:  # fmt: skip
        self._label, self._windows, self._inputs, self._runs = label, windows, inputs, runs
        self._pad = pad
        self.notes, self.made_by = notes, reading.made_by

    def __len__(self) -> int:
        return len(self._windows)

    def load(self, index: int) -> Sample:
        """The arrays of a window; the first one that needs a past or an encoder runs the models for all of them."""
        window = self._windows[index]
        made = self._runs.of(self._windows, index) if self._runs is not None else Made()
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
        if window.sound is not None:
            with window.sound.open("rb") as file:
                sha.update(hashlib.file_digest(file, "sha256").digest())

    def close(self) -> None:
        """Remove the file of pasts."""
        if self._runs is not None:
            self._runs.close()

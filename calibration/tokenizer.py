"""Find and load the tokenizer of a model: its tokenizer.json, and what other .json files say of special tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from onnxshot.calibration.preset import load_preset
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.errors import CalibrationError, UsageError
from onnxshot.files.messages import shown
from onnxshot.files.regular_files import read_regular

FILE = "tokenizer.json"
_MOST_TOKENIZER = 256 << 20  # bytes
_MOST_CONFIG = 16 << 20  # bytes
_ENDLESS = 1 << 24  # tokens; model_max_length is 1e30 where there is no limit
_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json")
_ENDS = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "<|im_end|>", "[SEP]")
_PADS = ("[PAD]", "<pad>", "<|pad|>", "<|padding|>", "<|endoftext|>")
_MASKS = ("[MASK]", "<mask>")


def tokenizer_beside(model: Path | None) -> Path | None:
    """The tokenizer.json in the folder of a model, or one folder above it; None where there is none."""
    if model is None:
        return None
    folder = model.absolute().parent
    return next((place / FILE for place in (folder, folder.parent) if (place / FILE).is_file()), None)


def with_tokenizer(preset: object, model: object) -> Any:
    """A preset that also names the tokenizer beside a model, for other files that are made of the model.

    Args:
        preset: any preset, its name or file, or None. Only None, and presets of texts without a tokenizer, are changed.
        model: path of the model; anything else has no folder.
    """
    found = tokenizer_beside(Path(model)) if isinstance(model, str | Path) else None
    if found is None:
        return preset
    is_file = isinstance(preset, str) and preset.lower().endswith((".yaml", ".yml"))
    known = load_preset(preset) if isinstance(preset, str) and (is_file or preset == "none") else preset
    if known is None:
        return TextPreset(found, implied=True)
    if not isinstance(known, TextPreset):
        return preset
    return known if known.tokenizer is not None else replace(known, tokenizer=found)


def find_tokenizer(given: str | Path | None, model: Path | None) -> Path:
    """The tokenizer.json that was named, or the one beside the model.

    Args:
        given: a tokenizer.json, or a folder that holds it; None to look beside the model.
        model: path of the model file; None for a model in memory.

    Raises:
        CalibrationError: there is none.
    """
    if given is not None:
        path = Path(given)
        file = path / FILE if path.is_dir() else path
        if not file.is_file():
            what = f"{path} holds no {FILE}" if path.is_dir() else f"the tokenizer {path} is not there"
            raise CalibrationError(what, _how_to_save())
        return file
    found = tokenizer_beside(model)
    if found is None:
        at = f"no {FILE} lies beside {model}, or one folder above" if model is not None else "the model has no file"
        hint = f"give [[tokenizer=FILE]]; {_how_to_save()}"
        raise CalibrationError(f"texts need the tokenizer of the model: {at}", hint)
    return found


def _how_to_save() -> str:
    return "tokenizer.save_pretrained(folder) of a fast tokenizer of transformers writes it"


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < _ENDLESS


def _is_id_or_list(value: Any) -> bool:
    return all(map(_is_id, value)) if isinstance(value, list) else _is_id(value)


def _is_limit(value: Any) -> bool:
    return type(value) in (int, float) and value > 0


_LIMITS = (
    ("tokenizer_config.json", "model_max_length"), ("config.json", "max_position_embeddings"),
    ("config.json", "n_positions"),
)  # fmt: skip
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_USED: tuple[tuple[str, str, Callable[[Any], bool], str], ...] = (
    *((file, key, _is_limit, "number of tokens") for file, key in _LIMITS),
    *((file, key, _is_id_or_list, "id of a token") for file in ("generation_config.json", "config.json")
      for key in _IDS),
)  # fmt: skip
"""Values of files beside the tokenizer: the file, the key, what tells a good value, and what it should be."""


@dataclass(frozen=True, slots=True)
class _Beside:
    """What the .json files beside a tokenizer hold.

    Attributes:
        values: by the name of the file; files that are not there or cannot be read have none.
        paths: of the files that were read, by name.
        unread: what is wrong with each file that cannot be read.
    """

    values: dict[str, dict[str, Any]]
    paths: dict[str, Path]
    unread: tuple[str, ...]


def from_here(path: Path) -> Path:
    """A path as a user would write it: from the working folder, where it lies below that."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer and its special tokens.

    Attributes:
        path: of its tokenizer.json.
        sha256: of that file, in hex digits.
        folders: where the .json files beside it are looked for: its own folder, and that of the model.
        own_limit: tokens that its own truncation cuts texts to; None without one.
    """

    path: Path
    sha256: str
    folders: tuple[Path, ...]
    own_limit: int | None
    _inner: Any = field(repr=False)

    @classmethod
    def load(cls, path: Path, model: Path | None = None) -> Tokenizer:
        """Load a tokenizer.json; nothing in it is run.

        Args:
            path: of the file.
            model: path of the model, whose folder may hold a config.json.

        Raises:
            UsageError: the library that reads it is not installed.
            CalibrationError: it is no tokenizer.
        """
        try:
            import tokenizers
        except ImportError:
            what = "texts need the library tokenizers, which is not installed"
            raise UsageError(what, "pip install 'onnxshot[text]'") from None
        content = read_regular(path, "the tokenizer", CalibrationError, _MOST_TOKENIZER)
        try:
            inner = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
            inner.no_padding()
        except BaseException as e:  # a panic of the library is no Exception
            if isinstance(e, KeyboardInterrupt | SystemExit | MemoryError):
                raise
            reason = " ".join(str(e).split())[:200]
            raise CalibrationError(f"{path} is no tokenizer: {reason}", _how_to_save()) from None
        beside = [] if model is None else [model.absolute().parent, model.absolute().parent.parent]
        folders = tuple(dict.fromkeys((path.absolute().parent, *beside)))
        own = (inner.truncation or {}).get("max_length")
        return cls(path, hashlib.sha256(content).hexdigest(), folders, own, inner)

    @cached_property
    def size(self) -> int:
        """The largest id and 1 of the vocabulary, without tokens that were added to it."""
        return max(self._inner.get_vocab(with_added_tokens=False).values(), default=-1) + 1

    @cached_property
    def masks(self) -> bool:
        """Whether it has a token that stands for a masked one, as encoders have."""
        return any(self._inner.token_to_id(token) is not None for token in _MASKS)

    @cached_property
    def limit(self) -> int | None:
        """Most tokens of a text, as the files beside it and its own truncation say; None where nothing does."""
        values = [
            self.own_limit,
            *(self._said(file, key) for file, key in _LIMITS),
        ]
        known = [int(v) for v in values if type(v) in (int, float) and 0 < v < _ENDLESS]
        return min(known, default=None)

    @cached_property
    def pad(self) -> int:
        """The id that fills a text up; that of the end of a text, or 0, where no file names one."""
        found = self._named("pad")
        known = [self._inner.token_to_id(token) for token in _PADS] if found is None else [found]
        return next((i for i in known if i is not None), self.end if self.end is not None else 0)

    @cached_property
    def end(self) -> int | None:
        """The id that ends a text; None where there is none."""
        found = self._named("eos")
        known = [self._inner.token_to_id(token) for token in _ENDS] if found is None else [found]
        return next((i for i in known if i is not None), None)

    @cached_property
    def start(self) -> int:
        """The id that the target of an encoder-decoder model begins with."""
        for name in ("decoder_start_token_id", "forced_bos_token_id"):
            for file in ("generation_config.json", "config.json"):
                if _is_id(found := self._said(file, name)):
                    return int(found)
        return self.head[0] if self.head else self.pad

    @cached_property
    def head(self) -> tuple[int, ...]:
        """The special tokens that stand in front of every text."""
        said = self._said("tokenizer_config.json", "add_bos_token")
        coded = self._inner.encode("a")
        count = next((i for i, special in enumerate(coded.special_tokens_mask) if not special), 0)
        own = tuple(coded.ids[:count])
        if said is True and not own and (first := self._named("bos")) is not None:
            return (first,)
        return () if said is False else own

    def cut(self, text: str, length: int, second: str | None = None) -> tuple[list[int], list[int]]:
        """The ids of a text with its special tokens, `length` at most, and the number of the segment of each."""
        self._inner.enable_truncation(length)
        try:
            coded = self._inner.encode(text) if second is None else self._inner.encode(text, second)
        finally:
            self._inner.no_truncation()
        return list(coded.ids)[:length], list(coded.type_ids)[:length]

    def plain(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts without special tokens, of any length."""
        self._inner.no_truncation()
        # one by one: encode_batch starts threads of its own, whatever the number of threads that was asked for
        return [list(self._inner.encode(text, add_special_tokens=False).ids) for text in texts]

    def config(self, name: str) -> Any:
        """A value of the model's config.json; None where it is not there."""
        return self._said("config.json", name)

    def _named(self, kind: str) -> int | None:
        """The id of the token of a kind ('pad', 'eos', 'bos') as the files beside the tokenizer name it."""
        for file in _CONFIGS:
            token = self._said(file, f"{kind}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str) and isinstance(found := self._inner.token_to_id(token), int):
                return found
            number = self._said(file, f"{kind}_token_id")
            number = number[0] if isinstance(number, list) and number else number
            if _is_id(number):
                return int(number)
        return None

    @property
    def notes(self) -> tuple[str, ...]:
        """What is wrong with .json files beside the tokenizer and the model, and is passed over."""
        odd = [
            f"{self._beside.paths[file]} says {key} {shown(value)}, which is no {kind}: it is passed over"
            for file, key, is_good, kind in _USED
            if (value := self._said(file, key)) is not None and not is_good(value)
        ]
        return (*self._beside.unread, *odd)

    def _said(self, file: str, key: str) -> Any:
        return self._beside.values.get(file, {}).get(key)

    @cached_property
    def _beside(self) -> _Beside:
        """The .json files beside the tokenizer and the model, in the first folder that has them."""
        found, paths, wrong = dict[str, dict[str, Any]](), dict[str, Path](), list[str]()
        for name in _CONFIGS:
            for folder in self.folders:
                path = folder / name
                try:
                    values = json.loads(read_regular(path, "the file", CalibrationError, _MOST_CONFIG))
                    if not isinstance(values, dict):
                        raise ValueError("it holds no object of keys and values")
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except (OSError, ValueError, RecursionError, CalibrationError) as e:
                    said = e.message if isinstance(e, CalibrationError) else " ".join(str(e).split())
                    reason = (e.strerror if isinstance(e, OSError) else None) or said
                    wrong.append(f"{from_here(path)} is passed over: {reason}")
                    continue
                found[name], paths[name] = values, from_here(path)
                break
        return _Beside(found, paths, tuple(wrong))

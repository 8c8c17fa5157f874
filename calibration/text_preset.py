"""How texts become token ids: as a value, and as the keys of a YAML file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxshot.arguments import check_fields, named_fields
from onnxshot.errors import UsageError
from onnxshot.files.messages import shown

MOST_LENGTH = 1 << 17
"""Most tokens of one window."""


@named_fields
@dataclass(frozen=True, slots=True)
class TextPreset:
    """How texts become the inputs of a language model.

    Attributes:
        tokenizer: a tokenizer.json, or a folder that holds one. Default: the one beside the model, or one folder above.
        length: tokens of a window. Default: what the model and its tokenizer take, 256 at most.
        field: of a .jsonl file, the field that holds the text. Default: see docs/calibration.md.
        name: of the preset in messages, or the path of its file.
        implied: whether nobody asked for it: it says where the tokenizer lies, and stands for no preset elsewhere.

    Raises:
        UsageError: a value has the wrong type or is out of range.

    Example:
        >>> TextPreset(length=128).length
        128
    """

    tokenizer: str | Path | None = None
    length: int | None = None
    field: str | None = None
    name: str = "text"
    implied: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.length is not None and not 1 <= self.length <= MOST_LENGTH:
            raise UsageError(f"the length of a text is {shown(self.length)} tokens", f"from 1 to {MOST_LENGTH}")
        if self.tokenizer is not None and not str(self.tokenizer):
            raise UsageError("the tokenizer has no path", "a tokenizer.json, or the folder that holds it")

    @classmethod
    def of_keys(cls, values: Mapping[Any, Any], path: Path) -> TextPreset:
        """Make a preset of the keys of a YAML file with `kind: text`; relative paths start at its folder.

        Raises UsageError for an unknown key and for a value that does not fit.
        """
        known = ("kind", "tokenizer", "length", "field")
        for key, value in values.items():
            if key not in known:
                raise UsageError(f"preset {path}: unknown key {shown(key)}", f"keys of texts: {', '.join(known)}")
            wanted = int if key == "length" else str
            if type(value) is not wanted or not value:
                what = f"preset {path}: {key} is {shown(value)}"
                raise UsageError(what, "a number of tokens" if key == "length" else "text")
        place = values.get("tokenizer")
        return cls(None if place is None else path.parent / place, values.get("length"), values.get("field"), str(path))

    def fields(self) -> bytes:
        """All that decides the ids of a text, with the content of the tokenizer, as stable bytes for a hash."""
        values = {"length": self.length, "field": self.field, "tokenizer": None}
        if self.tokenizer is not None:
            values["tokenizer"] = _content(Path(self.tokenizer))
        return json.dumps(values, sort_keys=True).encode()

    def to_dict(self) -> dict[str, Any]:
        """Plain values of what was asked for, for a record."""
        if self.implied:
            return {}
        place = None if self.tokenizer is None else str(self.tokenizer)
        values = {"tokenizer": place, "length": self.length, "field": self.field}
        return {key: value for key, value in values.items() if value is not None}


def _content(path: Path) -> str:
    """The hash of a tokenizer's file; the path itself where there is none, which is reported when texts are read."""
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:
        return str(path)

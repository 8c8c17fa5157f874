"""Read texts from .txt, .md, .jsonl and .tsv files, and from objects of the caller; nothing in them is run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from onnxshot.calibration.checks import InputSpec
from onnxshot.calibration.sound_files import SOUNDS
from onnxshot.calibration.user_functions import users_code
from onnxshot.errors import CalibrationError
from onnxshot.files.messages import shown
from onnxshot.files.regular_files import read_regular

TEXTS = (".txt", ".md", ".jsonl", ".tsv")
"""Suffixes of files of text."""
MOST_TEXT = 64 << 20
"""Most bytes of all files of text together, and most characters of the texts of an iterable."""
_PLAIN = (".txt", ".md")
_FIELDS = (
    "text", "input", "source", "prompt", "question", "document", "article", "sentence", "content",
    "transcription", "transcript",
)
_TARGETS = ("target", "output", "completion", "response", "answer", "summary", "highlights")
_SECONDS = ("text_pair", "sentence2", "hypothesis", "passage", "context")
_FIRSTS = ("sentence1", "premise", "query")
_SOUNDS = ("audio", "audio_filepath", "sound", "wav", "file", "path")
_CHATS = ("messages", "conversations")
_HALVES = re.compile("[\ud800-\udfff]")  # of surrogate pairs: JSON may hold one alone, and UTF-8 may not
MOST_TEXTS = 1 << 20
"""Most texts of all files together, and of an iterable."""


@dataclass(frozen=True, slots=True)
class Text:
    """One text, as it was found.

    Attributes:
        where: its place in messages, such as 'texts.jsonl line 3'.
        text: the text.
        target: what an encoder-decoder model makes of it, such as its translation; None where nothing says.
        second: the second text of a pair that an encoder reads together; None for a single text.
        sound: the file of sound that the text is a transcript of; None where there is none.
        whole: whether it is a whole document, in which lines belong together.
    """

    where: str
    text: str
    target: str | None = None
    second: str | None = None
    sound: Path | None = None
    whole: bool = False

    def lines(self) -> Iterator[Text]:
        """The lines of a document that are not blank, each as a text of its own; a text that is no document as it is.

        Line numbers start at 1.
        """
        if not self.whole:
            yield self
            return
        for number, line in enumerate(self.text.split("\n"), 1):
            if line.strip():
                yield Text(f"{self.where} line {number}", line.strip())


def files_of_text(root: Path, paths: Sequence[Path], field: str | None = None) -> list[Text]:
    """The texts of files, in order.

    A .txt or .md file is one document. A line of a .jsonl or .tsv file is one text. Blank ones are left out.

    Args:
        root: the folder or file that the user named; names in messages start there.
        paths: the files.
        field: of a .jsonl file, the field that holds the text; None for the usual names.

    Raises:
        CalibrationError: a file is not UTF-8, a line is not JSON or has no text, or the files are too large.
    """
    free, found = MOST_TEXT, list[Text]()
    for path in paths:
        where = path.relative_to(root).as_posix() if path != root else path.name
        try:
            content = read_regular(path, "the text", CalibrationError, free)
        except OSError as e:
            raise CalibrationError(f"the text {path} cannot be read: {e.strerror}", "remove or replace it") from e
        except CalibrationError as e:
            if "larger" not in e.message:
                raise
            what = f"the texts {root} hold more than {MOST_TEXT >> 20} MiB"
            raise CalibrationError(what, "give a part, such as head -c 10M gives: a few MiB are plenty") from e
        free -= len(content)
        found += _texts(_decoded(content, path), path, where, field)
        if len(found) > MOST_TEXTS:
            raise CalibrationError(f"the texts {root} are more than {MOST_TEXTS}", "give a part of them")
    return found


def _decoded(content: bytes, path: Path) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise CalibrationError(f"{path} is UTF-16, not UTF-8", f"iconv -f UTF-16 -t UTF-8 {path.name}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = content.count(b"\n", 0, e.start) + 1
        what = f"{path} is not UTF-8: byte 0x{content[e.start]:02x} in line {line}"
        raise CalibrationError(what, f"if it is latin-1: iconv -f latin1 -t UTF-8 {path.name}") from None
    if "\0" in text:
        raise CalibrationError(f"{path} is not a text: it holds NUL bytes", "is it the right file?")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _texts(text: str, path: Path, where: str, field: str | None) -> Iterator[Text]:
    if path.suffix.lower() in _PLAIN:
        if text.strip():
            yield Text(where, text, whole=True)
        return
    lines = [(f"{where} line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if path.suffix.lower() == ".tsv":
        yield from _columns(lines, field, path.parent)
        return
    for at, line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise CalibrationError(f"{at} is not JSON: {' '.join(str(e).split())}", 'such as {"text": "..."}') from None
        yield of_record(record, at, field, path.parent)


def _columns(lines: Sequence[tuple[str, str]], field: str | None, folder: Path) -> Iterator[Text]:
    """The texts of a table: by the names of its first line, if one of them is that of a text; else text and target."""
    rows = [(at, line.split("\t")) for at, line in lines]
    if not rows:
        return
    names = [cell.strip() for cell in rows[0][1]]
    if {name.lower() for name in names} & {*_FIELDS, *_FIRSTS, *([field.lower()] if field else ())}:
        for at, cells in rows[1:]:
            if len(cells) != len(names):
                what = f"{at} has {len(cells)} columns, the first line {len(names)}"
                raise CalibrationError(what, "a tab stands between two")
            yield of_record(dict(zip(names, cells, strict=True)), at, field, folder)
        return
    for at, cells in rows:
        if len(cells) > 2 or len(cells) != len(names):
            what = f"{at} has {len(cells)} columns"
            raise CalibrationError(what, "a text and a target, or a first line that names the columns")
        yield Text(at, cells[0], cells[1] if len(cells) == 2 else None)


def of_record(record: object, where: str, field: str | None = None, folder: Path | None = None) -> Text:
    """The text of one record: a string, a pair of them, or a dict with fields of the usual names.

    Fields: `field` where it is given, `text` and other usual names, the messages of a chat (their contents, one after
    another; no chat template is run), or the only string. `target`, `output` and the like hold the target, `audio` and
    the like a file of sound.

    Args:
        record: a value of JSON, or of the caller's object.
        where: its place in messages.
        field: name of the field that holds the text.
        folder: where paths of sounds start, and which they must not leave; None for paths of the caller's own.

    Raises:
        CalibrationError: there is no text, or its sound is outside the folder.
    """
    found = _of_record(record, where, field, folder)
    for text in (found.text, found.target, found.second):
        if text is not None and (half := _HALVES.search(text)):
            what = f"{where} holds \\u{ord(half[0]):04x} alone: it is half of a character"
            raise CalibrationError(what, "leave it out, or write both halves, or the character itself")
    return found


def _of_record(record: object, where: str, field: str | None, folder: Path | None) -> Text:
    if isinstance(record, str):
        return Text(where, record)
    if _is_pair(record):
        return Text(where, *record)  # type: ignore[misc]  # two strings
    if not isinstance(record, Mapping):
        raise CalibrationError(f"{where} is {_kind(record)}, not a text", 'give text, or {"text": "..."}')
    inner = record.get("translation")
    if isinstance(inner, Mapping) and len(both := [v for v in inner.values() if isinstance(v, str)]) == 2:
        return Text(where, both[0], both[1])
    words = {str(key): value for key, value in record.items() if isinstance(value, str)}
    named = next((key for key in _SOUNDS if words.get(key, "").lower().endswith(SOUNDS)), None)
    sound = _sound(words.pop(named), where, folder) if named is not None else None
    if field is not None and field not in words:
        held = f": it holds {_kind(record[field])}" if field in record else ""
        raise CalibrationError(f"{where} has no text in field {field!r}{held}", f"its fields: {_listed(record)}")
    if field is None and (chat := next((record[key] for key in _CHATS if key in record), None)) is not None:
        return Text(where, "\n".join(_contents(chat, where)))
    name = field or next((key for key in (*_FIELDS, *_FIRSTS) if key in words), None)
    if name is None and len(words) == 1:
        name = next(iter(words))
    if name is None and (usual := next((key for key in (*_FIELDS, *_FIRSTS) if key in record), None)) is not None:
        what = f"{where} has {_kind(record[usual])} in field {usual!r}, not a text"
        raise CalibrationError(what, 'such as {"text": "..."}')
    if name is None:
        hint = "name the field of the text in a preset file: kind: text, field: NAME"
        raise CalibrationError(f"{where} has no field 'text', but {_listed(record)}", hint)
    others = {key: value for key, value in words.items() if key != name}
    second = next((others[key] for key in _SECONDS if key in others), None)
    target = next((others[key] for key in _TARGETS if key in others), None)
    return Text(where, words[name], target, second, sound)


def _sound(named: str, where: str, folder: Path | None) -> Path:
    path = Path(named) if folder is None else folder / named
    if folder is not None and not path.resolve().is_relative_to(folder.resolve()):
        what = f"{where} names the sound {shown(named)}, which lies outside the folder of the file"
        raise CalibrationError(what, "name sounds by paths that start there")
    return path


def _is_pair(record: object) -> bool:
    return isinstance(record, list | tuple) and len(record) == 2 and all(isinstance(part, str) for part in record)


def _contents(chat: object, where: str) -> Iterator[str]:
    """The contents of the messages of a chat."""
    for message in chat if isinstance(chat, list | tuple) else ():
        held = message.get("content", message.get("value")) if isinstance(message, Mapping) else message
        for part in held if isinstance(held, list) else [held]:
            text = part.get("text") if isinstance(part, Mapping) else part
            if isinstance(text, str):
                yield text
            elif text is not None:
                what = f"{where} has a message whose content is {_kind(text)}"
                raise CalibrationError(what, 'such as {"messages": [{"role": "user", "content": "..."}]}')


def _kind(value: object) -> str:
    """What a value that is no text is, in words."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, list | tuple):
        return "a list"
    return "an object" if isinstance(value, Mapping) else f"of type {type(value).__name__}"


def _listed(record: Mapping[object, object]) -> str:
    return ", ".join(shown(key) for key in islice(record, 8)) or "none"


def is_record(item: object, specs: Sequence[InputSpec]) -> bool:
    """Whether an item of the caller's data is a text, a pair of texts, or a dict that names no input and holds text."""
    if isinstance(item, str) or _is_pair(item):
        return True
    if not isinstance(item, Mapping) or {spec.name for spec in specs} & set(item):
        return False
    return any(isinstance(value, str) for value in item.values()) or any(key in item for key in _CHATS)


def records_of_text(label: str, records: Iterable[object], field: str | None = None) -> list[Text]:
    """The texts of the items of an iterable, up to MOST_TEXT characters. Raises as `of_record`."""
    found, size = list[Text](), 0
    with users_code(label):
        iterator = iter(records)
    end = object()
    while len(found) < MOST_TEXTS and size < MOST_TEXT:
        at = f"{label} #{len(found)}"
        with users_code(at):
            record = next(iterator, end)
        if record is end:
            break
        text = of_record(record, at, field)
        size += len(text.text)
        found.append(text)
    return [text for text in found if text.text.strip()]

"""Cut texts into windows of token ids: one text a window, or a stream of texts cut at a fixed length, or pairs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from operator import itemgetter
from pathlib import Path

from onnxshot.calibration.text_files import MOST_TEXTS, Text
from onnxshot.calibration.tokenizer import Tokenizer
from onnxshot.errors import CalibrationError

LENGTH = 256
"""Most tokens of a window, where none is asked for."""
MOST_WINDOWS = 1 << 14
"""Most windows of a stream."""
_ROOMY = 16  # characters for each token that is wanted of a long stream: no usual text has more
_EACH, _FIRST = 4, 2  # of each 4 windows of a decoder, number 2 is a prompt and a step
_AT = " from token "
_PROMPTS = (4, 2, 1)  # the prompt of a step is a quarter, a half, or all of a window


@dataclass(frozen=True, slots=True)
class Window:
    """The tokens of one sample.

    Attributes:
        where: its place in messages.
        ids: what the model is given.
        before: what it has seen before that, as its pasts; empty for a prompt.
        types: the number of the segment of each token of `ids`; empty for 0.
        source: what the encoder of an encoder-decoder model is given.
        sound: the file of sound that such an encoder is given instead; None where there is none.
    """

    where: str
    ids: tuple[int, ...]
    before: tuple[int, ...] = ()
    types: tuple[int, ...] = ()
    source: tuple[int, ...] = ()
    sound: Path | None = None

    @property
    def tokens(self) -> int:
        """All tokens of the sample."""
        return len(self.ids) + len(self.before) + len(self.source)


def spaced(count: int, limit: int | None) -> list[int]:
    """`limit` numbers below `count`, evenly spaced; all of them where there are no more."""
    return [i * count // limit for i in range(limit)] if limit is not None and limit < count else list(range(count))


def _lines(texts: Sequence[Text]) -> list[Text]:
    found = list(islice((line for text in texts for line in text.lines()), MOST_TEXTS + 1))
    if len(found) > MOST_TEXTS:
        raise CalibrationError(f"there are more than {MOST_TEXTS} lines of text", "give a part of them")
    return found


def windows_of_lines(
    texts: Sequence[Text], tokenizer: Tokenizer, length: int, limit: int | None = None
) -> tuple[list[Window], int]:
    """One window for each text, with the special tokens of the tokenizer, cut to `length`.

    A document gives a text for each line.

    Returns:
        The windows, `limit` at most, evenly spaced, and how many texts there are.
    """
    lines = _lines(texts)
    found = []
    for i in spaced(len(lines), limit):
        line = lines[i]
        ids, types = tokenizer.cut(line.text, length, line.second)
        if ids:
            found.append(Window(line.where, tuple(ids), types=tuple(types) if any(types) else ()))
    return found, len(lines)


def windows_of_stream(
    texts: Sequence[Text], tokenizer: Tokenizer, length: int, limit: int | None = None, steps: str = "some"
) -> tuple[list[Window], int]:
    """Windows of `length` tokens, cut from all texts one after another, with the end token between two texts.

    Each window begins with the special tokens that the tokenizer puts in front of a text. A last window of less than
    half the length is left out, unless it is the only one.

    Args:
        texts: the texts.
        tokenizer: their tokenizer.
        length: tokens of a window.
        limit: most windows, evenly spaced; None for all, up to MOST_WINDOWS.
        steps: which windows are a prompt and one more token: 'none', 'some' (one of four) or 'all'.

    Returns:
        The windows, and how many there would be without a limit (about that many, if the texts are long).
    """
    room, limit = max(1, length - len(tokenizer.head)), min(MOST_WINDOWS, limit or MOST_WINDOWS)
    documents = [(t.where, t.text if t.target is None else f"{t.text}\n{t.target}") for t in texts]
    sizes = [len(text) for _, text in documents]
    enough = _ROOMY * room
    if sum(sizes) <= limit * enough:
        found, tokens = _cut(documents, tokenizer, room)
        chosen = [found[i] for i in spaced(len(found), limit)]
        return [_stepped(window, i, steps) for i, window in enumerate(chosen)], len(found)
    starts, found, tokens = list(accumulate(sizes, initial=0)), [], 0
    for i in range(limit):
        at = i * (starts[-1] - enough) // limit
        windows, count = _cut(_slice(documents, starts, at, enough), tokenizer, room)
        tokens += count
        found += [replace(w, where=f"{w.where.rpartition(_AT)[0]}, part {i + 1} of {limit}") for w in windows[:1]]
    total = max(limit, tokens * starts[-1] // (limit * enough) // room)
    return [_stepped(window, i, steps) for i, window in enumerate(found)], total


def _slice(documents: Sequence[tuple[str, str]], starts: Sequence[int], at: int, size: int) -> list[tuple[str, str]]:
    """The parts of documents between two places in the stream; the first begins behind a line or a blank."""
    found: list[tuple[str, str]] = []
    for (where, text), start in zip(documents, starts, strict=False):
        if start + len(text) <= at or start >= at + size:
            continue
        part = text[max(0, at - start) : at + size - start]
        if start < at:
            line, blank = part.find("\n", 0, size // 2), part.find(" ", 0, size // 2)
            part = part[max(line, blank if line < 0 else -1) + 1 :]
        found.append((where, part))
    return found


def _cut(documents: Sequence[tuple[str, str]], tokenizer: Tokenizer, room: int) -> tuple[list[Window], int]:
    """Windows of the documents' tokens, `room` each, behind the special tokens; and the number of tokens."""
    end, joined, places = tokenizer.end, list[int](), list[tuple[int, str]]()
    between = [end] if end is not None else tokenizer.plain(["\n\n"])[0]
    for (where, _), ids in zip(documents, tokenizer.plain([text for _, text in documents]), strict=True):
        joined += between if joined else []
        places.append((len(joined), where))
        joined += ids
    found = list[Window]()
    for start in range(0, len(joined), room):
        ids = joined[start : start + room]
        if found and 2 * len(ids) < room:
            break
        last = bisect_right(places, start, key=itemgetter(0)) - 1
        at = start - places[max(last, 0)][0]
        found.append(Window(f"{places[max(last, 0)][1]}{_AT}{at}", (*tokenizer.head, *ids)))
    return found, len(joined)


def _stepped(window: Window, number: int, steps: str) -> Window:
    """The window, or its first tokens as what was seen and one token after them."""
    turn = number % _EACH == _FIRST or steps == "all"
    if steps == "none" or not turn or len(window.ids) < 2:
        return window
    part = _PROMPTS[number // (1 if steps == "all" else _EACH) % len(_PROMPTS)]
    seen = max(1, (len(window.ids) - 1) // part)
    return replace(window, ids=window.ids[seen : seen + 1], before=window.ids[:seen])


def windows_of_pairs(
    texts: Sequence[Text], tokenizer: Tokenizer, lengths: tuple[int, int], limit: int | None = None, steps: str = "some"
) -> tuple[list[Window], int]:
    """One window for each pair of texts: the source for the encoder, the target, behind its start token, to decode.

    A text without a target is its own.

    Args:
        texts: the texts; a document gives one for each line.
        tokenizer: their tokenizer.
        lengths: most tokens of a source, and of a target.
        limit: most windows, evenly spaced; None for all.
        steps: as in `windows_of_stream`.

    Returns:
        The windows, and how many texts there are.
    """
    lines = _lines(texts)
    found = []
    for i in spaced(len(lines), limit):
        line = lines[i]
        source, _ = tokenizer.cut(line.text, lengths[0])
        target, _ = tokenizer.cut(line.target if line.target is not None else line.second or line.text, lengths[1])
        ids = [*(target[:1] if target[:1] == [tokenizer.start] else [tokenizer.start, *target[:1]]), *target[1:]][:-1]
        if source:
            found.append(Window(line.where, tuple(ids), source=tuple(source), sound=line.sound))
    return [_stepped(window, i, steps) for i, window in enumerate(found)], len(lines)


def check_ids(windows: Sequence[Window], tables: Sequence[int], tokenizer: Tokenizer) -> None:
    """Raise CalibrationError where the tokenizer has more tokens than the smallest table that tokens index has rows."""
    rows = min(tables, default=None)
    if rows is None:
        return
    largest = max((max((*w.ids, *w.before, *w.source), default=0) for w in windows), default=0)
    if tokenizer.size > rows or largest >= rows:
        count = max(tokenizer.size, largest + 1)
        what = f"the tokenizer {tokenizer.path} has {count} tokens, the model's table {rows} rows"
        raise CalibrationError(what, "it is the tokenizer of another model: give the right one with [[tokenizer=FILE]]")

"""YAML and JSON files that are broken in one place, and the place that the error message must name."""

import copy
import datetime
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from onnxshot.errors import UsageError

Files = dict[Path, dict[str, Any]]
KeyPath = tuple[Any, ...]

BAD: tuple[object, ...] = (
    None, "", "\n\n", [], {}, [[]], {"a": 1}, {1: {2: 3}}, -1, 0, 1e400, float("nan"), True, "nowhere.yaml", "x" * 5000,
    [None], ["a", 3], {"": ""}, b"\x00\xff", "2001-01-01", {"stages": 3}, 10**400, datetime.date(2001, 1, 1), {None: 1},
    {"a b": {}}, "a\0b",
)  # fmt: skip
TORN = (
    "[", "\t", "{", "&a [*a]", "!!python/object:os.system x", "2001-99-99", "<<: 3", "*no", "${x}", "\x00", "[" * 3000,
    "!!bool x", "!!timestamp x", '"', "0x_", "\ud7ff\n- ", "%",
)  # fmt: skip


@dataclass(frozen=True)
class Broken:
    """Files as text, one of which is broken.

    file: the one; in front of what is said of it stands `before`. paths: of the keys one of which must be told; line:
    that must be told, where it is no YAML.
    """

    files: dict[Path, str]
    file: Path
    before: str
    paths: tuple[KeyPath, ...] = ()
    line: int = 0


@dataclass(frozen=True)
class Layout:
    """Files that are right; before: what is said in front of what is said of each."""

    files: Files
    before: dict[Path, str]


def manifest(good: dict[str, Any], recipe: dict[str, Any], layout: str, folder: Path) -> Layout:
    """A manifest m.yaml: alone, that extends another, or with a recipe in a file of its own, or in a report."""
    whole = copy.deepcopy(good)
    top, base, named = folder / "m.yaml", folder / "base.yaml", folder / "r.yaml"
    if layout == "one":
        return Layout({top: whole}, {top: ""})
    if layout == "extends":
        below = {key: whole.pop(key) for key in ("models", "targets", "defaults")}
        return Layout({top: {"extends": "base.yaml", **whole}, base: below}, {top: "", base: ""})
    whole["models"][2]["recipe"] = "r.yaml"
    before = f"{top}: models[2].recipe is 'r.yaml': "
    inner = copy.deepcopy(recipe)
    return Layout({top: whole, named: {"recipe": inner} if layout == "report" else inner}, {top: "", named: before})


def recipe(good: dict[str, Any], layout: str, folder: Path) -> Layout:
    """A recipe r.yaml: alone, that extends another, or as a report holds one."""
    whole = copy.deepcopy(good)
    top, base = folder / "r.yaml", folder / "base.yaml"
    if layout == "one":
        return Layout({top: whole}, {top: ""})
    if layout == "report":
        return Layout({top: {"recipe": whole}}, {top: ""})
    first, then = whole["stages"][:2], whole["stages"][2:]
    return Layout({top: {"extends": "base.yaml", "stages": then}, base: {"stages": first}}, {top: "", base: ""})


def broken(layout: Layout, rng: random.Random) -> Broken:
    """One of the files broken in one place: as values, or as text."""
    texts = {file: yaml.safe_dump(values, sort_keys=False) for file, values in layout.files.items()}
    file = rng.choice(sorted(layout.files))
    before, good = layout.before[file], layout.files[file]
    if rng.random() < 0.25:
        text, at = texts[file], rng.randrange(len(texts[file]))
        torn = text[:at] + rng.choice(TORN) + text[at:]
        return Broken(texts | {file: torn}, file, before, *_of_torn(good, torn, text.count("\n", 0, at) + 1))
    values, path = mutated(good, rng)
    return Broken(texts | {file: yaml.safe_dump(values, sort_keys=False)}, file, before, (path,))


def refused(load: Callable[[Path], object], layout: Layout, count: int, rng: random.Random) -> Iterator[str]:
    """What is said of so many ways to break these files, each of which tells the place; the broken files are there."""
    root = next(iter(layout.files))
    while count:
        made = broken(layout, rng)
        for file, text in made.files.items():
            file.write_text(text, encoding="utf-8")
        try:
            load(root)
        except UsageError as e:
            assert_located(e.message, made)
            yield " ".join(str(e).split())
            count -= 1


def mutated(good: dict[str, Any], rng: random.Random) -> tuple[dict[str, Any], KeyPath]:
    """A copy with one key or value, anywhere, replaced, renamed or taken away; the path of what may be wrong then."""
    values = copy.deepcopy(good)
    *above, key = path = rng.choice(list(_paths(values)))
    inner: Any = values
    for step in above:
        inner = inner[step]
    how = rng.random()
    if how < 0.7 or isinstance(inner, list) or key == "extends":  # without it, all that is behind it would be missing
        inner[key] = rng.choice([bad for bad in BAD if bad != inner[key] and not (bad is None and key == "extends")])
        return values, path
    value = inner.pop(key)
    if how < 0.85:
        inner[f"{key}x"] = value
        return values, (*above, f"{key}x")
    return values, path if inner else tuple(above)  # where nothing is left, a name would be a guess


def _paths(values: Any, above: KeyPath = ()) -> Iterator[KeyPath]:
    """Of all keys and items."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield (*above, key)
        yield from _paths(value, (*above, key))


def _of_torn(good: dict[str, Any], text: str, line: int) -> tuple[tuple[KeyPath, ...], int]:
    """(paths of what another reader finds changed, 0), or ((), the line that must be told)."""
    if "${x}" in text:
        return (), line
    try:
        return tuple(_changed(good, yaml.safe_load(text))), 0
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        assert mark is not None
        assert mark.line + 1 >= line, "what is in front of the tear is right"
        return (), mark.line + 1
    except (yaml.reader.ReaderError, RecursionError, ValueError, AttributeError, KeyError):
        return (), line


def _changed(good: Any, found: Any, above: KeyPath = ()) -> Iterator[KeyPath]:
    if isinstance(good, dict) and isinstance(found, dict) and (found or not good):
        for key in [*good, *(key for key in found if key not in good)]:
            if key in good and key in found:
                yield from _changed(good[key], found[key], (*above, key))
            else:
                yield (*above, key)
    elif isinstance(good, list) and isinstance(found, list) and len(good) == len(found):
        for i, (one, other) in enumerate(zip(good, found, strict=True)):
            yield from _changed(one, other, (*above, i))
    elif isinstance(good, list) and isinstance(found, list):
        yield from ((*above, i) for i in range(max(len(good), len(found))))
    elif good != found:
        yield above


def spelled(path: KeyPath) -> str:
    """A path as messages have it."""
    text = ""
    for key in path:
        plain = isinstance(key, str) and re.fullmatch(r"[A-Za-z_][\w-]*", key)
        text += f"{'.' if text and plain else ''}{key}" if plain else f"[{key!r}]"
    return text


def assert_located(message: str, broken: Broken) -> None:
    """The file and the path of its key stand in the message, or the line where the file is no YAML."""
    if broken.line:
        assert message.startswith(broken.before), message
        assert str(broken.file) in message, message
        assert re.search(rf"\bline {broken.line}: ", message), f"line {broken.line} is not in: {message}"
        return
    if broken.paths == ((),):  # no keys at all
        assert re.search(rf"{re.escape(str(broken.file))} is no (manifest|recipe): it holds a ", message), message
        return
    fronts = [f"{broken.before}{broken.file}: ", f"{next(iter(broken.files))}: "]
    # A top-level key that is in none of the files is missing in the first of them.
    front = fronts[message == f"{fronts[1]}{spelled(broken.paths[0])} is missing"]
    assert message.startswith(front), message
    said = message.removeprefix(front)
    for path in map(spelled, broken.paths):
        # It begins with the key, or with one below it, or ends with it: "max_drop is given without eval".
        if re.match(rf"{re.escape(path)}(?!\w)", said) or said.endswith(f" {path}"):
            return
    raise AssertionError(f"none of {list(map(spelled, broken.paths))} is in: {said}")

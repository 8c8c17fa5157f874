"""A manifest: which models, for which targets, how, and what each must reach. YAML, checked key by key."""

from __future__ import annotations

import contextlib
import glob
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from onnxshot.batch.remote import is_remote, matches
from onnxshot.calibration.functions import named
from onnxshot.emitting import ONNX
from onnxshot.errors import UsageError
from onnxshot.recipes.files import load_stages, read_values
from onnxshot.recipes.plain import shown
from onnxshot.recipes.recipe import Recipe
from onnxshot.recipes.stages import Stages
from onnxshot.targets import RUNTIMES, TARGETS

_KEYS = ("models", "targets", "output", "defaults", "thresholds")
_OPTIONS = tuple(f.name for f in fields(Recipe) if f.name != "target")
_HOW = ("calib", "preset", "stats", "samples", "seed", "emit", "recipe")
_OF_MODEL = ("model", "name", "thresholds")
_LIMITS = ("min_sqnr", "max_drop", "max_latency_ms", "max_size_mb")
_SPELLED = {"max_latency": "max_latency_ms", "max_size": "max_size_mb"}


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a gate asks of a cell; None: no matter. Units are dB, those of the score, milliseconds and 10^6 bytes.

    eval: 'file.py:function' that scores a model, as `Goal.evaluate`.
    """

    min_sqnr: float | None = None
    max_drop: float | None = None
    max_latency_ms: float | None = None
    max_size_mb: float | None = None
    eval: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of a manifest: where it is, what it is called, and how it is compressed. Paths may be remote.

    Attributes:
        where: the path of its key in the manifest, such as models[2].
        model, calib, preset, stats, samples, seed, emit: as `quantize` takes them.
        stages: one stage that quantizes, or several; the target of a cell replaces theirs.
        thresholds: what the gate asks of every cell.
    """

    where: str
    model: str
    name: str
    stages: Stages
    thresholds: Thresholds
    calib: str | None = None
    preset: str | None = None
    stats: str | None = None
    samples: int | str = "auto"
    seed: int = 0
    emit: tuple[str, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**values, "stages": self.stages.to_dict(), "thresholds": asdict(self.thresholds)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From what `to_dict` gave."""
        stages, limits, emit = values["stages"], values["thresholds"], values["emit"]
        made = {"stages": Stages.from_dict(stages), "thresholds": Thresholds(**limits)}
        return cls(**{**values, **made, "emit": tuple(emit) if emit else None})


@dataclass(frozen=True, slots=True)
class Manifest:
    """Models, targets, and the folder of results: output/<name>/<target>/."""

    entries: tuple[Entry, ...]
    targets: tuple[str, ...]
    output: str


def load_manifest(path: str | Path, arguments: Mapping[str, str] | None = None) -> Manifest:
    """The manifest of a YAML file; relative paths in it start at its folder.

    `${name:default}` stands for an argument, and `extends` names a manifest whose keys hold where this one has none, as
    in recipes. Raises UsageError that names the path of the key, such as models[2].calib.
    """
    path = Path(path)
    try:
        return _Reader(path.parent).manifest(read_values(path, arguments, "manifest"))
    except UsageError as e:
        raise e if e.message.startswith(str(path)) else UsageError(f"{path}: {e.message}", e.hint) from e


@dataclass(frozen=True, slots=True)
class _Reader:
    """Checks plain values; folder: where relative paths start."""

    folder: Path

    def manifest(self, values: dict[str, Any]) -> Manifest:
        _known("", values, _KEYS)
        targets, output, models = values.get("targets", ["ort"]), values.get("output"), values.get("models")
        _ask("targets", targets, isinstance(targets, list) and targets, "a list such as [ort, openvino]")
        for i, target in enumerate(targets):
            _ask(f"targets[{i}]", target, isinstance(target, str) and target in TARGETS, f"one of {', '.join(TARGETS)}")
            _ask(f"targets[{i}]", target, target not in targets[:i], "name it once")
        _ask("output", output, _is_text(output), "a folder, such as out/")
        defaults = _mapping("defaults", values.get("defaults"))
        _known("defaults", defaults, (*_HOW, *_OPTIONS))
        self._entry("defaults", {}, defaults, Thresholds(), "", "")
        limits = _limits("thresholds", values.get("thresholds"))
        _ask("models", models, isinstance(models, list) and models, "a list such as [{model: net.onnx, calib: data/}]")
        entries: list[Entry] = []
        for i, item in enumerate(models or ()):
            given = {"model": item} if isinstance(item, str) else item
            entries += self._models(f"models[{i}]", given, defaults, limits)
        _refuse_equal(entries)
        return Manifest(tuple(entries), tuple(targets), self._path(str(output)))

    def _models(self, where: str, item: Any, defaults: Mapping[str, Any], limits: Mapping[str, Any]) -> list[Entry]:
        """The entries of one item: as many as its glob matches."""
        given = _mapping(where, item)
        _known(where, given, (*_OF_MODEL, *_HOW, *_OPTIONS))
        model, name = given.get("model"), given.get("name")
        _ask(f"{where}.model", model, _is_text(model), "the path of an .onnx file, or a glob")
        model = str(model)
        _ask(f"{where}.name", name, name is None or _is_name(name), "a name that can be that of a folder")
        joined = {**limits, **_limits(f"{where}.thresholds", given.get("thresholds"))}
        if (joined.get("max_drop") is None) != (joined.get("eval") is None):
            has, lacks = ("max_drop", "eval") if joined.get("eval") is None else ("eval", "max_drop")
            raise UsageError(f"{where}.thresholds.{has} is given without {lacks}", "a drop is of a score: give both")
        thresholds = Thresholds(**{**joined, "eval": self._data(joined.get("eval"))})
        paths = [self._path(model)]
        if glob.has_magic(model):
            find = matches if is_remote(paths[0]) else _found
            paths = find(paths[0])
            _ask(f"{where}.model", model, paths, "it matches no file")
            _ask(f"{where}.name", name, name is None or len(paths) == 1, f"the glob matches {len(paths)} files")
        names = [name] if name is not None else _names(paths)
        how = {key: value for key, value in given.items() if key not in _OF_MODEL}
        return [self._entry(where, defaults, how, thresholds, *one) for one in zip(paths, names, strict=True)]

    def _entry(
        self, where: str, defaults: Mapping[str, Any], own: Mapping[str, Any], limits: Thresholds, model: str, name: str
    ) -> Entry:
        values = {**defaults, **own}
        calib, preset, stats = (values.get(key) for key in ("calib", "preset", "stats"))
        for key, value in (("calib", calib), ("preset", preset), ("stats", stats)):
            _ask(f"{where}.{key}", value, value is None or _is_text(value), "a path or a name")
        samples, seed, emit = values.get("samples", "auto"), values.get("seed", 0), values.get("emit")
        counted = samples in ("auto", "all") if isinstance(samples, str) else type(samples) is int and samples > 0
        _ask(f"{where}.samples", samples, counted, "a number above 0, 'auto', or 'all'")
        _ask(f"{where}.seed", seed, type(seed) is int and 0 <= seed < 2**32, "a whole number, 0 or above")
        formats = [emit] if isinstance(emit, str) else emit
        known = (ONNX, *RUNTIMES)
        listed = isinstance(formats, list) and formats and all(isinstance(f, str) and f in known for f in formats)
        _ask(f"{where}.emit", emit, emit is None or listed, f"a list of {', '.join(known)}")
        if preset is not None and ("/" in preset or preset.endswith((".yaml", ".yml"))):
            preset = self._path(preset)
        return Entry(
            where, model, name, self._stages(where, defaults, own), limits,
            calib=self._data(calib), preset=preset, stats=None if stats is None else self._path(stats),
            samples=samples, seed=seed, emit=tuple(formats) if formats else None,
        )  # fmt: skip

    def _stages(self, where: str, defaults: Mapping[str, Any], own: Mapping[str, Any]) -> Stages:
        """The recipe of an entry. Options beside it overrule those of every stage that quantizes; so do nearer ones."""
        recipe = own.get("recipe", defaults.get("recipe"))
        near = own if own.get("recipe") is not None else {**defaults, **own}
        options = {key: value for key, value in near.items() if key in _OPTIONS}
        if recipe is None:
            stages = Stages((Recipe(),))
        elif isinstance(recipe, Mapping):
            with _under(f"{where}.recipe."):
                stages = Stages.from_dict(recipe)
        else:
            _ask(f"{where}.recipe", recipe, _is_text(recipe), "the path of a recipe, or its keys and values")
            with _under(f"{where}.recipe: "):
                stages = load_stages(self._path(str(recipe)))
        if stats_of_stages := len(stages.stages) > 1 and (own.get("stats") or defaults.get("stats")):
            raise UsageError(f"{where}.stats is {shown(stats_of_stages)}", "stages gather statistics of their own")
        with _under(f"{where}."):
            overruled = (
                Recipe.from_dict({**s.to_dict(), **options}) if isinstance(s, Recipe) else s for s in stages.stages
            )
            return Stages(tuple(overruled))

    def _path(self, text: str) -> str:
        return text if is_remote(text) else str(self.folder / text)

    def _data(self, calib: str | None) -> str | None:
        """A path, a function in a file, or what is neither: 'random', and a function of a module."""
        if calib is None or calib == "random" or is_remote(calib):
            return calib
        found = named(calib)
        return calib if found is not None and not found[0].endswith(".py") else self._path(calib)


def _limits(where: str, values: Any) -> dict[str, Any]:
    """Thresholds as they are spelled here; null takes one away."""
    given = _mapping(where, values)
    _known(where, given, (*_LIMITS, *_SPELLED, "eval"))
    found: dict[str, Any] = {}
    for key, value in given.items():
        name = _SPELLED.get(key, key)
        _ask(f"{where}.{key}", value, name not in found, f"the same as {name}: keep one")
        if name == "eval":
            fits = value is None or (_is_text(value) and named(value) is not None)
            _ask(f"{where}.{key}", value, fits, "name it as file.py:function or module:function")
        else:
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            fits = value is None or (number and (name == "min_sqnr" or value >= 0))
            _ask(f"{where}.{key}", value, fits, "a finite number, 0 or above")
        found[name] = value
    return found


def _found(pattern: str) -> list[str]:
    return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  # Path.glob takes no absolute pattern


def _names(paths: Sequence[str]) -> list[str]:
    """What the files of a glob are called: their stems, or their folders where all stems are the same."""
    stems = [Path(path).stem for path in paths]
    return [Path(path).parent.name for path in paths] if len(paths) > 1 and len(set(stems)) == 1 else stems


def _refuse_equal(entries: Sequence[Entry]) -> None:
    first: dict[str, Entry] = {}
    for entry in entries:
        other = first.setdefault(entry.name, entry)
        if other is not entry:
            what = f"{entry.where}.name is {entry.name!r}, as that of {other.where}"
            raise UsageError(what, "results go to output/<name>/: give each a name of its own")


def _mapping(where: str, value: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = {} if value is None else value
    _ask(where, value, isinstance(found, Mapping), "keys and values")
    return found


def _known(where: str, values: Mapping[str, Any], keys: Sequence[str]) -> None:
    for key in values:
        if key not in keys:
            path = f"{where}{'.' if where else ''}{shown(key, plain=True)}"
            raise UsageError(f"{path} is no key", f"keys: {', '.join(keys)}")


def _ask(where: str, found: object, fits: object, wanted: str) -> None:
    """Raise UsageError where a value does not fit."""
    if not fits:
        raise UsageError(f"{where} is {shown(found)}" if found is not None else f"{where} is missing", wanted)


@contextlib.contextmanager
def _under(where: str) -> Iterator[None]:
    """Name the path of a key in front of what is said of it."""
    try:
        yield
    except UsageError as e:
        raise UsageError(f"{where}{e.message}", e.hint) from e


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value) and not value.startswith(".") and not set(value) & set("/\\\0\n")

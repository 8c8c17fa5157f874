"""The manifest of a batch: models, targets, options and thresholds, read from YAML and checked key by key."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

from onnxshot import memory
from onnxshot.calibration.text_preset import MOST_LENGTH, TextPreset
from onnxshot.calibration.tokenizer import with_tokenizer
from onnxshot.calibration.user_functions import named
from onnxshot.delivery.artifacts import ONNX
from onnxshot.errors import UsageError
from onnxshot.files.messages import shown
from onnxshot.files.urls import file_name, has_glob, is_remote, is_web, redacted, unfolded
from onnxshot.recipes.files import files_of, load_stages, read_values
from onnxshot.recipes.keys import BadKey, KeyPath, is_number, refuse_unknown
from onnxshot.recipes.recipe import Recipe, with_mode
from onnxshot.recipes.stages import Stage, Stages
from onnxshot.recipes.vocabulary import FormatName
from onnxshot.remote.copies import matches
from onnxshot.targets import RUNTIMES, TARGETS

_KEYS = ("models", "targets", "output", "defaults", "thresholds")
_OPTIONS = tuple(f.name for f in fields(Recipe) if f.name != "target")
_HOW = (
    "calib", "preset", "tokenizer", "length", "stats", "samples", "seed", "emit", "memory", "recipe",
    "search_seconds", "accept",
)  # fmt: skip
_OF_MODEL = ("model", "name", "thresholds")
_LIMITS = ("min_sqnr", "max_drop", "max_latency_ms", "max_size_mb")
_SPELLED = {"max_latency": "max_latency_ms", "max_size": "max_size_mb"}
_Limits = dict[str, tuple[Any, KeyPath]]  # name -> (limit, path)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The limits that the result of a cell must keep. None means no limit.

    Attributes:
        min_sqnr: minimum SQNR of the outputs in dB.
        max_drop: largest drop of the score of `eval`, in units of the score.
        max_latency_ms: maximum latency of one run in milliseconds.
        max_size_mb: maximum size of all output files in 10^6 bytes.
        eval: 'file.py:function' that scores a model, as `Goal.evaluate`.
    """

    min_sqnr: float | None = None
    max_drop: float | None = None
    max_latency_ms: float | None = None
    max_size_mb: float | None = None
    eval: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of a manifest and how it is compressed. Paths may be remote.

    Attributes:
        where: path of its key in the manifest, such as ("models", 2).
        model, calib, preset, stats, samples, seed, emit: as in `quantize`.
        tokenizer, length: as in `TextPreset`.
        name: name of the folder of its results.
        stages: one stage that quantizes, or several. The target of the cell replaces theirs.
        thresholds: limits for each cell of this model.
        memory: memory budget of each cell, as in `Settings`; with None the batch gives it a share.
        search_seconds, accept: as in `Settings`.
    """

    where: KeyPath
    model: str
    name: str
    stages: Stages
    thresholds: Thresholds
    calib: str | None = None
    preset: str | None = None
    tokenizer: str | None = None
    length: int | None = None
    stats: str | None = None
    samples: int | Literal["auto", "all"] = "auto"
    seed: int = 0
    emit: tuple[FormatName, ...] | None = None
    memory: int | str | None = None
    search_seconds: float | None = None
    accept: bool = False

    @property
    def reading(self) -> str | TextPreset | None:
        """How samples become inputs, as `quantize` takes it; a tokenizer beside the model is named."""
        if self.tokenizer is None and self.length is None:
            found: str | TextPreset | None = with_tokenizer(self.preset, self.model)
            return found
        text = with_tokenizer(TextPreset(self.tokenizer, self.length), self.model)
        assert isinstance(text, TextPreset)
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**values, "stages": self.stages.to_dict(), "thresholds": asdict(self.thresholds)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Restore an entry from the values of `to_dict`."""
        stages, limits, emit = values["stages"], values["thresholds"], values["emit"]
        made = {"stages": Stages.from_dict(stages), "thresholds": Thresholds(**limits)}
        return cls(**{**values, **made, "emit": tuple(emit) if emit else None})


@dataclass(frozen=True, slots=True)
class Manifest:
    """The models and targets of a batch, and where results go.

    Attributes:
        entries: the models.
        targets: names of the targets.
        output: folder or URL of the results, which go to output/<name>/<target>/.
        files: local files that the manifest was read from: its own, those it extends, and recipes.
    """

    entries: tuple[Entry, ...]
    targets: tuple[str, ...]
    output: str
    files: tuple[str, ...] = ()


def load_manifest(path: str | Path, arguments: Mapping[str, str] | None = None) -> Manifest:
    """Read a manifest from a YAML file. Relative paths in it start at its folder.

    As in recipes, `${name:default}` stands for an argument, and `extends` names another manifest that provides the keys
    that this one lacks.

    Args:
        path: the YAML file.
        arguments: values of the arguments.

    Raises:
        UsageError: a key or value is wrong. The message names the file and the path of the key, such as
            models[2].calib.
    """
    if is_remote(name := unfolded(str(path))):
        hint = "copy it to this machine: relative paths start at its folder"
        raise UsageError(f"the manifest {redacted(name)} is remote", hint)
    values = read_values(path, arguments, "manifest")
    with values.naming_file():
        return _Reader(Path(path).parent, list(values.files)).manifest(values.joined)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Checks plain values and builds the manifest.

    folder: where relative paths start. files: the files that were read, to which recipes are added.
    """

    folder: Path
    files: list[str]

    def manifest(self, values: dict[Any, Any]) -> Manifest:
        refuse_unknown(values, _KEYS)
        targets, output, models = values.get("targets", ["ort"]), values.get("output"), values.get("models")
        _ask(("targets",), targets, isinstance(targets, list) and targets, "a list such as [ort, openvino]")
        for i, target in enumerate(targets):
            known = isinstance(target, str) and target in TARGETS
            _ask(("targets", i), target, known, f"one of {', '.join(TARGETS)}")
            _ask(("targets", i), target, target not in targets[:i], "name it once")
        _ask(("output",), output, _is_text(output), "a folder, such as out/")
        _ask(("output",), output, not is_web(str(output)), "a web server takes no files: a folder, s3:// or gs://")
        defaults = _mapping(("defaults",), values.get("defaults"))
        with _under("defaults"):
            refuse_unknown(defaults, (*_HOW, *_OPTIONS))
        self._entry(("defaults",), {}, defaults, Thresholds(), "", "")
        limits = _limits(("thresholds",), values.get("thresholds"))
        wanted = "a list such as [{model: net.onnx, calib: data/}]"
        _ask(("models",), models, isinstance(models, list) and models, wanted)
        entries: list[Entry] = []
        for i, item in enumerate(models or ()):
            given = {"model": item} if isinstance(item, str) else item
            entries += self._models(("models", i), given, defaults, limits)
        _refuse_equal(entries)
        files = tuple(name for name in dict.fromkeys(self.files) if not is_remote(name))
        return Manifest(tuple(entries), tuple(targets), self._path(str(output)), files)

    def _models(self, where: KeyPath, item: Any, defaults: Mapping[Any, Any], limits: _Limits) -> list[Entry]:
        """Build the entries of one item: one per file that its glob matches."""
        given = _mapping(where, item)
        with _under(*where):
            refuse_unknown(given, (*_OF_MODEL, *_HOW, *_OPTIONS))
        model, name = given.get("model"), given.get("name")
        _ask((*where, "model"), model, _is_text(model), "the path of an .onnx file, or a glob")
        model = str(model)
        _ask((*where, "name"), name, name is None or _is_name(name), "a name that can be that of a folder")
        thresholds = self._thresholds({**limits, **_limits((*where, "thresholds"), given.get("thresholds"))})
        paths = [self._path(model)]
        if has_glob(model):
            find = matches if is_remote(paths[0]) else _found
            paths = find(paths[0])
            _ask((*where, "model"), model, paths, "it matches no file")
            _ask((*where, "name"), name, name is None or len(paths) == 1, f"the glob matches {len(paths)} files")
        names = [name] if name is not None else _names(paths)
        how = {key: value for key, value in given.items() if key not in _OF_MODEL}
        return [self._entry(where, defaults, how, thresholds, *one) for one in zip(paths, names, strict=True)]

    def _thresholds(self, limits: _Limits) -> Thresholds:
        """Build the thresholds of an entry. Raises BadKey if only one of max_drop and eval is given."""
        given = {name: value for name, (value, _) in limits.items() if value is not None}
        for has, lacks in (("max_drop", "eval"), ("eval", "max_drop")):
            if has in given and lacks not in given:
                path = limits[has][1]
                lacking = limits[lacks][1] if lacks in limits else (*path[:-1], lacks)  # null, or not given
                raise BadKey(path, "is given without", "give both: max_drop is the drop of the score of eval", lacking)
        return Thresholds(**{**given, "eval": self._data(given.get("eval"))})

    def _entry(
        self,
        where: KeyPath,
        defaults: Mapping[Any, Any],
        own: Mapping[Any, Any],
        limits: Thresholds,
        model: str,
        name: str,
    ) -> Entry:
        values = {**defaults, **own}
        calib, preset, stats, tokenizer = (values.get(key) for key in ("calib", "preset", "stats", "tokenizer"))
        for key, value in (("calib", calib), ("preset", preset), ("stats", stats), ("tokenizer", tokenizer)):
            _ask((*where, key), value, value is None or _is_text(value), "a path or a name")
        length = values.get("length")
        fits = length is None or (type(length) is int and 1 <= length <= MOST_LENGTH)
        _ask((*where, "length"), length, fits, f"a number of tokens from 1 to {MOST_LENGTH}")
        _ask((*where, "tokenizer"), tokenizer, not is_remote(tokenizer or ""), "a file on this machine")
        for key, value in (("tokenizer", tokenizer), ("length", length)):
            _ask((*where, key), value, value is None or preset is None, "leave it out, or preset: it is for texts")
        samples, seed, emit = values.get("samples", "auto"), values.get("seed", 0), values.get("emit")
        counted = samples in ("auto", "all") if isinstance(samples, str) else type(samples) is int and samples > 0
        _ask((*where, "samples"), samples, counted, "a number above 0, 'auto', or 'all'")
        _ask((*where, "seed"), seed, type(seed) is int and 0 <= seed < 2**32, "a whole number, 0 or above")
        longest, accept = values.get("search_seconds"), values.get("accept", False)
        _ask((*where, "search_seconds"), longest, longest is None or (is_number(longest) and longest >= 0), "seconds")
        _ask((*where, "accept"), accept, isinstance(accept, bool), "true or false")
        size = values.get("memory")
        try:
            _ask((*where, "memory"), size, size is None or type(size) in (int, str), "a size such as 4G")
            memory.parsed(size)
        except UsageError as e:
            raise BadKey((*where, "memory"), e.message.removeprefix("memory "), e.hint) from e
        formats: Any = [emit] if isinstance(emit, str) else emit
        known = (ONNX, *RUNTIMES)
        listed = formats is None or (isinstance(formats, list) and formats)
        _ask((*where, "emit"), emit, listed, f"a list of {', '.join(known)}")
        for i, one in enumerate(formats or ()):
            at = (*where, "emit") if isinstance(emit, str) else (*where, "emit", i)
            _ask(at, one, isinstance(one, str) and one in known, f"one of {', '.join(known)}")
        named_file = preset is not None and file_name(preset).lower().endswith((".yaml", ".yml"))
        if preset is not None and is_remote(preset):
            _ask((*where, "preset"), preset, named_file, "a file that ends in .yaml")
        if preset is not None and ("/" in preset or named_file):
            preset = self._path(preset)
        return Entry(
            where, model, name, self._stages(where, defaults, own), limits,
            calib=self._data(calib), preset=preset, length=length,
            tokenizer=None if tokenizer is None else self._path(tokenizer),
            stats=None if stats is None else self._path(stats),
            samples=samples, seed=seed, emit=tuple(formats) if formats else None, memory=size,
            search_seconds=longest, accept=accept,
        )  # fmt: skip

    def _stages(self, where: KeyPath, defaults: Mapping[Any, Any], own: Mapping[Any, Any]) -> Stages:
        """Build the stages. Options beside a recipe override its stages, and those of a model override defaults."""

        def place(key: str) -> KeyPath:
            return (*where, key) if key in own or key not in defaults else ("defaults", key)

        recipe = own.get("recipe", defaults.get("recipe"))
        near = own if own.get("recipe") is not None else {**defaults, **own}
        options = {key: value for key, value in near.items() if key in _OPTIONS}
        if recipe is None:
            stages = Stages((Recipe(),))
        elif isinstance(recipe, Mapping):
            with _under(*place("recipe")):
                stages = Stages.from_dict(recipe)
        else:
            _ask(place("recipe"), recipe, _is_text(recipe), "the path of a recipe, or its keys and values")
            try:
                path = self._path(str(recipe))
                stages = load_stages(path)
                self.files.extend(() if is_remote(path) else map(str, files_of(path)))
            except UsageError as e:
                raise BadKey(place("recipe"), f"is {shown(recipe)}: {e.message}", e.hint) from e
        stats = {**defaults, **own}.get("stats")
        if len(stages.stages) > 1 and stats:
            said = f"is {shown(stats)}, beside the stages of"
            raise BadKey(place("stats"), said, "each stage gathers its own statistics", place("recipe"))
        overruled: list[Stage] = []
        for i, stage in enumerate(stages.stages):
            if not isinstance(stage, Recipe):
                overruled.append(stage)
                continue
            inside = ("stages", i, *recipe["stages"][i]) if isinstance(recipe, Mapping) and "stages" in recipe else ()
            above = (*place("recipe"), *inside)
            try:
                over = with_mode(options) if stage.mode == Recipe().mode else options
                overruled.append(Recipe.from_dict({**stage.to_dict(), **over}))
            except BadKey as e:
                tops = {p[0]: place(p[0]) if p[0] in options else (*above, p[0]) for p in (e.path, e.other) if p}
                paths = [(*tops[p[0]], *p[1:]) for p in (e.path, e.other) if p]
                raise BadKey(paths[0], e.said, e.hint, *paths[1:]) from e
        return Stages(tuple(overruled))

    def _path(self, text: str) -> str:
        return text if is_remote(text) else str(self.folder / text)

    def _data(self, calib: str | None) -> str | None:
        """Resolve the path of data or of a function's file. 'random' and module:function are returned unchanged."""
        if calib is None or calib == "random" or is_remote(calib):
            return calib
        found = named(calib)
        return calib if found is not None and not found[0].endswith(".py") else self._path(calib)


def _limits(where: KeyPath, values: Any) -> _Limits:
    """Read thresholds as {name: (limit, path of its key)}. A null limit removes an inherited one."""
    given = _mapping(where, values)
    with _under(*where):
        refuse_unknown(given, (*_LIMITS, *_SPELLED, "eval"))
    found: _Limits = {}
    for key, value in given.items():
        name, path = _SPELLED.get(key, key), (*where, key)
        if name in found:
            raise BadKey(path, f"is {shown(value)}, and also given as", "keep one", found[name][1])
        if name == "eval":
            fits = value is None or (_is_text(value) and named(value) is not None)
            _ask(path, value, fits, "name it as file.py:function or module:function")
            _ask(path, value, value is None or not is_remote(value), "code is not fetched: copy it here")
        else:
            fits = value is None or (is_number(value) and (name == "min_sqnr" or value >= 0))
            _ask(path, value, fits, "a finite number, 0 or above")
        found[name] = (value, path)
    return found


def _found(pattern: str) -> list[str]:
    return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  # Path.glob takes no absolute pattern


def _names(paths: Sequence[str]) -> list[str]:
    """Name the files of a glob by their stems, or by their folders if all stems are equal."""
    stems = [Path(file_name(path)).stem for path in paths]
    return [Path(path).parent.name for path in paths] if len(paths) > 1 and len(set(stems)) == 1 else stems


def _refuse_equal(entries: Sequence[Entry]) -> None:
    first: dict[str, Entry] = {}
    for entry in entries:
        other = first.setdefault(entry.name, entry)
        if other is not entry:
            hint = "results go to output/<name>/: give each a name of its own"
            raise BadKey((*entry.where, "name"), f"is {entry.name!r}, as that of", hint, other.where)


def _mapping(where: KeyPath, value: Any) -> Mapping[Any, Any]:
    found: Mapping[Any, Any] = {} if value is None else value
    _ask(where, value, isinstance(found, Mapping), "keys and values")
    return found


def _ask(where: KeyPath, found: object, fits: object, wanted: str) -> None:
    """Raise BadKey if a value is not valid."""
    if not fits:
        raise BadKey(where, "is missing" if found is None else f"is {shown(found)}", wanted)


@contextlib.contextmanager
def _under(*above: Any) -> Iterator[None]:
    """Prefix the paths of BadKey errors raised inside with these keys."""
    try:
        yield
    except BadKey as e:
        raise e.under(*above) from e


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value) and not value.startswith(".") and not set(value) & set("/\\\0\n")

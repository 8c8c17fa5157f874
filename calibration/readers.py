"""Open calibration data of any kind as a `Dataset`: samples by number, checked against the model's inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

from onnxshot.calibration.checks import InputSpec, NamedFeed, Sample
from onnxshot.calibration.given import TAKES, USUAL, Repeatable, Transformed, label_of
from onnxshot.calibration.listed_files import SUFFIXES, listed_files, with_paths
from onnxshot.calibration.objects import open_object, transformed
from onnxshot.calibration.pictures import Fitter, read_picture
from onnxshot.calibration.preset import Preset
from onnxshot.calibration.reader_hooks import items_of, known_suffixes, read_by_hook
from onnxshot.calibration.sampling import one_of_each_part
from onnxshot.calibration.sound import Step, open_sounds, sound_paths
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.sources import (
    Files,
    Noise,
    Source,
    npy_files,
    npz_files,
    numbered,
    pb_folders,
)
from onnxshot.calibration.stacks import npy_stack, npz_stack
from onnxshot.calibration.text_files import TEXTS, files_of_text
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.calibration.texts import Texts, Words
from onnxshot.calibration.user_functions import call, named
from onnxshot.errors import CalibrationError
from onnxshot.files.regular_files import PICTURES, check_regular, is_special
from onnxshot.files.urls import refuse_remote

__all__ = ["PICTURES", "Dataset", "InputSpec", "Sample", "open_data", "split"]

_RANDOM_SAMPLES = 16
_MOST_ENTRIES = 10_000_000  # files below a folder of samples


class _Kept:
    """Samples that stay in memory, by number in their source, up to `most` bytes."""

    def __init__(self, most: int) -> None:
        self._free, self._samples, self._lock = most, dict[int, Sample](), Lock()

    def get(self, index: int) -> Sample | None:
        return self._samples.get(index)

    def offer(self, index: int, sample: Sample) -> None:
        """Keep a sample if there is room for it."""
        size = sum(array.nbytes for array in sample.feed.values())
        with self._lock:
            if index not in self._samples and size <= self._free:
                self._samples[index] = sample
                self._free -= size


class Dataset:
    """Samples that fit a model. Each is read when it is asked for, every time anew, unless `keep` was called.

    Use it as a context manager, or call `close`, to remove its temporary files.

    Attributes:
        source: what was opened, as text.
        random: whether the samples are random numbers.
        notes: remarks for the report, such as how many samples were left out.

    Example:
        with open_data("calib.npz", inputs) as data:
            feeds = [sample.feed for sample in data]
    """

    def __init__(self, label: str, source: Source, fit: Fitter, indices: Sequence[int] | None = None) -> None:
        self.source = label
        self.random = source.random
        self.notes: tuple[str, ...] = ()
        self._from, self._fit, self._made_by = source, fit, source.made_by
        self._indices = range(len(source)) if indices is None else tuple(indices)
        self._owner = indices is None
        self._kept: _Kept | None = None

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        raw = self._indices[index]
        if self._kept is not None and (kept := self._kept.get(raw)) is not None:
            return kept
        read = self._from.load(raw)
        feed = self._fit(read.feed, self._from.where(raw))
        sample = Sample(read.name, feed if self.random else NamedFeed(feed, self._from.where(raw)))
        if self._kept is not None:
            self._kept.offer(raw, sample)
        return sample

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def __enter__(self) -> Dataset:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def keep(self, most: int) -> None:
        """Keep the first samples that are read in memory, up to this many bytes, here and in all later views.

        Their arrays must not be changed.
        """
        self._kept = _Kept(most)

    def subset(self, indices: Iterable[int]) -> Dataset:
        """A view of some samples, in this order. It reads from the same source, and closing it does nothing.

        Args:
            indices: numbers of samples in this data set.
        """
        view = Dataset(self.source, self._from, self._fit, [self._indices[i] for i in indices])
        view.notes, view._kept = self.notes, self._kept
        return view

    def joined(self, by: Source) -> Dataset:
        """A view of the samples of `by`, checked against the same inputs; closing it does nothing.

        Args:
            by: a source that combines samples of this data set.
        """
        view = Dataset(self.source, by, self._fit)
        view.notes, view._owner, view._made_by = self.notes, False, self._made_by
        return view

    def digests(self) -> list[str]:
        """SHA-256 (hex) of the content of every sample before preprocessing; names do not count."""
        found = []
        for index in self._indices:
            sha = hashlib.sha256()
            self._from.digest(index, sha)
            found.append(sha.hexdigest())
        return found

    @property
    def preset_hash(self) -> str:
        """SHA-256 (hex) of all that decides how files become inputs; of no bytes where there is no preset."""
        of_pictures = self._fit.preset.fields() if self._fit.preset is not None else b""
        return hashlib.sha256(of_pictures if self._made_by is None else self._made_by).hexdigest()

    def name(self, index: int) -> str:
        """The name of a sample in messages, without reading it."""
        return self._from.where(self._indices[index])

    def close(self) -> None:
        """Remove temporary files; samples cannot be read after that. On a view, does nothing."""
        if self._owner:
            self._kept = None
            self._from.close()


def split(n: int, holdout: float = 0.25) -> tuple[list[int], list[int]]:
    """Split n samples into calibration samples and held-out samples.

    The held-out samples, at least one, are spread over all (see `one_of_each_part`): of a folder that is sorted by
    class, both kinds hold samples of every class. A single sample, or a share of 0, gives all samples to both.

    Args:
        n: number of samples.
        holdout: share to hold out, 0 <= holdout < 1.

    Returns:
        The numbers of the calibration samples, and those of the held-out samples.

    Raises:
        CalibrationError: the share is out of range.
    """
    if not 0 <= holdout < 1:
        raise CalibrationError(f"holdout is {holdout:g}", "give a share from 0 up to, not including, 1")
    if n <= 1 or holdout == 0:
        return list(range(n)), list(range(n))
    held_out = one_of_each_part(n, min(n - 1, max(1, round(n * holdout))))
    return sorted(set(range(n)) - set(held_out)), held_out


def open_data(
    source: object,
    inputs: Sequence[InputSpec],
    preset: Preset | SoundPreset | TextPreset | None = None,
    *,
    limit: int | None = None,
    seed: int = 0,
    folder: Path | None = None,
    step: Step | None = None,
    words: Words | None = None,
    whole: bool = False,
) -> Dataset:
    """Open calibration data for a model. The first sample is read and checked at once.

    Args:
        source: a path (see `TAKES`), a list of paths of files of one kind, 'module:function', 'random', an array or a
            dict of arrays with a leading sample axis, a table, or a sequence or iterable of texts, arrays, tuples in
            the order of the inputs, or dicts {input name: array}. A batch of 8 is 8 samples.
        inputs: the inputs of the model.
        preset: how to preprocess pictures, and uint8 arrays that look like pictures; or sounds, or texts.
        limit: number of samples to use, evenly spaced over all; of a stream, the first ones. None uses all.
        seed: of source 'random'.
        folder: of the model, where files may say how sounds become its inputs.
        step: runs the model, whose states are carried from one window of sound to the next.
        words: makes samples of texts; without it they are refused.
        whole: whether batches of the caller's items stay whole where the model takes them, as when it is timed.

    Returns:
        The samples.

    Raises:
        CalibrationError: there is nothing to read, or the first sample does not fit. Later samples raise it when they
            are read.
    """
    if limit is not None and limit < 1:
        raise CalibrationError(f"{limit} calibration samples were asked for", "ask for 1 or more")
    label, fit = label_of(source), Fitter(inputs, preset if isinstance(preset, Preset) else None, whole=whole)
    asked = None if isinstance(preset, TextPreset) and preset.implied else preset
    held = source if isinstance(source, Repeatable) else None
    if held is None:
        source = with_paths(source)
    elif held.opened is None:
        source = held.data = with_paths(held.data)
    else:
        source = held.data
    if paths := sound_paths(source, _only_sounds):
        opened: Source = open_sounds(label, paths, inputs, asked, folder, step)
    elif held is not None and held.opened is not None:
        opened, fit.used, fit.notes = held.opened
    else:
        opened = _open(source, label, fit, limit, seed, Texts(label, fit.specs, preset, limit, words))
    if len(opened) == 0:
        opened.close()
        raise CalibrationError(f"{label} holds no samples", f"[[calib]] takes {TAKES}")
    data = Dataset(label, opened, fit)
    if held is not None:
        data._owner, held.opened = False, (opened, fit.used, fit.notes)
    notes = list[str]()
    if limit is not None and limit < len(opened):
        notes.append(f"{limit} of {len(opened)} samples, evenly spaced")
        data._indices = tuple(one_of_each_part(len(opened), limit))
    data[0]  # report an error of the first sample now
    notes = [*opened.notes, *notes, *fit.notes]
    if fit.extra:
        notes.append(f"{', '.join(map(repr, fit.extra))} of {label} left out: not inputs of the model")
    if asked is not None and fit.used is None and not data.random and opened.made_by is None:
        notes.append(f"preset {asked.name} was not used: the arrays of {label} are used unchanged")
    data.notes = tuple(notes)
    return data


def _open(source: object, label: str, fit: Fitter, limit: int | None, seed: int, texts: Texts) -> Source:
    if source is None or (isinstance(source, str) and not source):
        raise CalibrationError("calibration data is needed and none was given", USUAL)
    if isinstance(source, Transformed):
        return open_object(transformed(_items(source.data), source.by, label), label, fit, limit, texts)
    if (others := known_suffixes()) and _all_end(source, others):
        return open_object(items_of([Path(one) for one in source]), label, fit, limit, texts)  # type: ignore[attr-defined]
    if (listed := listed_files(source)) is not None:
        return _of_kind(listed.kind, listed.root, listed.paths, fit, texts)
    if not isinstance(source, str | Path):
        return open_object(source, label, fit, limit, texts)
    if source == "random":
        return Noise(fit.specs, limit or _RANDOM_SAMPLES, seed)
    path = Path(source)
    if path.is_dir():
        return _open_folder(path, fit, limit, texts)
    if path.is_file():
        return _open_file(path, fit, limit, texts)
    if is_special(path):
        check_regular(path, "calibration data", CalibrationError)
    if found := named(str(source)):
        return open_object(call(*found), label, fit, limit, texts)
    refuse_remote(source, CalibrationError, "calibration data")
    raise CalibrationError(f"calibration data {source} is not there", f"[[calib]] takes {TAKES}")


def _all_end(source: object, suffixes: Sequence[str]) -> bool:
    """Whether a list holds nothing but paths with one of these suffixes."""
    given = source if type(source) in (list, tuple) else ()
    return bool(given) and all(isinstance(one, str | Path) and Path(one).suffix.lower() in suffixes for one in given)  # type: ignore[attr-defined]


def _items(source: Any) -> Any:
    """What a transform is called on, one by one: the paths of a folder's files, or the items of an object."""
    source = with_paths(source) if isinstance(source, str) else source
    if not isinstance(source, str | Path):
        return source
    path = Path(source)
    if path.is_dir():
        return _files(path, None)
    if not path.exists() and (found := named(str(source))):
        return call(*found)
    what = f"transform= takes items one by one, and {source} is {'a file' if path.exists() else 'not there'}"
    raise CalibrationError(what, "give the folder of the files, whose paths it gets, or an iterable")


def _open_file(path: Path, fit: Fitter, limit: int | None, texts: Texts) -> Source:
    suffix = path.suffix.lower()
    if suffix in PICTURES:
        return _pictures(path, [path], fit)
    if suffix == ".npz":
        return npz_stack(path, fit.specs, fit.check_stated)
    if suffix == ".npy":
        return npy_stack(path, fit.specs, fit.check_stated)
    if suffix in TEXTS:
        return texts.open(lambda field: files_of_text(path, [path], field))
    if suffix in known_suffixes():
        return open_object(read_by_hook(path), str(path), fit, limit, texts)
    raise CalibrationError(f"calibration data {path} is of an unknown kind", f"[[calib]] takes {TAKES}")


def _is_zoo(root: Path) -> bool:
    return any(root.glob("input_*.pb")) or any(root.glob("test_data_set_*/input_*.pb"))


def _by_kind(root: Path) -> dict[str, list[Path]]:
    return {kind: found for kind, suffixes in SUFFIXES.items() if (found := _files(root, suffixes))}


def _only_sounds(root: Path) -> list[Path]:
    """The files of a folder that holds sounds and no other kind of sample; empty for other folders."""
    found = {} if _is_zoo(root) else _by_kind(root)
    return found["sounds"] if set(found) == {"sounds"} else []


def _open_folder(root: Path, fit: Fitter, limit: int | None, texts: Texts) -> Source:
    if any(root.glob("input_*.pb")):
        return pb_folders(root, [root], fit.specs)
    if sets := [folder for folder in root.glob("test_data_set_*") if any(folder.glob("input_*.pb"))]:
        return pb_folders(root, numbered(sets), fit.specs)
    kinds = _by_kind(root)
    if len(kinds) > 1:
        listed = " and ".join(f"{len(found)} {kind}" for kind, found in kinds.items())
        raise CalibrationError(f"{root} holds {listed}", "keep one kind of sample in a folder")
    for kind, paths in kinds.items():
        return _of_kind(kind, root, paths, fit, texts)
    if written := _files(root, TEXTS):  # beside other samples, texts are notes
        return _of_kind("texts", root, written, fit, texts)
    if (others := known_suffixes()) and (paths := _files(root, others)):
        return open_object(items_of(paths), str(root), fit, limit, texts)
    raise CalibrationError(f"{root} holds no samples", f"[[calib]] takes {TAKES}")


def _of_kind(kind: str, root: Path, paths: Sequence[Path], fit: Fitter, texts: Texts) -> Source:
    """Open files of one kind, which is no sounds."""
    if kind == "texts":
        return texts.open(lambda field: files_of_text(root, list(paths), field))
    if kind == "pictures":
        return _pictures(root, paths, fit)
    return (npz_files if kind == ".npz" else npy_files)(root, paths, fit.specs, fit.check_stated)


def _files(root: Path, suffixes: tuple[str, ...] | None) -> list[Path]:
    """Files below a folder that have one of these suffixes, or any, sorted by path; hidden files are left out.

    Raises CalibrationError for an entry of such a name that is not a regular file, for a folder of too many files, and
    for a folder that cannot be searched.
    """
    found = []
    try:
        for count, path in enumerate(root.rglob("*")):
            if count >= _MOST_ENTRIES:
                what = f"{root} holds more than {_MOST_ENTRIES} files"
                raise CalibrationError(what, "name the folder of the samples")
            hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
            other = suffixes is not None and path.suffix.lower() not in suffixes
            if hidden or other or path.is_dir():
                continue
            try:
                check_regular(path, "the sample", CalibrationError)
            except OSError as e:
                what = f"the sample {path} cannot be read: {e.strerror}"
                raise CalibrationError(what, "remove or replace it") from e
            found.append(path)
    except OSError as e:
        at = f" at {e.filename}" if e.filename is not None else ""
        what = f"the folder of samples {root} cannot be searched: {e.strerror or e}{at}"
        raise CalibrationError(what, "name the folder of the samples, and leave it as it is meanwhile") from e
    return sorted(found)


def _pictures(root: Path, paths: Sequence[Path], fit: Fitter) -> Files:
    spec, preset = fit.for_files(str(root))
    return Files(root, [(p,) for p in paths], lambda group: {spec.name: read_picture(group[0], preset, spec)})

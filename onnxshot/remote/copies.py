"""Download remote files into the cache folder. A copy is identified by the size and ETag or time its store reports."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from onnxshot.errors import ModelError, OnnxshotError, UsageError
from onnxshot.files import cache_folder
from onnxshot.files.atomic_write import aside, put, put_folder, write_file
from onnxshot.files.urls import beside, file_name, is_web, redacted
from onnxshot.graph.load import external_files
from onnxshot.remote.filesystems import filesystem, one_line_errors

MAX_BYTES = 64 << 30
"""Most bytes that are downloaded for one path: a model with its weights, or a folder of samples."""

_IDENTITY = ("ETag", "etag", "generation", "LastModified", "Last-Modified", "last_modified", "mtime")
_MD5 = ("md5Hash", "Content-MD5")  # in base64
_SUMS = ".sums.json"
_PAGE = re.compile(rb"\s*<(!doctype|!--|html|head|body|title|meta|script|\?xml)", re.IGNORECASE)
_SUM = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Remote:
    """A remote file, as its store describes it.

    Attributes:
        path: in the remote file system.
        size: in bytes; 0 where the store does not report it.
        identity: ETag, generation or time, which change with the content; empty where the store reports none.
        md5: MD5 (hex) of the content; empty where the store does not report it.
    """

    path: str
    size: int = 0
    identity: str = ""
    md5: str = ""


@dataclass(slots=True)
class Copies:
    """The copies of one run: each URL is resolved once, so that all readers get the same content."""

    _known: dict[tuple[str, bool], str | OnnxshotError] = field(default_factory=dict)

    def of(self, url: str, *, weights: bool = False) -> str:
        """The path of a local copy. Arguments and errors are those of `local_copy`."""
        key = url, weights
        if key not in self._known:
            try:
                self._known[key] = local_copy(url, weights=weights)
            except OnnxshotError as e:
                self._known[key] = e
        found = self._known[key]
        if isinstance(found, OnnxshotError):
            raise found
        return found

    def named(self, text: str) -> str:
        """Replace the paths of copies in a text by their URLs."""
        for (url, _), path in self._known.items():
            text = text.replace(path, redacted(url)) if isinstance(path, str) else text
        return text


def matches(pattern: str) -> list[str]:
    """The URLs that a glob matches, sorted. On a web server, the folder must be listed as a page of links."""
    with one_line_errors(pattern):
        files, path = filesystem(pattern)
        if is_web(pattern):  # glob ignores a server that cannot be reached; this raises
            files.info(re.split(r"[*[]", pattern, maxsplit=1)[0].rpartition("/")[0] + "/")
        return sorted(files.unstrip_protocol(found) for found in files.glob(path))


def local_copy(url: str, *, weights: bool = False, most: int | None = None) -> str:
    """Download a file or a folder, unless the cache has a copy already.

    A copy is reused if the store reports the same size and ETag (or time), and if its SHA-256 has not changed since it
    was downloaded. Where the store reports nothing, the file is downloaded again.

    Args:
        url: of the file or folder.
        weights: whether to download the external data of a model too.
        most: most bytes to download; None for MAX_BYTES.

    Returns:
        The path of the copy.

    Raises:
        UsageError: the URL cannot be read, is larger than `most`, or gives a page of HTML, such as a login page.
        ModelError: with `weights`, the file is not a model.
    """
    with one_line_errors(url):
        files, path = filesystem(url)
        found = _listed(files, url, path, most)
        final = _folder(url, found)
        if not (all(one.identity for one in found.values()) and _is_whole(final, found)):
            final = _download(files, url, found, most)
        whole = final / file_name(url)
        if weights:
            for place in _external(url, whole):
                name = place.relative_to(final).as_posix()
                other = beside(url, name)
                with one_line_errors(other):
                    _add(files, other, _listed(files, other, filesystem(other)[1]), final, name)
        return str(whole)


def _external(url: str, copy: Path) -> list[Path]:
    """The external data files of a downloaded model. Raises ModelError, which names the URL, for another file."""
    try:
        return external_files(copy)
    except ModelError as e:
        raise ModelError(e.message.replace(str(copy), redacted(url)), e.hint) from e


def _listed(files: Any, url: str, path: str, most: int | None = None) -> dict[str, Remote]:
    """The remote files of a URL, by their paths relative to its parent: one file, or all files below a folder."""
    if not file_name(url):
        raise UsageError(f"{redacted(url)} names no file", "a web server lists no folders: name a file")
    info = files.info(path)
    if info["type"] == "file":
        found = {file_name(url): _remote(path, info)}
    else:
        root, found = PurePosixPath(path).parent, {}
        for name, entry in files.find(path, detail=True).items():
            relative = PurePosixPath(name).relative_to(root)
            if ".." in relative.parts:
                raise UsageError(f"{name} leads out of {path}", "rename it")
            found[str(relative)] = _remote(name, entry)
    _refuse_large(url, sum(one.size for one in found.values()), most)
    _refuse_full(url, sum(one.size for one in found.values()))
    return found


def _remote(path: str, info: Mapping[str, Any]) -> Remote:
    md5 = ""
    with contextlib.suppress(binascii.Error, ValueError):
        md5 = base64.b64decode(next((str(info[key]) for key in _MD5 if info.get(key)), ""), validate=True).hex()
    identity = next((str(info[key]).strip('"') for key in _IDENTITY if info.get(key)), "")
    return Remote(path, int(info.get("size") or 0), identity, md5)


def _refuse_large(url: str, size: int, most: int | None) -> None:
    most = MAX_BYTES if most is None else most
    if size > most:
        what = f"{redacted(url)} holds {size / 1e9:.3g} GB or more"
        raise UsageError(what, f"at most {most / 1e9:.3g} GB are downloaded")


def _refuse_full(url: str, size: int) -> None:
    """Raise UsageError if a download does not fit the disk of the cache folder."""
    home = cache_folder.folder().absolute()
    free = shutil.disk_usage(next(place for place in (home, *home.parents) if place.exists())).free
    if size > free:
        what = f"{redacted(url)} holds {size / 1e9:.3g} GB, and {home} has {free / 1e9:.3g} GB free"
        raise UsageError(what, "set ONNXSHOT_CACHE to a folder on a larger disk")


def name_of(url: str, content: object) -> str:
    """The name of the cache folder of a URL whose content is described by these plain values."""
    return hashlib.sha256(json.dumps([url, content]).encode()).hexdigest()[:32]


def _folder(url: str, found: Mapping[str, Remote]) -> Path:
    content = [(name, one.size, one.identity) for name, one in sorted(found.items())]
    return cache_folder.folder() / "remote" / name_of(url, content)


def _sums(folder: Path) -> dict[str, str]:
    """SHA-256 (hex) of the files of a copy as they were downloaded, by name."""
    with contextlib.suppress(OSError, ValueError):
        known = json.loads((folder / _SUMS).read_text("utf-8"))
        return known if isinstance(known, dict) else {}
    return {}


def _is_whole(folder: Path, names: Iterable[str]) -> bool:
    """Whether these files exist and are unchanged since they were downloaded."""
    sums = _sums(folder)
    with contextlib.suppress(OSError):
        return all(name in sums and sums[name] == _hashed(folder / name, "sha256") for name in names)
    return False


def _hashed(path: Path, how: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, how).hexdigest()


def _download(files: Any, url: str, found: Mapping[str, Remote], most: int | None) -> Path:
    """Download all files into a temporary folder and move it to the cache; returns the folder in the cache."""
    root = cache_folder.folder() / "remote"
    root.mkdir(parents=True, exist_ok=True)
    with aside(root / name_of(url, "")) as made:
        whole, sums = made / "all", dict[str, str]()
        for name, one in found.items():
            place = whole / name
            place.parent.mkdir(parents=True, exist_ok=True)
            _get(files, url, one, place, most)
            sums[name] = _hashed(place, "sha256")
        (whole / _SUMS).write_text(json.dumps(sums), encoding="utf-8")
        # A file without an identity is stored under its content, as another run may be reading an older copy.
        anonymous = any(not one.identity for one in found.values())
        final = root / name_of(url, sorted(sums.items())) if anonymous else _folder(url, found)
        if not _is_whole(final, found):
            put_folder(whole, final, made)
    return final


def _add(files: Any, url: str, found: Mapping[str, Remote], folder: Path, name: str) -> None:
    """Download one more file into a copy, atomically, unless it is there already and unchanged."""
    (one,) = found.values()
    place, described = folder / name, f"{one.size} {one.identity}"
    sums = _sums(folder)
    if one.identity and sums.get(f"{name}?") == described and _is_whole(folder, [name]):
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with aside(place) as made:
        part = made / place.name
        _get(files, url, one, part)
        sums |= {name: _hashed(part, "sha256"), f"{name}?": described}
        put(part, place)
    write_file(folder / _SUMS, lambda part: part.write_text(json.dumps(sums), encoding="utf-8"))


def _get(files: Any, url: str, one: Remote, place: Path, most: int | None = None) -> None:
    """Download a file. Raises UsageError where its size or checksum is not the one that the store reported."""
    from fsspec.callbacks import Callback

    class Bound(Callback):  # type: ignore[misc]
        """Stops a download that becomes too large: a web server need not report a size."""

        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            _refuse_large(url, self.value, most)

    files.get_file(one.path, str(place), callback=Bound())
    right = place.stat().st_size == one.size or not one.size
    if one.md5:
        right = right and _hashed(place, "md5") == one.md5
    elif not is_web(url) and _SUM.fullmatch(one.identity) and _hashed(place, "md5") != one.identity:
        # On S3, the ETag is usually the MD5, but not for objects encrypted with a customer's key.
        files.invalidate_cache()
        right = right and _remote(one.path, files.info(one.path)).identity == one.identity
    if not right:
        what = f"the copy of {redacted(url)} is not what the store said it is"
        raise UsageError(what, "it may have changed: try again")
    if is_web(url):
        with place.open("rb") as file:
            if _PAGE.match(file.read(1024)):
                hint = "a page to log in, or of links? give the address of the file itself"
                raise UsageError(f"{redacted(url)} is a page of HTML, not a file of data", hint)

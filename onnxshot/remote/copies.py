"""Copies of remote files in the cache folder, by what their store says of the content."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import re
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

MAX_BYTES = 8 << 30
"""Most that one path may hold: a model with its weights, or a folder of samples."""

_IDENTITY = ("ETag", "etag", "generation", "LastModified", "Last-Modified", "last_modified", "mtime")
_MD5 = ("md5Hash", "Content-MD5")  # in base64
_SUMS = ".sums.json"
_PAGE = re.compile(rb"\s*<(!doctype|!--|html|head|body|title|meta|script|\?xml)", re.IGNORECASE)
_SUM = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Remote:
    """A file as its store tells of it.

    Attributes:
        path: in the file system.
        size: bytes; 0 where the store does not tell.
        identity: what changes with the content; empty where the store tells nothing.
        md5: hex, of the content; empty where the store does not tell.
    """

    path: str
    size: int = 0
    identity: str = ""
    md5: str = ""


@dataclass(slots=True)
class Copies:
    """Copies of one run: each URL is asked for once, and is the same then for all that read it."""

    _known: dict[tuple[str, bool], str | OnnxshotError] = field(default_factory=dict)

    def of(self, url: str, *, weights: bool = False) -> str:
        """As `local_copy`."""
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
        """Text with the URLs in place of the paths of their copies."""
        for (url, _), path in self._known.items():
            text = text.replace(path, redacted(url)) if isinstance(path, str) else text
        return text


def matches(pattern: str) -> list[str]:
    """The URLs that a glob matches, sorted. A web server has to list its folder as a page of links."""
    with one_line_errors(pattern):
        files, path = filesystem(pattern)
        if is_web(pattern):  # to glob passes over a server that is not there
            files.info(re.split(r"[*[]", pattern, maxsplit=1)[0].rpartition("/")[0] + "/")
        return sorted(files.unstrip_protocol(found) for found in files.glob(path))


def local_copy(url: str, *, weights: bool = False, most: int | None = None) -> str:
    """The path of a copy of a file or a folder of at most `most` bytes, by default MAX_BYTES.

    weights: of a model, with the files of its external data.

    A copy is kept by what the store says of the content (size, ETag or time), and used as long as it has the SHA-256
    that it had when it came. Where the store says nothing, it is read anew.

    Raises UsageError where it cannot be had, is larger than `most`, or is a page of HTML of a web server that has
    something else to say; ModelError where it should be a model and is none.
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
    """The files of external data of a copied model. Raises ModelError, with the URL, where it is none."""
    try:
        return external_files(copy)
    except ModelError as e:
        raise ModelError(e.message.replace(str(copy), redacted(url)), e.hint) from e


def _listed(files: Any, url: str, path: str, most: int | None = None) -> dict[str, Remote]:
    """A file, or all files below a folder, by their paths from where it lies."""
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


def name_of(url: str, content: object) -> str:
    """The name of a folder of the cache for a URL with this content, plain values."""
    return hashlib.sha256(json.dumps([url, content]).encode()).hexdigest()[:32]


def _folder(url: str, found: Mapping[str, Remote]) -> Path:
    content = [(name, one.size, one.identity) for name, one in sorted(found.items())]
    return cache_folder.folder() / "remote" / name_of(url, content)


def _sums(folder: Path) -> dict[str, str]:
    """SHA-256, hex, by name of the files of a copy, as they came."""
    with contextlib.suppress(OSError, ValueError):
        known = json.loads((folder / _SUMS).read_text("utf-8"))
        return known if isinstance(known, dict) else {}
    return {}


def _is_whole(folder: Path, names: Iterable[str]) -> bool:
    """Whether these files are there as they came."""
    sums = _sums(folder)
    with contextlib.suppress(OSError):
        return all(name in sums and sums[name] == _hashed(folder / name, "sha256") for name in names)
    return False


def _hashed(path: Path, how: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, how).hexdigest()


def _download(files: Any, url: str, found: Mapping[str, Remote], most: int | None) -> Path:
    """All files, aside first; the folder that they are in then."""
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
        # What has no identity is known by its content: another run may be reading what was there before.
        anonymous = any(not one.identity for one in found.values())
        final = root / name_of(url, sorted(sums.items())) if anonymous else _folder(url, found)
        if not _is_whole(final, found):
            put_folder(whole, final, made)
    return final


def _add(files: Any, url: str, found: Mapping[str, Remote], folder: Path, name: str) -> None:
    """One file more into a copy, aside first, where it is not there as it should be."""
    (one,) = found.values()
    place, told_by = folder / name, f"{one.size} {one.identity}"
    sums = _sums(folder)
    if one.identity and sums.get(f"{name}?") == told_by and _is_whole(folder, [name]):
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with aside(place) as made:
        part = made / place.name
        _get(files, url, one, part)
        sums |= {name: _hashed(part, "sha256"), f"{name}?": told_by}
        put(part, place)
    write_file(folder / _SUMS, lambda part: part.write_text(json.dumps(sums), encoding="utf-8"))


def _get(files: Any, url: str, one: Remote, place: Path, most: int | None = None) -> None:
    """Download a file. Raises UsageError where what came is not what the store told of."""
    from fsspec.callbacks import Callback

    class Bound(Callback):  # type: ignore[misc]
        """Ends a download that grows too large: a web server need not say how long it will be."""

        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            _refuse_large(url, self.value, most)

    files.get_file(one.path, str(place), callback=Bound())
    right = place.stat().st_size == one.size or not one.size
    if one.md5:
        right = right and _hashed(place, "md5") == one.md5
    elif not is_web(url) and _SUM.fullmatch(one.identity) and _hashed(place, "md5") != one.identity:
        # The ETag of S3 is the MD5 sum as a rule, but not of what is encrypted by a key of the customer.
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

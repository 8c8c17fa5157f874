"""Paths that are not on this machine (s3://, gs://, https://), read through fsspec into a cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from onnxshot.errors import TargetError, UsageError
from onnxshot.graph.load import external_files
from onnxshot.observing import cache

MAX_BYTES = 8 << 30
"""Most that one path may hold: a model with its weights, or a folder of samples."""

_URL = re.compile(r"(s3|gs|https?)://.+")
_MD5 = re.compile(r"[0-9a-f]{32}")
_IDENTITY = ("ETag", "etag", "md5Hash", "generation", "LastModified", "last_modified", "mtime")
_EXTRAS = {"s3": "s3fs", "gs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}


def is_remote(path: str) -> bool:
    """Whether it is read through fsspec."""
    return _URL.fullmatch(path) is not None


def matches(pattern: str) -> list[str]:
    """The URLs that a glob matches, sorted."""
    with told(pattern):
        files, path = filesystem(pattern)
        return sorted(files.unstrip_protocol(found) for found in files.glob(path))


def local_copy(url: str, *, weights: bool = False) -> str:
    """The path of a copy of a file or a folder; weights: of a model, with the files of its external data.

    A copy is kept by what the store says of the content (size, ETag or time), and used only while its files are as long
    as they should be, and have the MD5 sum that the ETag is, where it is one. Raises UsageError where it cannot be had,
    or is larger than MAX_BYTES.
    """
    with told(url):
        files, path = filesystem(url)
        sizes = _listed(files, path)
        final = cache.folder() / "remote" / name_of(url, sizes)
        whole = final / PurePosixPath(path).name
        if not _is_whole(final, sizes):
            _download(files, path, sizes, final)
        if weights:
            for place in external_files(whole):
                other = f"{path.rpartition('/')[0]}/{place.relative_to(final).as_posix()}"
                _add(files, other, _listed(files, other), place)
        return str(whole)


@contextlib.contextmanager
def told(url: str) -> Iterator[None]:
    """Whatever a file system raises, as one line; there are as many kinds as there are file systems."""
    try:
        yield
    except (UsageError, TargetError):
        raise
    except ImportError as e:
        extra = _EXTRAS[url.partition(":")[0]]
        raise TargetError(f"{url} needs {extra}: {e}", f"pip install 'onnxshot[remote]' {extra}") from e
    except FileNotFoundError as e:
        raise UsageError(f"{url} is not there", "name a file or a folder that is") from e
    except Exception as e:
        what = " ".join(str(e).split()) or type(e).__name__
        raise UsageError(f"{url} cannot be reached: {what}", "check the path, the credentials and the endpoint") from e


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    try:
        import fsspec
    except ImportError as e:
        raise TargetError(f"{url} needs fsspec, which is not installed", "pip install 'onnxshot[remote]'") from e
    files, path = fsspec.core.url_to_fs(url)
    files.invalidate_cache()
    return files, path.rstrip("/")


def _listed(files: Any, path: str) -> dict[str, tuple[int, str]]:
    """(bytes, what the store says of the content) of a file, or of all files below a folder, by relative path."""
    info = files.info(path)
    found = {path: info} if info["type"] == "file" else files.find(path, detail=True)
    root = PurePosixPath(path).parent
    sizes = {}
    for name, entry in found.items():
        relative = PurePosixPath(name).relative_to(root)
        if ".." in relative.parts:
            raise UsageError(f"{name} leads out of {path}", "rename it")
        identity = next((str(entry[key]).strip('"') for key in _IDENTITY if entry.get(key)), "")
        sizes[str(relative)] = (int(entry.get("size") or 0), identity)
    total = sum(size for size, _ in sizes.values())
    if total > MAX_BYTES:
        raise UsageError(f"{path} holds {total / 1e9:.1f} GB", f"at most {MAX_BYTES / 1e9:.1f} GB are downloaded")
    return sizes


def name_of(url: str, sizes: Mapping[str, tuple[int, str]]) -> str:
    """The name of a folder of the cache for a URL with this content."""
    return hashlib.sha256(json.dumps([url, sorted(sizes.items())]).encode()).hexdigest()[:32]


def _is_whole(folder: Path, sizes: Mapping[str, tuple[int, str]]) -> bool:
    """Whether all files are there as they should be; what has no identity may have changed."""
    return all(identity and _is_right(folder / name, size, identity) for name, (size, identity) in sizes.items())


def _is_right(path: Path, size: int, identity: str) -> bool:
    if not path.is_file() or (size and path.stat().st_size != size):
        return False
    if not _MD5.fullmatch(identity):
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() == identity


def _download(files: Any, path: str, sizes: Mapping[str, tuple[int, str]], final: Path) -> None:
    """All files, aside first."""
    final.parent.mkdir(parents=True, exist_ok=True)
    root = path.rpartition("/")[0]
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=".part-") as made:
        for name in sizes:
            place = Path(made) / "all" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(f"{root}/{name}", str(place))
            _refuse_damaged(place, *sizes[name])
        shutil.rmtree(final, ignore_errors=True)
        (Path(made) / "all").replace(final)


def _add(files: Any, path: str, sizes: Mapping[str, tuple[int, str]], place: Path) -> None:
    """One file, aside first, where it is not there as it should be."""
    ((size, identity),) = sizes.values()
    if identity and _is_right(place, size, identity):
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(place.name + ".part")
    files.get_file(path, str(part))
    _refuse_damaged(part, size, identity)
    part.replace(place)


def _refuse_damaged(path: Path, size: int, identity: str) -> None:
    if not _is_right(path, size, identity):
        raise UsageError(f"the copy of {path.name} is not what the store said it is", "it may have changed: try again")

"""URLs of files as text: what they name, what lies beside them, and what of them may be shown."""

from __future__ import annotations

import glob
import posixpath
import re
from pathlib import Path
from urllib.parse import urlsplit

from onnxshot.errors import OnnxshotError

_URL = re.compile(r"(s3|gs|https?)://.+", re.DOTALL)
_FOLDED = re.compile(r"(s3|gs|https?):/(?!/)")
_SHOWN = re.compile(r"(https?://)(?:[^\s/?#@]*@)?([^\s?]*)(\?\S*)?")


def is_remote(path: str) -> bool:
    """Whether it is a URL that is read through fsspec."""
    return _URL.fullmatch(path) is not None


def is_web(path: str) -> bool:
    """Whether it is on a web server: which serves files, and neither lists folders as a rule nor takes files."""
    return is_remote(path) and path.startswith("http")


def refuse_remote(path: str | Path, kind: type[OnnxshotError], what: str) -> None:
    """Raise an error of this kind for a URL where a path on this machine is needed."""
    if is_remote(name := unfolded(str(path))):
        hint = "recipes may be remote, and what a manifest of onnxshot batch names: copy it here"
        raise kind(f"{what} {redacted(name)} is remote", hint)


def unfolded(path: str) -> str:
    """The URL where `pathlib` has made one slash of two; any other path as it is."""
    return _FOLDED.sub(r"\1://", path, count=1)


def without_query(url: str) -> str:
    """A URL up to its query; s3:// and gs:// have none: objects may have a ? in their names."""
    return re.split(r"[?#]", url, maxsplit=1)[0] if is_web(url) else url


def file_name(url: str) -> str:
    """The last part of a URL's path; empty where it has none."""
    bare = without_query(url).rstrip("/")
    return posixpath.basename(bare) if urlsplit(bare).path or not is_web(url) else ""


def beside(url: str, relative: str) -> str:
    """The URL of a file by its path from the folder of another: on the same server or bucket, without a query."""
    scheme, _, rest = without_query(url).partition("://")
    place, _, path = rest.partition("/")
    return f"{scheme}://{place}{posixpath.normpath(posixpath.join('/', posixpath.dirname(path), relative))}"


def has_glob(path: str) -> bool:
    """Whether it stands for all files that it matches; the ? of a query does not make it so, nor the [] of IPv6."""
    return bool(set("*[") & set(urlsplit(path).path)) if is_web(path) else glob.has_magic(path)


def redacted(text: str) -> str:
    """Text with URLs as messages may hold them: without passwords, and without queries, which may be signatures."""
    return _SHOWN.sub(lambda found: found[1] + found[2] + ("?..." if found[3] else ""), text)

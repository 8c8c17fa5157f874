"""URLs of files, as text: recognize them, resolve relative paths, and remove secrets before they are shown."""

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
    """Whether a path is a URL: s3://, gs://, http:// or https://."""
    return _URL.fullmatch(path) is not None


def is_web(path: str) -> bool:
    """Whether a path is a URL of a web server, which rarely lists folders and accepts no files."""
    return is_remote(path) and path.startswith("http")


def refuse_remote(path: str | Path, kind: type[OnnxshotError], what: str) -> None:
    """Raise an error of class `kind` for a URL where a local path is needed."""
    if is_remote(name := unfolded(str(path))):
        hint = "recipes may be remote, and what a manifest of [[onnxshot.batch|onnxshot batch]] names: copy it here"
        raise kind(f"{what} {redacted(name)} is remote", hint)


def unfolded(path: str) -> str:
    """Restore the double slash of a URL that went through `pathlib`; other paths are returned unchanged."""
    return _FOLDED.sub(r"\1://", path, count=1)


def without_query(url: str) -> str:
    """A URL without its query. URLs of s3:// and gs:// have none, as names of objects may contain a "?"."""
    return re.split(r"[?#]", url, maxsplit=1)[0] if is_web(url) else url


def file_name(url: str) -> str:
    """The last part of a URL's path; empty where the URL has no path."""
    bare = without_query(url).rstrip("/")
    return posixpath.basename(bare) if urlsplit(bare).path or not is_web(url) else ""


def beside(url: str, relative: str) -> str:
    """Resolve a path relative to the folder of a URL: same server or bucket, no query."""
    scheme, _, rest = without_query(url).partition("://")
    place, _, path = rest.partition("/")
    return f"{scheme}://{place}{posixpath.normpath(posixpath.join('/', posixpath.dirname(path), relative))}"


def has_glob(path: str) -> bool:
    """Whether a path is a glob; neither the "?" of a query nor the "[]" of an IPv6 address makes it one."""
    return bool(set("*[") & set(urlsplit(path).path)) if is_web(path) else glob.has_magic(path)


def redacted(text: str) -> str:
    """Remove passwords and queries, which may be signatures, from URLs in a text."""
    return _SHOWN.sub(lambda found: found[1] + found[2] + ("?..." if found[3] else ""), text)

"""Open the fsspec file system of a URL, and turn its errors into one-line messages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from onnxshot.errors import OnnxshotError, TargetError, UsageError
from onnxshot.files.urls import is_web, redacted

SECONDS = 60.0
"""How long a web server may take to send anything; a whole download has no time limit."""

_NEEDS = {"s3": ("s3fs", "remote"), "gs": ("gcsfs", "gcs"), "http": ("aiohttp", "remote")}
_GONE = (404, 410)


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. Raises TargetError where fsspec is not installed.

    For web servers, the proxies of the environment and the passwords in ~/.netrc are used.
    """
    try:
        import fsspec
    except ImportError as e:
        raise TargetError(f"{redacted(url)} needs fsspec, which is not installed", _install(url)) from e
    files, path = fsspec.core.url_to_fs(url, **(_web_options() if is_web(url) else {}))
    files.invalidate_cache()
    return files, path if is_web(url) else path.rstrip("/")


def _web_options() -> dict[str, Any]:
    from aiohttp import ClientTimeout

    # By default aiohttp ends every download after five minutes.
    timeout = ClientTimeout(total=None, sock_connect=SECONDS, sock_read=SECONDS)
    return {"client_kwargs": {"timeout": timeout, "trust_env": True}}


@contextlib.contextmanager
def one_line_errors(url: str) -> Iterator[None]:
    """Turn whatever a file system raises in this block into an error with a one-line message."""
    where = redacted(url)
    hint = "check the path, the credentials and the endpoint"
    try:
        yield
    except OnnxshotError:
        raise
    except ImportError as e:
        raise TargetError(f"{where} needs {_needed(url)[0]}: {e}", _install(url)) from e
    except FileNotFoundError as e:
        # fsspec raises FileNotFoundError for every error status of a web server.
        cause = e.__cause__ if is_web(url) else None
        if cause is not None and getattr(cause, "status", None) not in _GONE:
            raise UsageError(f"{where} cannot be reached: {_why(cause)}", hint) from e
        raise UsageError(f"{where} is not there", "name a file or a folder that is") from e
    except Exception as e:
        raise UsageError(f"{where} cannot be reached: {_why(e)}", hint) from e


def _why(error: BaseException) -> str:
    """The message of an error, or a description of its kind where it has none."""
    status = getattr(error, "status", None)
    if type(error).__name__ == "TooManyRedirects":
        return "the server redirects without end"
    if isinstance(status, int) and status:
        return f"the server answers {status} {redacted(str(getattr(error, 'message', '')))}".rstrip()
    if isinstance(error, TimeoutError):
        return f"no answer for {SECONDS:g} seconds"
    return redacted(" ".join(str(error).split())) or type(error).__name__


def _needed(url: str) -> tuple[str, str]:
    """The package that a URL's scheme needs, and the extra of onnxshot that installs it."""
    return _NEEDS["http" if is_web(url) else url.partition(":")[0]]


def _install(url: str) -> str:
    return f"pip install 'onnxshot[{_needed(url)[1]}]'"

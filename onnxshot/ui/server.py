"""The server of the page. It listens on this machine only, below a secret path, and serves its own page only."""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import socket
import threading
import webbrowser
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from importlib import resources
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onnxshot.calibration.preset import about_preset, preset_names
from onnxshot.errors import UsageError
from onnxshot.recipes.sparsity_level import MOST_SPARSITY
from onnxshot.ui.guess import guess, parsed
from onnxshot.ui.jobs import Desk
from onnxshot.ui.machine import unproven
from onnxshot.ui.refused import BAD_REQUEST, TOO_LARGE, Refused
from onnxshot.ui.request import Asked, choices

HOST = "127.0.0.1"
_OWN_NAMES = [HOST, "localhost"]  # another Host is a site that resolves to this machine: DNS rebinding
_SHIPPED = {
    "": "text/html", "page.css": "text/css",
    **{f"{name}.js": "text/javascript" for name in ("page", "dropped", "help", "onnx_inputs", "requests", "result")},
}  # fmt: skip
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "frame-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
}  # fmt: skip
# The report declares its own policy, which allows no loading. The sandbox separates it from the page.
_REPORT_HEADERS = {"Content-Security-Policy": "sandbox allow-scripts; frame-ancestors 'self'"}
_LONGEST_REQUEST, _LONGEST_GUESS = 10_000, 4_000_000  # bytes of JSON
_GRACE_SECONDS = 2  # for open connections, when the server ends


def serve(
    port: int, limit: int, ready: Callable[[str], None], *, browse: bool, memory: int | str | None = None
) -> None:
    """Serve the page until the process is interrupted. The current job is removed then.

    Args:
        port: the port to listen on; 0 chooses a free one.
        limit: most bytes that the files of a job may have.
        ready: called with the address, which contains the secret.
        browse: open the address in a browser.
        memory: memory budget of a run, as in `Settings`.

    Raises:
        UsageError: the port cannot be listened on.
    """
    token = secrets.token_urlsafe(32)
    with listen(port) as listening:
        address = f"http://{HOST}:{listening.getsockname()[1]}/{token}/"
        config = uvicorn.Config(
            application(token, limit, memory), log_level="error", access_log=False, server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )  # fmt: skip

        def begun() -> None:
            ready(address)
            if browse:  # a text browser blocks until it is closed
                threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C ends the server
            _Server(config, begun).run(sockets=[listening])


class _Server(uvicorn.Server):
    """A server that calls `begun` once it accepts requests."""

    def __init__(self, config: uvicorn.Config, begun: Callable[[], None]) -> None:
        super().__init__(config)
        self._begun = begun

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, then call `begun`."""
        await super().startup(sockets)
        self._begun()


def listen(port: int) -> socket.socket:
    """Open a socket on the loopback interface. Raises UsageError if the port cannot be listened on."""
    try:
        return socket.create_server((HOST, port))
    except OSError as e:
        raise UsageError(f"cannot listen on port {port}: {e.strerror}", "--port 0 chooses a free one") from e


def application(token: str, limit: int, memory: int | str | None = None) -> Starlette:
    """Return the application. All routes lie below /TOKEN/; without the token every path gives 404."""
    desk = Desk(limit, memory)
    pages = _Pages(desk)

    @contextlib.asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            desk.close()

    routes = [
        *(Route(f"/{name}", _shipped(name)) for name in _SHIPPED),
        Route("/choices", pages.choices),
        Route("/guess", pages.guess, methods=["POST"]),
        Route("/jobs", pages.begin, methods=["POST"]),
        Route("/jobs/current", pages.current),
        Route("/jobs/{key}", pages.job, methods=["GET", "DELETE"]),
        Route("/jobs/{key}/run", pages.run, methods=["POST"]),
        Route("/jobs/{key}/files/{kind}/{name:path}", pages.upload, methods=["PUT"]),
        Route("/jobs/{key}/outputs/{name}", pages.output),
    ]
    return Starlette(
        routes=[Mount(f"/{token}", routes=routes)],
        middleware=[
            Middleware(_Headers),
            Middleware(TrustedHostMiddleware, allowed_hosts=_OWN_NAMES, www_redirect=False),
        ],
        exception_handlers={Refused: _refusal, HTTPException: _no_such_page, ClientDisconnect: _left},
        lifespan=life,
    )


class _Pages:
    """The handlers of the routes."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    async def choices(self, request: Request) -> Response:
        return JSONResponse(
            {
                **choices(), "about": {name: about_preset(name) for name in preset_names()},
                "unproven": {name: asdict(found) for name, found in (await run_in_threadpool(unproven)).items()},
                "most_sparsity": MOST_SPARSITY, "limit": self.desk.limit,
            }
        )  # fmt: skip

    async def guess(self, request: Request) -> Response:
        """Guess how the dropped files become inputs, from the inputs of the model and the kinds of the files."""
        values = await _json(request, _LONGEST_GUESS)
        try:
            beside, samples = parsed(values)
            graph = values.get("graph")
            decoded = None if graph is None else base64.b64decode(graph, validate=True)
        except (AttributeError, TypeError, ValueError) as e:
            raise Refused("the request is invalid", "keys: graph, beside, samples") from e
        return JSONResponse(asdict(await run_in_threadpool(guess, decoded, beside, samples)))

    async def begin(self, request: Request) -> Response:
        return JSONResponse(self.desk.begin().tell())

    async def current(self, request: Request) -> Response:
        return JSONResponse(self.desk.current.tell() if self.desk.current is not None else {"state": "none"})

    async def job(self, request: Request) -> Response:
        job = self.desk.job(request.path_params["key"])
        if request.method == "DELETE":
            self.desk.close()
            return JSONResponse({"state": "none"})
        return JSONResponse(job.tell())

    async def run(self, request: Request) -> Response:
        job = self.desk.job(request.path_params["key"])
        job.start(Asked.from_json(await _json(request, _LONGEST_REQUEST)))
        return JSONResponse(job.tell())

    async def upload(self, request: Request) -> Response:
        """Write an uploaded file chunk by chunk, and count its bytes."""
        job = self.desk.job(request.path_params["key"])
        with job.receiving(request.path_params["kind"], request.path_params["name"]) as path:
            with path.open("xb") as file:
                async for chunk in request.stream():
                    job.take(len(chunk))
                    file.write(chunk)
            await run_in_threadpool(job.arrived, path)
        return JSONResponse(job.tell())

    async def output(self, request: Request) -> Response:
        name = request.path_params["name"]
        path = self.desk.job(request.path_params["key"]).output(name)
        if name == "report.html":
            return FileResponse(path, headers=_REPORT_HEADERS, media_type="text/html")
        return FileResponse(path, filename=name, media_type="application/octet-stream")


async def _json(request: Request, longest: int) -> Any:
    """The JSON of a request of at most so many bytes. Raises Refused for others."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > longest:
            raise Refused("the request is too long", status=TOO_LARGE)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as e:
        raise Refused("the request is invalid: it is not JSON") from e


class _Headers:
    """Middleware that adds the security headers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, with_headers)


def _shipped(name: str) -> Callable[[Request], Response]:
    """Return a handler that serves a file of the page."""
    text = resources.files("onnxshot.ui").joinpath(name or "page.html").read_text(encoding="utf-8")
    return lambda _: Response(text, media_type=_SHIPPED[name])


def _refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    # The rest of a refused body is not read, so the connection cannot be reused.
    values = {"error": str(error), "message": error.message, "hint": error.hint}
    return JSONResponse(values, status_code=error.status, headers={"Connection": "close"})


def _left(_: Request, error: Exception) -> Response:
    """Nobody reads the answer to an upload that was cut off."""
    return Response(status_code=BAD_REQUEST)


def _no_such_page(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, status_code=error.status_code)

"""The server of the local page as tests run it, and an HTTP client for it."""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import uvicorn

TOKEN = "secret"


class Client:
    """Requests to the server, below its secret path."""

    def __init__(self, port: int) -> None:
        self.port = port

    def raw(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of an answer to exactly this request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()}
        finally:
            connection.close()

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        status, text, _ = self.raw(method, f"/{TOKEN}/{path}", body, **headers)
        return status, json.loads(text)

    def begin(self) -> str:
        """A new job; its key."""
        status, told = self("POST", "jobs")
        assert status == 200, told
        return str(told["key"])

    def put(self, key: str, kind: str, name: str, body: Any) -> tuple[int, Any]:
        """Upload a file."""
        return self("PUT", f"jobs/{key}/files/{kind}/{quote(name, safe='')}", body)

    def start(self, key: str, **asked: Any) -> tuple[int, Any]:
        """Begin to work."""
        return self("POST", f"jobs/{key}/run", json.dumps(asked))

    def until(self, key: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """What is told of the job once it is as wanted."""
        for _ in range(2400):
            _, told = self("GET", f"jobs/{key}")
            if wanted(told):
                return dict(told)
            time.sleep(0.05)
        raise AssertionError(told)

    def ended(self, key: str) -> dict[str, Any]:
        """What is told of the job once it has ended."""
        return self.until(key, lambda told: told["state"] in ("done", "failed"))


@contextmanager
def served(limit: int) -> Iterator[Client]:
    """A server on a free port, until the block ends."""
    from onnxshot.ui.server import application, listen

    server = uvicorn.Server(uvicorn.Config(application(TOKEN, limit), log_level="error", timeout_graceful_shutdown=1))
    with listen(0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Client(listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()

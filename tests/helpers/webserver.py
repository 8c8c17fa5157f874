"""A web server on this machine with scripted answers, which records the requests that it got."""

import hashlib
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Answer:
    """What a path is answered with.

    length: whether the server says how long the body is; else it ends with the connection, or, where chunked, in its
    own way. sent: bytes of the body that are really sent. silent: for how many seconds nothing comes. tagged: with an
    ETag.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: bool = True
    chunked: bool = False
    sent: int | None = None
    silent: float = 0.0
    tagged: bool = True
    head: bool = True


@dataclass
class Site:
    """url: of the server; pages: what it answers with, by path and query; asked: "METHOD path" of every request."""

    url: str = ""
    pages: dict[str, Answer] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def put(self, name: str, body: bytes, **how: object) -> str:
        """Answer with these bytes from now on; the URL."""
        self.pages[f"/{name}"] = Answer(body, **how)  # type: ignore[arg-type]
        return f"{self.url}/{name}"

    def count(self, method: str, name: str) -> int:
        """How often a path was asked for."""
        return self.asked.count(f"{method} /{name}")


@contextmanager
def site(context: ssl.SSLContext | None = None) -> Iterator[Site]:
    """A server on a free port of loopback, until the block ends."""
    made = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def answer(self, *, with_body: bool) -> None:
            made.asked.append(f"{self.command} {self.path}")
            page = made.pages.get(self.path, Answer(b"<html>404</html>", 404))
            if not (page.head or with_body):
                page = Answer(status=405)
            made.closing.wait(page.silent)
            self.send_response(page.status)
            if page.tagged and page.status == 200:
                self.send_header("ETag", f'"{hashlib.sha1(page.body).hexdigest()}"')
            if page.length and not page.chunked:
                self.send_header("Content-Length", str(len(page.body)))
            elif page.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.close_connection = True
                self.send_header("Connection", "close")
            for name, value in page.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.send(page)

        def send(self, page: Answer) -> None:
            body = page.body[: page.sent]
            try:
                if page.chunked:
                    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:]) if part)
                    body += b"0\r\n\r\n"
                self.wfile.write(body)
            except OSError:  # the client has heard enough
                self.close_connection = True
            if page.sent is not None:
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    made.url = f"{'http' if context is None else 'https'}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield made
    finally:
        made.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()

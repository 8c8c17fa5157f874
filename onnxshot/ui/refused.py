"""The error of a request that the server refuses, with its HTTP status."""

from __future__ import annotations

from onnxshot.errors import OnnxshotError

BAD_REQUEST, NOT_FOUND, CONFLICT, TOO_LARGE, NO_ROOM = 400, 404, 409, 413, 507


class Refused(OnnxshotError):
    """A request is refused. `status` is the HTTP status of the response (RFC 9110 section 15)."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "", status: int = BAD_REQUEST) -> None:
        super().__init__(message, hint)
        self.status = status

"""What the page's server does not do, and the HTTP status that says so."""

from __future__ import annotations

from onnxshot.errors import OnnxshotError

BAD_REQUEST, NOT_FOUND, CONFLICT, TOO_LARGE, NO_ROOM = 400, 404, 409, 413, 507


class Refused(OnnxshotError):
    """A request is not served; `status` is its HTTP status (RFC 9110 section 15)."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "", status: int = BAD_REQUEST) -> None:
        super().__init__(message, hint)
        self.status = status

"""Why a request is not answered, in the words and the form that its client gets."""

from __future__ import annotations

from typing import Any


class Refusal(Exception):
    """A request that is refused.

    Args:
        status: of HTTP. message: for the client; nothing of it is logged. param: the part of the request that is to blame.
        code: a word for programs. retry_after_sec: when it may be tried again.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, retry_after_sec: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_sec = retry_after_sec

    @property
    def headers(self) -> dict[str, str]:
        """Those that belong to it."""
        found = {} if self.retry_after_sec is None else {"Retry-After": str(self.retry_after_sec)}
        return found | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})

    @property
    def body(self) -> dict[str, Any]:
        """The error object of OpenAI's API."""
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        return {
            "error": {
                "message": self.message, "type": "rate_limit_error" if self.status == 429 else kind, "param": self.param,
                "code": self.code,
            }
        }


def bad_request(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    """A mistake of the client's."""
    return Refusal(400, message, param, code)


def internal() -> Refusal:
    """A mistake of ours; what it was stands in the log."""
    return Refusal(500, "the server failed on this request; its log says where", code="internal_error")

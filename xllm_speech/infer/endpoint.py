"""A client for OpenAI-compatible chat endpoints that waits, retries and gives up in bounded time."""

from __future__ import annotations

import json
import logging
import random
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx

from xllm_speech.base.config import require
from xllm_speech.base.errors import UserError, first_line

log = logging.getLogger(__name__)

FIRST_WAIT_SEC = 1.0
LONGEST_WAIT_SEC = 60.0
LONGEST_RETRY_AFTER_SEC = 600.0
LARGEST_BODY = 8 << 20
_PASSING = frozenset({408, 409, 425, 429})  # and every 5xx: worth another try
_FOR_ALL = frozenset({401, 402, 403, 404, 405})  # wrong for every question alike


class EndpointUnusable(UserError):
    """The endpoint will answer no question as things are: wrong key, address or model, or it asks for a long pause."""


class RequestFailed(UserError):
    """One request got no answer, after all retries or because it was refused; another may."""


@dataclass(frozen=True)
class EndpointConfig:
    """Where and how to ask.

    url: base address ("https://host/v1"), or the whole one that ends in /chat/completions. retries: further tries after a
    failure that may pass (time-out, broken connection, status 429 or 5xx, a body that is no chat completion).
    timeout_sec: for one try from beginning to end. requests_per_minute: retries count too; None asks as fast as it goes.
    """

    url: str
    model: str
    temperature: float = 0.2
    api_key: str | None = field(default=None, repr=False)
    timeout_sec: float = 120.0
    retries: int = 6
    requests_per_minute: float | None = None
    first_wait_sec: float = FIRST_WAIT_SEC

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        require(parts.scheme in ("http", "https") and bool(parts.hostname),
                "--url: expected an address such as http://localhost:8000/v1")
        require(bool(self.model), "--model: expected the name of the judge's model")
        require(self.timeout_sec > 0, f"--timeout-sec {self.timeout_sec}: must be above 0")
        require(self.retries >= 0, f"--retries {self.retries}: must be 0 or more")
        require(self.temperature >= 0, f"--temperature {self.temperature}: must be 0 or more")
        require(self.requests_per_minute is None or self.requests_per_minute > 0,
                f"--requests-per-minute {self.requests_per_minute}: must be above 0")
        require(self.api_key is None or (self.api_key.isascii() and self.api_key.isprintable()),
                "the API key holds characters that no key has; look at the environment variable")

    @property
    def address(self) -> str:
        """Where requests go."""
        parts = urlsplit(self.url)
        path = parts.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))

    @property
    def place(self) -> str:
        """The address for messages and files: without user, password and query, which may be secret."""
        parts = urlsplit(self.address)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@dataclass(frozen=True)
class ChatAnswer:
    """text: the message, possibly empty. model: what the endpoint says it ran, or None."""

    text: str
    model: str | None


class _Passing(Exception):
    """A failure that may pass; wait_sec: as long as the endpoint asked for, or None."""

    def __init__(self, reason: str, wait_sec: float | None = None) -> None:
        super().__init__(reason)
        self.wait_sec = wait_sec


class ChatEndpoint:
    """Asks one question after the other. Use as a context manager; the API key appears in no message."""

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config
        headers = {"Authorization": f"Bearer {config.api_key}"} if config.api_key else {}
        self._client = httpx.Client(headers=headers, timeout=config.timeout_sec)
        self._next_start = 0.0

    def __enter__(self) -> ChatEndpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, messages: list[dict[str, str]]) -> ChatAnswer:
        """Send `messages` (role, content), wait for the whole answer.

        Waits between tries double from one second to a minute, with some chance in them; a Retry-After is obeyed.

        Raises:
            RequestFailed: refused, or nothing came of any try.
            EndpointUnusable: no question could be answered (wrong key, address or model), or a pause longer than ten
                minutes is asked for.
        """
        tries = self.config.retries + 1
        for number in range(1, tries + 1):
            self._keep_rate()
            try:
                return self._try(messages)
            except _Passing as failure:
                reason = self._hide_key(str(failure))
                if failure.wait_sec is not None and failure.wait_sec > LONGEST_RETRY_AFTER_SEC:
                    raise EndpointUnusable(
                        f"{self.config.place}: asks to wait {failure.wait_sec:.0f} s ({reason}); run again later, "
                        "what was answered is kept"
                    ) from None
                if number == tries:
                    raise RequestFailed(f"{self.config.place}: no answer in {tries} tries; the last: {reason}") from None
                wait = failure.wait_sec
                if wait is None:
                    wait = min(LONGEST_WAIT_SEC, self.config.first_wait_sec * 2 ** (number - 1)) * random.uniform(0.75, 1.25)
                log.info("try %d of %d failed (%s); waiting %.1f s", number, tries, reason, wait)
                time.sleep(wait)
        raise AssertionError("the last try either answers or raises")

    def _keep_rate(self) -> None:
        if self.config.requests_per_minute is None:
            return
        now = time.monotonic()
        if now < self._next_start:
            time.sleep(self._next_start - now)
        self._next_start = max(now, self._next_start) + 60 / self.config.requests_per_minute

    def _try(self, messages: list[dict[str, str]]) -> ChatAnswer:
        body = {"model": self.config.model, "messages": messages, "temperature": self.config.temperature}
        deadline = time.monotonic() + self.config.timeout_sec
        content = b""
        try:
            with self._client.stream("POST", self.config.address, json=body) as response:
                for block in response.iter_bytes():
                    content += block
                    if len(content) > LARGEST_BODY:
                        raise _Passing(f"the body is longer than {LARGEST_BODY >> 20} MiB")
                    if time.monotonic() > deadline:  # httpx times single reads only; a trickle would last for ever
                        raise _Passing(f"no whole answer within {self.config.timeout_sec:g} s")
        except httpx.TimeoutException:
            raise _Passing(f"no answer within {self.config.timeout_sec:g} s") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _Passing(f"{type(error).__name__}: {first_line(error)}") from None
        except httpx.InvalidURL as error:
            raise EndpointUnusable(f"{self.config.place}: {first_line(error)}") from None
        status = response.status_code
        if status == 200:
            return _chat_answer(content)
        said = f"status {status}: {_excerpt(content)}"
        if status in _PASSING or status >= 500:
            raise _Passing(said, retry_after_sec(response.headers.get("retry-after")))
        if status in _FOR_ALL or status < 400:
            hint = {401: "; is the API key right?", 404: "; are --url and --model right?"}.get(status, "")
            raise EndpointUnusable(self._hide_key(f"{self.config.place}: {said}{hint}"))
        raise RequestFailed(self._hide_key(f"{self.config.place}: refused with {said}"))

    def _hide_key(self, text: str) -> str:
        return text.replace(self.config.api_key, "(API key)") if self.config.api_key else text


def retry_after_sec(value: str | None) -> float | None:
    """Seconds of a Retry-After header (RFC 9110: seconds or a date), at least 0; None where there is none that reads."""
    if value is None:
        return None
    try:
        return max(0.0, float(value)) if value.strip().replace(".", "", 1).isdecimal() else _seconds_until(value)
    except (ValueError, TypeError, OverflowError):
        return None


def _seconds_until(date: str) -> float:
    moment = parsedate_to_datetime(date)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _chat_answer(content: bytes) -> ChatAnswer:
    try:
        reply: Any = json.loads(content)
        message = reply["choices"][0]["message"]
        text = message.get("content")
        text = message.get("refusal") if text is None else text
        model = reply.get("model")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _Passing(f"the body is no chat completion: {_excerpt(content)}") from None
    if not isinstance(text, str):
        raise _Passing(f"the chat completion holds no text: {_excerpt(content)}")
    return ChatAnswer(text, model if isinstance(model, str) else None)


def _excerpt(content: bytes) -> str:
    """The beginning of a body, in one line."""
    return " ".join(content[:2000].decode("utf-8", "replace").split())[:200] or "(empty body)"

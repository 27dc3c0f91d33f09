"""The door: who may come in, how many, how large; what leaves; and a log that says nothing of what was said.

Pure ASGI, around the whole application, so that it acts before a byte of a body is read.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from xllm_speech.serve.config import MIB, ServeConfig
from xllm_speech.serve.metrics import Metrics
from xllm_speech.serve.refusal import Refusal, internal
from xllm_speech.serve.worker import Worker

logger = logging.getLogger(__name__)

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

DEMO = "/demo"
ROUTES = ("/v1/chat/completions", "/v1/audio/transcriptions", "/v1/models", "/health", "/metrics")
BODY_SEC = 60.0  # for a body to arrive
DISCARD_SEC = 10.0  # given to a client to notice that it is refused
HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"), (b"cache-control", b"no-store"))


class Guard:
    """An ASGI application around another.

    Args:
        app: the other. worker: whose queue tells how long a refused client should wait.

    Attributes:
        running: requests to the API that are not answered yet.
    """

    def __init__(self, app: Any, config: ServeConfig, worker: Worker, metrics: Metrics) -> None:
        self.app, self.config, self.worker, self.metrics = app, config, worker, metrics
        self.running = 0
        self.pending_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "websocket":  # nothing here speaks it, so nobody comes in by it
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, path, status = time.perf_counter(), str(scope["path"]), 0

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = HEADERS if not path.startswith(DEMO) else HEADERS[:2]
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        try:
            await self._serve(scope, receive, answer)
        except Refusal as refusal:
            await _refuse(refusal, answer, status)
        except Exception as error:
            # What the error says may quote a client; where it happened does not.
            logger.error("%s in a request:\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
            await _refuse(internal(), answer, status)
        route = next((known for known in ROUTES if path == known), "demo" if path.startswith(DEMO) else "other")
        taken_sec = time.perf_counter() - began
        self.metrics.add("xllm_requests_total", route=route, status=str(status))
        if route.startswith("/v1"):
            self.metrics.observe("xllm_request_seconds", taken_sec, route=route)
            logger.info("%s %s in %.2f s", route, status, taken_sec)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        path = str(scope["path"])
        self._check_host(headers.get(b"host", b""))
        if not path.startswith(DEMO) and path not in ("/", "/health"):
            self._check_key(headers.get(b"authorization", b""))
        if scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        length = _length(headers)
        most = self.config.limits.body_mib * MIB
        if length is not None and length > most:
            await _discard(receive)
            self.metrics.add("xllm_refused_total", reason="size")
            raise Refusal(413, f"a request of {length} bytes; at most {most} are taken", code="too_large")
        if path.startswith(DEMO):
            await self._demo(scope, receive, send, most)
            return
        reserved = most if length is None else length
        if self.running >= self.config.max_requests or self.pending_bytes + reserved > self.config.max_pending_mib * MIB:
            raise self.worker.busy(self.running)
        self.running += 1
        self.pending_bytes += reserved
        try:
            await self.app(scope, _limited(receive, most), send)
        finally:
            self.running -= 1
            self.pending_bytes -= reserved

    async def _demo(self, scope: Scope, receive: Receive, send: Send, most: int) -> None:
        """The page's own requests. What it sends as JSON may name uploads, but nothing that Gradio would fetch for it."""
        body = _limited(receive, most)
        if scope["path"].rpartition("/")[2] in ("join", "call", "predict", "run", "api") or "/call/" in scope["path"]:
            content = b""
            while True:
                message = await body()
                content += message.get("body", b"")
                if message["type"] != "http.request" or not message.get("more_body"):
                    break
            if _names_urls(content):
                raise Refusal(400, "files are uploaded, not named by a URL", code="invalid_value")
            body = _replayed(content, receive)
        await self.app(scope, body, send)

    def _check_host(self, host: bytes) -> None:
        """Without a key only this machine may come in, and no web page under a name of its own that leads here."""
        if self.config.api_key:
            return
        name = host.decode("latin-1").rpartition("]")[0].lstrip("[") or host.decode("latin-1").partition(":")[0]
        if name not in ("localhost", "127.0.0.1", "::1", self.config.host.strip("[]")):
            raise Refusal(403, "this server answers only under the name localhost; with an API key under any", code="host")

    def _check_key(self, given: bytes) -> None:
        key = self.config.api_key
        if key and not hmac.compare_digest(given, b"Bearer " + key.encode("ascii")):
            self.metrics.add("xllm_refused_total", reason="key")
            raise Refusal(401, "no valid API key; send `Authorization: Bearer KEY`", code="invalid_api_key")


def _length(headers: dict[bytes, bytes]) -> int | None:
    value = headers.get(b"content-length")
    return int(value) if value is not None and value.isdigit() else None


def _limited(receive: Receive, most: int) -> Receive:
    """`receive` that refuses more than `most` bytes of body, and a body that does not come."""
    size, over = 0, False
    end = time.monotonic() + BODY_SEC

    async def limited() -> MutableMapping[str, Any]:
        nonlocal size, over
        if over:
            return await receive()  # tells when the client leaves
        try:
            message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
        except TimeoutError as error:
            raise Refusal(408, f"the request did not arrive within {BODY_SEC:g} s", code="timeout") from error
        size += len(message.get("body", b""))
        over = not message.get("more_body", False)
        if size > most:
            raise Refusal(413, f"a request of more than {most} bytes", code="too_large")
        return message

    return limited


def _replayed(content: bytes, receive: Receive) -> Receive:
    told = False

    async def replayed() -> MutableMapping[str, Any]:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": content, "more_body": False}

    return replayed


def _names_urls(content: bytes) -> bool:
    """Whether JSON has a file object with a URL for a path."""

    def search(value: Any) -> bool:
        if isinstance(value, dict):
            path = value.get("path")
            return (isinstance(path, str) and "://" in path) or any(map(search, value.values()))
        return isinstance(value, list) and any(map(search, value))

    try:
        return search(json.loads(content))
    except (ValueError, RecursionError):
        return False  # for Gradio to refuse


async def _discard(receive: Receive) -> None:
    """Read on for a while: a client that still sends would not see the answer."""
    end = time.monotonic() + DISCARD_SEC
    more = True
    while more and time.monotonic() < end:
        try:
            message = await asyncio.wait_for(receive(), 1.0)
        except TimeoutError:
            return
        more = message["type"] == "http.request" and message.get("more_body", False)


async def _refuse(refusal: Refusal, send: Send, status: int) -> None:
    if status:  # an answer has begun; all that is left is to end it
        return
    body = json.dumps(refusal.body, ensure_ascii=False).encode("utf-8", "replace")
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
    await send({
        "type": "http.response.start", "status": refusal.status,
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    })
    await send({"type": "http.response.body", "body": body})

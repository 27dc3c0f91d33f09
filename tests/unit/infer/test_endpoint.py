from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from xllm_speech.base.errors import ConfigError
from xllm_speech.infer.endpoint import ChatEndpoint, EndpointConfig, EndpointUnusable, RequestFailed, retry_after_sec

sys.path.insert(0, str(Path(__file__).parent))
from stub_endpoint import Reply, Stub, chat

MESSAGES = [{"role": "user", "content": "8 9?"}]
KEY = "sk-very-secret"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Stub]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    stubs: list[Stub] = []

    def start(*replies: Reply) -> Stub:
        """Replies in turn, the last one for ever."""
        stubs.append(Stub(lambda _, number: replies[min(number, len(replies)) - 1]))
        return stubs[-1]

    yield start
    for stub in stubs:
        stub.close()


def ask(stub: Stub, **options: Any) -> str:
    config = EndpointConfig(**{"url": stub.url, "model": "judge", "first_wait_sec": 0.01, "timeout_sec": 5.0} | options)
    with ChatEndpoint(config) as endpoint:
        return endpoint.ask(MESSAGES).text


def test_the_request_is_a_chat_completion(serve: Callable[..., Stub]) -> None:
    stub = serve(chat("8 9"))
    assert ask(stub, api_key=KEY, temperature=0.5) == "8 9"
    assert ask(stub, url=stub.url + "/chat/completions/") == "8 9"
    first, second = stub.requests
    assert first == {"path": "/v1/chat/completions", "model": "judge", "messages": MESSAGES, "temperature": 0.5}
    assert second["path"] == "/v1/chat/completions"
    assert stub.headers[0]["authorization"] == f"Bearer {KEY}"
    assert "authorization" not in stub.headers[1]


@pytest.mark.parametrize(
    "bad",
    [
        Reply(b"oops", 500), Reply(b"", 503), Reply(b"slow down", 429), Reply(b"<html>", 200), Reply(b"[]", 200),
        Reply(b'{"choices": []}', 200), Reply(b'{"choices": [{"message": {"content": [1]}}]}', 200), Reply(b"\xff{", 200),
        Reply(b'{"choices"', 200, cut=True),
    ],
    ids=lambda reply: f"{reply.status}-{reply.body[:12]!r}",
)
def test_what_may_pass_is_tried_again(bad: Reply, serve: Callable[..., Stub]) -> None:
    stub = serve(bad, bad, chat("8 9"))
    assert ask(stub) == "8 9"
    assert len(stub.requests) == 3


def test_tries_are_bounded_and_the_last_reason_is_told(serve: Callable[..., Stub]) -> None:
    stub = serve(Reply(b"the machine\nis on fire", 500))
    with pytest.raises(RequestFailed, match=r"/v1/chat/completions: no answer in 3 tries; the last: status 500: the mac"):
        ask(stub, retries=2)
    assert len(stub.requests) == 3


def test_waits_double(serve: Callable[..., Stub]) -> None:
    stub = serve(Reply(b"", 500), Reply(b"", 500), Reply(b"", 500), chat("8 9"))
    ask(stub, first_wait_sec=0.1)
    gaps = [after - before for before, after in zip(stub.times, stub.times[1:], strict=False)]
    for gap, wait in zip(gaps, (0.1, 0.2, 0.4), strict=True):
        assert 0.75 * wait <= gap < 1.25 * wait + 0.15


def test_retry_after_is_obeyed_in_both_forms(serve: Callable[..., Stub]) -> None:
    stub = serve(Reply(b"", 429, {"Retry-After": "1"}), chat("8 9"))
    begin = time.monotonic()
    ask(stub)
    assert 1.0 <= time.monotonic() - begin < 2.0
    assert retry_after_sec("7.5") == 7.5
    assert retry_after_sec(format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)) == pytest.approx(90, abs=2)
    assert retry_after_sec(format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)) == 0
    assert [retry_after_sec(value) for value in (None, "soon", "-3", "nan")] == [None] * 4


def test_a_pause_too_long_ends_the_run(serve: Callable[..., Stub]) -> None:
    stub = serve(Reply(b"quota", 429, {"Retry-After": "3600"}))
    with pytest.raises(EndpointUnusable, match=r"asks to wait 3600 s \(status 429: quota\); run again later"):
        ask(stub)
    assert len(stub.requests) == 1


@pytest.mark.parametrize("reply", [chat("8 9", wait_sec=1.5), chat("8 9", trickle=True)], ids=["silent", "trickle"])
def test_time_is_limited_for_the_whole_answer(reply: Reply, serve: Callable[..., Stub]) -> None:
    stub = serve(reply, chat("7 7"))
    begin = time.monotonic()
    assert ask(stub, timeout_sec=0.4) == "7 7"
    assert time.monotonic() - begin < 1.4


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (401, EndpointUnusable, "status 401: bad key .*; is the API key right"),
        (404, EndpointUnusable, "are --url and --model right"),
        (302, EndpointUnusable, "status 302"),
        (400, RequestFailed, "refused with status 400: bad key"),
    ],
)
def test_what_will_not_pass_is_asked_once_and_the_key_stays_hidden(
    status: int, error: type[Exception], message: str, serve: Callable[..., Stub]
) -> None:
    stub = serve(Reply(f"bad key {KEY}".encode(), status))
    with pytest.raises(error, match=message) as caught:
        ask(stub, api_key=KEY)
    assert len(stub.requests) == 1
    assert KEY not in str(caught.value)


def test_no_server_is_told_with_its_address() -> None:
    config = EndpointConfig(url="http://127.0.0.1:9/v1", model="judge", retries=1, first_wait_sec=0.01)
    message = r"127\.0\.0\.1:9.*no answer in 2 tries.*ConnectError"
    with ChatEndpoint(config) as endpoint, pytest.raises(RequestFailed, match=message):
        endpoint.ask(MESSAGES)


def test_the_rate_is_kept(serve: Callable[..., Stub]) -> None:
    stub = serve(chat("8 9"), Reply(b"", 500), chat("8 9"))
    with ChatEndpoint(EndpointConfig(url=stub.url, model="j", first_wait_sec=0.001, requests_per_minute=300)) as endpoint:
        endpoint.ask(MESSAGES)
        endpoint.ask(MESSAGES)
    gaps = [after - before for before, after in zip(stub.times, stub.times[1:], strict=False)]
    assert len(gaps) == 2
    assert all(gap > 0.18 for gap in gaps)


def test_what_an_address_may_hide_is_not_told(serve: Callable[..., Stub]) -> None:
    stub = serve(chat("8 9"), Reply(b"", 403))
    url = stub.url.replace("//", "//me:hush@") + "?key=quiet"
    assert ask(stub, url=url) == "8 9"
    assert stub.requests[0]["path"] == "/v1/chat/completions?key=quiet"
    with pytest.raises(EndpointUnusable, match=r"http://127\.0\.0\.1:\d+/v1/chat/completions: status 403") as caught:
        ask(stub, url=url)
    assert not any(secret in str(caught.value) for secret in ("hush", "quiet"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "localhost:8000"}, "--url: expected an address such as http://localhost:8000/v1"),
        ({"model": ""}, "--model"),
        ({"timeout_sec": 0}, "--timeout-sec 0"),
        ({"retries": -1}, "--retries -1"),
        ({"temperature": -0.1}, "--temperature"),
        ({"requests_per_minute": 0}, "--requests-per-minute 0"),
        ({"api_key": "sk\n1"}, "API key holds characters"),
    ],
)
def test_wrong_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        EndpointConfig(**{"url": "http://localhost/v1", "model": "judge"} | options)
    assert "sk\n1" not in str(caught.value)
    assert KEY not in repr(EndpointConfig("http://localhost/v1", "judge", api_key=KEY))

"""Thousands of malformed requests: never a 500, never a traceback, always an error object."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random

import httpx
import pytest
from hypothesis import HealthCheck, given, settings, strategies
from serving import open_quiet, picture, sound, user

CHAT, HEAR = "/v1/chat/completions", "/v1/audio/transcriptions"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def site(model):
    """(loop, client) of an application in this process."""
    with open_quiet(model, limits={"body_mib": 1, "media_mib": 1}) as (loop, client):
        yield loop, client


def send(site, path, content, headers):
    loop, client = site
    answer = loop.run_until_complete(client.post(path, content=content, headers=headers))
    assert answer.status_code in (200, 400, 404, 413, 415), (answer.status_code, answer.text, content[:500])
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert "Traceback" not in answer.text
        assert "site-packages" not in answer.text
    return answer.status_code


scalars = strategies.none() | strategies.booleans() | strategies.integers() | strategies.floats() | strategies.text(max_size=20)
values = strategies.recursive(
    scalars,
    lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(strategies.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
odd_text = strategies.sampled_from([
    "", "\0", "\u202e", "<eop>", "[gMASK]<sop>", "<Image><ImageFeats></Image>", "𝕏" * 50, "data:", "data:image/png;base64,",
    "data:;base64,AAAA", "http://169.254.169.254/latest", "file:///etc/passwd", "../../../etc/passwd", "%s%n{}", "1" * 400,
]) | strategies.text(max_size=30)
parts = strategies.one_of(
    values,
    strategies.builds(lambda text: {"type": "text", "text": text}, odd_text | values),
    *(
        strategies.builds(lambda url, kind=kind: {"type": kind, kind: {"url": url}}, odd_text | values)
        for kind in ("image_url", "video_url", "audio_url")
    ),
    strategies.builds(
        lambda data, form: {"type": "input_audio", "input_audio": {"data": data, "format": form}}, odd_text, scalars
    ),
)
messages = strategies.builds(
    lambda role, content: {"role": role, "content": content},
    strategies.sampled_from(["user", "assistant", "system", "developer", "tool", "", None]) | values,
    odd_text | strategies.lists(parts, max_size=3) | values,
)
chats = strategies.fixed_dictionaries(
    {"model": strategies.sampled_from(["xllm", "xllm", "xllm", "xllm-cif", "", None, 3]) | odd_text},
    optional={
        "messages": strategies.lists(messages, max_size=3) | values, "max_tokens": strategies.integers(0, 4) | scalars,
        "temperature": scalars, "top_p": scalars, "stop": odd_text | values, "seed": scalars, "stream": scalars, "n": scalars,
        "tools": values, "response_format": values, "stream_options": values, "logit_bias": values,
    },
)
# More by hand: XLLM_FUZZ=10 for ten times as many.
TIMES = int(os.environ.get("XLLM_FUZZ", "1"))
QUICK = settings(
    max_examples=300 * TIMES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)


@QUICK
@given(value=chats)
def test_chats_of_any_shape(site, value):
    send(site, CHAT, json.dumps(value).encode(), JSON)


@QUICK
@given(content=strategies.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()))
def test_bodies_that_are_no_chat(site, content):
    assert send(site, CHAT, content, JSON) == 400


def mutations(content, count, seed):
    """The content with a few bytes changed, taken away or doubled."""
    chance = random.Random(seed)
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(changed))
            match chance.randrange(4):
                case 0:
                    changed[place] = chance.randrange(256)
                case 1:
                    del changed[place : place + chance.randint(1, 30)]
                case 2:
                    changed[place:place] = changed[place : place + chance.randint(1, 60)]
                case _:
                    changed[place : place + 4] = b"\xff\xff\xff\xff"
        yield bytes(changed)


def test_media_with_changed_bytes(site, world):
    """What decoders make of broken files: a message, or an answer."""
    seen = []
    for kind, name in (("image_url", "images/1.png"), ("input_audio", "speech/u1.wav"), ("video_url", "clips/3.mp4")):
        whole = (world.folder / name).read_bytes()
        for content in mutations(whole, 60 * TIMES, name):
            part = sound_of(content) if kind == "input_audio" else url_of(kind, content)
            seen.append(send(site, CHAT, json.dumps({"model": "xllm", "messages": user(part), "max_tokens": 1}).encode(), JSON))
    assert set(seen) == {200, 400}


def sound_of(content):
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(content).decode(), "format": "wav"}}


def url_of(kind, content):
    return {"type": kind, kind: {"url": f"data:x/y;base64,{base64.b64encode(content).decode()}"}}


def test_requests_with_changed_bytes(site, world):
    image, wave = world.folder / "images/1.png", world.folder / "speech/u1.wav"
    asked = user(picture(image), "是什么颜色")
    chat = json.dumps({"model": "xllm", "messages": asked, "max_tokens": 1, "stream": True}).encode()
    for content in mutations(chat, 300 * TIMES, 1):
        send(site, CHAT, content, JSON)
    form = httpx.Request(
        "POST", "http://x", files={"file": ("a.wav", wave.read_bytes()[:2000]), "image": ("a.png", image.read_bytes())},
        data={"model": "xllm-cif", "response_format": "srt", "timestamp_granularities[]": "word"},
    )
    kind = {"Content-Type": form.headers["content-type"]}
    seen = [send(site, HEAR, content, kind) for content in mutations(form.read(), 300 * TIMES, 2)]
    assert 400 in seen


@pytest.mark.parametrize(("content", "kind"), [
    (b"[" * 100_000, "application/json"), (b'{"a":' * 50_000, "application/json"), (b'"\\ud800"', "application/json"),
    (b"\xff\xfe\x00", "application/json"), (b"NaN", "application/json"), (b"1e999", "application/json"),
    (b'{"model": "xllm", "messages": [{"role": "user", "content": "\\ud800"}]}', "application/json"),
    (b"", "multipart/form-data"), (b"--x\r\n\r\n", "multipart/form-data; boundary=x"),
    (b"x" * 1000, "multipart/form-data; boundary="),
    (b"--x\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n1\r\n--x--", "multipart/form-data; boundary=x"),
    (b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--", "multipart/form-data; boundary=x"),
    (b"--x\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n" * 50 + b"--x--", "multipart/form-data; boundary=x"),
    (b"a=b", "application/x-www-form-urlencoded"),
])
def test_bodies_made_to_hurt(site, content, kind):
    for path in (CHAT, HEAR):
        assert send(site, path, content, {"Content-Type": kind}) in (400, 413, 415)


def test_the_server_still_answers(site, world):
    loop, client = site
    asked = [
        client.post(CHAT, json={"model": "xllm", "messages": user(sound(world.folder / "speech/u1.wav")), "max_tokens": 2})
        for _ in range(4)
    ]

    async def all_of_them():
        return await asyncio.gather(*asked)

    assert [answer.status_code for answer in loop.run_until_complete(all_of_them())] == [200] * 4

"""Who may come in, what may be brought, and that nothing of it stays or is told."""

from __future__ import annotations

import base64
import io
import logging
import socket
import struct
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np
import pytest
import soundfile
from serving import clip, data_uri, picture, running, settings, sound, user

from xllm_speech.base.errors import ConfigError
from xllm_speech.bin.main import main
from xllm_speech.serve.config import ServeConfig
from xllm_speech.serve.fetch import fetch
from xllm_speech.serve.refusal import Refusal


def post(server, messages, **more):
    return httpx.post(server.chat, json={"model": "xllm", "messages": messages, "max_tokens": 4}, **more)


def error(answer, status=400):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]["message"]


@pytest.fixture
def _own_log():
    """What `main` does to the log is undone."""
    log = logging.getLogger("xllm_speech")
    before = log.handlers[:], log.propagate, log.level
    yield
    log.handlers[:], log.propagate = before[:2]
    log.setLevel(before[2])


@pytest.mark.usefixtures("_own_log")
def test_beyond_loopback_a_key_is_needed(served_dir, capsys, monkeypatch):
    monkeypatch.delenv("XLLM_API_KEY", raising=False)
    assert main(["serve", "--model", str(served_dir), "--host", "0.0.0.0"]) == 1
    assert "an API key is needed; give --api-key KEY or set XLLM_API_KEY" in capsys.readouterr().err
    for host in ("::", "192.168.1.5", "example.org"):
        with pytest.raises(ConfigError, match="an API key is needed"):
            settings(host=host).require_key()
    for host in ("127.0.0.1", "localhost", "::1", "[::1]"):
        settings(host=host).require_key()
    settings(host="0.0.0.0", api_key="long enough").require_key()
    with pytest.raises(ConfigError, match="at least 8"):
        ServeConfig(api_key="short")


def test_a_key_is_asked_for_everywhere_but_at_health(model):
    with running(model, api_key="open sesame") as server:
        assert httpx.get(f"{server.url}/health").status_code == 200
        for path in ("/v1/models", "/metrics", "/nowhere"):
            assert httpx.get(server.url + path).status_code == 401
            assert httpx.get(server.url + path, headers={"Authorization": "Bearer open sesam"}).status_code == 401
        assert "no valid API key" in error(post(server, user("x")), 401)
        right = {"Authorization": "Bearer open sesame"}
        assert httpx.get(f"{server.url}/v1/models", headers=right).status_code == 200
        assert post(server, user("是什么颜色"), headers=right | {"Host": "anything.example"}).status_code == 200


def test_without_a_key_other_names_and_forms_of_web_pages_are_refused(server):
    assert "only under the name localhost" in error(post(server, user("x"), headers={"Host": "evil.example"}), 403)
    plain = httpx.post(f"{server.url}/v1/chat/completions", content=b"{}", headers={"Content-Type": "text/plain"})
    assert error(plain, 415) == "expected a body of type application/json"


def png(width, height):
    """A picture of one colour whose file is a thousandth of its pixels."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = zlib.compress(b"\0" * ((width + 1) * height), 9)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def link(url):
    return {"type": "image_url", "image_url": {"url": url}}


def raw(kind, content):
    encoded = base64.b64encode(content).decode()
    if kind == "input_audio":
        return {"type": kind, kind: {"data": encoded, "format": "wav"}}
    return {"type": kind, kind: {"url": f"data:application/octet-stream;base64,{encoded}"}}


def wav(seconds, rate_hz=16000, channels=1):
    content = io.BytesIO()
    soundfile.write(content, np.zeros((int(seconds * rate_hz), channels)), rate_hz, format="WAV")
    return content.getvalue()


PLAYLIST = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'


@pytest.mark.parametrize(("kind", "content", "words"), [
    ("image_url", b"just words", "image-1: not a picture that is known here: PNG"),
    ("image_url", SVG, "image-1: not a picture"),
    ("image_url", wav(0.1), "image-1: not a picture"),
    ("image_url", b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "image-1: cannot be read"),
    ("image_url", png(8, 8)[:-30], "image-1: cannot be read"),
    ("image_url", png(4000, 4000), "image-1: 4000 x 4000 pixels, more than 1000000"),
    ("input_audio", b"", "speech-1: not a recording"),
    ("input_audio", b"RIFF\0\0\0\0WAVEjunk", "speech-1: cannot be read"),
    ("input_audio", wav(6), "speech-1: 6 s long, more than 5 s"),
    ("input_audio", wav(0), "speech-1: cannot be read (holds no audio samples)"),
    ("input_audio", wav(0.001), "too short for a single frame"),
    ("input_audio", wav(0.5, 1000), "speech-1: 1 channels at 1000 Hz"),
    ("input_audio", wav(0.5, 16000, 12), "speech-1: 12 channels"),
    ("input_audio", wav(0.1, 192000, 8), "at most 400000 samples a second"),
    ("input_audio", b"ID3" + bytes(range(256)) * 4, "speech-1: cannot be read"),
    ("video_url", PLAYLIST, "video-1: not a clip"),
    ("video_url", b"\0\0\0\x20ftypisom" + b"\1" * 200, "video-1: cannot be read"),
    ("video_url", png(8, 8), "video-1: not a clip that is known here: MP4"),
])
def test_strange_media_are_named_and_cost_nothing(server, kind, content, words):
    answer = error(post(server, user(raw(kind, content), "是什么颜色")))
    assert words in answer
    assert "tmp" not in answer  # where we keep it


def test_clips_that_are_broken_or_too_long(server, world, tmp_path):
    from tiny import make_clip

    whole = (world.folder / "clips/3.mp4").read_bytes()
    assert post(server, user(raw("video_url", whole))).status_code == 200
    assert "video-1: cannot be read" in error(post(server, user(raw("video_url", whole[: len(whole) // 2]))))
    long = make_clip(tmp_path / "long.mp4", 30, (200, 30, 30))  # four a second
    assert "video-1: longer than 5 s" in error(post(server, user(clip(long))))
    with running(server.application.service.model, limits={"clip_pixels": 16 * 16 * 3}) as strict:
        assert "video-1: 4 or more frames of 16 x 16 pixels" in error(post(strict, user(clip(world.folder / "clips/3.mp4"))))


def test_other_containers_are_read_no_further_than_the_limit(server, world, tmp_path):
    import av

    def webm(path, seconds):
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libopus", rate=48000)
            for start in range(0, int(48000 * seconds), 960):
                tone = (0.2 * np.sin(np.arange(start, start + 960) / 20)).astype(np.float32)[None]
                frame = av.AudioFrame.from_ndarray(np.repeat(tone, 2, axis=0), format="fltp", layout="stereo")
                frame.sample_rate = 48000
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    assert post(server, user(sound(webm(tmp_path / "a.webm", 1)))).status_code == 200
    assert "speech-1: longer than 5 s" in error(post(server, user(sound(webm(tmp_path / "b.webm", 7)))))


def test_sizes_are_counted_before_anything_is_decoded(server):
    large = "A" * (6 << 20)  # 4.5 MiB of bytes
    assert "image-1: more than 4 MiB" in error(post(server, user(link(f"data:;base64,{large}"))))
    began = time.monotonic()
    with socket.create_connection(server.url.removeprefix("http://").split(":")) as wire:
        wire.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1073741824\r\n\r\n{"
        )
        told = wire.recv(4096)
    assert b" 413 " in told.splitlines()[0]
    assert time.monotonic() - began < 5

    def endless():
        for _ in range(200):
            yield b" " * (1 << 20)

    chunked = httpx.post(f"{server.url}/v1/chat/completions", content=endless(), headers={"Content-Type": "application/json"})
    assert error(chunked, 413) == "a request of more than 8388608 bytes"


def test_too_many_media_or_a_kind_without_an_interface(server, world):
    image = world.folder / "images/1.png"
    assert "more than 16 media" in error(post(server, user(*[picture(image)] * 17)))
    assert "its base64 is broken" in error(post(server, user(link("data:image/png;base64,%%%"))))
    assert "expected data:TYPE;base64,DATA" in error(post(server, user(link("data:image/png,abc"))))


@pytest.mark.parametrize("url", [
    "http://127.0.0.1:1/x.png", "https://example.org/x.png", "file:///etc/passwd", "/etc/passwd", "../../x.png", "ftp://h/x",
    "http://[::1]/", "gopher://x", "http://user@allowed.example/", "http://allowed.example:22/", "", "http://",
    "http://allowed.example@evil.example/", "http://[", "http://a\nb/", "//evil.example/x",
])
def test_no_url_is_followed_unless_its_host_is_allowed(url, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the name was looked up"))
    with pytest.raises(Refusal) as caught:
        fetch(url, ["allowed.example"], 100, 1.0, "image-1")
    assert caught.value.status == 400
    assert caught.value.message.startswith("image-1: ")


@pytest.mark.parametrize("address", [
    "127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "::1", "fe80::1", "fd00::1", "::ffff:127.0.0.1", "0.0.0.0",
    "224.0.0.1", "100.64.0.1",
])
def test_an_allowed_name_must_lead_to_public_addresses(address, monkeypatch):
    found = [(None, None, None, None, ("93.184.216.34", 80)), (None, None, None, None, (address, 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(Refusal, match=r"allowed\.example leads to an address that is not public"):
        fetch("http://allowed.example/x.png", ["allowed.example"], 100, 1.0, "image-1")


@pytest.fixture
def files(world):
    """A host with pictures. Its paths: /1.png, /away (a redirect), /large, /slow."""
    image = (world.folder / "images/1.png").read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            others = {"/away": (302, b""), "/large": (200, b"x" * (5 << 20))}
            status, body = others.get(self.path, (200, image))
            self.send_response(status)
            self.send_header("Location", "/1.png")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            try:
                for place in range(0, len(body), 8) if self.path == "/slow" else ():
                    self.wfile.write(body[place : place + 8])
                    time.sleep(0.2)
                if self.path != "/slow":
                    self.wfile.write(body)
            except OSError:
                pass

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_allowed_address_is_fetched_from_without_redirects_and_within_limits(model, world, files):
    limits = {"fetch_sec": 1.0}
    with running(model, allow_hosts=[files], limits=limits) as server:

        def ask(path):
            return post(server, user(link(f"http://{files}{path}"), "是什么颜色"))

        sent = post(server, user(picture(world.folder / "images/1.png"), "是什么颜色"))
        assert ask("/1.png").json()["choices"] == sent.json()["choices"]
        assert "answered with a redirect" in error(ask("/away"))
        assert "more than 4194304 bytes" in error(ask("/large"))
        began = time.monotonic()
        assert "image-1: " in error(ask("/slow"))
        assert time.monotonic() - began < 4


def test_nothing_of_a_request_is_logged_or_kept(server, world, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    folder = server.application.service.folder
    secret = "红绿蓝黄在哪里"
    media = picture(world.folder / "images/1.png"), sound(world.folder / "speech/u1.wav")
    assert post(server, user(*media, secret)).status_code == 200
    post(server, user(raw("image_url", b"BM secret-bytes"), secret))
    form = {"file": ("secret-name.wav", (world.folder / "speech/u1.wav").read_bytes())}
    assert httpx.post(f"{server.url}/v1/audio/transcriptions", data={"model": "xllm-cif"}, files=form).status_code == 200
    ours = [one.getMessage() for one in caplog.records if not one.name.startswith(("httpx", "httpcore"))]
    assert any("/v1/chat/completions 200" in line for line in ours)
    assert not any("secret" in line or secret in line for line in ours)
    assert list(folder.iterdir()) == []


def test_a_failure_of_ours_tells_the_client_nothing_and_the_log_no_content(model, caplog):
    caplog.set_level(logging.DEBUG)
    with running(model) as server:

        def fail(jobs):
            raise RuntimeError("secret " + str(jobs[0].conversation))

        server.application.worker.engine.run = fail
        answer = post(server, user("是什么颜色"))
        assert error(answer, 500) == "the server failed on this request; its log says where"
        assert server.application.worker.alive
    lines = [one.getMessage() for one in caplog.records]
    assert any("RuntimeError while answering" in line and "test_security.py" in line for line in lines)
    assert not any("是什么颜色" in line for line in lines)


def test_headers_of_answers(server):
    headers = httpx.get(f"{server.url}/v1/models").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "server" not in headers
    assert "access-control-allow-origin" not in headers


def test_a_picture_under_another_name_is_what_it_is(server, world):
    image = world.folder / "images/1.png"
    wrong = {"type": "image_url", "image_url": {"url": data_uri(image, "text/html")}}
    assert post(server, user(wrong)).json()["choices"] == post(server, user(picture(image))).json()["choices"]

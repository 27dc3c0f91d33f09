"""Servers on a tiny X-LLM for tests of `xllm_speech.serve`, and messages in the form of OpenAI's API."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import threading
import time

from xllm_speech.serve.config import Limits, ServeConfig


def settings(**more):
    """A server for tests: any port, short times."""
    limits = {"audio_sec": 5.0, "video_sec": 5.0, "pixels": 1_000_000, "media_mib": 4, "body_mib": 8, "transcribe_sec": 8.0}
    limits |= more.pop("limits", {})
    return ServeConfig(**({"port": 0, "timeout_sec": 30.0, "drain_sec": 5.0, "limits": Limits(**limits)} | more))


class Running:
    """A server in a thread. url: of its API. application: for a look inside."""

    def __init__(self, application, server, url):
        self.application, self.server, self.url = application, server, url
        self.chat = f"{url}/v1/chat/completions"

    def client(self, **more):
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, **more)


@contextlib.contextmanager
def running(model, maker=None, **more):
    from xllm_speech.serve.server import _bind, make_server, open_application

    config = settings(**more)
    with open_application(model, config, maker, threads=1) as application:
        server = make_server(application)
        listening = _bind(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield Running(application, server, f"http://127.0.0.1:{listening.getsockname()[1]}")
        server.should_exit = True
        thread.join(10)
        listening.close()


@contextlib.contextmanager
def open_quiet(model, **more):
    """(loop, httpx client) of an application in this process, without a socket."""
    import httpx

    from xllm_speech.serve.server import open_application

    logging.getLogger("xllm_speech").setLevel(logging.ERROR)
    loop = asyncio.new_event_loop()
    with open_application(model, settings(**more), threads=1) as application:
        transport = httpx.ASGITransport(application.guard, raise_app_exceptions=True)
        client = httpx.AsyncClient(transport=transport, base_url="http://localhost")
        yield loop, client
        loop.run_until_complete(client.aclose())
    loop.close()
    logging.getLogger("xllm_speech").setLevel(logging.INFO)


def data_uri(path, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def picture(path):
    return {"type": "image_url", "image_url": {"url": data_uri(path)}}


def sound(path):
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(path.read_bytes()).decode(), "format": "wav"}}


def clip(path):
    return {"type": "video_url", "video_url": {"url": data_uri(path, "video/mp4")}}


def user(*parts):
    return [{"role": "user", "content": [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]}]

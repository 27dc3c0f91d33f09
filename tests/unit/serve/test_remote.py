"""Answers by a vLLM server: what it is sent, and what becomes of what it sends."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import torch
from serving import picture, running, user

from xllm_speech.base.errors import ConfigError
from xllm_speech.infer.messages import question_from_messages
from xllm_speech.serve.remote import RemoteMaker


class Stub:
    """Speaks vLLM's protocol: keeps what it is asked, and answers with `pieces`, or with `status`."""

    def __init__(self):
        self.asked, self.pieces, self.status, self.finish, self.wait_sec = [], ["红", "色", "的圆形"], 200, "stop", 0.0
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.asked.append((self.path, self.headers["Authorization"], body))
                self.send_response(stub.status)
                self.end_headers()
                if stub.status != 200:
                    return
                events = [{"choices": [{"index": 0, "text": piece, "finish_reason": None}]} for piece in stub.pieces]
                if stub.finish:
                    events.append({"choices": [{"index": 0, "text": "", "finish_reason": stub.finish}]})
                    events.append({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 5}})
                try:
                    for event in events:
                        time.sleep(stub.wait_sec)
                        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                    self.wfile.write(b"data: [DONE]\n\n")
                except OSError:
                    pass  # the client went away, as it should

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def stub():
    found = Stub()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def llm(model, monkeypatch):
    """The tiny LLM, as if it had positions of one dimension."""
    monkeypatch.setattr(model.checkpoint.model.llm, "family", "llama")
    return model.checkpoint.model.llm


def ask(server, messages, **more):
    return httpx.post(server.chat, json={"model": "xllm", "messages": messages, "max_tokens": 7, **more}, timeout=20)


def test_a_prompt_goes_there_as_embeddings_and_its_text_comes_back(model, llm, stub, world):
    image = world.folder / "images/1.png"
    with running(model, RemoteMaker(llm, f"{stub.url}/v1", "big", "a key")) as server:
        answer = ask(server, user(picture(image), "是什么颜色"), temperature=0.5, seed=3).json()
        with httpx.stream("POST", server.chat, json={"model": "xllm", "messages": user("在哪里"), "stream": True}) as response:
            pieces = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    assert answer["choices"][0]["message"]["content"] == "红色的圆形"
    assert answer["usage"]["completion_tokens"] == 5
    assert [piece["choices"][0]["delta"].get("content") for piece in pieces[1:-1]] == ["红", "色", "的圆形"]
    (path, key, body), (_, _, greedy) = stub.asked
    assert (path, key) == ("/v1/completions", "Bearer a key")
    embeds = torch.load(io.BytesIO(base64.b64decode(body.pop("prompt_embeds"))), weights_only=True)
    talk = question_from_messages([
        {"role": "user", "content": [{"type": "image", "path": str(image)}, {"type": "text", "text": "是什么颜色"}]}
    ])
    spliced, _ = model.answerer.splice([talk], 7, model.readers)
    torch.testing.assert_close(embeds, spliced.llm_input.embeds_BLH[0])
    assert body == {
        "model": "big", "max_tokens": 7, "temperature": 0.5, "top_p": 1.0, "seed": 3,
        "stop_token_ids": sorted(llm.framing.end_ids), "skip_special_tokens": True, "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert greedy["temperature"] == 0


def test_stop_texts_and_lengths(model, llm, stub):
    with running(model, RemoteMaker(llm, stub.url, "big")) as server:
        assert ask(server, user("在哪里"), stop="色的").json()["choices"][0]["message"]["content"] == "红"
        stub.finish = "length"
        assert ask(server, user("在哪里")).json()["choices"][0]["finish_reason"] == "length"


def test_what_goes_wrong_there(model, llm, stub):
    with running(model, RemoteMaker(llm, stub.url, "big"), timeout_sec=1.0) as server:
        stub.status = 500
        assert ask(server, user("在哪里")).json()["error"]["code"] == "backend"
        stub.status = 429
        busy = ask(server, user("在哪里"))
        assert (busy.status_code, busy.json()["error"]["code"], busy.headers["retry-after"]) == (503, "busy", "5")
        stub.status, stub.finish = 200, None  # ends without an end
        assert ask(server, user("在哪里")).json()["error"]["code"] == "backend"
        stub.wait_sec = 0.6
        assert ask(server, user("在哪里")).json()["error"]["code"] == "timeout"
    with running(model, RemoteMaker(llm, "http://127.0.0.1:1", "big")) as server:
        assert ask(server, user("在哪里")).status_code == 503


def test_an_llm_that_vllm_cannot_serve_is_refused(model):
    with pytest.raises(ConfigError, match="two-dimensional positions"):
        RemoteMaker(model.checkpoint.model.llm, "http://127.0.0.1:1", "big")

"""Answers by a vLLM server, for LLMs that it serves: prompts are embedded here, and handed over as embeddings.

vLLM takes them at `/v1/completions` as `prompt_embeds`, a base64 of a saved tensor [L, H], when it was started with
`--enable-prompt-embeds`. It knows nothing of pictures or speech, and needs no change.
"""

from __future__ import annotations

import base64
import concurrent.futures
import io
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import httpx
import torch

from xllm_speech.base.config import require
from xllm_speech.llm.loaded import LoadedLlm
from xllm_speech.records import LlmInput
from xllm_speech.serve.engine import Row
from xllm_speech.serve.jobs import ChatJob, too_late
from xllm_speech.serve.refusal import Refusal

logger = logging.getLogger(__name__)

PAUSE_SEC = 30.0  # most that may pass between two pieces of an answer


class RemoteMaker:
    """Makes answers at a vLLM server.

    Args:
        llm: the same LLM here, for its embeddings. url: of the server, such as `http://127.0.0.1:8001`. name: of the LLM there.
        key: that the server asks for, if any.

    Raises:
        ConfigError: an LLM whose prompts are more than embeddings.
    """

    def __init__(self, llm: LoadedLlm, url: str, name: str, key: str = "") -> None:
        require(
            llm.family != "chatglm",
            "backend: ChatGLM-6B has two-dimensional positions, which vLLM does not know; serve it without backend, or take an "
            "LLM that vLLM serves",
        )
        known = url.startswith(("http://", "https://")) and bool(name)
        require(known, "backend: give backend=http://HOST:PORT and backend_model=NAME")
        self.llm, self.url, self.name = llm, url.rstrip("/").removesuffix("/v1"), name
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    def generate(self, prompt: LlmInput, rows: list[Row], job: ChatJob, room: int) -> None:
        """As `AnswerMaker.generate`; all rows at once, the server batches them."""
        embeds = [
            embeds_LH[mask_L].to("cpu").contiguous()
            for embeds_LH, mask_L in zip(prompt.embeds_BLH.to(self.llm.dtype), prompt.mask_BL, strict=True)
        ]
        with concurrent.futures.ThreadPoolExecutor(len(rows)) as pool:
            list(pool.map(lambda pair: self._answer(pair[0], pair[1], room), zip(rows, embeds, strict=True)))

    def _answer(self, row: Row, embeds_LH: torch.Tensor, room: int) -> None:
        try:
            self._stream(row, embeds_LH, room)
            row.fail(_gone())  # only where the stream had no end
        except httpx.HTTPStatusError as error:
            logger.error("the LLM's server answered with status %d", error.response.status_code)
            busy = error.response.status_code in (429, 503)
            row.fail(Refusal(503, "the LLM's server is busy; try again later", None, "busy", 5) if busy else _gone())
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            logger.error("the LLM's server: %s", type(error).__name__)
            row.fail(too_late() if row.job.expired else _gone())

    def _stream(self, row: Row, embeds_LH: torch.Tensor, room: int) -> None:
        body = self.describe(row.job, embeds_LH, room)
        limit_sec = min(PAUSE_SEC, max(0.1, row.job.deadline - time.monotonic()))
        with (
            httpx.Client(timeout=limit_sec, headers=self.headers, trust_env=False) as client,
            client.stream("POST", f"{self.url}/v1/completions", json=body) as response,
        ):
            response.raise_for_status()
            finish, tokens = None, 0
            for event in _events(response):
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                for choice in event["choices"]:
                    row.take(choice["text"])
                    finish = choice.get("finish_reason") or finish
                if row.over:
                    return
            if finish is not None:
                row.end("length" if finish == "length" else "stop", tokens)

    def describe(self, job: ChatJob, embeds_LH: torch.Tensor, room: int) -> dict[str, Any]:
        """The request. Stop texts are found here, as they are for answers that are made here."""
        stream, options = io.BytesIO(), job.options
        torch.save(embeds_LH, stream)
        drawn = {"temperature": options.temperature, "top_p": options.top_p} if options.do_sample else {"temperature": 0.0}
        encoded = base64.b64encode(stream.getvalue()).decode("ascii")
        return {
            "model": self.name, "prompt_embeds": encoded, "max_tokens": room, **drawn,
            **({} if job.seed is None else {"seed": job.seed}), "stop_token_ids": sorted(self.llm.framing.end_ids),
            "skip_special_tokens": True, "stream": True, "stream_options": {"include_usage": True},
        }


def _gone() -> Refusal:
    return Refusal(503, "the LLM's server did not answer; try again later", None, "backend", 5)


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line[6:])

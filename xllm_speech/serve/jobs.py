"""One request on its way through the model, and what comes back: pieces of text, then the end or a refusal."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from xllm_speech.infer.generation import AnswerOptions
from xllm_speech.records import Conversation, Hypothesis
from xllm_speech.serve.refusal import Refusal

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Piece:
    """The next piece of an answer's text."""

    text: str


@dataclass(frozen=True)
class Done:
    """The end of an answer. text: all of it. finish: `stop` or `length`. note: what was left out of the prompt."""

    text: str
    prompt_tokens: int
    tokens: int
    finish: str
    note: str | None = None


@dataclass(frozen=True)
class Transcribed:
    """What was heard. alpha_S: CIF weights, one per step, where they were asked for and the recording is short."""

    hypotheses: list[Hypothesis]
    alpha_S: np.ndarray | None = None


Event: TypeAlias = Piece | Done | Transcribed | Refusal


@dataclass(eq=False)
class Job:
    """A request that waits for the model or is in it.

    Args:
        timeout_sec: from now to the end of its answer.

    Attributes:
        cancelled: nobody waits for it any more.
    """

    timeout_sec: float = field(kw_only=True)
    _events: asyncio.Queue[Event] = field(init=False, default_factory=asyncio.Queue)
    _loop: asyncio.AbstractEventLoop = field(init=False, default_factory=asyncio.get_running_loop)
    cancelled: threading.Event = field(init=False, default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + self.timeout_sec
        self.name = f"job-{next(_numbers)}"

    @property
    def key(self) -> Any:
        """Jobs of the same key may go through the model together; None for one that goes alone."""
        return None

    @property
    def expired(self) -> bool:
        """Its time is over."""
        return time.monotonic() > self.deadline

    def put(self, event: Event) -> None:
        """From the worker's thread."""
        with contextlib.suppress(RuntimeError):  # the loop was closed: the server is gone
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self) -> AsyncGenerator[Event, None]:
        """What comes, up to the end; leaving the loop early cancels the job."""
        try:
            while True:
                event = await self._events.get()
                yield event
                if not isinstance(event, Piece):
                    return
        finally:
            self.cancelled.set()

    async def result(self) -> Done | Transcribed:
        """The end, pieces left aside; `Refusal` where there is none."""
        async with contextlib.aclosing(self.events()) as events:
            async for event in events:
                if isinstance(event, Refusal):
                    raise event
                if not isinstance(event, Piece):
                    return event
        raise AssertionError("a job's events end with its end")


@dataclass(eq=False)
class ChatJob(Job):
    """A conversation to be answered.

    conversation: its media items name `samples`, which are what readers made of them. stop: texts before which the answer
    ends. seed: of drawing, for an answer that can be had again.
    """

    conversation: Conversation
    samples: dict[str, Any]
    options: AnswerOptions
    stop: tuple[str, ...] = ()
    seed: int | None = None

    @property
    def key(self) -> Any:
        """Equal options; a seed is for one alone."""
        return self.options if self.seed is None else None


@dataclass(eq=False)
class SpeechJob(Job):
    """A recording to be transcribed; its files stay until the job ends.

    method: `llm`, or `cif` for the ASR model alone. image: a picture that it is about. weights: whether those of CIF are
    wanted.
    """

    path: Path
    method: str
    image: Path | None = None
    weights: bool = False

    @property
    def key(self) -> Any:
        """Its method."""
        return self.method


def too_late() -> Refusal:
    """A job's time was over before its answer."""
    return Refusal(503, "the server did not finish this request in its time; try again later", None, "timeout", 5)

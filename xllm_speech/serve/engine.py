"""Batches of conversations through an X-LLM, every row with its own end, and its text piece by piece.

A row ends by itself, at its stop texts, when its client left, or when its time is over; the others go on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from xllm_speech.base.errors import DataError, SeamError
from xllm_speech.datasets.media import MediaReader, Place
from xllm_speech.infer.answering import failed, note_of
from xllm_speech.infer.generation import TextPieces
from xllm_speech.infer.xllm import XLLM
from xllm_speech.llm.loaded import LoadedLlm
from xllm_speech.prompts.plan import PromptPlan
from xllm_speech.records import ConversationItem, LlmInput
from xllm_speech.serve.hearing import Ears
from xllm_speech.serve.jobs import ChatJob, Done, Job, Piece, SpeechJob, too_late
from xllm_speech.serve.refusal import Refusal, bad_request

logger = logging.getLogger(__name__)


class SampleReader:
    """Items whose `path` is a key of samples that were read before; batching is another reader's."""

    def __init__(self, reader: MediaReader, samples: dict[str, Any]) -> None:
        self.reader, self.samples, self.kind = reader, samples, reader.kind

    def read(self, item: ConversationItem, place: Place) -> Any:
        """The sample."""
        return self.samples[str(item.path)]

    def collate(self, samples: list[Any]) -> Any:
        """As the other reader does."""
        return self.reader.collate(samples)

    def length(self, item: ConversationItem) -> float:
        """As the other reader does."""
        return self.reader.length(item)


class StopText:
    """Pieces of text up to the first of some stop texts; what may become one is held back until that is certain."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.stop, self.held, self.met = tuple(stop), "", False

    def add(self, piece: str, end: bool = False) -> str:
        """What may be shown now."""
        if self.met:
            return ""
        text, self.held = self.held + piece, ""
        places = [place for word in self.stop if (place := text.find(word)) >= 0]
        if places:
            self.met = True
            return text[: min(places)]
        keep = 0 if end else max(
            (size for word in self.stop for size in range(1, len(word)) if text.endswith(word[:size])), default=0
        )
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]


class Row:
    """One answer while it comes."""

    def __init__(self, job: ChatJob, plan: PromptPlan, llm: LoadedLlm, room: int) -> None:
        self.job, self.plan, self.room = job, plan, room
        self.pieces, self.stop = TextPieces(llm.decode), StopText(job.stop)
        self.ends, self.silent = set(llm.framing.end_ids), llm.pad_id
        self.text, self.over = "", False

    @property
    def started(self) -> bool:
        """Whether its client has seen something."""
        return bool(self.text)

    def put(self, index: int) -> None:
        """The next token."""
        if not self._goes_on():
            return
        if index in self.ends:
            self.end("stop")
        else:
            if index != self.silent:
                self.show(self.pieces.add(index))
            if self.stop.met:
                self.end("stop")
            elif len(self.pieces.ids) >= self.room:
                self.end("length")

    def take(self, piece: str) -> None:
        """The next piece of text, from who does not tell tokens."""
        if self._goes_on():
            self.show(piece)
            if self.stop.met:
                self.end("stop", 0)

    def _goes_on(self) -> bool:
        """Whether somebody still waits for it."""
        if not self.over and self.job.cancelled.is_set():
            self.over = True
        elif self.job.expired:
            self.fail(too_late())
        return not self.over

    def show(self, piece: str, end: bool = False) -> None:
        """Text that is certain."""
        if shown := self.stop.add(piece, end):
            self.text += shown
            self.job.put(Piece(shown))

    def end(self, finish: str, tokens: int | None = None) -> None:
        """The answer is there. tokens: of it, where they did not come one by one."""
        if not self.over:
            self.show(self.pieces.end(), end=True)
            self.over = True
            tokens = len(self.pieces.ids) if tokens is None else tokens
            self.job.put(Done(self.text, self.plan.prompt_tokens, tokens, finish, note_of(self.plan.report)))

    def fail(self, refusal: Refusal) -> None:
        """There will be none."""
        if not self.over:
            self.over = True
            self.job.put(refusal)


class _Streamer(BaseStreamer):
    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def put(self, value: torch.Tensor) -> None:
        if value.dim() == 1:  # not the prompts
            for row, index in zip(self.rows, value.tolist(), strict=True):
                row.put(index)

    def end(self) -> None:
        pass


class _Stop(StoppingCriteria):
    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.tensor([row.over for row in self.rows], dtype=torch.bool, device=input_ids.device)


class AnswerMaker(Protocol):
    """What makes answers of spliced prompts."""

    def generate(self, prompt: LlmInput, rows: list[Row], job: ChatJob, room: int) -> None:
        """Put the tokens or texts of every row into it, and its end. job: any of the batch, for its options."""


class LocalMaker:
    """The X-LLM's own LLM, here."""

    def __init__(self, llm: LoadedLlm) -> None:
        self.llm = llm

    def generate(self, prompt: LlmInput, rows: list[Row], job: ChatJob, room: int) -> None:
        """As `AnswerMaker.generate`."""
        if job.seed is not None:
            torch.manual_seed(job.seed)
        criteria = StoppingCriteriaList([_Stop(rows)])
        self.llm.generate(prompt, **job.options.arguments(room), streamer=_Streamer(rows), stopping_criteria=criteria)
        for row in rows:  # a row that made nothing but padding up to the end
            row.end("stop")


class Engine:
    """Runs batches of jobs, in one thread.

    Args:
        model: the X-LLM. ears: for recordings to be transcribed. maker: of answers; None: the model itself.
    """

    def __init__(self, model: XLLM, ears: Ears | None = None, maker: AnswerMaker | None = None) -> None:
        self.model, self.ears = model, ears
        self.maker = maker or LocalMaker(model.checkpoint.model.llm)

    def run(self, jobs: Sequence[Job]) -> None:
        """Answer jobs of one key, each with its end or a refusal."""
        if self.ears is not None and (speech := [job for job in jobs if isinstance(job, SpeechJob)]):
            self.ears.run(speech)
        if chats := [job for job in jobs if isinstance(job, ChatJob)]:
            self._answer(chats)

    def _answer(self, jobs: list[ChatJob]) -> None:
        """A batch that fails as a whole is halved until what is to blame stands alone."""
        rows: list[Row] = []
        try:
            self._try(jobs, rows)
            return
        except (SeamError, DataError, torch.OutOfMemoryError, MemoryError) as error:
            if len(jobs) == 1 or any(row.started for row in rows):
                for row in rows:
                    row.fail(_blame(error))
                known = {row.job.name for row in rows}
                for job in jobs:
                    if job.name not in known:
                        job.put(_blame(error))
                return
        left = [job for job in jobs if job.name not in {row.job.name for row in rows if row.over}]
        half = max(1, len(left) // 2)
        for part in (left[:half], left[half:]):
            if part:
                self._answer(part)

    @torch.no_grad()
    def _try(self, jobs: list[ChatJob], rows: list[Row]) -> None:
        options = jobs[0].options
        answerer, by_name = self.model.answerer, {job.name: job for job in jobs}
        room = answerer.room(options)
        samples: dict[str, Any] = {}
        talks = []
        for job in jobs:
            samples |= {f"{job.name}/{key}": sample for key, sample in job.samples.items()}
            talks.append(replace(job.conversation, id=job.name, messages=tuple(
                replace(message, items=tuple(
                    item if item.type == "text" else replace(item, path=f"{job.name}/{item.path}") for item in message.items
                ))
                for message in job.conversation.messages
            )))
        readers = {kind: SampleReader(reader, samples) for kind, reader in self.model.readers.items()}
        began = time.perf_counter()
        spliced, rejected = answerer.splice(talks, room, readers)
        for name, reason in rejected:
            by_name[name].put(bad_request(str(failed(name, reason).error), "messages", "cannot_answer"))
        if spliced is not None and spliced.llm_input is not None:
            rows += [Row(by_name[plan.id], plan, self.model.checkpoint.model.llm, room) for plan in spliced.plans]
            self.maker.generate(spliced.llm_input, rows, jobs[0], room)
        logger.debug("a batch of %d in %.2f s", len(jobs), time.perf_counter() - began)


def _blame(error: BaseException) -> Refusal:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return Refusal(503, "no memory left for this request; try a smaller one, or later", None, "out_of_memory", 5)
    return bad_request(str(error), "messages", "cannot_answer")

"""Batches of conversations through an X-LLM: read media, encode, splice, generate; what fails is named and alone."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch

from xllm_speech.base.config import require
from xllm_speech.base.errors import DataError, SeamError, first_line
from xllm_speech.datasets.media import load_media
from xllm_speech.datasets.readers import MediaReader
from xllm_speech.infer.answers import WINDOW_BATCHES, Answer, AnsweringReport, batches_by_length, prepare
from xllm_speech.infer.generation import AnswerOptions
from xllm_speech.infer.halving import halve_on_failure
from xllm_speech.llm.beam import BeamSearcher
from xllm_speech.llm.verify import Verifier
from xllm_speech.models.xllm_checkpoints import XllmCheckpoint
from xllm_speech.prompts import Spliced, SpliceReport
from xllm_speech.records import Conversation, LlmInput

Readers = Mapping[str, MediaReader]


class Answerer:
    """Answers conversations with a loaded X-LLM.

    Args:
        checkpoint: the model with its encoders. device: where they are.
    """

    def __init__(self, checkpoint: XllmCheckpoint, device: torch.device) -> None:
        self.model, self.encoders, self.device = checkpoint.model, checkpoint.encoders, device
        self.verifier, self.beams = Verifier(self.model.llm), BeamSearcher(self.model.llm)

    def room(self, options: AnswerOptions) -> int:
        """Most tokens of an answer; `ConfigError` when they leave none for a question."""
        return options.room(self.model.max_tokens)

    @torch.no_grad()
    def splice(
        self, conversations: list[Conversation], room: int, readers: Readers
    ) -> tuple[Spliced | None, list[tuple[str, str]]]:
        """The spliced batch, and (id, reason) of everything that is not in it."""
        batch = load_media(conversations, readers)
        if not batch.conversations:
            return None, batch.skipped
        spliced = self.model.splice(self.encoders.encode(batch.to(self.device)), train=False, answer_room=room)
        return spliced, [*batch.skipped, *spliced.rejected]

    def answer_batch(
        self, conversations: list[Conversation], options: AnswerOptions, readers: Readers, report: AnsweringReport
    ) -> dict[str, Answer]:
        """Answers by id. A batch that fails as a whole is halved until what is to blame stands alone."""
        return halve_on_failure(
            conversations, lambda part: self._try(list(part), options, readers, report),
            lambda one, error: {one.id: failed(one.id, error)}, (SeamError, DataError),
        )

    @torch.no_grad()
    def _try(
        self, conversations: list[Conversation], options: AnswerOptions, readers: Readers, report: AnsweringReport
    ) -> dict[str, Answer]:
        begin = time.perf_counter()
        room = self.room(options)
        spliced, rejected = self.splice(conversations, room, readers)
        spliced_at = time.perf_counter()
        report.reading_sec += spliced_at - begin
        found = {name: failed(name, reason) for name, reason in rejected}
        if spliced is not None and spliced.llm_input is not None:
            rows = self.write(spliced.llm_input, options, room)
            for plan, ids in zip(spliced.plans, rows, strict=True):
                found[plan.id] = Answer(
                    plan.id, self.model.llm.decode(ids), note=note_of(plan.report), tokens=len(ids), cut=len(ids) >= room
                )
        report.answering_sec += time.perf_counter() - spliced_at
        return found

    def write(self, prompt: LlmInput, options: AnswerOptions, room: int) -> list[list[int]]:
        """The LLM's answers as ids, each at most `room`; not drawn, they are the same as those to each prompt alone."""
        if options.do_sample:
            return self.model.llm.generate(prompt, **options.arguments(room))
        if options.num_beams > 1:
            return self.beams.answer(prompt, room, options.num_beams)
        return [answer.ids for answer in self.verifier.answer(prompt, room)]

    def answer(
        self, conversations: Iterable[Conversation], options: AnswerOptions, batch_size: int, report: AnsweringReport,
        readers: Readers, wording: int | None = None, without: Sequence[str] = (),
        on_progress: Callable[[AnsweringReport], None] | None = None,
    ) -> Iterator[Answer]:
        """Answers in the order of the conversations; `XLLM.answer` tells more."""
        require(batch_size >= 1, f"batch_size {batch_size} must be at least 1")
        self.room(options)
        source = iter(conversations)
        while window := list(itertools.islice(source, batch_size * WINDOW_BATCHES)):
            found: dict[str, Answer] = {}
            ready: dict[str, Conversation] = {}
            for conversation in window:
                if conversation.id in found or conversation.id in ready:
                    raise DataError(f"the id `{conversation.id}` occurs twice; give every conversation its own")
                try:
                    ready[conversation.id] = prepare(conversation, wording, without)
                except DataError as error:
                    found[conversation.id] = failed(conversation.id, error)
            for answer in found.values():
                report.add(answer)
            for batch in batches_by_length(list(ready.values()), batch_size, readers):
                answers = self.answer_batch(batch, options, readers, report)
                found |= answers
                for answer in answers.values():
                    report.add(answer)
                if on_progress is not None:
                    on_progress(report)
            yield from (found[conversation.id] for conversation in window)


def failed(name: str, reason: object) -> Answer:
    """The answer that says why there is none."""
    text = first_line(reason) if isinstance(reason, Exception) else str(reason)
    return Answer(name, "", error=text.removeprefix(f"{name}: "))


def note_of(report: SpliceReport) -> str | None:
    """What had to be left out of a prompt, if anything."""
    return str(report).removeprefix(f"{report.id}: ") if report else None

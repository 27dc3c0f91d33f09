"""A manifest of conversations -> a file of answers, with a description beside it."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from xllm_speech.base.config import require, require_choice
from xllm_speech.base.errors import DataError
from xllm_speech.base.files import write_json, write_jsonl
from xllm_speech.infer.answers import Answer, AnsweringReport, reference_of
from xllm_speech.infer.xllm import XLLM
from xllm_speech.interfaces.config import KINDS
from xllm_speech.manifests.conversations import read_conversations
from xllm_speech.manifests.cuts import PathFinder
from xllm_speech.records import Conversation, ConversationItem
from xllm_speech.records.manifest import TASKS


@dataclass(frozen=True)
class AnswerJob:
    """What to answer and how; the options of `xllm-speech answer`.

    tasks: only these, all when empty. limit: only so many, 0 for all.

    Raises:
        ConfigError: an unknown task or kind, or a negative number.
    """

    conversations: Path
    out: Path
    tasks: tuple[str, ...] = ()
    limit: int = 0
    without: tuple[str, ...] = ()
    wording: int | None = None
    cuts: tuple[str, ...] = ()
    units: Path | None = None
    max_tokens: int | None = None
    beam: int = 1
    batch_size: int = 16

    def __post_init__(self) -> None:
        for task in self.tasks:
            require_choice("--tasks", task, TASKS)
        for kind in self.without:
            require_choice("--without", kind, KINDS)
        require(self.limit >= 0, f"--limit {self.limit} must not be negative")

    def read(self) -> list[Conversation]:
        """The conversations that are asked for; paths hold from here or else from the manifest's folder and its parents.

        Raises:
            DataError: the manifest is absent or broken, or holds nothing that is asked for.
        """
        found = read_conversations(self.conversations, kinds=("text", *KINDS))
        chosen = (conversation for conversation in found if not self.tasks or conversation.task in self.tasks)
        wanted = list(islice(chosen, self.limit or None))
        if not wanted:
            tasks = f" of the tasks {', '.join(self.tasks)}" if self.tasks else ""
            raise DataError(f"{self.conversations}: holds no conversation{tasks}; there is nothing to answer")
        finder = PathFinder(self.conversations.parent)
        return [_located(conversation, finder) for conversation in wanted]


def answer_file(model: XLLM, job: AnswerJob, conversations: list[Conversation]) -> AnsweringReport:
    """Answer what `job.read` gave, tell about it on stderr, and write `job.out` and `job.out.meta.json`.

    Each file appears whole or not at all.
    """
    report = AnsweringReport()
    shown = sys.stderr.isatty()

    def progress(so_far: AnsweringReport) -> None:
        if shown:
            print(f"\r{so_far.conversations} of {len(conversations)} answered", end="", file=sys.stderr, flush=True)

    readers = model.make_readers(job.cuts, job.units)
    begin = time.perf_counter()
    answers = model.answer(
        conversations, job.max_tokens, job.beam, job.batch_size, report, job.wording, job.without, readers, progress
    )
    write_jsonl(job.out, (_line(*pair) for pair in zip(answers, conversations, strict=True)))
    wall_sec = time.perf_counter() - begin
    if shown:
        print(file=sys.stderr)
    for name, what in [*report.failed, *report.notes]:
        print(f"xllm-speech answer: {name}: {what}", file=sys.stderr)
    if report.cut:
        print(
            f"xllm-speech answer: {len(report.cut)} answers were cut at the most tokens allowed, such as that to "
            f"{report.cut[0]}; raise --max-tokens if they are to end", file=sys.stderr,
        )
    answered = report.conversations - len(report.failed)
    print(
        f"{answered} of {report.conversations} conversations answered, {report.tokens} tokens in {wall_sec:.1f} s; {job.out}",
        file=sys.stderr,
    )
    write_json(
        f"{job.out}.meta.json",
        model.describe(job.wording) | {
            "conversations": str(job.conversations), "tasks": list(job.tasks), "limit": job.limit,
            "without": list(job.without), "units": None if job.units is None else str(job.units),
            "config": {"max_tokens": job.max_tokens, "beam": job.beam, "batch_size": job.batch_size},
            "answered": answered, "failed": len(report.failed), "notes": len(report.notes), "cut": len(report.cut),
            "tokens": report.tokens, "wall_sec": wall_sec,
            "includes": "reading and encoding media, and generating; not loading the model",
            "reading_sec": report.reading_sec, "answering_sec": report.answering_sec,
        },
    )
    return report


def _located(conversation: Conversation, finder: PathFinder) -> Conversation:
    def locate(item: ConversationItem) -> ConversationItem:
        return item if item.path is None else replace(item, path=finder.find(item.path))

    messages = [replace(message, items=tuple(map(locate, message.items))) for message in conversation.messages]
    return replace(conversation, messages=tuple(messages))


def _line(answer: Answer, conversation: Conversation) -> dict[str, Any]:
    line = {"id": answer.id, "text": answer.text, "task": conversation.task, "reference": reference_of(conversation)}
    more = {
        "error": answer.error, "note": answer.note, "cut": answer.cut or None, "custom": conversation.custom or None,
    }
    return line | {name: value for name, value in more.items() if value is not None}

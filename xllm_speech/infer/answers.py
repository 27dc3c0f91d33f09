"""What answering conversations gives, and how they are put into batches."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from xllm_speech.base.errors import DataError
from xllm_speech.datasets.readers import MediaReader
from xllm_speech.prompts import with_instructions
from xllm_speech.records import Conversation, ConversationItem

# Conversations that are sorted by length together, as a multiple of the batch.
WINDOW_BATCHES = 16


@dataclass(frozen=True)
class Answer:
    """The answer to one conversation.

    text: empty where there is an `error`, which says why. note: what was left out of the prompt. tokens: generated.
    cut: the answer did not end by itself but at the most tokens allowed.
    """

    id: str
    text: str
    error: str | None = None
    note: str | None = None
    tokens: int = 0
    cut: bool = False


@dataclass
class AnsweringReport:
    """What a run of answering did. failed: (id, reason) without an answer; notes: (id, what was left out of the prompt).

    cut: ids of answers that reached the most tokens allowed. tokens: generated. Seconds: reading and encoding media, and
    generating.
    """

    conversations: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    tokens: int = 0
    reading_sec: float = 0.0
    answering_sec: float = 0.0

    def add(self, answer: Answer) -> None:
        """Count one answer."""
        self.conversations += 1
        self.tokens += answer.tokens
        if answer.error is not None:
            self.failed.append((answer.id, answer.error))
        if answer.note is not None:
            self.notes.append((answer.id, answer.note))
        if answer.cut:
            self.cut.append(answer.id)


def prepare(conversation: Conversation, wording: int | None = None, without: Collection[str] = ()) -> Conversation:
    """The conversation as it is asked: instructions behind messages of media alone, then without the items of some kinds.

    wording: of the instruction set; None draws one by the conversation's id. A message keeps its instruction when its media
    go, which makes blind and deaf baselines.

    Raises:
        DataError: there is no instruction for a message without text. ConfigError: no such wording.
    """
    conversation = with_instructions(conversation, wording=wording)
    if not without:
        return conversation
    messages = []
    for message in conversation.messages:
        items = tuple(item for item in message.items if item.type not in without)
        if not items:
            raise DataError(f"{conversation.id}: a message of {', '.join(without)} alone; nothing is left of it")
        messages.append(replace(message, items=items))
    return replace(conversation, messages=tuple(messages))


def reference_of(conversation: Conversation) -> str | None:
    """The answer at the end of a conversation, None where it ends in a question."""
    last = conversation.messages[-1]
    return "".join(item.text or "" for item in last.items) if last.role == "assistant" else None


def batches_by_length(
    conversations: Sequence[Conversation], size: int, readers: Mapping[str, MediaReader]
) -> Iterator[list[Conversation]]:
    """Batches of at most `size` conversations of like length, those of the same kinds of media together."""

    def length(item: ConversationItem) -> float:
        if item.type == "text":
            return len(item.text or "")
        return readers[item.type].length(item) if item.type in readers else 0.0

    def place(conversation: Conversation) -> tuple[list[str], float, str]:
        items = [item for message in conversation.messages for item in message.items]
        return sorted({item.type for item in items}), sum(map(length, items)), conversation.id

    ordered = sorted(conversations, key=place)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]

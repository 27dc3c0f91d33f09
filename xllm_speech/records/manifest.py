"""Seam manifests -> features and datasets (data.md, Manifests)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from xllm_speech.records.checks import ensure


@dataclass(frozen=True)
class Utterance:
    """What a speech cut says about itself; the audio stays with the cut.

    text: transcript, None for speech to be recognised. image: path of the picture it speaks about; caption: its text.
    """

    id: str
    duration_sec: float
    text: str | None = None
    speaker: str | None = None
    image: str | None = None
    caption: str | None = None
    dialog_id: str | None = None
    round: int | None = None

    def __post_init__(self) -> None:
        ensure(bool(self.id), "Utterance: empty id")
        ensure(self.duration_sec > 0, f"Utterance {self.id}: duration {self.duration_sec} s")


# The kinds that every manifest knows; a new X brings a type of its own, a plain lower-case word.
ITEM_TYPES = ("text", "image", "video", "speech")
ITEM_TYPE_FORM = re.compile(r"[a-z][a-z0-9_]*")
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class ConversationItem:
    """One piece of a message: `text`, or a medium with a `path`; speech may name a `cut`.

    Of speech and clips an offset and a duration, in seconds, name a part of the file.

    A speech item with both names where its audio is and under which id a unit cache holds it.
    """

    type: str
    text: str | None = None
    path: str | None = None
    cut: str | None = None
    offset_sec: float | None = None
    duration_sec: float | None = None

    def __post_init__(self) -> None:
        known = ", ".join(ITEM_TYPES)
        ensure(
            bool(ITEM_TYPE_FORM.fullmatch(self.type)),
            f"item type `{self.type}`: expected {known}, or the lower-case word of another kind",
        )
        if self.type == "text":
            ensure(self.text is not None, "a text item needs `text`")
        elif self.type == "speech":
            ensure(self.path is not None or self.cut is not None, "a speech item needs `path` or `cut`")
        else:
            # Structured states, such as a terminal's, are text that an encoder reads and not part of the prompt.
            given = self.path is not None or (self.type not in ITEM_TYPES and self.text is not None)
            ensure(given, f"a {self.type} item needs `path`")


@dataclass(frozen=True)
class Message:
    """One turn: role `system`, `user` or `assistant`, and its items in order."""

    role: str
    items: tuple[ConversationItem, ...]

    def __post_init__(self) -> None:
        ensure(self.role in ROLES, f"role `{self.role}` is not one of {', '.join(ROLES)}")
        ensure(bool(self.items), f"a {self.role} message without content")


TASKS = ("asr", "masr", "caption", "video", "vl", "vsd", "text")


@dataclass(frozen=True)
class Conversation:
    """One example of phases 2 and 3, chat and evaluation: user and assistant turns that alternate, a user turn first."""

    id: str
    task: str
    messages: tuple[Message, ...]
    custom: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ensure(bool(self.id), "Conversation: empty id")
        ensure(self.task in TASKS, f"Conversation {self.id}: task `{self.task}` is not one of {', '.join(TASKS)}")
        turns = [message.role for message in self.messages if message.role != "system"]
        expected = ["user", "assistant"] * (len(turns) // 2 + 1)
        ensure(bool(turns) and turns == expected[: len(turns)], f"Conversation {self.id}: turns must alternate, user first")

"""Conversation manifests: one example a line, in the message form that chat libraries use (data.md, Manifests, 2).

    {"id": "...", "task": "vl", "messages": [
        {"role": "user", "content": [{"type": "image", "path": "..."}, {"type": "text", "text": "..."}]},
        {"role": "assistant", "content": "..."}]}

`content` is a string or a list of items; `offset` and `duration` of a speech or video item are seconds. A user message of media
alone leaves the instruction to the data set, which samples one for the task. An optional `custom` object rides along.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from xllm_speech.base.errors import DataError, SeamError
from xllm_speech.base.files import read_jsonl, write_jsonl
from xllm_speech.records.manifest import ITEM_TYPES, Conversation, ConversationItem, Message

# Name in the file -> name in the record; seconds are told by the record's name.
_ITEM_KEYS = {
    "type": "type",
    "text": "text",
    "path": "path",
    "cut": "cut",
    "offset": "offset_sec",
    "duration": "duration_sec",
}
_STRINGS = ("type", "text", "path", "cut")


def _refuse_unknown(value: dict[str, Any], known: Iterable[str], what: str) -> None:
    for key in value:
        if key not in known:
            raise SeamError(f"unknown key `{key}` in {what}; known: {', '.join(known)}")


def _read_item(value: Any) -> ConversationItem:
    if not isinstance(value, dict) or "type" not in value:
        raise SeamError(f"a content item is an object with `type`, found {str(value)[:60]!r}")
    _refuse_unknown(value, _ITEM_KEYS, "a content item")
    for key, part in value.items():
        if key in _STRINGS and not isinstance(part, str):
            raise SeamError(f"`{key}` of a content item must be a string, found {part!r}")
        if key not in _STRINGS and (isinstance(part, bool) or not isinstance(part, int | float) or part < 0):
            raise SeamError(f"`{key}` of a content item must be seconds, found {part!r}")
    return ConversationItem(**{_ITEM_KEYS[key]: part for key, part in value.items()})


def _read_message(value: Any) -> Message:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str) or "content" not in value:
        raise SeamError("a message is an object with `role` and `content`")
    _refuse_unknown(value, ("role", "content"), "a message")
    content = value["content"]
    if isinstance(content, str):
        return Message(value["role"], (ConversationItem("text", text=content),))
    if not isinstance(content, list):
        raise SeamError(f"`content` must be a string or a list of items, found {type(content).__name__}")
    return Message(value["role"], tuple(_read_item(item) for item in content))


def conversation_from_dict(value: dict[str, Any], kinds: Collection[str] = ITEM_TYPES) -> Conversation:
    """Build a conversation from its JSON object. kinds: item types that may occur; name those of an X of your own.

    Raises:
        SeamError: a key is missing, unknown or of the wrong type, an item is of another type, or the turns do not alternate.
    """
    _refuse_unknown(value, ("id", "task", "messages", "custom"), "a conversation")
    for key, kind in (("id", str), ("task", str), ("messages", list)):
        if not isinstance(value.get(key), kind):
            raise SeamError(f"`{key}` must be a {'string' if kind is str else 'list'}, found {value.get(key)!r}")
    custom = value.get("custom", {})
    if not isinstance(custom, dict):
        raise SeamError(f"`custom` must be an object, found {custom!r}")
    messages = tuple(_read_message(message) for message in value["messages"])
    for item in (item for message in messages for item in message.items):
        if item.type not in kinds:
            raise SeamError(f"item type `{item.type}` is not one of {', '.join(kinds)}")
    return Conversation(value["id"], value["task"], messages, dict(custom))


def conversation_to_dict(conversation: Conversation) -> dict[str, Any]:
    """The JSON object of a conversation; a message of one text becomes a plain string."""
    messages = []
    for message in conversation.messages:
        items = [
            {name: part for name, field in _ITEM_KEYS.items() if (part := getattr(item, field)) is not None}
            for item in message.items
        ]
        plain = len(items) == 1 and items[0]["type"] == "text"
        messages.append({"role": message.role, "content": items[0]["text"] if plain else items})
    value: dict[str, Any] = {"id": conversation.id, "task": conversation.task, "messages": messages}
    if conversation.custom:
        value["custom"] = conversation.custom
    return value


def write_conversations(path: str | Path, conversations: Iterable[Conversation]) -> int:
    """Write conversations as JSON lines (gzip by the name's ending), atomically; returns their number."""
    return write_jsonl(path, (conversation_to_dict(conversation) for conversation in conversations))


def read_conversations(
    path: str | Path, root: str | Path | None = None, kinds: Collection[str] = ITEM_TYPES
) -> Iterator[Conversation]:
    """Conversations of a manifest, lazily, in file order.

    Args:
        path: JSON lines, gzip or plain.
        root: folder that relative media paths are joined to; None leaves them relative to the current directory.
        kinds: item types that may occur, as in `conversation_from_dict`.

    Raises:
        DataError: a line is not a conversation, or repeats an earlier id; the text names file and line.
    """
    lines: dict[str, int] = {}
    for number, value in read_jsonl(path):
        try:
            conversation = conversation_from_dict(value, kinds)
        except SeamError as error:
            raise DataError(f"{path}:{number}: {error}") from error
        if conversation.id in lines:
            raise DataError(f"{path}:{number}: id `{conversation.id}` was used in line {lines[conversation.id]}")
        lines[conversation.id] = number
        yield conversation if root is None else _rooted(conversation, Path(root))


def _rooted(conversation: Conversation, root: Path) -> Conversation:
    messages = tuple(
        replace(
            message,
            items=tuple(
                item if item.path is None else replace(item, path=str(root / item.path)) for item in message.items
            ),
        )
        for message in conversation.messages
    )
    return replace(conversation, messages=messages)

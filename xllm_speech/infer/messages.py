"""Messages of a chat, in the form that chat libraries use, as a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from xllm_speech.base.errors import DataError, SeamError
from xllm_speech.interfaces.config import KINDS
from xllm_speech.manifests.conversations import conversation_from_dict
from xllm_speech.prompts import with_instructions
from xllm_speech.records import Conversation, Message

CHAT_ID = "chat"


def question_from_messages(messages: Sequence[Mapping[str, Any]]) -> Conversation:
    """As `conversation_from_messages`; `DataError` also where the last message is not the user's."""
    if not messages or not isinstance(messages[-1], Mapping) or messages[-1].get("role") != "user":
        raise DataError("chat: the last message must be the user's; there is nothing to answer")
    return conversation_from_messages(messages)


def conversation_from_messages(messages: Sequence[Mapping[str, Any]]) -> Conversation:
    """{"role", "content"} messages as a conversation; media alone get an instruction of their kind.

    Raises:
        DataError: a message is not in the form of `manifests.conversations`, or has neither text nor an instruction.
    """
    plain = [
        {**message, "content": _plain(message.get("content"))} if isinstance(message, Mapping) else message
        for message in messages
    ]
    try:
        conversation = conversation_from_dict({"id": CHAT_ID, "task": "vl", "messages": plain}, ("text", *KINDS))
    except SeamError as error:
        raise DataError(f"chat: {error}") from error
    said: list[Message] = []
    for message in conversation.messages:
        said.append(_instructed(message, {item.type for earlier in said for item in earlier.items}))
    return replace(conversation, messages=tuple(said))


def _plain(content: Any) -> Any:
    """Paths as strings."""
    if not isinstance(content, list):
        return content
    return [
        {key: str(value) if isinstance(value, Path) else value for key, value in item.items()}
        if isinstance(item, Mapping) else item
        for item in content
    ]


def _instructed(message: Message, earlier: set[str]) -> Message:
    """The message, with the first instruction of its kind behind media alone.

    earlier: kinds before it: a spoken question about an image of the round before is not there to be transcribed.
    """
    kinds = {item.type for item in message.items}
    if message.role != "user" or "text" in kinds:
        return message
    seen = bool((kinds | earlier) & {"image", "video"})
    if "speech" in kinds:
        task = "vsd" if seen else "asr"
    elif kinds <= {"image", "video"}:
        task = "caption" if "image" in kinds else "video"
    else:
        raise DataError(f"chat: a message of {', '.join(sorted(kinds))} alone; say in words what is asked")
    return with_instructions(Conversation(CHAT_ID, task, (message,)), wording=0).messages[0]

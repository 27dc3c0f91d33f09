"""Instructions for messages of media alone, as data: the Chinese sets of the release (system.md, section 4)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.records.manifest import Conversation, ConversationItem

# Task of a conversation -> its wordings. Tasks `vl` and `text` bring their own questions.
INSTRUCTIONS: Mapping[str, Sequence[str]] = {
    "asr": (
        "请忠实地识别该语音",
        "请将这段语音转化为文字",
        "请将语音转换成书面文字。",
        "请识别该音频的文本内容",
    ),
    "masr": (
        "请根据图片忠实地识别这段语音",
        "根据图片请忠实地识别该语音",
    ),
    "caption": (
        "请详细描述这张图片。",
        "请查看这张图片并描述您注意到的内容。",
        "请提供这张图片的详细描述",
        "你能为我描述这张图片的内容吗？",
    ),
    "video": (
        "请描述这个视频。",
        "请查看这个视频并描述您注意到的内容。",
        "请提供这个视频的描述",
        "你能为我描述这个视频的内容吗？",
    ),
    "vsd": (
        "请根据图像回答语音中的问题",
        "请利用图像回答语音中的问题",
        "请根据图像直接回答语音中的问题",
        "请利用图片回答语音中的问题",
    ),
}

# What stands before an instruction where the image's caption is given as text.
CAPTION = "图片的内容：{caption}\n"


def sample_instruction(
    task: str, seed: int, epoch: int, id: str, instructions: Mapping[str, Sequence[str]] = INSTRUCTIONS
) -> str:
    """One wording for an item, evenly over the set, the same on every machine, rank and worker.

    Args:
        task: of the conversation. seed, epoch, id: what the choice depends on, beside the task.
        instructions: task -> wordings; a recipe may bring its own.

    Raises:
        ConfigError: there are no instructions for the task.
    """
    wordings = instructions.get(task, ())
    if not wordings:
        raise ConfigError(f"no instructions for the task `{task}`; there are some for {', '.join(sorted(instructions))}")
    digest = hashlib.sha256(f"{seed}\n{epoch}\n{task}\n{id}".encode()).digest()
    return wordings[int.from_bytes(digest[:8], "big") % len(wordings)]


def with_instructions(
    conversation: Conversation,
    seed: int = 0,
    epoch: int = 0,
    wording: int | None = None,
    instructions: Mapping[str, Sequence[str]] = INSTRUCTIONS,
) -> Conversation:
    """The conversation with an instruction behind the media of every user message that has no text.

    Args:
        wording: take this wording of the set, to measure how much the choice matters; None samples one per message.

    Raises:
        DataError: a message has no text and the task has no instructions.
        ConfigError: the set has fewer wordings.
    """
    messages = []
    for number, message in enumerate(conversation.messages):
        if message.role == "user" and all(item.type != "text" for item in message.items):
            wordings = instructions.get(conversation.task, ())
            if not wordings:
                raise DataError(
                    f"{conversation.id}: message {number} has no text, and the task `{conversation.task}` no instructions; "
                    f"add the question as a text item"
                )
            if wording is None:
                place = f"{conversation.id}\n{number}"
                text = sample_instruction(conversation.task, seed, epoch, place, instructions)
            elif 0 <= wording < len(wordings):
                text = wordings[wording]
            else:
                raise ConfigError(
                    f"wording {wording}: the task `{conversation.task}` has wordings 0 to {len(wordings) - 1}"
                )
            message = replace(message, items=(*message.items, ConversationItem("text", text=text)))
        messages.append(message)
    return replace(conversation, messages=tuple(messages))


def with_caption(conversation: Conversation, caption: str | None) -> Conversation:
    """The conversation with an image's caption, as text, in front of what its last question asks (S+L, S+V+L).

    The paper gives captions to its CIF model only (section 1); here they stand in the prompt, where an LLM takes what is to be
    known. Without a caption nothing changes.

    Raises:
        DataError: the last question has no words.
    """
    if not caption:
        return conversation
    messages = list(conversation.messages)
    number = max(number for number, message in enumerate(messages) if message.role == "user")
    items = list(messages[number].items)
    place = next((place for place, item in enumerate(items) if item.type == "text"), None)
    if place is None:
        raise DataError(f"{conversation.id}: a caption stands before an instruction, and there is none")
    items[place] = replace(items[place], text=CAPTION.format(caption=caption) + (items[place].text or ""))
    messages[number] = replace(messages[number], items=tuple(items))
    return replace(conversation, messages=tuple(messages))

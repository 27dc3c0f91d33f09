"""From a request to a job: media looked at and read, the conversation put together. Runs in a thread of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.datasets.media import Place
from xllm_speech.infer.generation import AnswerOptions
from xllm_speech.infer.messages import question_from_messages
from xllm_speech.infer.xllm import XLLM
from xllm_speech.records import Conversation, ConversationItem
from xllm_speech.serve.config import MIB, ServeConfig
from xllm_speech.serve.media import Sent, from_base64, from_url, read, store
from xllm_speech.serve.refusal import bad_request
from xllm_speech.serve.schema import (
    AudioPart,
    AudioUrlPart,
    ChatRequest,
    ImagePart,
    TextPart,
    VideoPart,
)


@dataclass
class Question:
    """A request in the words of the model. samples: what readers made of its media, by the items' `path`."""

    conversation: Conversation
    samples: dict[str, Any]
    options: AnswerOptions
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass
class _Draft:
    """Messages as they are put together, and the media that they name."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    sent: dict[str, Sent] = field(default_factory=dict)
    characters: int = 0


class Intake:
    """Turns requests into questions.

    Args:
        model: who will be asked. config: limits and allowed hosts. folder: for files, each there no longer than it is read.
    """

    def __init__(self, model: XLLM, config: ServeConfig, folder: Path) -> None:
        self.model, self.config, self.limits, self.folder = model, config, config.limits, folder

    def chat(self, request: ChatRequest) -> Question:
        """The question of a chat request; `Refusal` where it cannot be asked."""
        if len(request.messages) > self.limits.messages:
            raise bad_request(f"{len(request.messages)} messages, more than {self.limits.messages}", "messages", "too_long")
        draft = _Draft()
        for number, message in enumerate(request.messages):
            content = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
            items = [self._item(part, draft, f"messages[{number}].content[{place}]") for place, part in enumerate(content)]
            role = "system" if message.role == "developer" else message.role
            draft.messages.append({"role": role, "content": items})
        options = self.options(
            request.max_completion_tokens or request.max_tokens, request.temperature, request.top_p
        )
        return self.ask(draft.messages, draft.sent, options, request.stop_texts, request.seed)

    def _item(self, part: Any, draft: _Draft, param: str) -> dict[str, str]:
        limits, hosts = self.limits, self.config.allow_hosts
        kind = "text"
        match part:
            case TextPart(text=text):
                draft.characters += len(text)
                if draft.characters > limits.text_chars:
                    raise bad_request(f"more than {limits.text_chars} characters of text", "messages", "too_long")
                return {"type": "text", "text": text}
            case ImagePart():
                kind, url = "image", part.image_url.url
            case VideoPart():
                kind, url = "video", part.video_url.url
            case AudioUrlPart():
                kind, url = "speech", part.audio_url.url
            case AudioPart():
                kind, url = "speech", part.input_audio.data
        label = f"{kind}-{1 + sum(one.kind == kind for one in draft.sent.values())}"
        self.require_kind(kind, label, param)
        if len(draft.sent) >= limits.media:
            raise bad_request(f"more than {limits.media} media in one request", param, "too_long")
        if isinstance(part, AudioPart) and url[:5].lower() != "data:":
            content = from_base64(url, limits.media_mib * MIB, label, param)
        else:
            content = from_url(url, hosts, limits, label, param)
        draft.sent[label] = Sent(kind, label, content, param)
        return {"type": kind, "path": label}

    def require_kind(self, kind: str, label: str, param: str | None = None) -> None:
        """`Refusal` where the model has no interface for a kind of media."""
        if kind not in self.model.kinds:
            raise bad_request(
                f"{label}: this model has no interface for {kind}; it takes {', '.join(self.model.kinds)}", param, "unsupported"
            )

    def options(self, max_tokens: int | None, temperature: float | None = None, top_p: float | None = None) -> AnswerOptions:
        """How to answer: greedily unless a temperature above 0, or a `top_p` below 1, asks for drawing."""
        most = self.limits.answer_tokens
        if most and (max_tokens or 0) > most:
            raise bad_request(f"max_tokens {max_tokens}: answers here have at most {most} tokens", "max_tokens", "too_long")
        drawn = bool(temperature) or (temperature is None and top_p is not None and top_p < 1)
        warmth = {"do_sample": True, "temperature": temperature or 1.0, "top_p": top_p or 1.0} if drawn else {}
        try:
            options = AnswerOptions(max_tokens, **warmth)  # type: ignore[arg-type]
            room = self.model.answerer.room(options)
        except ConfigError as error:
            raise bad_request(str(error), "max_tokens", "too_long") from error
        if most and room > most:
            return AnswerOptions(most, **warmth)  # type: ignore[arg-type]
        return options

    def ask(
        self, messages: Sequence[dict[str, Any]], sent: dict[str, Sent], options: AnswerOptions, stop: tuple[str, ...] = (),
        seed: int | None = None,
    ) -> Question:
        """The question that `messages` end in; media items name what was `sent` by its label. `Refusal` where it is none."""
        try:
            conversation = question_from_messages(messages)
        except DataError as error:
            raise bad_request(str(error).removeprefix("chat: "), "messages", "invalid_value") from error
        samples: dict[str, Any] = {}
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            for label, one in sent.items():
                item = ConversationItem(one.kind, path=str(store(one, Path(folder), self.limits)))
                samples[label] = read(self.model.readers[one.kind], item, Place(id=label), one)
        return Question(conversation, samples, options, stop, seed)

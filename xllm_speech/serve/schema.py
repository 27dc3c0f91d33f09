"""What clients of OpenAI's API send, as far as it is served here; what is not is refused, not ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from xllm_speech.serve.refusal import bad_request

# Fields with which a client asks for something that an X-LLM does not do, unless they hold one of these values.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "n": (1,), "presence_penalty": (0,), "frequency_penalty": (0,), "logprobs": (False,), "top_logprobs": (0,), "tools": ([],),
    "functions": ([],), "tool_choice": ("none", "auto"), "function_call": ("none", "auto"), "logit_bias": ({},),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "audio": (), "prediction": (), "web_search_options": (),
}

Parsed = TypeVar("Parsed", bound=BaseModel)


class _Model(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class _Quiet(BaseModel):
    """Further keys, such as `detail` of an image, change nothing."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class TextPart(_Quiet):
    """Words."""

    type: Literal["text"]
    text: str


class Url(_Quiet):
    """A data URI, or a URL of an allowed host."""

    url: str


class ImagePart(_Quiet):
    """A picture."""

    type: Literal["image_url"]
    image_url: Url


class VideoPart(_Quiet):
    """A clip."""

    type: Literal["video_url"]
    video_url: Url


class AudioUrlPart(_Quiet):
    """A recording behind a URL."""

    type: Literal["audio_url"]
    audio_url: Url


class Sound(_Quiet):
    """Base64 of a recording; its format is told by its first bytes, whatever `format` says."""

    data: str
    format: str | None = None


class AudioPart(_Quiet):
    """A recording."""

    type: Literal["input_audio"]
    input_audio: Sound


Part = Annotated[TextPart | ImagePart | VideoPart | AudioPart | AudioUrlPart, Field(discriminator="type")]


class UserMessage(_Quiet):
    """A question."""

    role: Literal["user"]
    content: str | list[Part]


class TextMessage(_Quiet):
    """An earlier answer, or a word of the system's."""

    role: Literal["assistant", "system", "developer"]
    content: str | list[TextPart]


AnyMessage = Annotated[UserMessage | TextMessage, Field(discriminator="role")]


class StreamOptions(_Quiet):
    """How to stream."""

    include_usage: bool | None = None


class ChatRequest(_Model):
    """`POST /v1/chat/completions`."""

    model: str
    messages: list[AnyMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """None, one or several."""
        texts = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in texts if text)


class TranscriptionFields(_Quiet):
    """The form of `POST /v1/audio/transcriptions`, files apart."""

    model: str
    response_format: Literal["json", "text", "srt", "vtt", "verbose_json"] = "json"
    temperature: float = Field(0.0, ge=0, le=2)
    language: str | None = None
    prompt: str | None = None
    timestamp_granularities: list[Literal["word", "segment"]] = Field(default_factory=list)
    stream: bool = False


def parse_chat(body: bytes) -> ChatRequest:
    """A chat request; `Refusal` says which field is wrong."""
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from None
    for name, value in (request.model_extra or {}).items():
        if name in HARMLESS and value is not None and value not in HARMLESS[name]:
            raise bad_request(f"`{name}` is not served here; leave it away", name, "unsupported")
    return request


def parse_fields(cls: type[Parsed], value: dict[str, Any]) -> Parsed:
    """Fields of a form; `Refusal` says which one is wrong."""
    try:
        return cls.model_validate(value)
    except ValidationError as error:
        raise _refusal(error) from None


def _refusal(error: ValidationError) -> Exception:
    """The first mistake, without the value that a client sent."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ""
    for step in first["loc"]:
        if isinstance(step, int):
            place += f"[{step}]"
        elif step not in ("user", "assistant", "str", "list") and not step.startswith(("list[", "function-")):
            place += f".{step}" if place else step
    if first["type"] == "json_invalid":
        return bad_request("the body is not JSON in UTF-8", code="invalid_json")
    text = first["msg"].splitlines()[0][:300]
    return bad_request(f"{place}: {text}" if place else text, place or None, "invalid_value")

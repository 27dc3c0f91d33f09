"""Media of conversations -> the raw records that frozen encoders take, in one batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xllm_speech.base.errors import ConfigError, DataError, SeamError
from xllm_speech.base.units import FRAME_SHIFT_MS, SAMPLE_RATE_HZ
from xllm_speech.datasets.conversation_config import ImageAugmentConfig
from xllm_speech.datasets.lines import CutTable
from xllm_speech.datasets.readers import (
    AudioReader,
    ClipReader,
    ImageReader,
    MediaReader,
    Place,
    SpeechReader,
    TerminalReader,
    UnitReader,
)
from xllm_speech.datasets.units import UnitCache
from xllm_speech.features.audio import MIX
from xllm_speech.records import Conversation, ConversationBatch, FbankBatch, WaveBatch
from xllm_speech.records.manifest import ConversationItem

__all__ = [
    "AudioReader", "ClipReader", "ImageReader", "MediaReader", "Place", "SpeechReader", "TerminalReader", "UnitReader",
    "all_text", "build_readers", "load_media",
]


def build_readers(
    kinds: Iterable[str], image_size: int, video_frames: int, channel: str = MIX, units: UnitCache | None = None,
    cuts: Sequence[str] = (), augment: ImageAugmentConfig | None = None,
) -> dict[str, MediaReader]:
    """A reader for each kind.

    Args:
        image_size: side of pictures and frames in pixels. video_frames: T. channel: of recordings with several. units: where
            speech is read from in place of audio. cuts: manifests that `cut` ids are looked up in otherwise. augment: of
            pictures in training.

    Raises:
        ConfigError: a kind that nobody reads, or pictures without a size.
        DataError: a manifest of `cuts` is missing or broken.
    """

    def build(kind: str) -> MediaReader:
        if kind in ("image", "video") and image_size < 1:
            raise ConfigError(f"{kind}: pictures of {image_size} pixels; set model.encoders.vision, whose size is taken")
        match kind:
            case "image":
                return ImageReader(image_size, augment)
            case "video":
                return ClipReader(image_size, video_frames)
            case "speech" if units is not None:
                return UnitReader(units)
            case "speech":
                return SpeechReader(channel, CutTable(cuts) if cuts else None)
            case "audio":
                return AudioReader(channel)
            case "terminal":
                return TerminalReader()
        raise ConfigError(f"{kind}: no reader for this kind of medium; there are image, video, speech, audio, terminal")

    return {kind: build(kind) for kind in kinds}


def all_text(conversation: Conversation) -> str:
    """Everything that a conversation says, and what rides along with it, such as the words of a spoken question."""
    said = [item.text for message in conversation.messages for item in message.items if item.text]
    return "\n".join([*said, *(value for value in conversation.custom.values() if isinstance(value, str))])


def load_media(
    conversations: Iterable[Conversation], readers: Mapping[str, MediaReader], seed: int = 0, epoch: int = 0,
    train: bool = False,
) -> ConversationBatch:
    """Read the media of conversations into one batch, its `media` in the order of conversations, messages and items.

    A conversation of which an item cannot be read, or is of a kind without a reader, is left out whole and named in
    `skipped`. seed, epoch, train: see `Place`.
    """
    kept: list[Conversation] = []
    skipped: list[tuple[str, str]] = []
    samples: dict[str, list[Any]] = {}
    units_sec = 0.0
    for conversation in conversations:
        place = Place(conversation.id, all_text(conversation), seed, epoch, train)
        items = [item for message in conversation.messages for item in message.items if item.type != "text"]
        try:
            found = [(item.type, _reader_of(item, readers).read(item, place)) for item in items]
        except (DataError, SeamError) as error:
            skipped.append((conversation.id, str(error)))
            continue
        kept.append(conversation)
        for kind, sample in found:
            samples.setdefault(kind, []).append(sample)
        units_sec += sum(item.duration_sec or 0.0 for item in items if item.type == "speech")
    media = {kind: readers[kind].collate(rows) for kind, rows in samples.items()}
    seconds = sum(map(_seconds, media.values()))
    return ConversationBatch(kept, media=media, seconds=seconds or units_sec, skipped=skipped)


def _reader_of(item: ConversationItem, readers: Mapping[str, MediaReader]) -> MediaReader:
    if item.type not in readers:
        raise DataError(f"a {item.type} item, which this model has no interface for; it has {', '.join(readers) or 'none'}")
    return readers[item.type]


def _seconds(media: Any) -> float:
    match media:
        case FbankBatch():
            return int(media.lens_B.sum()) * FRAME_SHIFT_MS / 1000
        case WaveBatch():
            return int(media.lens_B.sum()) / SAMPLE_RATE_HZ
    return 0.0

"""Readers of media items, one for each kind: file, cut or text of an item -> a sample, samples -> a raw record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from lhotse.cut import Cut
from torch.nn.utils.rnn import pad_sequence

from xllm_speech.base.errors import DataError
from xllm_speech.datasets.asr import pad_features
from xllm_speech.datasets.conversation_config import ImageAugmentConfig
from xllm_speech.datasets.lines import CutTable
from xllm_speech.datasets.units import UnitCache, Units, pad_units
from xllm_speech.features.audio import MIX, load_file, load_samples
from xllm_speech.features.fbank import load_features
from xllm_speech.features.images import draw_view, load_pixels
from xllm_speech.features.video import load_frames
from xllm_speech.records import ClipBatch, FbankBatch, Memory, PixelBatch, TextBatch, WaveBatch
from xllm_speech.records.manifest import ConversationItem

# About how many positions of a prompt a medium takes: only for putting conversations of like length together.
IMAGE_POSITIONS = 32
UNITS_PER_SEC = 4
USUAL_SEC = 4.0  # of speech whose duration nobody told


@dataclass(frozen=True)
class Place:
    """Where an item stands and when it is read: all that augmentation may depend on.

    id: of the conversation. text: all that the conversation says. train: augmentation and other speeds are wanted.
    """

    id: str
    text: str = ""
    seed: int = 0
    epoch: int = 0
    train: bool = False


class MediaReader(Protocol):
    """Reads the items of one kind. For a further X write one and add it in `media.build_readers`."""

    @property
    def kind(self) -> str:
        """Item type."""
        ...

    def read(self, item: ConversationItem, place: Place) -> Any:
        """One sample; `DataError` where it cannot be read."""
        ...

    def collate(self, samples: list[Any]) -> Any:
        """At least one sample -> one record with `.to(device)`."""
        ...

    def length(self, item: ConversationItem) -> float:
        """About how many positions of a prompt the item will take, without reading it."""
        ...


def _path_of(item: ConversationItem) -> str:
    if item.path is None:
        raise DataError(f"a {item.type} item without `path`")
    return item.path


class ImageReader:
    """Pictures -> `PixelBatch`.

    Args:
        size: side in pixels. augment: what training does to them; None: nothing.
    """

    kind: ClassVar[str] = "image"

    def __init__(self, size: int, augment: ImageAugmentConfig | None = None) -> None:
        self.size, self.augment = size, augment

    def read(self, item: ConversationItem, place: Place) -> torch.Tensor:
        """float32 [3, size, size]; in training cropped and mirrored by (seed, epoch, conversation, path)."""
        path, augment, view = _path_of(item), self.augment, None
        if place.train and augment is not None and (augment.crop_scale < 1 or augment.flip > 0):
            flip = 0.0 if any(word in place.text for word in augment.never_flip) else augment.flip
            view = draw_view(place.seed, place.epoch, f"{place.id}\n{path}", augment.crop_scale, flip)
        return load_pixels(path, self.size, view=view)

    def collate(self, samples: list[torch.Tensor]) -> PixelBatch:
        """All present."""
        return PixelBatch(torch.stack(samples), torch.ones(len(samples), dtype=torch.bool))

    def length(self, item: ConversationItem) -> float:
        """The paper's queries."""
        return IMAGE_POSITIONS


class ClipReader:
    """Clips -> `ClipBatch`. size: side of a frame in pixels. frames: T; a clip with fewer gives what it has."""

    kind: ClassVar[str] = "video"

    def __init__(self, size: int, frames: int) -> None:
        self.size, self.frames = size, frames

    def read(self, item: ConversationItem, place: Place) -> torch.Tensor:
        """float32 [T, 3, size, size], of the part that the item names or the whole clip."""
        return load_frames(
            _path_of(item), self.frames, self.size, start_sec=item.offset_sec or 0.0, duration_sec=item.duration_sec
        )

    def collate(self, samples: list[torch.Tensor]) -> ClipBatch:
        """Frames of all clips in one row."""
        x_BCHW = torch.cat(samples)
        frames = PixelBatch(x_BCHW, torch.ones(len(x_BCHW), dtype=torch.bool))
        return ClipBatch(frames, torch.tensor([len(sample) for sample in samples]))

    def length(self, item: ConversationItem) -> float:
        """As T pictures."""
        return IMAGE_POSITIONS * self.frames


class SpeechReader:
    """Speech -> `FbankBatch`, from a cut where `cuts` holds the item's, else from its file.

    Args:
        channel: "mix" or a number, for recordings of several channels. cuts: where `cut` ids are looked up.
    """

    kind: ClassVar[str] = "speech"

    def __init__(self, channel: str | int = MIX, cuts: CutTable | None = None) -> None:
        self.channel, self.cuts = channel, cuts

    def read(self, item: ConversationItem, place: Place) -> torch.Tensor:
        """Features [T, 80], at least one frame; those stored with the cut, else computed."""
        feats_TF = load_features(find_speech(item, self.cuts), self.channel)
        if not len(feats_TF):
            raise DataError(f"{item.cut or item.path}: too short for a single frame")
        return feats_TF

    def collate(self, samples: list[torch.Tensor]) -> FbankBatch:
        """Right-padded."""
        return pad_features(samples)

    def length(self, item: ConversationItem) -> float:
        """By duration, where it is told."""
        return UNITS_PER_SEC * (item.duration_sec or USUAL_SEC)


class UnitReader:
    """Speech -> `Memory`: units from a cache; which utterance is told by `cut`, else by the file's name without suffix."""

    kind: ClassVar[str] = "speech"

    def __init__(self, cache: UnitCache) -> None:
        self.cache = cache

    def read(self, item: ConversationItem, place: Place) -> Units:
        """At least one unit; in training at the speed drawn for this epoch."""
        name = self._name(item)
        units = self.cache.draw(name, place.seed, place.epoch) if place.train else self.cache.get(name)
        if not len(units.x_UD):
            raise DataError(f"{self.cache.folder}: {name} has no unit; the model found nothing said in it")
        return units

    def collate(self, samples: list[Units]) -> Memory:
        """Right-padded."""
        return pad_units(samples)

    def length(self, item: ConversationItem) -> float:
        """Number of units at speed 1; 0 for what the cache does not hold."""
        try:
            return self.cache.count(self._name(item))
        except DataError:
            return 0

    def _name(self, item: ConversationItem) -> str:
        if item.cut is not None:
            return item.cut
        if item.offset_sec or item.duration_sec:
            raise DataError(f"{item.path}: a part of a file; name its `cut` for units from a cache")
        return Path(_path_of(item)).stem


class AudioReader:
    """Sound of any kind -> `WaveBatch`, 16 kHz mono. channel: "mix" or a number."""

    kind: ClassVar[str] = "audio"

    def __init__(self, channel: str | int = MIX) -> None:
        self.channel = channel

    def read(self, item: ConversationItem, place: Place) -> torch.Tensor:
        """Samples float32 [N] in [-1, 1]."""
        return torch.from_numpy(load_samples(find_speech(item, None), self.channel))

    def collate(self, samples: list[torch.Tensor]) -> WaveBatch:
        """Right-padded."""
        return WaveBatch(pad_sequence(samples, batch_first=True), torch.tensor([len(sample) for sample in samples]))

    def length(self, item: ConversationItem) -> float:
        """By duration, where it is told."""
        return UNITS_PER_SEC * (item.duration_sec or USUAL_SEC)


class TerminalReader:
    """States of a terminal -> `TextBatch`: the item's text, else what its file holds."""

    kind: ClassVar[str] = "terminal"

    def read(self, item: ConversationItem, place: Place) -> str:
        """Text, stripped and not empty."""
        text = item.text
        if text is None:
            path = _path_of(item)
            try:
                text = Path(path).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
                raise DataError(f"{path}: cannot be read ({reason})") from error
        if not text.strip():
            raise DataError(f"{item.path or 'a terminal item'}: an empty state; leave the item out instead")
        return text.strip()

    def collate(self, samples: list[str]) -> TextBatch:
        """As they are."""
        return TextBatch(samples)

    def length(self, item: ConversationItem) -> float:
        """Of the text."""
        return len(item.text or "")


def find_speech(item: ConversationItem, cuts: CutTable | None) -> Cut:
    """The cut of a speech or audio item: the one it names where `cuts` holds it, else its file, from `offset` for `duration`.

    Raises:
        DataError: neither a file nor a known cut, the file cannot be opened, or it ends before the part begins.
    """
    if item.cut is not None and cuts is not None and item.cut in cuts:
        return cuts.find(item.cut)
    if item.path is None:
        known = f"none of the {len(cuts)} cuts that are known" if cuts is not None else "no cuts are known (data.cuts)"
        raise DataError(f"cut `{item.cut}`: {known}, and the item has no `path`")
    cut = load_file(item.path, item.cut)
    offset_sec = item.offset_sec or 0.0
    if offset_sec >= cut.duration:
        raise DataError(f"{item.path}: {cut.duration:.2f} s long, the part begins at {offset_sec:.2f} s")
    left_sec = cut.duration - offset_sec
    duration_sec = left_sec if item.duration_sec is None else min(item.duration_sec, left_sec)
    if offset_sec == 0 and duration_sec == cut.duration:
        return cut
    if duration_sec <= 0:
        raise DataError(f"{item.path}: a part of {duration_sec} s")
    return cut.truncate(offset=offset_sec, duration=duration_sec, preserve_id=True)

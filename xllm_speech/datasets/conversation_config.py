"""Configuration of the data of phases 2 and 3; every key is explained here once."""

from __future__ import annotations

from dataclasses import dataclass, field

from xllm_speech.base.config import require, require_choice
from xllm_speech.base.rejects import DEFAULT_MAX_SHARE
from xllm_speech.records.manifest import TASKS


@dataclass
class SourceConfig:
    """One manifest that conversations are drawn from.

    path: a conversation manifest (.jsonl or .jsonl.gz), or lhotse cuts (such a file, or a folder that holds
    cuts.jsonl.gz). tasks: which of its conversations, by task, all by default; for cuts exactly one of asr and masr, as which
    conversations about them are made. share: how many items of an epoch are drawn here, relative to the other sources.
    captions: of cuts, their captions stand before the instruction, as text (S+L, S+V+L).
    """

    path: str = ""
    tasks: list[str] = field(default_factory=list)
    share: float = 1.0
    captions: bool = False

    def __post_init__(self) -> None:
        require(bool(self.path), "a source needs `path`: a conversation manifest or cuts")
        for task in self.tasks:
            require_choice(f"source {self.path}: tasks", task, TASKS)
        require(len(set(self.tasks)) == len(self.tasks), f"source {self.path}: tasks {self.tasks} name one twice")
        require(self.share > 0, f"source {self.path}: share {self.share} must be above 0; leave the source out instead")


@dataclass
class ImageAugmentConfig:
    """What training does to pictures (system.md section 5).

    crop_scale: least share of the area that a crop by chance keeps, 1 for no crop. flip: share of the pictures that are
    mirrored. never_flip: not in conversations that hold one of these words.
    """

    crop_scale: float = 1.0
    flip: float = 0.0
    never_flip: list[str] = field(default_factory=lambda: ["左", "右"])

    def __post_init__(self) -> None:
        require(0 < self.crop_scale <= 1, f"image_augment.crop_scale {self.crop_scale} must lie above 0 and not above 1")
        require(0 <= self.flip <= 1, f"image_augment.flip {self.flip} must lie in 0..1")
        require(all(self.never_flip), "image_augment.never_flip: an empty word is in every conversation")


@dataclass
class ConversationDataConfig:
    """Where conversations are and how they are drawn.

    train, dev: sources. units: folder of a unit cache, from which speech is read in place of audio (null: audio).
    batch_size: conversations of one batch of one process. epoch_batches: batches in an epoch, of all processes together; 0: as
    many as a pass over all that the sources hold takes. pool_batches: so many batches are drawn together and sorted by length.
    cuts: cuts manifests that `cut` ids of speech items are looked up in where there is no unit cache. channel: "mix", or
    the number of the channel to take from recordings of several channels; speech is read as its ASR model was trained.
    image_augment: in training.
    num_workers: loading processes. max_rejected: largest share of broken items. seed: of order, wording and augmentation.
    """

    train: list[SourceConfig] = field(default_factory=list)
    dev: list[SourceConfig] = field(default_factory=list)
    units: str | None = None
    batch_size: int = 4
    epoch_batches: int = 0
    pool_batches: int = 20
    cuts: list[str] = field(default_factory=list)
    channel: str = "mix"
    image_augment: ImageAugmentConfig = field(default_factory=ImageAugmentConfig)
    num_workers: int = 0
    max_rejected: float = DEFAULT_MAX_SHARE
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, f"data.batch_size {self.batch_size} must be at least 1")
        require(self.epoch_batches >= 0, f"data.epoch_batches {self.epoch_batches} is negative")
        require(self.pool_batches >= 1, f"data.pool_batches {self.pool_batches} must be at least 1")
        require(self.num_workers >= 0, f"data.num_workers {self.num_workers} is negative")
        require(0 <= self.max_rejected <= 1, f"data.max_rejected {self.max_rejected} must lie in 0..1")
        require(self.channel == "mix" or self.channel.isdigit(), f"data.channel `{self.channel}` is neither mix nor a number")

"""Configuration of the data of an ASR experiment; every key is explained here once."""

from __future__ import annotations

from dataclasses import dataclass, field

from xllm_speech.base.config import require, require_choice
from xllm_speech.base.rejects import DEFAULT_MAX_SHARE

AUTO = "auto"
TOKEN_KINDS = ("char", "sentencepiece", "mixed")


@dataclass
class SpecAugmentConfig:
    """Masks of SpecAugment: `enabled`, and the arguments of features.augment.SpecAugmenter (cif.md: F 27 x 2, T 50 x 2)."""

    enabled: bool = True
    num_feature_masks: int = 2
    feature_mask_size: int = 27
    num_frame_masks: int = 2
    frame_mask_size: int = 50
    max_frame_fraction: float = 0.2

    def __post_init__(self) -> None:
        require(min(self.num_feature_masks, self.num_frame_masks) >= 0, "spec_augment: a number of masks below 0")
        require(min(self.feature_mask_size, self.frame_mask_size) >= 0, "spec_augment: a mask size below 0")
        require(0 <= self.max_frame_fraction <= 1, "spec_augment.max_frame_fraction: must lie in 0..1")


@dataclass
class DataConfig:
    """Where the speech is and how it is drawn.

    train, dev: a cuts file, a folder with cuts.jsonl.gz, or a Kaldi data directory. Without `dev`, about `dev_share` of
    the training utterances are held out, chosen by `seed`.
    tokens: folder of a token table, or "auto": one of `token_kind` (char, sentencepiece, mixed) with at most `vocab_size`
    tokens (null: every character, or 2000 pieces) is made from the training text. cmvn: file of statistics (ours or
    Kaldi's), or "auto": from at most `cmvn_utterances` training utterances.
    max_duration_sec, max_cuts: limits of one batch, in seconds of audio and utterances; num_buckets: groups of like
    duration that batches are drawn from. min_sec, max_sec: utterances outside are left out, and reported.
    speeds: factors of speed perturbation, one drawn per utterance and epoch (only where features are computed on the
    fly). spec_augment: masks on training batches.
    image_size: side of the pictures in pixels, 0 for none. image_share, caption_share: share of the utterances that keep
    their picture or caption in an epoch, so that the model also learns to do without.
    num_workers: loading processes. max_rejected: largest share of broken utterances. channel: "mix", or the number of
    the channel to take from recordings of several channels. seed: of hold-out, order and augmentation.
    """

    train: str | None = None
    dev: str | None = None
    dev_share: float = 0.02
    tokens: str = AUTO
    token_kind: str = "char"
    vocab_size: int | None = None
    cmvn: str = AUTO
    cmvn_utterances: int = 5000
    max_duration_sec: float = 120.0
    max_cuts: int | None = None
    num_buckets: int = 10
    min_sec: float = 0.1
    max_sec: float = 30.0
    speeds: list[float] = field(default_factory=lambda: [1.0])
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    image_size: int = 0
    image_share: float = 1.0
    caption_share: float = 0.0
    num_workers: int = 2
    max_rejected: float = DEFAULT_MAX_SHARE
    channel: str = "mix"
    seed: int = 0

    def __post_init__(self) -> None:
        require_choice("token_kind", self.token_kind, TOKEN_KINDS)
        require(0 < self.dev_share < 1, f"dev_share: {self.dev_share} must lie between 0 and 1")
        require(self.vocab_size is None or self.vocab_size > 3, f"vocab_size: {self.vocab_size} leaves no room for tokens")
        require(self.cmvn_utterances > 0, "cmvn_utterances: must be positive")
        require(self.max_duration_sec > 0, f"max_duration_sec: {self.max_duration_sec} must be positive")
        require(self.max_cuts is None or self.max_cuts > 0, f"max_cuts: {self.max_cuts} must be positive")
        require(self.num_buckets >= 1, f"num_buckets: {self.num_buckets} must be at least 1")
        require(0 <= self.min_sec < self.max_sec, f"min_sec {self.min_sec} and max_sec {self.max_sec} leave nothing")
        require(self.max_sec <= self.max_duration_sec, (
            f"max_sec: utterances of up to {self.max_sec} s do not fit into batches of {self.max_duration_sec} s "
            "(max_duration_sec)"
        ))
        require(bool(self.speeds) and all(0.5 <= speed <= 2 for speed in self.speeds), (
            f"speeds: {self.speeds} must name at least one factor, each within 0.5..2"
        ))
        require(self.image_size >= 0, f"image_size: {self.image_size} is negative")
        for name in ("image_share", "caption_share", "max_rejected"):
            require(0 <= getattr(self, name) <= 1, f"{name}: {getattr(self, name)} must lie in 0..1")
        require(self.num_workers >= 0, f"num_workers: {self.num_workers} is negative")
        require(self.channel == "mix" or self.channel.isdigit(), f"channel: `{self.channel}` is neither mix nor a number")

"""Seam datasets -> frozen encoders: media of conversations as they were read, before any encoder saw them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from xllm_speech.records.audio import PixelBatch
from xllm_speech.records.checks import ensure, ensure_lens


@dataclass(frozen=True)
class ClipBatch:
    """Frames of N clips, clip after clip, in order of time.

    frames: PixelBatch of all frames, all present. counts_N: int64 frames of each clip, at least 1; they sum to the rows.
    """

    frames: PixelBatch
    counts_N: torch.Tensor

    def __post_init__(self) -> None:
        rows = len(self.frames.present_B)
        ensure_lens("ClipBatch", self.counts_N, self.counts_N.numel(), rows, exact=False, least=1)
        ensure(int(self.counts_N.sum()) == rows, f"ClipBatch: {self.counts_N.tolist()} frames per clip, {rows} in all")

    def to(self, device: torch.device | str) -> ClipBatch:
        """The same frames on `device`."""
        return ClipBatch(self.frames.to(device), self.counts_N.to(device))


@dataclass(frozen=True)
class WaveBatch:
    """Recordings of 16 kHz mono as samples: x_BN float, right-padded; lens_B int64 samples, at least 1."""

    x_BN: torch.Tensor
    lens_B: torch.Tensor

    def __post_init__(self) -> None:
        ensure(self.x_BN.dim() == 2, f"WaveBatch: expected [B, N], found {tuple(self.x_BN.shape)}")
        ensure_lens("WaveBatch", self.lens_B, self.x_BN.shape[0], self.x_BN.shape[1], least=1)

    def to(self, device: torch.device | str) -> WaveBatch:
        """The same samples on `device`."""
        return WaveBatch(self.x_BN.to(device), self.lens_B.to(device))


@dataclass(frozen=True)
class TextBatch:
    """Texts that a frozen text encoder will read, such as the states of terminals."""

    texts: list[str]

    def to(self, device: torch.device | str) -> TextBatch:
        """The same: text has no device."""
        return self

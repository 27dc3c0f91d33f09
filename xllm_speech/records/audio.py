"""Seam features -> encoders."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from xllm_speech.records.checks import ensure, ensure_lens


@dataclass(frozen=True)
class FbankBatch:
    """Right-padded log-mel features of 16 kHz speech.

    x_BTF: float, frames x mel bins, zero after each length. lens_B: int64 frames, max(lens_B) == T.
    Raises `SeamError` when they disagree.
    """

    x_BTF: torch.Tensor
    lens_B: torch.Tensor

    def __post_init__(self) -> None:
        ensure(self.x_BTF.dim() == 3, f"FbankBatch: expected [B, T, F], found {tuple(self.x_BTF.shape)}")
        ensure_lens("FbankBatch", self.lens_B, self.x_BTF.shape[0], self.x_BTF.shape[1])

    def to(self, device: torch.device | str) -> FbankBatch:
        """The same batch on `device`."""
        return FbankBatch(self.x_BTF.to(device, non_blocking=True), self.lens_B.to(device, non_blocking=True))


@dataclass(frozen=True)
class PixelBatch:
    """Normalised pictures: x_BCHW float, 3 channels; present_B bool, False where an item has no picture (zeros there)."""

    x_BCHW: torch.Tensor
    present_B: torch.Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.x_BCHW.shape)
        ensure(self.x_BCHW.dim() == 4 and shape[1] == 3, f"PixelBatch: expected [B, 3, H, W], found {shape}")
        ensure(self.present_B.shape == shape[:1], f"PixelBatch: {tuple(self.present_B.shape)} flags for {shape[0]} items")

    def to(self, device: torch.device | str) -> PixelBatch:
        """The same batch on `device`."""
        return PixelBatch(self.x_BCHW.to(device, non_blocking=True), self.present_B.to(device, non_blocking=True))

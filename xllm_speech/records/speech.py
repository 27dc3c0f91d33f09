"""Seams encoders -> CIF -> decoders and interfaces, and the losses of the ASR model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from xllm_speech.records.checks import ensure, ensure_lens


@dataclass(frozen=True)
class EncoderOut:
    """Encoder output: x_BSD float, one step per 80 ms, zero after each length; lens_B int64, max(lens_B) == S."""

    x_BSD: torch.Tensor
    lens_B: torch.Tensor

    def __post_init__(self) -> None:
        ensure(self.x_BSD.dim() == 3, f"EncoderOut: expected [B, S, D], found {tuple(self.x_BSD.shape)}")
        ensure_lens("EncoderOut", self.lens_B, self.x_BSD.shape[0], self.x_BSD.shape[1])


@dataclass(frozen=True)
class CifOut:
    """What continuous integrate-and-fire yields (cif.md).

    units_BUD: one vector per unit, zero after each length. lens_B: int64 units. quantity_B: float, sum of the unscaled
    weights over valid steps. start_BU, fire_BU: float, when each unit began and fired, in fractional steps, zero after
    each length. alpha_BS: the weights as integrated (scaled in training), zero after the valid steps.
    """

    units_BUD: torch.Tensor
    lens_B: torch.Tensor
    quantity_B: torch.Tensor
    start_BU: torch.Tensor
    fire_BU: torch.Tensor
    alpha_BS: torch.Tensor

    def __post_init__(self) -> None:
        ensure(self.units_BUD.dim() == 3, f"CifOut: expected [B, U, D], found {tuple(self.units_BUD.shape)}")
        batch, units = self.units_BUD.shape[:2]
        ensure_lens("CifOut", self.lens_B, batch, units)
        for name, times in (("start", self.start_BU), ("fire", self.fire_BU)):
            ensure(times.shape == (batch, units), f"CifOut: {name} {tuple(times.shape)} for units {(batch, units)}")
        ensure(self.quantity_B.shape == (batch,), f"CifOut: quantity {tuple(self.quantity_B.shape)} for batch {batch}")


@dataclass(frozen=True)
class AsrLosses:
    """Loss terms of one batch, each summed over the batch; the training loop divides by the token count (cif.md, Losses).

    total: weighted sum, with gradient. parts: detached sums by name. tokens: target tokens in the batch.
    correct: tokens that teacher forcing got right.
    """

    total: torch.Tensor
    parts: dict[str, torch.Tensor]
    tokens: int
    correct: int

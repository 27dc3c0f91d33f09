"""Checks shared by the records. They read lengths back from the device, so each is one small synchronisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xllm_speech.base.errors import SeamError

if TYPE_CHECKING:
    import torch


def ensure(condition: bool, message: str) -> None:
    """`SeamError(message)` unless `condition`."""
    if not condition:
        raise SeamError(message)


def ensure_lens(name: str, lens_B: torch.Tensor, batch: int, longest: int, exact: bool = True, least: int = 0) -> None:
    """Check a length vector: one per item, integer, within [least, longest], and max == longest when `exact`."""
    ensure(lens_B.dim() == 1 and lens_B.numel() == batch, f"{name}: {tuple(lens_B.shape)} lengths for a batch of {batch}")
    ensure(not lens_B.is_floating_point(), f"{name}: lengths must be integers, found {lens_B.dtype}")
    if batch == 0:
        return
    low, high = int(lens_B.min()), int(lens_B.max())
    ensure(low >= least, f"{name}: a length of {low} is below {least}")
    ensure(high == longest if exact else high <= longest, f"{name}: longest length {high}, tensor holds {longest}")

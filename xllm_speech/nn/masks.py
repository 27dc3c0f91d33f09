"""Masks from lengths. True means valid everywhere in the package."""

from __future__ import annotations

import torch


def valid_mask(lens_B: torch.Tensor, longest: int) -> torch.Tensor:
    """[B, longest] bool, True where a position lies inside its item."""
    return torch.arange(longest, device=lens_B.device) < lens_B[:, None]


def key_mask(lens_B: torch.Tensor, longest: int) -> torch.Tensor:
    """[B, 1, 1, longest] bool for attention over padded keys; an empty item keeps one key, so that no row is all False."""
    return valid_mask(lens_B.clamp(min=1), longest)[:, None, None, :]

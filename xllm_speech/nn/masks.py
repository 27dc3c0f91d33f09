"""Masks from lengths. True means valid everywhere in the package."""

from __future__ import annotations

import torch


def valid_mask(lens_B: torch.Tensor, longest: int) -> torch.Tensor:
    """[B, longest] bool, True where a position lies inside its item."""
    return torch.arange(longest, device=lens_B.device) < lens_B[:, None]


def chunk_mask(lens_B: torch.Tensor, longest: int, chunk: int, left_chunks: int = 0) -> torch.Tensor:
    """[B, 1, longest, longest] bool: a position sees its own chunk and the `left_chunks` before it (0: all), padding apart.

    A position in the padding sees itself, so that no row is all False.
    """
    at_L = torch.arange(longest, device=lens_B.device) // chunk
    distance_LL = at_L[:, None] - at_L
    visible_LL = distance_LL >= 0
    if left_chunks:
        visible_LL &= distance_LL <= left_chunks
    itself_LL = torch.eye(longest, dtype=torch.bool, device=lens_B.device)
    return (visible_LL & valid_mask(lens_B, longest)[:, None, None, :]) | itself_LL


def key_mask(lens_B: torch.Tensor, longest: int) -> torch.Tensor:
    """[B, 1, 1, longest] bool for attention over padded keys; an empty item keeps one key, so that no row is all False."""
    return valid_mask(lens_B.clamp(min=1), longest)[:, None, None, :]

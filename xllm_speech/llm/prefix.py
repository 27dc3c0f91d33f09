"""Where a GLM's context ends, and what follows from it: padding, visibility and two-dimensional positions."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Prefix(NamedTuple):
    """Index of the first `<sop>`, where the answer begins, and of the mask token it fills; int64 [B], padding counted."""

    sop_index_B: torch.Tensor
    mask_index_B: torch.Tensor


def padding_mask(ids_BL: torch.Tensor, pad_id: int) -> torch.Tensor:
    """bool [B, L], True where a position is real: all but leading and trailing `pad_id`."""
    real_BL = ids_BL != pad_id
    after = real_BL.long().cumsum(1) > 0
    before = real_BL.long().flip(1).cumsum(1).flip(1) > 0
    return after & before


def _first(hits_BL: torch.Tensor) -> torch.Tensor:
    """Index of the first True per row, or L."""
    length = hits_BL.shape[1]
    places = torch.arange(length, device=hits_BL.device).expand_as(hits_BL)
    return places.masked_fill(~hits_BL, length).amin(1)


def find_prefix(
    ids_BL: torch.Tensor, mask_BL: torch.Tensor | None, sop_id: int, gmask_id: int, mask_id: int
) -> Prefix:
    """The first `<sop>` of each row, and before it the first `[gMASK]` or, where there is none, the first `[MASK]`.

    Args:
        ids_BL: int64. mask_BL: 1 = real; padding is not searched.

    Raises:
        ValueError: a row lacks `<sop>` or a mask token in front of it.
    """
    length = ids_BL.shape[1]
    real_BL = torch.ones_like(ids_BL, dtype=torch.bool) if mask_BL is None else mask_BL.bool()
    if length == 0:
        raise ValueError("ChatGLM: empty prompts; a prompt ends in [gMASK] <sop>")
    sop_B = _first((ids_BL == sop_id) & real_BL)
    context_BL = real_BL & (torch.arange(length, device=ids_BL.device) < sop_B[:, None])
    gmask_B, single_B = _first((ids_BL == gmask_id) & context_BL), _first((ids_BL == mask_id) & context_BL)
    mask_B = torch.where(gmask_B < length, gmask_B, single_B)
    lost_B = (sop_B == length) | (mask_B == length)
    if bool(lost_B.any()):
        row = int(lost_B.nonzero()[0])
        mask = f"[gMASK] (id {gmask_id}) or [MASK] (id {mask_id}) before <sop>"
        what = f"<sop> (id {sop_id})" if int(sop_B[row]) == length else mask
        raise ValueError(f"ChatGLM: row {row} of the batch holds no {what}; end prompts in [gMASK] <sop>, or give indices")
    return Prefix(sop_B, mask_B)


def prefix_positions(mask_BK: torch.Tensor, prefix: Prefix) -> torch.Tensor:
    """Positions int64 [B, 2, K] (chatglm.md 8): place in the context, then that of the mask token; steps since `<sop>`.

    Args:
        mask_BK: bool, True where real; padding has no place of its own, wherever it stands.
    """
    places_BK = (mask_BK.long().cumsum(1) - 1).clamp(min=0)
    sop_B1, mask_B1 = prefix.sop_index_B[:, None], prefix.mask_index_B[:, None]
    answer_BK = torch.arange(mask_BK.shape[1], device=mask_BK.device) >= sop_B1
    context_BK = torch.where(answer_BK, places_BK.gather(1, mask_B1), places_BK)
    steps_BK = torch.where(answer_BK, places_BK - places_BK.gather(1, sop_B1) + 1, 0)
    return torch.stack([context_BK, steps_BK], dim=1)


def prefix_mask(mask_BK: torch.Tensor, prefix: Prefix, past: int) -> torch.Tensor:
    """What the positions from `past` on see: bool [B, 1, K - past, K] (chatglm.md 7).

    Args:
        mask_BK: bool, True where real. A padding position sees itself besides, lest its softmax be empty.
    """
    places = torch.arange(mask_BK.shape[1], device=mask_BK.device)
    rows = places[past:, None]
    context_B1K = places < prefix.sop_index_B[:, None, None]
    visible_BLK = ((places <= rows) | context_B1K) & mask_BK[:, None]
    return (visible_BLK | ((places == rows) & ~mask_BK[:, past:, None]))[:, None]

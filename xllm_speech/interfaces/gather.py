"""Gathering rows from all ranks with their gradient, for losses that compare every item with every other."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from xllm_speech.base.errors import SeamError


def world() -> tuple[int, int]:
    """(rank, number of ranks), (0, 1) where no process group is."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x) for _ in range(world()[1])]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        # Every rank's loss depends on every rank's rows; DDP then takes the mean over ranks.
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        first = world()[0] * ctx.rows
        return total[first : first + ctx.rows]


def gather_rows(x: torch.Tensor) -> torch.Tensor:
    """[B, ...] of each rank -> [ranks x B, ...] in rank order, differentiable. The shape is the same on all ranks."""
    return x if world()[1] == 1 else _GatherRows.apply(x.contiguous())


def gather_padded(x: torch.Tensor, fill: float = 0) -> torch.Tensor:
    """[B, L, ...] of each rank -> [ranks x B, longest L, ...] with `fill` after the shorter ones, differentiable.

    Raises:
        SeamError: on every rank, when the ranks hold different numbers of rows.
    """
    ranks = world()[1]
    if ranks == 1:
        return x
    mine = torch.tensor(x.shape[:2], device=x.device)
    shapes = [torch.empty_like(mine) for _ in range(ranks)]
    dist.all_gather(shapes, mine)
    rows = [int(shape[0]) for shape in shapes]
    if len(set(rows)) > 1:
        raise SeamError(f"the ranks hold batches of {rows} items; contrastive losses need equal ones")
    more = max(int(shape[1]) for shape in shapes) - x.shape[1]
    return gather_rows(torch.nn.functional.pad(x, (0, 0) * (x.dim() - 2) + (0, more), value=fill))

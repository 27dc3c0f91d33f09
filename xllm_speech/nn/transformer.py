"""The decoder's transformer block: causal self-attention, optional cross-attention, feed-forward; pre-norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from xllm_speech.nn.attention import CrossAttention, SelfAttention
from xllm_speech.nn.dropout import Dropout
from xllm_speech.nn.feedforward import FeedForward

KeyValue = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class ProjectedMemory:
    """Keys and values of a memory for one block, and which positions are valid (bool [B, 1, 1, N])."""

    key_value: KeyValue
    mask: torch.Tensor


class TransformerBlock(nn.Module):
    """One block on [B, L, width].

    Args:
        memory_width: width of the memory that this block attends to, or None for a block without cross-attention.
    """

    def __init__(
        self, width: int, heads: int, feedforward: int, dropout: float = 0.1, memory_width: int | None = None
    ) -> None:
        super().__init__()
        self.norm_self, self.self_attention = nn.LayerNorm(width), SelfAttention(width, heads)
        self.cross_attention = None if memory_width is None else CrossAttention(width, heads, memory_width)
        self.norm_cross = None if memory_width is None else nn.LayerNorm(width)
        self.norm_feedforward = nn.LayerNorm(width)
        self.feedforward = FeedForward(width, feedforward, dropout, nn.GELU)
        self.dropout = Dropout(dropout)

    def project_memory(self, memory_BND: torch.Tensor) -> KeyValue:
        """Keys and values of a memory for this block's cross-attention."""
        assert self.cross_attention is not None, "a block without cross-attention has no memory"
        return self.cross_attention.project(memory_BND)

    def forward(
        self,
        x_BLD: torch.Tensor,
        memory: ProjectedMemory | None = None,
        cache: KeyValue | None = None,
        use_cache: bool = False,
    ) -> tuple[torch.Tensor, KeyValue | None]:
        """The output and, with `use_cache`, this block's keys and values.

        Whole sequences are causal; with a `cache`, `x_BLD` holds the next single position. Right padding needs no mask here:
        a causal row never looks to its right.
        """
        attended_BLD, cache = self.self_attention(
            self.norm_self(x_BLD), causal=cache is None, cache=cache, use_cache=use_cache
        )
        x_BLD = x_BLD + self.dropout(attended_BLD)
        if self.cross_attention is not None and self.norm_cross is not None:
            assert memory is not None, "a block with cross-attention needs its memory, zero vectors where it is absent"
            seen_BLD = self.cross_attention(self.norm_cross(x_BLD), memory.key_value, memory.mask)
            x_BLD = x_BLD + self.dropout(seen_BLD)
        return x_BLD + self.dropout(self.feedforward(self.norm_feedforward(x_BLD))), cache

"""Multi-head attention on PyTorch's fused `scaled_dot_product_attention`, with three kinds of positions.

`rope` rotates queries and keys (cheap, nothing but the fused kernel); `relative` is Transformer-XL's, as in the conformer
paper and ESPnet's `rel_selfattn`, its position term handed to the fused kernel as a bias; `none` for cross-attention.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from torch import nn

ROTARY_BASE = 10000.0


def rotary_table(positions: int, head_width: int, device: torch.device, start: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """cos, sin [positions, head_width] float32 for positions start, start + 1, ..."""
    inverse_K = ROTARY_BASE ** (-torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width)
    angle_PK = torch.arange(start, start + positions, device=device, dtype=torch.float32)[:, None] * inverse_K
    angle_PE = torch.cat([angle_PK, angle_PK], 1)
    return angle_PE.cos(), angle_PE.sin()


def rotate(x_BHPE: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotate the pairs (first half, second half) of each head by its position's angles."""
    cos_PE, sin_PE = (part.to(x_BHPE.dtype) for part in table)
    first, second = x_BHPE.chunk(2, dim=-1)
    return x_BHPE * cos_PE + torch.cat([-second, first], -1) * sin_PE


class SelfAttention(nn.Module):
    """Self-attention over [B, L, width].

    Args:
        width: model width, divisible by heads. position: rope | relative. dropout: on the attention weights.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, position: str = "rope") -> None:
        super().__init__()
        self.heads, self.dropout, self.position = heads, dropout, position
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        if position == "relative":
            self.linear_position = nn.Linear(width, width, bias=False)
            self.content_bias_HE = nn.Parameter(torch.zeros(heads, width // heads))
            self.position_bias_HE = nn.Parameter(torch.zeros(heads, width // heads))

    def forward(
        self,
        x_BLD: torch.Tensor,
        mask: torch.Tensor | None = None,
        causal: bool = False,
        cache: tuple[torch.Tensor, torch.Tensor] | None = None,
        use_cache: bool = False,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
        """Returns the output [B, L, width] and, with `use_cache`, keys and values [B, heads, past + L, width / heads].

        mask: bool, True = visible, broadcastable to [B, heads, L, past + L]; `causal` instead of a mask, never both.
        """
        batch, length, width = x_BLD.shape
        query, key, value = self._project(x_BLD)
        past = 0 if cache is None else cache[0].shape[2]
        bias: torch.Tensor | None = mask
        if self.position == "rope":
            table = rotary_table(length, width // self.heads, x_BLD.device, start=past)
            query, key = rotate(query, table), rotate(key, table)
        elif self.position == "relative":
            bias = self._relative_bias(query, mask)
            query = query + self.content_bias_HE[:, None]
        if cache is not None:
            key, value = torch.cat([cache[0], key], 2), torch.cat([cache[1], value], 2)
        out_BHLE = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, is_causal=causal, dropout_p=self.dropout if self.training else 0.0
        )
        out_BLD = self.out(out_BHLE.transpose(1, 2).reshape(batch, length, width))
        return out_BLD, (key, value) if use_cache else None

    def stream(
        self, x_BLD: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor] | None, keep: int | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """One chunk that sees itself and what `cache` holds, with `position` rope.

        Returns the output and the cache of the last `keep` positions (None: all). Keys are kept unrotated and positions
        count from the first one kept, so that angles stay small however long the stream is; only differences matter.
        """
        batch, length, width = x_BLD.shape
        query, key, value = self._project(x_BLD)
        if cache is not None:
            key, value = torch.cat([cache[0], key], 2), torch.cat([cache[1], value], 2)
        past = key.shape[2] - length
        cos_PE, sin_PE = rotary_table(past + length, width // self.heads, x_BLD.device)
        out_BHLE = functional.scaled_dot_product_attention(
            rotate(query, (cos_PE[past:], sin_PE[past:])), rotate(key, (cos_PE, sin_PE)), value
        )
        first = 0 if keep is None else max(0, key.shape[2] - keep)
        out_BLD = self.out(out_BHLE.transpose(1, 2).reshape(batch, length, width))
        return out_BLD, (key[:, :, first:], value[:, :, first:])

    def _project(self, x_BLD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values [B, heads, L, width / heads]."""
        batch, length, width = x_BLD.shape
        query, key, value = (
            part.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.query_key_value(x_BLD).chunk(3, dim=-1)
        )
        return query, key, value

    def _relative_bias(self, query_BHLE: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(q + v) . p(i - j) / sqrt(E) for every pair, with the mask folded in: [B, heads, L, L]."""
        batch, heads, length, head_width = query_BHLE.shape
        table_PD = sinusoids(length, heads * head_width, query_BHLE.device).to(query_BHLE.dtype)
        position_HPE = self.linear_position(table_PD).view(-1, heads, head_width).transpose(0, 1)
        scores_BHLP = (query_BHLE + self.position_bias_HE[:, None]) @ position_HPE.transpose(1, 2)
        # Row i needs the distances i, i - 1, ..., i - L + 1: a shifted window of the 2L - 1 columns.
        padded = functional.pad(scores_BHLP, (1, 0)).view(batch, heads, 2 * length, length)
        bias = padded[:, :, 1:].reshape(batch, heads, length, 2 * length - 1)[..., :length] / math.sqrt(head_width)
        return bias if mask is None else bias.masked_fill(~mask, float("-inf"))


def sinusoids(length: int, width: int, device: torch.device) -> torch.Tensor:
    """Sine and cosine (interleaved) of the distances length - 1 .. -(length - 1): [2 length - 1, width], float32."""
    distance_P1 = torch.arange(length - 1, -length, -1, device=device, dtype=torch.float32)[:, None]
    inverse_K = torch.exp(torch.arange(0, width, 2, device=device, dtype=torch.float32) * -(math.log(10000.0) / width))
    return torch.stack([torch.sin(distance_P1 * inverse_K), torch.cos(distance_P1 * inverse_K)], 2).flatten(1)


class CrossAttention(nn.Module):
    """Attention from [B, L, width] to a memory [B, N, memory_width].

    Key and value have biases but the memory no positions: N zero vectors and one zero vector give the same result.
    """

    def __init__(self, width: int, heads: int, memory_width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(memory_width, 2 * width)
        self.out = nn.Linear(width, width)

    def project(self, memory_BND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [B, heads, N, width / heads] of a memory; decoding computes them once per utterance."""
        batch, positions = memory_BND.shape[:2]
        key, value = (
            part.view(batch, positions, self.heads, -1).transpose(1, 2) for part in self.key_value(memory_BND).chunk(2, -1)
        )
        return key, value

    def forward(
        self, x_BLD: torch.Tensor, key_value: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor | None
    ) -> torch.Tensor:
        """[B, L, width]; mask bool [B, 1, 1, N], True = visible."""
        batch, length, width = x_BLD.shape
        query = self.query(x_BLD).view(batch, length, self.heads, -1).transpose(1, 2)
        out_BHLE = functional.scaled_dot_product_attention(
            query, *key_value, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out(out_BHLE.transpose(1, 2).reshape(batch, length, width))

"""The autoregressive decoder of the CIF ASR model: it reads (previous token, unit) pairs (paper A.3; cif.md, Losses).

Input at position u: linear of [embedding of token u - 1, unit u - 1]. Then transformer blocks; some of them attend to visual
features (blocks 3 and 4 in the paper), some to linguistic ones (5 and 6). Output: linear of [layer norm(x), unit u], then the
vocabulary. One token per unit: the number of units is the length of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as functional
from torch import nn

from xllm_speech.nn.dropout import Dropout
from xllm_speech.nn.masks import key_mask
from xllm_speech.nn.transformer import KeyValue, ProjectedMemory, TransformerBlock
from xllm_speech.records import Memory


@dataclass(frozen=True)
class DecoderState:
    """Where step-by-step decoding stands, for N rows: the previous unit and each block's keys and values."""

    unit_ND: torch.Tensor
    caches: tuple[KeyValue | None, ...]

    def select(self, rows_N: torch.Tensor | slice) -> DecoderState:
        """The state of the given rows, in their order."""
        caches = tuple(None if c is None else (c[0][rows_N], c[1][rows_N]) for c in self.caches)
        return DecoderState(self.unit_ND[rows_N], caches)


class CifDecoder(nn.Module):
    """Tokens from units.

    Args:
        vocab: tokens, `<blank>` and `<sos/eos>` included. width: model width D, that of the units too.
        visual_blocks, linguistic_blocks: 1-based blocks with cross-attention; visual_width, linguistic_width: feature widths.
        sos_id: token before the first.
    """

    def __init__(
        self,
        vocab: int,
        sos_id: int,
        width: int = 512,
        heads: int = 8,
        feedforward: int = 2048,
        blocks: int = 6,
        dropout: float = 0.1,
        visual_blocks: Sequence[int] = (3, 4),
        linguistic_blocks: Sequence[int] = (5, 6),
        visual_width: int = 768,
        linguistic_width: int = 768,
    ) -> None:
        super().__init__()
        self.sos_id, self.width = sos_id, width
        self.visual_blocks, self.linguistic_blocks = frozenset(visual_blocks), frozenset(linguistic_blocks)
        self.visual_width, self.linguistic_width = visual_width, linguistic_width
        self.embedding = nn.Embedding(vocab, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.linear_in = nn.Linear(2 * width, width)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, heads, feedforward, dropout, self._memory_width(number)) for number in range(1, blocks + 1)
        )
        self.norm = nn.LayerNorm(width)
        self.linear_out = nn.Linear(2 * width, width)
        self.vocabulary = nn.Linear(width, vocab)
        self.dropout = Dropout(dropout)

    def _memory_width(self, number: int) -> int | None:
        if number in self.visual_blocks:
            return self.visual_width
        return self.linguistic_width if number in self.linguistic_blocks else None

    def project_memories(
        self, batch: int, visual: Memory | None, linguistic: Memory | None
    ) -> tuple[ProjectedMemory | None, ...]:
        """Per block: keys and values of what it attends to. An absent modality is one zero vector (paper, A.3)."""
        device, dtype = self.linear_in.weight.device, self.linear_in.weight.dtype
        memories: list[ProjectedMemory | None] = []
        canonical = {
            "visual": _zero_where_absent(visual, batch, self.visual_width, device, dtype),
            "linguistic": _zero_where_absent(linguistic, batch, self.linguistic_width, device, dtype),
        }
        for number, block in enumerate(self.blocks, 1):
            kind = "visual" if number in self.visual_blocks else "linguistic" if number in self.linguistic_blocks else None
            if kind is None:
                memories.append(None)
            else:
                x_BND, lens_B = canonical[kind]
                key_value = cast(TransformerBlock, block).project_memory(x_BND)
                memories.append(ProjectedMemory(key_value, key_mask(lens_B, x_BND.shape[1])))
        return tuple(memories)

    def forward(
        self,
        tokens_BU: torch.Tensor,
        units_BUD: torch.Tensor,
        visual: Memory | None = None,
        linguistic: Memory | None = None,
    ) -> torch.Tensor:
        """Teacher forcing: logits [B, U, vocab] for every position; `tokens_BU` are the targets, shifted right in here."""
        memories = self.project_memories(tokens_BU.shape[0], visual, linguistic)
        previous_BU = functional.pad(tokens_BU[:, :-1], (1, 0), value=self.sos_id)
        previous_BUD = functional.pad(units_BUD[:, :-1], (0, 0, 1, 0))
        x_BUD = self._embed(previous_BU, previous_BUD)
        for block, memory in zip(self.blocks, memories, strict=True):
            x_BUD, _ = block(x_BUD, memory)
        return self._classify(x_BUD, units_BUD)

    def start(self, rows: int) -> DecoderState:
        """State before the first unit, for `rows` rows."""
        weight = self.linear_in.weight
        return DecoderState(weight.new_zeros(rows, self.width), (None,) * len(self.blocks))

    def step(
        self,
        previous_N: torch.Tensor,
        unit_ND: torch.Tensor,
        state: DecoderState,
        memories: tuple[ProjectedMemory | None, ...],
    ) -> tuple[torch.Tensor, DecoderState]:
        """Logits [N, vocab] of the token of `unit_ND`, given the token before it, and the next state."""
        x_N1D = self._embed(previous_N[:, None], state.unit_ND[:, None])
        caches: list[KeyValue | None] = []
        for block, memory, cache in zip(self.blocks, memories, state.caches, strict=True):
            x_N1D, cache = block(x_N1D, memory, cache, use_cache=True)
            caches.append(cache)
        return self._classify(x_N1D, unit_ND[:, None])[:, 0], DecoderState(unit_ND, tuple(caches))

    def _embed(self, previous_BU: torch.Tensor, previous_BUD: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.linear_in(torch.cat([self.embedding(previous_BU), previous_BUD], -1)))

    def _classify(self, x_BUD: torch.Tensor, units_BUD: torch.Tensor) -> torch.Tensor:
        return self.vocabulary(self.dropout(self.linear_out(torch.cat([self.norm(x_BUD), units_BUD], -1))))


def _zero_where_absent(
    memory: Memory | None, batch: int, width: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and lengths in one form: an item with no features, or with only zero vectors, holds one zero vector."""
    if memory is None:
        return torch.zeros(batch, 1, width, device=device, dtype=dtype), torch.ones(batch, dtype=torch.long, device=device)
    x_BND = memory.x_BND.to(dtype)
    inside_BN = torch.arange(x_BND.shape[1], device=x_BND.device) < memory.lens_B[:, None]
    x_BND = x_BND.masked_fill(~inside_BN[:, :, None], 0.0)
    if x_BND.shape[1] == 0:
        x_BND = functional.pad(x_BND, (0, 0, 0, 1))
    empty_B = (x_BND == 0).flatten(1).all(1)
    return x_BND, memory.lens_B.masked_fill(empty_B, 1).clamp(min=1)

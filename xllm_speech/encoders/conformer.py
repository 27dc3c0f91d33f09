"""The speech encoder of the CIF ASR model (paper, A.3): convolution front-end, conformer blocks, two max-pools, 1/8 rate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from xllm_speech.nn.conformer import ConformerBlock
from xllm_speech.nn.masks import chunk_mask, key_mask, valid_mask
from xllm_speech.nn.subsampling import ConvolutionFrontend, max_pool_halves
from xllm_speech.records import EncoderOut, FbankBatch


class ConformerEncoder(nn.Module):
    """FbankBatch -> EncoderOut, one step per 80 ms.

    Args:
        bins: mel bins. channels: front-end channels. width, heads, feedforward, kernel, blocks: conformer sizes.
        pool_after: 1-based blocks after which a max-pool by 2 follows ([6, 12] in the paper); two of them give 80 ms steps.
        position: rope | relative. conv_norm: layer | batch. final_norm: a layer norm at the end, as in ESPnet.
        chunk_steps: 0 to hear whole utterances; else for streaming: a step depends on the chunk of this many steps that it
            lies in and on earlier ones only, in training too (`encoders.streaming`). left_chunks: how many of the earlier
            ones attention sees, 0 for all.
    """

    def __init__(
        self,
        bins: int = 80,
        channels: int = 256,
        width: int = 512,
        heads: int = 8,
        feedforward: int = 2048,
        kernel: int = 31,
        blocks: int = 18,
        pool_after: Sequence[int] = (6, 12),
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        position: str = "rope",
        conv_norm: str = "layer",
        final_norm: bool = True,
        chunk_steps: int = 0,
        left_chunks: int = 0,
    ) -> None:
        super().__init__()
        self.chunk_steps, self.left_chunks = chunk_steps, left_chunks
        self.pool_after = frozenset(pool_after)
        self.frontend = ConvolutionFrontend(bins, channels, width, dropout)
        self.blocks = nn.ModuleList(
            ConformerBlock(width, heads, feedforward, kernel, dropout, attention_dropout, position, conv_norm)
            for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(width) if final_norm else nn.Identity()

    def forward(self, fbank: FbankBatch) -> EncoderOut:
        """Encode normalised features; padding changes nothing at valid steps."""
        x_BLD, lens_B = self.frontend(fbank.x_BTF, fbank.lens_B)
        chunk = self.chunk_steps << len(self.pool_after)  # positions of a chunk, here at twice the frame shift
        valid_BL, mask = self._masks(lens_B, x_BLD.shape[1], chunk)
        for number, block in enumerate(self.blocks, 1):
            x_BLD = block(x_BLD, valid_BL, mask, chunk)
            if number in self.pool_after:
                x_BLD, lens_B = max_pool_halves(x_BLD, lens_B)
                chunk //= 2
                valid_BL, mask = self._masks(lens_B, x_BLD.shape[1], chunk)
        return EncoderOut(self.norm(x_BLD).masked_fill(~valid_BL[:, :, None], 0.0), lens_B)

    def _masks(self, lens_B: torch.Tensor, length: int, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
        mask = chunk_mask(lens_B, length, chunk, self.left_chunks) if chunk else key_mask(lens_B, length)
        return valid_mask(lens_B, length), mask

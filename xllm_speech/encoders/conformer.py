"""The speech encoder of the CIF ASR model (paper, A.3): convolution front-end, conformer blocks, two max-pools, 1/8 rate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from xllm_speech.nn.conformer import ConformerBlock
from xllm_speech.nn.masks import key_mask, valid_mask
from xllm_speech.nn.subsampling import ConvolutionFrontend, max_pool_halves
from xllm_speech.records import EncoderOut, FbankBatch


class ConformerEncoder(nn.Module):
    """FbankBatch -> EncoderOut, one step per 80 ms.

    Args:
        bins: mel bins. channels: front-end channels. width, heads, feedforward, kernel, blocks: conformer sizes.
        pool_after: 1-based blocks after which a max-pool by 2 follows ([6, 12] in the paper); two of them give 80 ms steps.
        position: rope | relative. conv_norm: layer | batch. final_norm: a layer norm at the end, as in ESPnet.
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
    ) -> None:
        super().__init__()
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
        valid_BL, mask = _masks(lens_B, x_BLD.shape[1])
        for number, block in enumerate(self.blocks, 1):
            x_BLD = block(x_BLD, valid_BL, mask)
            if number in self.pool_after:
                x_BLD, lens_B = max_pool_halves(x_BLD, lens_B)
                valid_BL, mask = _masks(lens_B, x_BLD.shape[1])
        return EncoderOut(self.norm(x_BLD).masked_fill(~valid_BL[:, :, None], 0.0), lens_B)


def _masks(lens_B: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    return valid_mask(lens_B, length), key_mask(lens_B, length)

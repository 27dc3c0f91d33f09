"""Layers that halve the time axis, length-exact: ceil(n / 2) for every item, whatever its batch."""

from __future__ import annotations

import torch
from torch import nn

from xllm_speech.base.units import halve
from xllm_speech.nn.dropout import Dropout
from xllm_speech.nn.masks import valid_mask


class ConvolutionFrontend(nn.Module):
    """One 2-D convolution (kernel 3, stride 2) over time and frequency, ReLU, then a linear layer (paper, A.3).

    Args:
        bins: mel bins F. channels: 256 in the paper. width: output width D.
    """

    def __init__(self, bins: int, channels: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, channels, kernel_size=3, stride=2, padding=1)
        self.linear = nn.Linear(channels * ((bins + 1) // 2), width)
        self.dropout = Dropout(dropout)

    def forward(self, x_BTF: torch.Tensor, lens_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, T, F] -> [B, ceil(T / 2), D] and the new lengths."""
        x_BTF = x_BTF.masked_fill(~valid_mask(lens_B, x_BTF.shape[1])[:, :, None], 0.0)
        x_BCTF = torch.relu(self.convolution(x_BTF[:, None]))
        return self.dropout(self.linear(x_BCTF.transpose(1, 2).flatten(2))), halve(lens_B)

    def stream(self, x_BTF: torch.Tensor, before_B1F: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """One chunk of frames, an even number unless it is the last: output and the frame that the next chunk sees.

        before_B1F: what the call before returned; None at the start.
        """
        before_B1F = torch.zeros_like(x_BTF[:, :1]) if before_B1F is None else before_B1F
        joined_BTF = nn.functional.pad(torch.cat([before_B1F, x_BTF], 1), (0, 0, 0, x_BTF.shape[1] % 2))
        x_BCTF = torch.relu(nn.functional.conv2d(
            joined_BTF[:, None], self.convolution.weight, self.convolution.bias, stride=2, padding=(0, 1)
        ))
        return self.linear(x_BCTF.transpose(1, 2).flatten(2)), x_BTF[:, -1:]


def max_pool_halves(x_BLD: torch.Tensor, lens_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Max-pool by 2 over time; an odd last position stands alone and padding never wins. Returns [B, ceil(L / 2), D], lens."""
    batch, length, width = x_BLD.shape
    x_BLD = x_BLD.masked_fill(~valid_mask(lens_B, length)[:, :, None], float("-inf"))
    if length % 2:
        x_BLD = nn.functional.pad(x_BLD, (0, 0, 0, 1), value=float("-inf"))
    pooled_BLD = x_BLD.view(batch, -1, 2, width).amax(2)
    lens_B = halve(lens_B)
    return pooled_BLD.masked_fill(~valid_mask(lens_B, pooled_BLD.shape[1])[:, :, None], 0.0), lens_B

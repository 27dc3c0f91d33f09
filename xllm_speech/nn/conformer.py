"""The conformer block (the paper's reference [21]): half feed-forward, self-attention, convolution, half feed-forward.

Padding never reaches a valid position: keys are masked, the convolution's input is zeroed after each length, and the norms
are per position (`layer`) or use valid positions only (`batch`).
"""

from __future__ import annotations

import torch
from torch import nn

from xllm_speech.nn.attention import SelfAttention
from xllm_speech.nn.dropout import Dropout
from xllm_speech.nn.feedforward import FeedForward


class MaskedBatchNorm(nn.Module):
    """Batch norm over the valid positions of [B, L, C] only; running statistics as in `nn.BatchNorm1d`."""

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels, eps=eps, momentum=momentum)

    def forward(self, x_BLC: torch.Tensor, valid_BL: torch.Tensor) -> torch.Tensor:
        """Same shape; positions outside `valid_BL` become zero."""
        out_BLC = torch.zeros_like(x_BLC)
        out_BLC[valid_BL] = self.norm(x_BLC[valid_BL])
        return out_BLC


class ConvolutionModule(nn.Module):
    """Pointwise -> GLU -> depth-wise -> norm -> SiLU -> pointwise on [B, L, width].

    Args:
        kernel: odd length of the depth-wise kernel. norm: layer | batch.
    """

    def __init__(self, width: int, kernel: int, norm: str = "layer", dropout: float = 0.0) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = MaskedBatchNorm(width) if norm == "batch" else nn.LayerNorm(width)
        self.out = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x_BLD: torch.Tensor, valid_BL: torch.Tensor) -> torch.Tensor:
        """Same shape; the depth-wise kernel sees zeros after each length."""
        x_BLD = nn.functional.glu(self.gate(x_BLD), dim=-1).masked_fill(~valid_BL[:, :, None], 0.0)
        x_BLD = self.depthwise(x_BLD.transpose(1, 2)).transpose(1, 2)
        x_BLD = self.norm(x_BLD, valid_BL) if isinstance(self.norm, MaskedBatchNorm) else self.norm(x_BLD)
        return self.dropout(self.out(nn.functional.silu(x_BLD)))


class ConformerBlock(nn.Module):
    """One block on [B, L, width], pre-norm, with a final norm.

    Args:
        width, heads, feedforward, kernel: the paper's d_model, h, d_ffn and depth-wise kernel. position: rope | relative.
        conv_norm: layer | batch. dropout: after every sub-layer. attention_dropout: on attention weights; other than 0
            it leaves the fused kernel on a CPU.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        feedforward: int,
        kernel: int,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        position: str = "rope",
        conv_norm: str = "layer",
    ) -> None:
        super().__init__()
        self.norm_first, self.norm_attention = nn.LayerNorm(width), nn.LayerNorm(width)
        self.norm_convolution, self.norm_second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.norm_out = nn.LayerNorm(width)
        self.feedforward_first = FeedForward(width, feedforward, dropout)
        self.attention = SelfAttention(width, heads, attention_dropout, position)
        self.convolution = ConvolutionModule(width, kernel, conv_norm, dropout)
        self.feedforward_second = FeedForward(width, feedforward, dropout)
        self.dropout = Dropout(dropout)

    def forward(self, x_BLD: torch.Tensor, valid_BL: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Same shape. mask: bool [B, 1, 1, L], or None when nothing is padded."""
        x_BLD = torch.add(x_BLD, self.dropout(self.feedforward_first(self.norm_first(x_BLD))), alpha=0.5)
        x_BLD = x_BLD + self.dropout(self.attention(self.norm_attention(x_BLD), mask)[0])
        x_BLD = x_BLD + self.convolution(self.norm_convolution(x_BLD), valid_BL)
        x_BLD = torch.add(x_BLD, self.dropout(self.feedforward_second(self.norm_second(x_BLD))), alpha=0.5)
        return self.norm_out(x_BLD)

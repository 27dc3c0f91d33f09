"""The conformer block (the paper's reference [21]): half feed-forward, self-attention, convolution, half feed-forward.

Padding never reaches a valid position: keys are masked, the convolution's input is zeroed after each length, and the norms
are per position (`layer`) or use valid positions only (`batch`).
"""

from __future__ import annotations

from typing import NamedTuple

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

    def forward(self, x_BLD: torch.Tensor, valid_BL: torch.Tensor, chunk: int = 0) -> torch.Tensor:
        """Same shape; the depth-wise kernel sees zeros after each length, and after each chunk where chunk > 0."""
        x_BLD = nn.functional.glu(self.gate(x_BLD), dim=-1).masked_fill(~valid_BL[:, :, None], 0.0)
        x_BLD = self._convolve_chunks(x_BLD, chunk) if chunk else self.depthwise(x_BLD.transpose(1, 2)).transpose(1, 2)
        return self._finish(x_BLD, valid_BL)

    def stream(self, x_BLD: torch.Tensor, before_BKD: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """One chunk; before_BKD: what the kernel sees to its left, as the call before returned it (None: the start)."""
        x_BLD = nn.functional.glu(self.gate(x_BLD), dim=-1)
        half = self.depthwise.kernel_size[0] // 2
        before_BKD = x_BLD.new_zeros(len(x_BLD), half, x_BLD.shape[2]) if before_BKD is None else before_BKD
        joined_BLD = torch.cat([before_BKD, x_BLD], 1)
        out_BLD = self._convolve_alone(joined_BLD.transpose(1, 2)).transpose(1, 2)
        everywhere_BL = torch.ones(x_BLD.shape[:2], dtype=torch.bool, device=x_BLD.device)
        return self._finish(out_BLD, everywhere_BL), joined_BLD[:, joined_BLD.shape[1] - half :]

    def _convolve_chunks(self, x_BLD: torch.Tensor, chunk: int) -> torch.Tensor:
        """Every chunk by itself, with the real positions to its left and zeros to its right."""
        batch, length, width = x_BLD.shape
        half, chunks = self.depthwise.kernel_size[0] // 2, -(-length // chunk)
        x_BDL = nn.functional.pad(x_BLD.transpose(1, 2), (half, chunks * chunk - length))
        windows = x_BDL.unfold(2, half + chunk, chunk).transpose(1, 2).flatten(0, 1)
        out = self._convolve_alone(windows).view(batch, chunks, width, chunk).transpose(2, 3)
        return out.reshape(batch, chunks * chunk, width)[:, :length]

    def _convolve_alone(self, x_NDL: torch.Tensor) -> torch.Tensor:
        """[N, D, half + L] -> [N, D, L]: the first half kernel is context, to the right are zeros."""
        weight, half = self.depthwise.weight, self.depthwise.kernel_size[0] // 2
        return nn.functional.conv1d(nn.functional.pad(x_NDL, (0, half)), weight, self.depthwise.bias, groups=len(weight))

    def _finish(self, x_BLD: torch.Tensor, valid_BL: torch.Tensor) -> torch.Tensor:
        x_BLD = self.norm(x_BLD, valid_BL) if isinstance(self.norm, MaskedBatchNorm) else self.norm(x_BLD)
        return self.dropout(self.out(nn.functional.silu(x_BLD)))


class BlockState(NamedTuple):
    """Of one block between two chunks: keys and values of earlier positions, and the left context of its convolution."""

    cache: tuple[torch.Tensor, torch.Tensor] | None = None
    before_BKD: torch.Tensor | None = None


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

    def forward(
        self, x_BLD: torch.Tensor, valid_BL: torch.Tensor, mask: torch.Tensor | None, chunk: int = 0
    ) -> torch.Tensor:
        """Same shape. mask: bool [B, 1, 1 or L, L], or None when nothing is padded. chunk: positions of one, 0 for none."""
        x_BLD = torch.add(x_BLD, self.dropout(self.feedforward_first(self.norm_first(x_BLD))), alpha=0.5)
        x_BLD = x_BLD + self.dropout(self.attention(self.norm_attention(x_BLD), mask)[0])
        x_BLD = x_BLD + self.convolution(self.norm_convolution(x_BLD), valid_BL, chunk)
        x_BLD = torch.add(x_BLD, self.dropout(self.feedforward_second(self.norm_second(x_BLD))), alpha=0.5)
        return self.norm_out(x_BLD)

    def stream(self, x_BLD: torch.Tensor, state: BlockState, keep: int | None) -> tuple[torch.Tensor, BlockState]:
        """One chunk, in eval mode, with the state behind the chunk before. keep: positions that the next chunk sees."""
        x_BLD = x_BLD + 0.5 * self.feedforward_first(self.norm_first(x_BLD))
        out_BLD, cache = self.attention.stream(self.norm_attention(x_BLD), state.cache, keep)
        x_BLD = x_BLD + out_BLD
        out_BLD, before_BKD = self.convolution.stream(self.norm_convolution(x_BLD), state.before_BKD)
        x_BLD = x_BLD + out_BLD
        x_BLD = x_BLD + 0.5 * self.feedforward_second(self.norm_second(x_BLD))
        return self.norm_out(x_BLD), BlockState(cache, before_BKD)

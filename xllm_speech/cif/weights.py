"""The weight of each step: how much of a token it holds (paper, A.3)."""

from __future__ import annotations

import torch
from torch import nn

from xllm_speech.nn.dropout import Dropout
from xllm_speech.nn.masks import valid_mask
from xllm_speech.records import EncoderOut


class AlphaPredictor(nn.Module):
    """Conv1d(width -> channels, kernel, stride 1) -> ReLU -> Linear -> sigmoid.

    Args:
        width: encoder width D. channels: convolution channels (512 in the paper). kernel: odd (5 in the paper).
        dropout: after the convolution.
        bias: initial bias of the last layer; the paper's units come about every 3 steps, hence a start below one half.
    """

    def __init__(self, width: int, channels: int = 512, kernel: int = 5, dropout: float = 0.0, bias: float = -1.0) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, channels, kernel, padding=kernel // 2)
        self.dropout = Dropout(dropout)
        self.linear = nn.Linear(channels, 1)
        nn.init.constant_(self.linear.bias, bias)

    def forward(self, encoded: EncoderOut) -> torch.Tensor:
        """alpha_BS in (0, 1), float32, zero after each length."""
        valid_BS = valid_mask(encoded.lens_B, encoded.x_BSD.shape[1])
        x_BSD = encoded.x_BSD.masked_fill(~valid_BS[:, :, None], 0.0)
        x_BSC = torch.relu(self.convolution(x_BSD.transpose(1, 2)).transpose(1, 2))
        logit_BS = self.linear(self.dropout(x_BSC)).squeeze(2)
        return torch.sigmoid(logit_BS.float()).masked_fill(~valid_BS, 0.0)

    def inside(self, x_BSD: torch.Tensor) -> torch.Tensor:
        """Weights of all steps but `context` at each end, which are only seen; in eval mode, for streaming."""
        x_BCS = nn.functional.conv1d(x_BSD.transpose(1, 2), self.convolution.weight, self.convolution.bias)
        return torch.sigmoid(self.linear(torch.relu(x_BCS).transpose(1, 2)).squeeze(2).float())

    @property
    def context(self) -> int:
        """Steps that a weight depends on, on either side of its own."""
        return self.convolution.kernel_size[0] // 2

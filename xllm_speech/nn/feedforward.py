"""The position-wise feed-forward layer of conformer and transformer blocks."""

from __future__ import annotations

import torch
from torch import nn

from xllm_speech.nn.dropout import Dropout


class FeedForward(nn.Module):
    """Linear -> SiLU or GELU -> dropout -> Linear on [..., width]."""

    def __init__(self, width: int, inner: int, dropout: float = 0.0, activation: type[nn.Module] = nn.SiLU) -> None:
        super().__init__()
        self.inner = nn.Linear(width, inner)
        self.activation = activation()
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape as `x`."""
        return self.out(self.dropout(self.activation(self.inner(x))))

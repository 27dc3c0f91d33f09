"""Cepstral mean and variance normalisation as a layer, so that a saved model carries its statistics."""

from __future__ import annotations

import torch
from torch import nn


class GlobalCmvn(nn.Module):
    """(x - mean) / std per mel bin; buffers, never trained. Starts as the identity."""

    mean_F: torch.Tensor
    std_F: torch.Tensor

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.register_buffer("mean_F", torch.zeros(bins))
        self.register_buffer("std_F", torch.ones(bins))

    def set_statistics(self, mean_F: torch.Tensor, std_F: torch.Tensor) -> None:
        """Take statistics of the training set; a bin that never varies keeps std 1."""
        self.mean_F.copy_(mean_F)
        self.std_F.copy_(torch.where(std_F > 1e-5, std_F, torch.ones_like(std_F)))

    def forward(self, x_BTF: torch.Tensor) -> torch.Tensor:
        """Same shape."""
        return (x_BTF - self.mean_F) / self.std_F

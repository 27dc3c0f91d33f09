"""Frozen stays frozen: no gradient, always in eval mode (house.md rule 9)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Frozen(nn.Module):
    """Holds a module that never trains: `train()` leaves it in eval mode, its parameters have no gradient, and its calls
    record no graph.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Frozen:
        """Set the mode of this wrapper only; the module inside stays in eval mode."""
        super().train(mode)
        self.module.eval()
        return self

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Whatever the module returns."""
        return self.module(*args, **kwargs)

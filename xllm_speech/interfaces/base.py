"""The contract of an interface (system.md section 2): what any X must offer to speak to the LLM."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn

from xllm_speech.base.errors import ConfigError
from xllm_speech.records import SlotEmbeds

PHASES = (1, 2, 3)
ACTIVATIONS = ("none", "relu")


def activate(x: torch.Tensor, activation: str) -> torch.Tensor:
    """`x` itself for none, its positive part for relu; `ConfigError` for another name."""
    match activation:
        case "none":
            return x
        case "relu":
            return torch.relu(x)
    raise ConfigError(f"activation: `{activation}` is not one of {', '.join(ACTIVATIONS)}")


class Adapter(nn.Linear):
    """The linear layer from an interface's width to the LLM's (paper A.3); the release has a ReLU after some of them.

    Args:
        width: of the vectors that come in. llm_width: H. activation: none | relu.

    Raises:
        ConfigError: an unknown activation.
    """

    def __init__(self, width: int, llm_width: int, activation: str = "none") -> None:
        activate(torch.zeros(()), activation)  # an unknown name is refused here, not in the first batch
        super().__init__(width, llm_width)
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., width] of any float type -> [..., H] of the weights' type."""
        return activate(super().forward(x.to(self.weight.dtype)), self.activation)


class Interface(nn.Module, ABC):
    """One X2L interface. A subclass names its kind and tag, owns an `adapter`, and turns features into vectors.

    Attributes:
        kind: item type in conversations and in `SlotEmbeds`. tag: word of the text tags around its slots.
        adapter: the last layer, the only part that trains in phase 3.
    """

    kind: ClassVar[str]
    tag: ClassVar[str]
    adapter: Adapter

    @abstractmethod
    def forward(self, features: Any) -> SlotEmbeds:
        """Features of N media items, as their frozen encoder made them -> vectors of N items in the same order.

        What one item yields depends neither on the other items nor on padding. For N = 0 see `nothing`.
        """

    @property
    def opening(self) -> str:
        """Text before the slots, such as <Image>."""
        return f"<{self.tag}>"

    @property
    def closing(self) -> str:
        """Text after the slots, such as </Image>."""
        return f"</{self.tag}>"

    @property
    def llm_width(self) -> int:
        """H."""
        return self.adapter.out_features

    def nothing(self, lens_N: torch.Tensor) -> SlotEmbeds:
        """Slots of no item at all; the adapter still gets a gradient, of zeros, as do those of ranks that have items."""
        weight = self.adapter.weight
        return SlotEmbeds(self.adapter(weight.new_zeros(0, 1, self.adapter.in_features)), lens_N, self.kind)

    def trained_in(self, phase: int) -> tuple[str, ...]:
        """Names of the direct children and parameters that train in a phase (system.md section 5); the rest is frozen.

        Phase 1 trains none, phase 2 everything that is the interface's own, phase 3 the adapter.

        Raises:
            ValueError: no such phase.
        """
        if phase not in PHASES:
            raise ValueError(f"phase {phase}: the phases are 1, 2 and 3")
        own = [name for name, _ in self.named_children()] + [name for name, _ in self.named_parameters(recurse=False)]
        return {1: (), 2: tuple(own), 3: ("adapter",)}[phase]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All parameters in two groups, `adapter` and `rest`."""
        adapter = list(self.adapter.parameters())
        taken = {id(parameter) for parameter in adapter}
        return {"adapter": adapter, "rest": [p for p in self.parameters() if id(p) not in taken]}

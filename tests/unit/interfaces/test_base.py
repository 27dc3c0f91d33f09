"""The contract by which a new X joins."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from xllm_speech.base.errors import ConfigError
from xllm_speech.interfaces.base import Adapter, Interface
from xllm_speech.records import Memory, SlotEmbeds

torch.set_num_threads(1)


class Smell(Interface):
    kind, tag = "smell", "Smell"

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.nose = nn.Linear(3, 5)
        self.adapter = Adapter(5, 7)

    def forward(self, features: Memory) -> SlotEmbeds:
        return SlotEmbeds(self.adapter(self.nose(features.x_BND * self.scale)), features.lens_B, self.kind)


def test_a_new_x_needs_kind_tag_adapter_and_forward_only() -> None:
    smell = Smell()
    slots = smell(Memory(torch.randn(2, 4, 3), torch.tensor([4, 2])))
    assert (slots.kind, tuple(slots.x_NQH.shape), smell.opening, smell.closing) == ("smell", (2, 4, 7), "<Smell>", "</Smell>")
    assert smell.llm_width == 7
    assert smell.trained_in(1) == ()
    assert set(smell.trained_in(2)) == {"scale", "nose", "adapter"}
    assert smell.trained_in(3) == ("adapter",)
    with pytest.raises(ValueError, match="phase 4: the phases are 1, 2 and 3"):
        smell.trained_in(4)


def test_groups_hold_every_parameter_once() -> None:
    smell = Smell()
    groups = smell.parameter_groups()
    assert [id(p) for p in groups["adapter"]] == [id(smell.adapter.weight), id(smell.adapter.bias)]
    assert {id(p) for p in groups["rest"]} == {id(smell.scale), id(smell.nose.weight), id(smell.nose.bias)}


def test_an_interface_without_forward_cannot_be_made() -> None:
    class Mute(Interface):
        kind, tag = "mute", "Mute"

    with pytest.raises(TypeError, match="abstract"):
        Mute()  # type: ignore[abstract]


def test_adapter_is_linear_and_relu_an_option() -> None:
    x = torch.randn(6, 5)
    plain, positive = Adapter(5, 4), Adapter(5, 4, "relu")
    positive.load_state_dict(plain.state_dict())
    torch.testing.assert_close(plain(x), x @ plain.weight.T + plain.bias)
    assert bool((plain(x) < 0).any())
    torch.testing.assert_close(positive(x), plain(x).clamp(min=0))
    assert plain(x.half()).dtype == torch.float32  # frozen encoders may run in half precision
    with pytest.raises(ConfigError, match="`gelu` is not one of none, relu"):
        Adapter(5, 4, "gelu")

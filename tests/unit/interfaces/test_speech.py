"""The speech interface against one utterance at a time."""

from __future__ import annotations

import pytest
import torch

from xllm_speech.interfaces.speech import SpeechInterface, even_pieces
from xllm_speech.records import CifOut, Memory

torch.set_num_threads(1)
D, H, POSITIONS = 8, 10, 6


def interface(**options: str) -> SpeechInterface:
    torch.manual_seed(0)
    return SpeechInterface(H, D, 16, 2, 2, 32, POSITIONS, init_std=0.4, **options).eval()  # type: ignore[arg-type]


def one_by_one(speech: SpeechInterface, x_UD: torch.Tensor) -> torch.Tensor:
    """Every formula written out for one utterance that fits the positions."""
    projected = x_UD @ speech.projection.weight.T + speech.projection.bias
    if speech.projection_activation == "relu":
        projected = projected.clamp(min=0)
    hidden = speech.transformer(inputs_embeds=projected[None]).last_hidden_state[0]
    x_UH = hidden @ speech.adapter.weight.T + speech.adapter.bias
    return x_UH.clamp(min=0) if speech.adapter.activation == "relu" else x_UH


def units(lens: list[int], fill: float = 0.0) -> Memory:
    x = torch.randn(len(lens), max([1, *lens]) + 2, D, generator=torch.Generator().manual_seed(1))
    for row, length in enumerate(lens):
        x[row, length:] = fill
    return Memory(x, torch.tensor(lens))


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("projection_activation", ["none", "relu"])
def test_one_vector_per_unit_as_in_a_plain_loop(activation: str, projection_activation: str) -> None:
    speech = interface(activation=activation, projection_activation=projection_activation)
    lens = [4, 1, 6]
    memory = units(lens)
    slots = speech(memory)
    assert (slots.kind, slots.lens_N.tolist(), tuple(slots.x_NQH.shape)) == ("speech", lens, (3, 6, H))
    for row, length in enumerate(lens):
        expected = one_by_one(speech, memory.x_BND[row, :length])
        torch.testing.assert_close(slots.x_NQH[row, :length], expected, rtol=1e-4, atol=1e-5)
        assert not slots.x_NQH[row, length:].any()


def test_padding_is_never_visible_even_nan() -> None:
    speech = interface()
    lens = [3, 0, 5]
    torch.testing.assert_close(speech(units(lens, float("nan"))).x_NQH, speech(units(lens)).x_NQH)


def test_order_of_units_matters() -> None:
    speech = interface()
    memory = units([4])
    turned = Memory(memory.x_BND[:, :4].flip(1), memory.lens_B)
    assert not torch.allclose(speech(memory).x_NQH, speech(turned).x_NQH.flip(1), rtol=1e-2, atol=1e-2)


def test_cif_units_are_taken_as_they_come() -> None:
    speech, memory = interface(), units([3, 2])
    x = memory.x_BND[:, :3]
    times = torch.zeros(2, 3)
    cif = CifOut(x, memory.lens_B, torch.tensor([3.0, 2.0]), times, times, torch.zeros(2, 9))
    assert torch.equal(speech(cif).x_NQH, speech(memory).x_NQH)


def test_an_utterance_without_units_is_heard_as_one_zero_unit() -> None:
    speech = interface()
    slots = speech(units([0, 3]))
    assert slots.lens_N.tolist() == [1, 3]
    torch.testing.assert_close(slots.x_NQH[0, :1], one_by_one(speech, torch.zeros(1, D)), rtol=1e-4, atol=1e-5)
    alone = speech(Memory(torch.zeros(1, 0, D), torch.zeros(1, dtype=torch.long)))
    torch.testing.assert_close(alone.x_NQH[0], slots.x_NQH[0, :1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("length", "pieces"), [(0, [0]), (1, [1]), (6, [6]), (7, [4, 3]), (12, [6, 6]), (13, [5, 4, 4]), (20, [5, 5, 5, 5])]
)
def test_even_pieces(length: int, pieces: list[int]) -> None:
    assert even_pieces(length, POSITIONS) == pieces


def test_more_units_than_positions_go_through_in_pieces_and_none_is_lost() -> None:
    speech = interface()
    memory = units([13, 2, 6, 0], float("nan"))
    slots = speech(memory)
    assert slots.lens_N.tolist() == [13, 2, 6, 1]
    expected = torch.cat([one_by_one(speech, piece) for piece in memory.x_BND[0, :13].split([5, 4, 4])])
    torch.testing.assert_close(slots.x_NQH[0], expected, rtol=1e-4, atol=1e-5)
    short = speech(units([2]))  # a neighbour's length changes nothing
    expected = one_by_one(speech, memory.x_BND[1, :2])
    torch.testing.assert_close(slots.x_NQH[1, :2], expected, rtol=1e-4, atol=1e-5)
    assert not slots.x_NQH[1, 2:].any()
    assert short.lens_N.tolist() == [2]


def test_gradients_reach_every_part_and_in_phase_3_the_adapter_alone() -> None:
    speech = interface()
    for phase, wanted in ((2, {name for name, _ in speech.named_parameters()}), (3, {"adapter.weight", "adapter.bias"})):
        names = speech.trained_in(phase)
        for name, parameter in speech.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(name.split(".")[0] in names)
        speech(units([6, 3])).x_NQH.square().sum().backward()
        moved = {name for name, parameter in speech.named_parameters() if parameter.grad is not None and parameter.grad.any()}
        assert {name for name in moved ^ wanted if not name.endswith("key.bias")} == set()


def test_no_table_of_words_is_kept() -> None:
    assert not [name for name in interface().state_dict() if "word" in name]

"""CIF over pieces equals CIF over the whole."""

from __future__ import annotations

import pytest
import torch

from xllm_speech.cif import AlphaPredictor, integrate_and_fire
from xllm_speech.cif.streaming import StreamingCif
from xllm_speech.records import EncoderOut

WIDTH = 6


def make_predictor(bias, seed=0):
    torch.manual_seed(seed)
    predictor = AlphaPredictor(WIDTH, channels=8, kernel=5, bias=bias).eval()
    torch.nn.init.normal_(predictor.linear.weight, std=1.5)
    return predictor


@pytest.mark.parametrize("bias", [-4.0, -1.0, 0.5, 5.0])
@pytest.mark.parametrize("sizes", [[40], [1] * 40, [3, 0, 17, 1, 19], [1], [2, 1]])
def test_units_times_and_weights_equal_those_of_the_whole(bias, sizes):
    predictor = make_predictor(bias)
    x = torch.randn(sum(sizes), WIDTH, generator=torch.Generator().manual_seed(1)) * 2
    stream = StreamingCif(predictor, WIDTH)
    parts = [stream.push(piece) for piece in x.split(sizes)]
    parts.append(stream.finish())
    units, start, fire, alpha = (torch.cat([part[column] for part in parts]) for column in range(4))
    lens = torch.tensor([len(x)])
    with torch.no_grad():
        expected_alpha = predictor(EncoderOut(x[None], lens))
        whole = integrate_and_fire(x[None], expected_alpha, lens)
    assert len(units) == int(whole.lens_B)
    torch.testing.assert_close(alpha, expected_alpha[0])
    torch.testing.assert_close(units, whole.units_BUD[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fire.float(), whole.fire_BU[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(start.float(), whole.start_BU[0], atol=1e-4, rtol=0)


def test_no_steps_give_no_units():
    stream = StreamingCif(make_predictor(5.0), WIDTH)
    assert len(stream.push(torch.zeros(0, WIDTH)).units_UD) == 0
    assert len(stream.finish().units_UD) == 0


def test_what_is_held_does_not_grow_in_silence():
    stream = StreamingCif(make_predictor(-12.0), WIDTH)
    for _ in range(50):
        assert len(stream.push(torch.randn(8, WIDTH) * 0.01).units_UD) == 0
    assert len(stream.seen_SD) == 4
    assert stream.steps == 398

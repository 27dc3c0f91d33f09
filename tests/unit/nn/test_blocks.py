"""Blocks: padding changes nothing, halving is exact, dropout is unbiased, frozen is frozen."""

from __future__ import annotations

import pytest
import torch

from xllm_speech.base.units import halve, steps_from_frames
from xllm_speech.encoders.conformer import ConformerEncoder
from xllm_speech.nn.conformer import MaskedBatchNorm
from xllm_speech.nn.dropout import Dropout
from xllm_speech.nn.frozen import Frozen
from xllm_speech.nn.masks import valid_mask
from xllm_speech.nn.subsampling import max_pool_halves
from xllm_speech.records import FbankBatch


def make_encoder(**changes):
    arguments = {
        "channels": 4, "width": 32, "heads": 4, "feedforward": 48, "kernel": 7, "blocks": 3, "pool_after": (1, 2),
        "dropout": 0.0,
    }
    return ConformerEncoder(**{**arguments, **changes})


@pytest.mark.parametrize("position", ["rope", "relative"])
@pytest.mark.parametrize("conv_norm", ["layer", "batch"])
@pytest.mark.parametrize("training", [True, False])
def test_padding_changes_no_valid_step(position, conv_norm, training):
    torch.manual_seed(0)
    encoder = make_encoder(position=position, conv_norm=conv_norm).train(training)
    lens = torch.tensor([67, 66, 65, 40, 8, 1])
    x = torch.randn(6, 67, 80)
    x[valid_mask(lens, 67).logical_not()] = 99.0  # rubbish in the padding
    out = encoder(FbankBatch(x, lens))
    longer = torch.cat([x, torch.full((6, 23, 80), -77.0)], 1)
    wide = encoder(FbankBatch(longer, torch.cat([torch.tensor([90]), lens[1:]])))
    for b, frames in enumerate(lens.tolist()):
        steps = steps_from_frames(frames)
        assert int(out.lens_B[b]) == steps
        assert not out.x_BSD[b, steps:].any()
        if not training or conv_norm == "layer":  # batch statistics see the other utterances, by design
            alone = encoder(FbankBatch(x[b : b + 1, :frames], lens[b : b + 1]))
            torch.testing.assert_close(alone.x_BSD[0], out.x_BSD[b, :steps], atol=2e-5, rtol=1e-4)
            if b:
                torch.testing.assert_close(wide.x_BSD[b, :steps], out.x_BSD[b, :steps], atol=2e-5, rtol=1e-4)


def test_max_pool_equals_a_loop():
    x = -torch.rand(3, 7, 2) - 1  # negative: a zero from the padding would win
    lens = torch.tensor([7, 4, 1])
    pooled, new_lens = max_pool_halves(x, lens)
    assert new_lens.tolist() == [4, 2, 1] == [halve(n) for n in lens.tolist()]
    for b, length in enumerate(lens.tolist()):
        for place in range(halve(length)):
            torch.testing.assert_close(pooled[b, place], x[b, 2 * place : min(2 * place + 2, length)].amax(0))
    assert not pooled[2, 1:].any()


def test_masked_batch_norm_ignores_padding():
    norm = MaskedBatchNorm(3)
    x, valid = torch.randn(2, 5, 3), valid_mask(torch.tensor([5, 2]), 5)
    plain = torch.nn.BatchNorm1d(3)
    torch.testing.assert_close(norm(x, valid)[valid], plain(x[valid]))
    torch.testing.assert_close(norm.norm.running_mean, plain.running_mean)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(p):
    torch.manual_seed(0)
    x = torch.ones(1000, 501, requires_grad=True)
    out = Dropout(p)(x)
    out.sum().backward()
    dropped = float((out == 0).float().mean())
    assert abs(dropped - p) < 0.005
    assert abs(float(out.mean().detach()) - 1) < 0.01
    assert torch.equal(x.grad, out.detach())  # the same mask on the way back
    rows = (out == 0).float().detach()
    assert float((rows.mean(0) - p).abs().max()) < 0.08  # no column is favoured
    torch.manual_seed(5)
    first = Dropout(p)(x)
    torch.manual_seed(5)
    assert torch.equal(first, Dropout(p)(x))
    assert Dropout(p).eval()(x) is x


def test_frozen_stays_in_eval_mode_and_learns_nothing():
    frozen = Frozen(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(0.5)))
    frozen.train()
    x = torch.randn(4, 3, requires_grad=True)
    assert torch.equal(frozen(x), frozen(x))
    assert not frozen(x).requires_grad
    assert not any(p.requires_grad for p in frozen.parameters())

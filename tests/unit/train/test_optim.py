"""Schedules at their corners and between them, and which parameters decay."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from xllm_speech.base.config import config_from_dict
from xllm_speech.base.errors import ConfigError
from xllm_speech.train.config import OptimConfig, TrainConfig
from xllm_speech.train.optim import learning_rate, make_optimizer, set_learning_rate


def tristage_by_loop(config: OptimConfig, steps: int) -> list[float]:
    """The rate step by step: add while warming up, wait, multiply while decaying."""
    rates, rate = [], config.init_lr
    factor = (config.min_lr / config.lr) ** (1 / config.decay_steps)
    for step in range(steps):
        rates.append(rate)
        if step < config.warmup_steps:
            rate += (config.lr - config.init_lr) / config.warmup_steps
        elif config.warmup_steps + config.hold_steps <= step < config.warmup_steps + config.hold_steps + config.decay_steps:
            rate *= factor
    return rates


def test_tristage_equals_a_step_by_step_loop() -> None:
    config = OptimConfig(lr=1e-2, init_lr=1e-4, min_lr=1e-5, warmup_steps=10, hold_steps=7, decay_steps=20)
    ours = [learning_rate(step, config) for step in range(60)]
    assert ours == pytest.approx(tristage_by_loop(config, 60), rel=1e-9)
    assert ours[0] == 1e-4
    assert ours[10] == ours[17] == 1e-2
    assert ours[16] == 1e-2
    assert ours[27] == pytest.approx(math.sqrt(1e-2 * 1e-5))  # half-way of an exponential: the geometric mean
    assert ours[37] == ours[59] == 1e-5


def test_paper_schedule_is_the_default() -> None:
    config = OptimConfig()
    assert learning_rate(24_000, config) == learning_rate(59_999, config) == 3e-4
    assert learning_rate(12_000, config) == pytest.approx((3e-4 + 3e-6) / 2)
    assert learning_rate(180_000, config) == 3e-6


def test_cosine_with_warmup() -> None:
    config = OptimConfig(
        schedule="cosine", lr=3e-5, init_lr=1e-6, min_lr=1e-8, warmup_steps=4, hold_steps=0, decay_steps=10
    )
    assert learning_rate(0, config) == 1e-6
    assert learning_rate(4, config) == 3e-5
    assert learning_rate(9, config) == pytest.approx((3e-5 + 1e-8) / 2)
    assert learning_rate(14, config) == learning_rate(1000, config) == 1e-8
    rates = [learning_rate(step, config) for step in range(4, 15)]
    assert rates == sorted(rates, reverse=True)


def test_cosine_may_start_and_end_at_the_same_rate() -> None:
    # Phase 3 (system.md, section 5): 1e-6 throughout.
    config = OptimConfig(schedule="cosine", lr=1e-6, init_lr=1e-6, min_lr=1e-6, warmup_steps=0, hold_steps=0, decay_steps=10)
    assert {learning_rate(step, config) for step in range(20)} == {1e-6}


def test_constant_has_a_warmup_and_no_end() -> None:
    config = OptimConfig(schedule="constant", lr=1.0, init_lr=0.0, warmup_steps=2, hold_steps=0, decay_steps=0)
    assert [learning_rate(step, config) for step in (0, 1, 2, 10**7)] == [0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"schedule": "linear"}, "tristage, cosine, constant"),
        ({"lr": 0.0}, "optim.lr"),
        ({"init_lr": 1.0}, "optim.init_lr"),
        ({"min_lr": 0.0}, "exponential"),
        ({"schedule": "cosine", "decay_steps": 0}, "optim.decay_steps"),
        ({"betas": [0.9]}, "optim.betas"),
        ({"warmup_steps": -1}, "optim.warmup_steps"),
        ({"warmup": 5}, "warmup_steps"),
    ],
)
def test_bad_optimiser_settings_are_named(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config_from_dict(values, OptimConfig)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_steps": 0, "max_epochs": 0}, "train.max_steps or train.max_epochs"),
        ({"accumulate": 0}, "train.accumulate"),
        ({"precision": "16"}, "32, bf16-mixed"),
        ({"strategy": "dp"}, "auto, ddp, fsdp"),
        ({"device": "tpu"}, "auto, cpu, cuda"),
        ({"save_every": 0}, "train.save_every"),
        ({"keep_last": 0}, "train.keep_last"),
        ({"max_step": 5}, "max_steps"),
    ],
)
def test_bad_loop_settings_are_named(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config_from_dict(values, TrainConfig)


def test_decay_spares_vectors_and_frozen_parameters_stay_out() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[2].requires_grad_(False)
    optimizer = make_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    set_learning_rate(optimizer, 0.2)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    # With a zero gradient only the decay acts: matrices shrink by lr * weight_decay, all else stays.
    torch.testing.assert_close(model[0].weight, before["0.weight"] * (1 - 0.2 * 0.5))
    for name in ("0.bias", "1.weight", "1.bias", "2.weight", "2.bias"):
        assert torch.equal(dict(model.named_parameters())[name], before[name]), name


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ConfigError, match="nothing to train"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimConfig())

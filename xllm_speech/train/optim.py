"""AdamW, and the learning rate as a pure function of the optimiser step (system.md, sections 1 and 5)."""

from __future__ import annotations

import math

import torch
from torch import nn

from xllm_speech.base.config import require
from xllm_speech.train.config import OptimConfig


def learning_rate(step: int, config: OptimConfig) -> float:
    """Learning rate of optimiser step `step`, counted from 0.

    All schedules rise in a straight line from `init_lr` to `lr` over `warmup_steps` and stay there for `hold_steps`.
    Then `tristage` falls exponentially (by the same factor each step) and `cosine` along half a cosine, both to `min_lr`
    after `decay_steps`, and stay there; `constant` stays at `lr`.
    """
    if step < config.warmup_steps:
        return config.init_lr + (config.lr - config.init_lr) * step / config.warmup_steps
    since_decay = step - config.warmup_steps - config.hold_steps
    if since_decay <= 0 or config.schedule == "constant":
        return config.lr
    share = min(1.0, since_decay / config.decay_steps)
    if share == 1.0:
        return config.min_lr
    if config.schedule == "tristage":
        return config.lr * math.exp(share * math.log(config.min_lr / config.lr))
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * share))


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; weight decay spares vectors and scalars (biases, norms).

    Raises:
        ConfigError: nothing in the model is trainable.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    require(bool(trainable), "nothing to train: every parameter of the model is frozen")
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr, betas=(config.betas[0], config.betas[1]), eps=config.eps, fused=True,
    )
    # AdamW makes this at a parameter's first gradient. Made here, a checkpoint holds it for every parameter, and one that
    # gets its first gradient after a resume counts its steps as in an undisturbed run.
    for parameter in trainable:
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use `lr` in every parameter group from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = lr

"""A toy task for the loop, and a program that trains it: `python toy_task.py OUT [option ...]`.

The model guesses a class from a noisy vector. It has dropout, a normalisation with buffers, a frozen part, and a part that
no batch uses, so that random state, buffers, missing gradients and unsaved tensors all matter.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn
from torch.nn import functional

from xllm_speech.base.errors import UserError
from xllm_speech.nn.frozen import Frozen
from xllm_speech.records import AsrLosses
from xllm_speech.train.config import OptimConfig, TrainConfig
from xllm_speech.train.loop import TrainResult, train
from xllm_speech.train.weights import save_weights

WIDTH, CLASSES = 8, 5


@dataclass(frozen=True)
class ToyBatch:
    """x_BD with target_B; an item of weight zero has no target tokens."""

    ids: list[str]
    x_BD: torch.Tensor
    target_B: torch.Tensor

    @property
    def seconds(self) -> float:
        return 1.5 * len(self.ids)

    def to(self, device: torch.device | str) -> ToyBatch:
        return replace(self, x_BD=self.x_BD.to(device), target_B=self.target_B.to(device))


class ToyModel(nn.Module):
    def __init__(self, dropout: float, norm: bool) -> None:
        super().__init__()
        self.frozen = Frozen(nn.Linear(WIDTH, WIDTH))
        self.first = nn.Linear(WIDTH, 16)
        self.norm = nn.BatchNorm1d(16) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(2))
        self.last = nn.Linear(16, CLASSES)
        self.idle = nn.Linear(3, 3)

    def guess(self, x_BD: torch.Tensor) -> torch.Tensor:
        hidden = self.dropout(self.norm(self.first(self.frozen(x_BD))))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.last(hidden)

    def forward(self, batch: ToyBatch) -> AsrLosses:
        logits_BV = self.guess(batch.x_BD)
        ce = functional.cross_entropy(logits_BV.float(), batch.target_B, reduction="sum")
        size = logits_BV.float().square().sum()
        correct = int((logits_BV.argmax(-1) == batch.target_B).sum())
        parts = {"size": size.detach(), "ce": ce.detach()}
        return AsrLosses(ce + 0.01 * size, parts, len(batch.ids), correct)


class ToyTask:
    """`batches` global batches of `size` items an epoch; with several ranks each gets its share of every batch."""

    best_key = "error"
    harmless_keys = frozenset({"data.workers"})

    def __init__(
        self, size: int = 4, batches: int = 7, dropout: float = 0.1, norm: bool = True, noise: float = 0.1,
        poison: tuple[int, ...] = (), kill_in_save: int = 0,
    ) -> None:
        self.model = ToyModel(dropout, norm)
        self.size, self.batches, self.noise, self.poison, self.kill_in_save = size, batches, noise, poison, kill_in_save
        self.saves = 0
        self.centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(7))

    def settings(self) -> dict[str, Any]:
        return {"data": {"size": self.size, "workers": 0}, "noise": self.noise}

    def draw(self, epoch: int, index: int, rank: int = 0, world_size: int = 1) -> ToyBatch:
        generator = torch.Generator().manual_seed(1000 * epoch + index)
        target_B = torch.randint(CLASSES, (self.size,), generator=generator)
        x_BD = self.centres[target_B] + 0.3 * torch.randn(self.size, WIDTH, generator=generator)
        if index in self.poison:
            x_BD[0, 0] = float("nan")
        ids = [f"e{epoch}-b{index}-u{item}" for item in range(self.size)]
        share = slice(rank, None, world_size)
        return ToyBatch(ids[share], x_BD[share], target_B[share])

    def train_batches(self, epoch: int, skip: int, rank: int, world_size: int) -> Iterator[ToyBatch]:
        for index in range(skip, self.batches):
            yield self.draw(epoch, index, rank, world_size)

    def token_count(self, batch: ToyBatch) -> int:
        return len(batch.ids)

    def prepare_batch(self, batch: ToyBatch, step_seed: int) -> ToyBatch:
        return replace(batch, x_BD=batch.x_BD + self.noise * torch.randn_like(batch.x_BD))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        assert isinstance(model, ToyModel)
        torch.rand(5)  # an evaluation may draw random numbers without harm
        batches = [self.draw(99, index) for index in range(3)]
        device = next(model.parameters()).device
        wrong = sum(int((model.guess(b.x_BD.to(device)).argmax(-1).cpu() != b.target_B).sum()) for b in batches)
        return {"error": 100 * wrong / (3 * self.size), "batches": 3.0}

    def save_model(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        save_weights(folder / "model.safetensors", {k: v for k, v in state.items() if not k.startswith("frozen.")})
        (folder / "config.yaml").write_text("kind: toy\n")
        self.saves += 1
        if self.saves == self.kill_in_save:
            os.kill(os.getpid(), signal.SIGKILL)


def run_toy(
    out: Path, task: dict[str, Any] | None = None, optim: dict[str, Any] | None = None, restart: bool = False, **config: Any
) -> TrainResult:
    """Train a toy task in this process."""
    optim_config = OptimConfig(**({"lr": 0.01, "init_lr": 0.001, "min_lr": 0.001, "warmup_steps": 3, "hold_steps": 5,
                                   "decay_steps": 10} | (optim or {})))
    defaults = {"device": "cpu", "num_threads": 1, "max_epochs": 0, "tensorboard": False, "log_every": 5}
    return train(lambda fabric: ToyTask(**(task or {})), optim_config, TrainConfig(**(defaults | config)), out, restart)


class KillingTask(ToyTask):
    """Kills its own process with SIGKILL once `kill_at` batches were prepared."""

    def __init__(self, kill_at: int, **options: Any) -> None:
        super().__init__(**options)
        self.kill_at, self.prepared = kill_at, 0

    def prepare_batch(self, batch: ToyBatch, step_seed: int) -> ToyBatch:
        self.prepared += 1
        if self.prepared == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare_batch(batch, step_seed)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--task", type=json.loads, default={})
    parser.add_argument("--config", type=json.loads, default={})
    parser.add_argument("--optim", type=json.loads, default={})
    parser.add_argument("--kill-at", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)

    def make_task(fabric: Fabric) -> ToyTask:
        return KillingTask(args.kill_at, **args.task) if args.kill_at else ToyTask(**args.task)

    optim = OptimConfig(**({"lr": 0.01, "init_lr": 0.001, "min_lr": 0.001, "warmup_steps": 3, "hold_steps": 5,
                            "decay_steps": 10} | args.optim))
    defaults = {"device": "cpu", "num_threads": 1, "max_epochs": 0, "tensorboard": False, "log_every": 5}
    try:
        train(make_task, optim, TrainConfig(**(defaults | args.config)), args.out)
    except UserError as error:
        print(f"UserError: {error}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

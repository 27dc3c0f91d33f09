"""One optimiser step: accumulation, data parallelism and clipping that give the gradient of the joined batch.

Losses are sums. The gradient of a step is that of (sum over all its batches, on all processes) / (all their target
tokens), however the utterances are split: dividing each batch by its own count would weigh short batches more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed.tensor
from lightning.fabric import Fabric
from torch import nn

from xllm_speech.base.errors import SeamError
from xllm_speech.train.devices import derive_seed, reseed
from xllm_speech.train.task import Task


class Carrier:
    """Carries a record through Fabric, DDP and FSDP, which would otherwise take dataclasses apart."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class LossModule(nn.Module):
    """What Fabric wraps: the task's model, called with a carried batch; returns (total loss, the carried `Losses`)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Carrier) -> tuple[torch.Tensor, Carrier]:
        """Losses of one batch."""
        losses = self.model(batch.value)
        return losses.total, Carrier(losses)


@dataclass
class StepReport:
    """What one optimiser step saw, over all processes. Sums, not means.

    bad_ids: ids of the batches whose loss was not finite, or of all batches when only the gradient was not;
    `reason` says which in words. A step with a reason changed no weight.
    """

    tokens: int = 0
    seconds: float = 0.0
    utterances: int = 0
    loss: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    correct: int = 0
    grad_norm: float = 0.0
    reason: str = ""
    bad_ids: list[str] = field(default_factory=list)


def count_work(fabric: Fabric, task: Task[Any], batches: Sequence[Any], where: str) -> tuple[int, float, int]:
    """Tokens, seconds of audio and utterances of `batches` over all processes; all zero when no process has a batch.

    Raises:
        SeamError: the processes drew different numbers of batches, which would leave one waiting for ever.
    """
    counts = [
        float(sum(task.token_count(batch) for batch in batches)),
        float(sum(batch.seconds for batch in batches)),
        float(sum(len(batch.ids) for batch in batches)),
        float(len(batches)),
    ]
    if fabric.world_size > 1:
        gathered = fabric.all_gather(torch.tensor(counts, dtype=torch.float64, device=fabric.device))
        assert isinstance(gathered, torch.Tensor)
        rows = gathered.tolist()
        drawn = [int(row[3]) for row in rows]
        if len(set(drawn)) > 1:
            raise SeamError(f"{where}: processes drew {drawn} batches; train_batches must give every rank equally many")
        counts = [sum(column) for column in zip(*rows, strict=True)]
    return int(counts[0]), counts[1], int(counts[2])


class Stepper:
    """Takes optimiser steps.

    Args:
        module: `LossModule` as wrapped by Fabric. clip_norm: largest global gradient norm, 0 leaves gradients alone.
        seed: with (step, position, rank) it decides all randomness of a batch.
    """

    def __init__(
        self, fabric: Fabric, task: Task[Any], module: nn.Module, optimizer: torch.optim.Optimizer, seed: int, clip_norm: float
    ) -> None:
        self.fabric, self.task, self.module, self.optimizer = fabric, task, module, optimizer
        self.seed, self.clip_norm = seed, clip_norm
        module.train()
        # Running statistics change in forward, before it is known whether the step may be taken.
        self._buffers = [b for part in module.modules() if part.training for b in part.buffers(recurse=False)]

    def take(self, step: int, batches: Sequence[Any], work: tuple[int, float, int]) -> StepReport:
        """Forward and backward over `batches`, then a step of the optimiser, unless a loss or the gradient is not finite.

        work: from `count_work`. Reads from the device once, beside what the model itself reads.

        Raises:
            SeamError: the model counted other target tokens than the task.
        """
        fabric, task = self.fabric, self.task
        tokens, seconds, utterances = work
        scale = fabric.world_size / max(1, tokens)
        buffers = [buffer.clone() for buffer in self._buffers]
        sums: list[torch.Tensor] = []
        names: list[str] = []
        correct = 0
        for position, drawn in enumerate(batches):
            step_seed = derive_seed(self.seed, step, position, fabric.global_rank)
            reseed(step_seed)
            batch = task.prepare_batch(drawn.to(fabric.device), step_seed)
            with fabric.no_backward_sync(self.module, enabled=position + 1 < len(batches)):  # type: ignore[arg-type]
                total, carried = self.module(Carrier(batch))
                fabric.backward(total * scale)
            losses = carried.value
            if losses.tokens != task.token_count(drawn):
                raise SeamError(
                    f"step {step}: the model counted {losses.tokens} target tokens, the task {task.token_count(drawn)} "
                    f"({', '.join(drawn.ids[:3])} ...)"
                )
            names = sorted(losses.parts)
            sums.append(torch.stack([total.detach().double(), *(losses.parts[name].detach().double() for name in names)]))
            correct += int(losses.correct)

        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.clip_norm or float("inf"))
        if isinstance(norm, torch.distributed.tensor.DTensor):
            norm = norm.full_tensor()
        sums_NK = torch.stack(sums)
        finite_N = sums_NK[:, 0].isfinite()
        numbers = torch.cat([
            (~finite_N).sum()[None].double(), sums_NK.new_tensor([float(correct)]), sums_NK.sum(0),
        ])
        if fabric.world_size > 1:
            torch.distributed.all_reduce(numbers)
        # The one read from the device: until it returns, whether the step may be taken is not known.
        bad, correct_sum, loss, *parts, grad_norm = torch.cat([numbers, norm.detach().double().reshape(1)]).tolist()
        report = StepReport(
            tokens, seconds, utterances, loss, dict(zip(names, parts, strict=True)), int(correct_sum), grad_norm
        )
        if bad or grad_norm != grad_norm or grad_norm == float("inf"):
            for buffer, before in zip(self._buffers, buffers, strict=True):
                buffer.copy_(before)
            _explain(fabric, report, batches, finite_N.tolist(), int(bad))
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return report


def _explain(fabric: Fabric, report: StepReport, batches: Sequence[Any], finite: list[bool], bad: int) -> None:
    chosen = [batch for batch, good in zip(batches, finite, strict=True) if not good or not bad]
    ids = [item for batch in chosen for item in batch.ids]
    if fabric.world_size > 1:
        gathered: list[Any] = [None] * fabric.world_size
        torch.distributed.all_gather_object(gathered, ids)
        ids = [item for part in gathered for item in part]
    report.bad_ids = ids
    report.reason = f"loss not finite in {bad} batch(es)" if bad else "gradient not finite, though each loss was"

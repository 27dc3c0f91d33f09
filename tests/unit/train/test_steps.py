"""One optimiser step: however a batch is split, the gradient is that of the whole."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from toy_task import ToyBatch, ToyTask, run_toy

from xllm_speech.base.errors import SeamError, UserError
from xllm_speech.base.files import read_jsonl
from xllm_speech.train.steps import LossModule, Stepper, StepReport, count_work


class SplitTask(ToyTask):
    """Plain gradient: no dropout, no noise, no batch statistics."""

    def __init__(self) -> None:
        super().__init__(size=6, dropout=0.0, norm=False, noise=0.0)

    def pieces(self, batch: ToyBatch, *cuts: int) -> list[ToyBatch]:
        edges = [0, *cuts, len(batch.ids)]
        return [
            ToyBatch(batch.ids[a:b], batch.x_BD[a:b], batch.target_B[a:b]) for a, b in pairwise(edges)
        ]


def one_step(task: Any, batches: list[ToyBatch], clip_norm: float = 0.0) -> tuple[StepReport, dict[str, torch.Tensor]]:
    """Gradients that a step took, read from plain SGD with rate 1."""
    torch.manual_seed(0)
    for parameter in task.model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    fabric = Fabric(accelerator="cpu", devices=1)
    module = fabric.setup_module(LossModule(task.model))
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in task.model.parameters() if p.requires_grad], lr=1.0)
    work = count_work(fabric, task, batches, "test")
    report = Stepper(fabric, task, module, optimizer, 1, clip_norm).take(0, batches, work)
    return report, {name: before[name] - p.detach() for name, p in task.model.named_parameters()}


def reference_gradient(task: SplitTask, batch: ToyBatch) -> dict[str, torch.Tensor]:
    task.model.zero_grad()
    (task.model(batch).total / len(batch.ids)).backward()
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in task.model.named_parameters()}
    task.model.zero_grad()
    return gradients


@pytest.mark.parametrize("cuts", [(), (3,), (1,), (1, 2, 5)])
def test_accumulation_gives_the_gradient_of_the_joined_batch(cuts: tuple[int, ...]) -> None:
    task = SplitTask()
    batch = task.draw(0, 0)
    report, step = one_step(task, task.pieces(batch, *cuts))
    # `one_step` set the weights; set the same ones again for the reference.
    torch.manual_seed(0)
    for parameter in task.model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    expected = reference_gradient(task, batch)
    assert max(float(g.abs().max()) for g in expected.values()) > 0.1
    for name, gradient in expected.items():
        torch.testing.assert_close(step[name], gradient, rtol=1e-5, atol=1e-6, msg=name)
    assert (report.tokens, report.utterances, report.seconds) == (6, 6, 9.0)
    assert report.grad_norm == pytest.approx(
        float(torch.stack([g.norm() for g in expected.values()]).norm()), rel=1e-5
    )


def test_report_sums_the_parts() -> None:
    task = SplitTask()
    batch = task.draw(0, 0)
    whole, _ = one_step(task, [batch])
    split, _ = one_step(task, task.pieces(batch, 2, 3))
    assert split.loss == pytest.approx(whole.loss, rel=1e-6)
    assert whole.loss == pytest.approx(whole.parts["ce"] + 0.01 * whole.parts["size"], rel=1e-6)
    assert {name: pytest.approx(value, rel=1e-6) for name, value in whole.parts.items()} == split.parts
    assert split.correct == whole.correct


def test_clipping_bounds_the_step_and_reports_the_norm_before() -> None:
    task = SplitTask()
    batch = task.draw(0, 0)
    free, free_step = one_step(task, [batch])
    clipped, step = one_step(task, [batch], clip_norm=free.grad_norm / 4)
    assert clipped.grad_norm == free.grad_norm
    for name in step:
        torch.testing.assert_close(step[name], free_step[name] / 4, rtol=1e-4, atol=1e-6)


def test_a_bad_batch_is_named_and_changes_nothing() -> None:
    task = SplitTask()
    good, bad = task.draw(0, 0), task.draw(0, 1)
    bad.x_BD[2, 3] = float("inf")
    report, step = one_step(task, [good, bad])
    assert report.bad_ids == bad.ids
    assert "1 batch" in report.reason
    assert all(not change.any() for change in step.values())


def test_a_bad_batch_leaves_running_statistics_alone() -> None:
    task = ToyTask(norm=True)
    assert isinstance(task.model.norm, torch.nn.BatchNorm1d)
    bad = task.draw(0, 1)
    bad.x_BD[0, 0] = float("nan")
    one_step(task, [bad])
    assert torch.equal(task.model.norm.running_mean, torch.zeros(16))
    assert int(task.model.norm.num_batches_tracked) == 0
    one_step(task, [task.draw(0, 0)])
    assert int(task.model.norm.num_batches_tracked) == 1


class BadGradientTask(SplitTask):
    """A finite loss whose gradient is not: the root of zero."""

    def __init__(self) -> None:
        super().__init__()
        inner = self.model.forward

        def forward(batch: ToyBatch) -> Any:
            losses = inner(batch)
            return replace(losses, total=losses.total + (self.model.last.bias.sum() * 0.0).sqrt())

        self.model.forward = forward  # type: ignore[method-assign]


def test_a_bad_gradient_is_reported_with_all_ids() -> None:
    task = BadGradientTask()
    batches = [task.draw(0, 0), task.draw(0, 1)]
    report, step = one_step(task, batches)
    assert "gradient" in report.reason
    assert report.bad_ids == batches[0].ids + batches[1].ids
    assert all(not change.any() for change in step.values())


def test_a_task_that_miscounts_is_caught() -> None:
    class Miscounting(SplitTask):
        def token_count(self, batch: ToyBatch) -> int:
            return len(batch.ids) + 1

    with pytest.raises(SeamError, match="model counted 6 target tokens, the task 7"):
        one_step(Miscounting(), [SplitTask().draw(0, 0)])


def test_run_skips_bad_steps_and_names_their_utterances(tmp_path: Path) -> None:
    result = run_toy(tmp_path / "run", {"poison": (2,)}, max_epochs=3, max_nonfinite=5, save_every=100)
    assert result.step == 21
    rows = [row for _, row in read_jsonl(tmp_path / "run" / "train.log") if row["kind"] == "skipped"]
    assert [row["step"] for row in rows] == [3, 10, 17]
    assert [row["ids"][0] for row in rows] == ["e0-b2-u0", "e1-b2-u0", "e2-b2-u0"]
    assert result.best is not None
    assert result.best < 60  # it learned from the others: chance is 80 % errors


def test_run_stops_after_too_many_bad_steps(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"3 steps were not finite.*max_nonfinite allows 2.*step 9, had e1-b1-u0"):
        run_toy(tmp_path / "run", {"poison": (1, 2)}, max_epochs=3, max_nonfinite=2, save_every=4)
    # What was saved before stays usable; the count goes on from there, not from zero.
    with pytest.raises(UserError, match="3 steps were not finite"):
        run_toy(tmp_path / "run", {"poison": (1, 2)}, max_epochs=3, max_nonfinite=2, save_every=4)

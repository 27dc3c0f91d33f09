"""What a run tells: lines or a bar on the console, `train.log` (JSON lines), TensorBoard curves and `header.json`."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from xllm_speech.base.errors import DataError
from xllm_speech.base.files import atomic_write, read_jsonl
from xllm_speech.train.steps import StepReport


@dataclass
class _Interval:
    """Sums since the last line."""

    started: float = field(default_factory=time.perf_counter)
    steps: int = 0
    tokens: int = 0
    items: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    correct: int = 0
    parts: dict[str, float] = field(default_factory=dict)
    wait_sec: float = 0.0
    other_sec: float = 0.0


class Reporter:
    """Tells about a run on rank 0; silent elsewhere.

    Args:
        out: the run's directory. active: False keeps silent and writes nothing. log_every: optimiser steps per line.
        tensorboard: also write curves to `out/tensorboard`.
    """

    def __init__(self, out: Path, active: bool, log_every: int, tensorboard: bool = True) -> None:
        self.out, self.active, self.log_every = out, active, log_every
        self.tensorboard = tensorboard
        self.console = Console(highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._writer: Any = None
        self._interval = _Interval()
        self._step_sec = 0.0

    def say(self, text: str) -> None:
        """One line with the time of day."""
        if self.active:
            self.console.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False)

    def start(self, step: int, total_steps: int) -> None:
        """Begin after `step` optimiser steps (0 or where the run resumes); rows of later steps leave the log and the curves."""
        if not self.active:
            return
        self._truncate_log(step)
        if self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # 1 s to import, and optional

            self._writer = SummaryWriter(str(self.out / "tensorboard"), purge_step=step + 1 if step else None)
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self.console)
            self._bar.add_task("training", total=total_steps or None, completed=step)
            self._bar.start()
        self._interval = _Interval()

    def step(self, report: StepReport, step: int, epoch: int, lr: float, wait_sec: float, total_steps: int) -> None:
        """Take note of an optimiser step; every `log_every` steps tell about all since the last line.

        wait_sec: how long the step waited for its batches. total_steps: for the time left, 0 when not known.
        """
        if not self.active:
            return
        interval = self._interval
        interval.steps += 1
        interval.wait_sec += wait_sec
        interval.seconds += report.seconds
        interval.items += report.utterances
        if not report.reason:
            interval.tokens += report.tokens
            interval.loss += report.loss
            interval.correct += report.correct
            for name, value in report.parts.items():
                interval.parts[name] = interval.parts.get(name, 0.0) + value
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, total=total_steps or None)
        if step % self.log_every == 0:
            self._tell(step, epoch, lr, report.grad_norm, total_steps)

    def _tell(self, step: int, epoch: int, lr: float, grad_norm: float, total_steps: int) -> None:
        interval, now = self._interval, time.perf_counter()
        elapsed = max(now - interval.started - interval.other_sec, 1e-9)
        self._interval = _Interval(now)
        tokens = max(1, interval.tokens)
        parts = {name: value / tokens for name, value in interval.parts.items()}
        # Smoothed, so that one slow stretch does not throw the time left about.
        self._step_sec = 0.7 * (self._step_sec or elapsed / interval.steps) + 0.3 * elapsed / interval.steps
        left = (total_steps - step) * self._step_sec if total_steps else None
        row: dict[str, Any] = {
            "kind": "train", "step": step, "epoch": epoch, "loss": interval.loss / tokens, **parts,
            "accuracy": interval.correct / tokens, "lr": lr, "grad_norm": grad_norm,
            "audio_sec_per_sec": interval.seconds / elapsed, "items_per_sec": interval.items / elapsed,
            "step_sec": elapsed / interval.steps,
            "wait_share": interval.wait_sec / elapsed,
        }
        self.log(row)
        shown = " ".join(f"{name} {value:.3f}" for name, value in parts.items())
        of = f"/{total_steps}" if total_steps else ""
        rest = "" if left is None else f", {timedelta(seconds=round(left))} left"
        speed = f"{row['items_per_sec']:.0f} items" if not interval.seconds else f"{row['audio_sec_per_sec']:.0f} s of audio"
        waiting = f", {row['wait_share']:.0%} waiting for data" if row["wait_share"] > 0.1 else ""
        self.say(
            f"step {step}{of} epoch {epoch} loss {row['loss']:.3f} ({shown}) accuracy {100 * row['accuracy']:.1f} % "
            f"lr {lr:.2e} norm {grad_norm:.2f}, {speed} per s{waiting}{rest}"
        )

    def skipped(self, report: StepReport, step: int, count: int, allowed: int) -> None:
        """Tell of a step that was not taken, with the ids of its utterances."""
        shown = ", ".join(report.bad_ids[:5]) + (f" and {len(report.bad_ids) - 5} more" if len(report.bad_ids) > 5 else "")
        self.log({"kind": "skipped", "step": step, "reason": report.reason, "ids": report.bad_ids})
        self.say(f"step {step} skipped: {report.reason}: {shown} ({count} skipped so far, {allowed} allowed)")

    def evaluated(self, metrics: dict[str, float], step: int, epoch: int, elapsed_sec: float, best: bool) -> None:
        """Tell of an evaluation that took `elapsed_sec`."""
        self._interval.other_sec += elapsed_sec
        if metrics:
            self.log({"kind": "dev", "step": step, "epoch": epoch, **metrics})
            shown = " ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            self.say(f"step {step} dev {shown}{' (best so far)' if best else ''}, {elapsed_sec:.1f} s")

    def paused(self, elapsed_sec: float) -> None:
        """Leave `elapsed_sec`, spent on a checkpoint, out of the measured speed."""
        self._interval.other_sec += elapsed_sec

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to `train.log`, and its numbers to the curves."""
        if not self.active:
            return
        with open(self.out / "train.log", "a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        if self._writer is not None:
            for name, value in row.items():
                if isinstance(value, (int, float)) and name != "step":
                    self._writer.add_scalar(f"{row['kind']}/{name}", value, row["step"])

    def close(self) -> None:
        """End the bar and flush the curves."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _truncate_log(self, step: int) -> None:
        path = self.out / "train.log"
        if not path.exists():
            return
        kept = []
        try:
            for _, row in read_jsonl(path):
                if row.get("step", 0) <= step:
                    kept.append(row)
        except DataError:
            pass  # the last line of a killed run may be half a line
        with atomic_write(path) as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)

"""The training loop: draw, step, evaluate, save; resumable at any step to the same weights.

All randomness of a step is a function of (seed, step, position, rank), so a checkpoint holds no generator state: the
model, the optimiser and the place in the data are enough.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from copy import copy
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch.distributed.fsdp import FSDPModule

from xllm_speech.base.errors import CheckpointError, DataError, UserError
from xllm_speech.base.files import write_json
from xllm_speech.base.header import run_header
from xllm_speech.train.config import OptimConfig, TrainConfig
from xllm_speech.train.devices import derive_seed, launch_fabric, reseed, torch_settings
from xllm_speech.train.optim import learning_rate, make_optimizer, set_learning_rate
from xllm_speech.train.report import Reporter
from xllm_speech.train.saves import (
    Checkpoint,
    Progress,
    check_settings,
    clean_leftovers,
    copy_model,
    list_checkpoints,
    lock,
    move_aside,
    prune,
    read_checkpoint,
    write_checkpoint,
)
from xllm_speech.train.steps import LossModule, Stepper, count_work
from xllm_speech.train.task import Task
from xllm_speech.train.weights import gather_model, gather_optimizer, load_checkpoint

# Keys that may differ when a run is resumed: they change where and how long it runs and what it tells, not what it learns.
HARMLESS = frozenset(
    f"train.{key}" for key in (
        "max_steps", "max_epochs", "strategy", "device", "devices", "num_threads", "log_every", "eval_every", "save_every",
        "keep_last", "keep_best", "max_nonfinite", "find_unused_parameters", "deterministic", "tensorboard",
    )
)


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. final: the model directory. best: smallest dev metric, None without evaluation.

    resumed_step: where it took up an earlier run, 0 for a new one. up_to_date: nothing was left to do. process: rank of
    the process that this result is from.
    """

    step: int
    epoch: int
    final: Path
    best: float | None
    best_step: int
    resumed_step: int
    up_to_date: bool
    process: int = 0


def train(
    make_task: Callable[[Fabric], Task[Any]], optim: OptimConfig, config: TrainConfig, out: Path, restart: bool = False
) -> TrainResult:
    """Train to the end of `config`, taking up the run in `out` where it stopped, or anew with `restart`.

    make_task: builds the task on every process, after the random generators are seeded. An earlier run is moved to
    `OUT.old-N` by `restart`, never deleted.

    Raises:
        ConfigError: a device is absent, or the run in `out` was made with other settings.
        CheckpointError: `out` has checkpoints and none can be used.
        UserError: more than `max_nonfinite` steps were not finite; `out` is in use; the disk is full.
    """
    fabric = launch_fabric(config)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch_settings(config, fabric.device))
        reporter = Reporter(out, fabric.is_global_zero, config.log_every, config.tensorboard)
        stack.callback(reporter.close)
        if fabric.is_global_zero:
            if restart and out.exists():
                with lock(out):
                    reporter.say(f"starting anew; the earlier run is now {move_aside(out)}")
            stack.enter_context(lock(out))
            clean_leftovers(out)
        fabric.barrier()
        reseed(derive_seed(config.seed, "init"))
        return _Run(fabric, make_task(fabric), optim, config, out, reporter).run()


class _Run:
    """One call of `train`: what its parts share."""

    def __init__(
        self, fabric: Fabric, task: Task[Any], optim: OptimConfig, config: TrainConfig, out: Path, reporter: Reporter
    ) -> None:
        self.fabric, self.task, self.optim, self.config, self.out, self.reporter = fabric, task, optim, config, out, reporter
        self.bare = LossModule(task.model)
        module = fabric.setup_module(self.bare)
        self.optimizer = make_optimizer(self.bare, optim)
        self.stepper = Stepper(fabric, task, module, self.optimizer, config.seed, config.clip_norm)
        # Through JSON, as they will be read back: tuples become lists.
        self.settings = json.loads(json.dumps({"optim": asdict(optim), "train": asdict(config), **task.settings()}))
        self.progress = Progress()
        self.saved: Progress | None = None
        self.metrics: dict[str, float] = {}
        self.metrics_step = -1

    @property
    def done(self) -> bool:
        config, progress = self.config, self.progress
        return bool(
            (config.max_steps and progress.step >= config.max_steps)
            or (config.max_epochs and progress.epoch >= config.max_epochs)
        )

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, as far as known; 0 when not."""
        config, progress = self.config, self.progress
        by_epochs = 0
        if config.max_epochs and progress.epoch_steps:
            by_epochs = progress.epoch_start + (config.max_epochs - progress.epoch) * progress.epoch_steps
        return min([total for total in (config.max_steps, by_epochs) if total], default=0)

    def run(self) -> TrainResult:
        resumed = self.resume()
        finished = self.done
        if not finished:
            self.write_header(resumed)
            self.reporter.start(resumed, self.total_steps)
        while not self.done:
            self.run_epoch()
        if self.progress != self.saved:
            self.evaluate()
            self.save()
        up_to_date = self.finish() and finished
        progress = self.progress
        return TrainResult(
            progress.step, progress.epoch, self.out / "final", progress.best, progress.best_step, resumed, up_to_date,
            self.fabric.global_rank,
        )

    def run_epoch(self) -> None:
        """The rest of the current epoch, or as much of it as the run still wants."""
        fabric, config, progress, task = self.fabric, self.config, self.progress, self.task
        reseed(derive_seed(config.seed, progress.epoch, "epoch"))
        batches = iter(task.train_batches(progress.epoch, progress.batch, fabric.global_rank, fabric.world_size))
        while not self.done:
            waiting = time.perf_counter()
            drawn = list(islice(batches, config.accumulate))
            work = count_work(fabric, task, drawn, f"epoch {progress.epoch}, after batch {progress.batch}")
            if not drawn:
                if progress.batch == 0:
                    raise DataError(f"epoch {progress.epoch} has no batch to train on; look at the training manifest")
                progress.epoch_steps = progress.step - progress.epoch_start
                progress.epoch_start = progress.step
                progress.epoch += 1
                progress.batch = 0
                return
            wait_sec = time.perf_counter() - waiting
            lr = learning_rate(progress.step, self.optim)
            set_learning_rate(self.optimizer, lr)
            report = self.stepper.take(progress.step, drawn, work)
            progress.step += 1
            progress.batch += len(drawn)
            if report.reason:
                progress.nonfinite += 1
                self.reporter.skipped(report, progress.step, progress.nonfinite, config.max_nonfinite)
                if progress.nonfinite > config.max_nonfinite:
                    raise UserError(
                        f"{self.out}: {progress.nonfinite} steps were not finite, train.max_nonfinite allows "
                        f"{config.max_nonfinite}; the last, step {progress.step}, had {', '.join(report.bad_ids[:5])}. "
                        "Look at these utterances (train.log lists all), or lower optim.lr or train.clip_norm"
                    )
            self.reporter.step(report, progress.step, progress.epoch, lr, wait_sec, self.total_steps)
            if self.done or progress.step % (config.eval_every or config.save_every) == 0:
                self.evaluate()
            if progress.step % config.save_every == 0:
                self.save()

    def evaluate(self) -> None:
        """Evaluate the weights of this step, once; a best result writes `out/best`."""
        progress = self.progress
        if self.metrics_step == progress.step:
            return
        started = time.perf_counter()
        reseed(derive_seed(self.config.seed, progress.step, "evaluate"))
        self.bare.eval()
        with torch.no_grad(), self.fabric.autocast(), _whole(self.bare):
            metrics = self.task.evaluate(self.task.model)
        self.bare.train()
        self.metrics = self.fabric.broadcast({name: float(value) for name, value in metrics.items()})
        self.metrics_step = progress.step
        value = self.metrics.get(self.task.best_key)
        better = value is not None and (progress.best is None or value < progress.best) and value == value
        if better:
            progress.best, progress.best_step = value, progress.step
            state = gather_model(self.bare)
            if self.fabric.is_global_zero:
                write_checkpoint(
                    self.out / "best", lambda part: self.task.save_model(part, state), None, self._checkpoint(self.out / "best")
                )
        self.reporter.evaluated(self.metrics, progress.step, progress.epoch, time.perf_counter() - started, better)

    def save(self) -> None:
        """Write the checkpoint of this step and delete those no longer wanted."""
        started = time.perf_counter()
        state, optimizer_state = gather_model(self.bare), gather_optimizer(self.bare, self.optimizer)
        self.saved = copy(self.progress)
        if self.fabric.is_global_zero:
            checkpoint = self._checkpoint(self.out / "checkpoints" / f"step_{self.progress.step:08d}")
            write_checkpoint(
                checkpoint.path,
                lambda part: self.task.save_model(part, state),
                lambda path: torch.save(optimizer_state, path),
                checkpoint,
            )
            prune(list_checkpoints(self.out, lambda text: None), self.config.keep_last, self.config.keep_best)
        self.reporter.paused(time.perf_counter() - started)

    def _checkpoint(self, path: Path) -> Checkpoint:
        metrics = self.metrics if self.metrics_step == self.progress.step else {}
        return Checkpoint(
            path, copy(self.progress), metrics, self.task.best_key, self.settings, self.fabric.world_size
        )

    def resume(self) -> int:
        """Load the newest usable checkpoint; returns its step, 0 when there is none."""
        found = list_checkpoints(self.out, self.reporter.say)
        harmless = HARMLESS | self.task.harmless_keys
        for checkpoint in reversed(found):
            check_settings(checkpoint, self.settings, harmless)
            try:
                load_checkpoint(checkpoint.path, self.bare, self.optimizer)
            except CheckpointError as error:
                self.reporter.say(f"checkpoint passed over: {error}")
                continue
            self.progress, self.saved = copy(checkpoint.progress), copy(checkpoint.progress)
            if checkpoint.metrics:
                self.metrics, self.metrics_step = checkpoint.metrics, self.progress.step
            before, now = checkpoint.world_size, self.fabric.world_size
            if before != now:
                self.progress.batch = self.progress.batch * before // now
                self.reporter.say(f"saved on {before} processes, goes on with {now}: batches differ from here on")
            if not self.done:
                self.reporter.say(
                    f"resuming after step {self.progress.step} (epoch {self.progress.epoch}, batch {self.progress.batch}) "
                    f"from {checkpoint.path}"
                )
            return self.progress.step
        broken = sorted(path.name for path in (self.out / "checkpoints").glob("step_*"))
        if broken:
            raise CheckpointError(
                f"{self.out}: none of its {len(broken)} checkpoints can be used ({', '.join(broken[-3:])}); "
                "put a good one back, or start anew with --restart"
            )
        return 0

    def finish(self) -> bool:
        """Make `out/final` from the last checkpoint; True when it already was that."""
        path = self.out / "final"
        current = False
        with contextlib.suppress(CheckpointError):
            current = read_checkpoint(path).progress == self.progress
        if not current and self.fabric.is_global_zero:
            copy_model(read_checkpoint(self.out / "checkpoints" / f"step_{self.progress.step:08d}"), path)
        self.fabric.barrier()
        return current

    def write_header(self, resumed: int) -> None:
        if self.fabric.is_global_zero:
            trainable = sum(p.numel() for p in self.task.model.parameters() if p.requires_grad)
            header = run_header(self.config.seed) | {
                "device": str(self.fabric.device), "processes": self.fabric.world_size, "threads": torch.get_num_threads(),
                "precision": self.config.precision, "resumed_step": resumed, "trained_parameters": trainable,
                "settings": self.settings,
            }
            write_json(self.out / "header.json", header)
            self.reporter.say(
                f"{trainable:,} parameters to train on {self.fabric.world_size} x {self.fabric.device.type}, "
                f"precision {self.config.precision}, into {self.out}"
            )


@contextlib.contextmanager
def _whole(module: torch.nn.Module) -> Any:
    """Under FSDP, hold every weight whole, so that an evaluation may call more of the model than its forward."""
    sharded = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in sharded:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    yield
    for part in sharded:
        part.set_reshard_after_forward(part is not module, recurse=False)
        part.reshard()

"""Configuration of training: the optimiser with its schedule, and the loop."""

from __future__ import annotations

from dataclasses import dataclass, field

from xllm_speech.base.config import require, require_choice

SCHEDULES = ("tristage", "cosine", "constant")


@dataclass
class OptimConfig:
    """AdamW and its learning rate, set anew before every optimiser step (`optim.learning_rate`).

    lr: the peak. init_lr: where the warm-up starts. min_lr: where the decay ends. The schedule is `warmup_steps`,
    `hold_steps` at the peak, then `decay_steps` down to `min_lr`, which stays. Defaults are the paper's phase 1 (A.3).
    """

    lr: float = 3e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = 1e-8
    weight_decay: float = 0.01
    schedule: str = "tristage"  # tristage (exponential decay) | cosine | constant (warm-up, then lr for good)
    init_lr: float = 3e-6
    min_lr: float = 3e-6
    warmup_steps: int = 24_000
    hold_steps: int = 36_000
    decay_steps: int = 120_000

    def __post_init__(self) -> None:
        require_choice("optim.schedule", self.schedule, SCHEDULES)
        require(self.lr > 0, f"optim.lr {self.lr} must be above 0")
        require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"optim.betas {self.betas}: two numbers, each in [0, 1)",
        )
        require(self.eps > 0, f"optim.eps {self.eps} must be above 0")
        require(self.weight_decay >= 0, f"optim.weight_decay {self.weight_decay} must not be negative")
        require(0 <= self.init_lr <= self.lr, f"optim.init_lr {self.init_lr} must lie in 0..lr ({self.lr})")
        for name, steps in (("warmup", self.warmup_steps), ("hold", self.hold_steps), ("decay", self.decay_steps)):
            require(steps >= 0, f"optim.{name}_steps {steps} must not be negative")
        if self.schedule != "constant":
            require(0 <= self.min_lr <= self.lr, f"optim.min_lr {self.min_lr} must lie in 0..lr ({self.lr})")
            require(self.decay_steps > 0, f"optim.decay_steps must be above 0 for the {self.schedule} schedule")
        if self.schedule == "tristage":
            require(self.min_lr > 0, "optim.min_lr must be above 0 for tristage: its decay is exponential")


@dataclass
class TrainConfig:
    """The loop. A 0 means none, or the stated default.

    max_steps, max_epochs: whichever comes first ends the run. accumulate: batches of one process per optimiser step.
    clip_norm: largest global gradient norm. strategy auto: one process, or DDP on several. num_threads: of torch, 0
    leaves it alone. eval_every, in steps: 0 evaluates at every checkpoint. keep_last, keep_best: checkpoints kept.
    max_nonfinite: optimiser steps skipped for a NaN or infinite loss or gradient before the run stops.
    deterministic: on CPU, torch's deterministic kernels, which a bit-identical resume with several threads needs.
    """

    max_steps: int = 0
    max_epochs: int = 84
    accumulate: int = 1
    clip_norm: float = 5.0
    precision: str = "32"  # 32 | bf16-mixed
    strategy: str = "auto"  # auto | ddp | fsdp
    device: str = "auto"  # auto | cpu | cuda
    devices: int = 1  # per machine; torchrun's own count wins
    num_threads: int = 0
    seed: int = 1
    log_every: int = 50
    eval_every: int = 0
    save_every: int = 1000
    keep_last: int = 10
    keep_best: int = 5
    max_nonfinite: int = 20
    find_unused_parameters: bool = True  # DDP: some batches may leave a part idle, e.g. the visual blocks without pictures
    deterministic: bool = True
    tensorboard: bool = True

    def __post_init__(self) -> None:
        require(self.max_steps >= 0 and self.max_epochs >= 0, "train.max_steps and train.max_epochs must not be negative")
        require(self.max_steps > 0 or self.max_epochs > 0, "train.max_steps or train.max_epochs must be above 0")
        require(self.accumulate >= 1, f"train.accumulate {self.accumulate} must be at least 1")
        require(self.clip_norm >= 0, f"train.clip_norm {self.clip_norm} must not be negative (0: no clipping)")
        require_choice("train.precision", self.precision, ("32", "bf16-mixed"))
        require_choice("train.strategy", self.strategy, ("auto", "ddp", "fsdp"))
        require_choice("train.device", self.device, ("auto", "cpu", "cuda"))
        require(self.devices >= 1, f"train.devices {self.devices} must be at least 1")
        require(self.num_threads >= 0, f"train.num_threads {self.num_threads} must not be negative (0: leave it alone)")
        require(self.eval_every >= 0, f"train.eval_every {self.eval_every} must not be negative (0: at every checkpoint)")
        for name, value in (("log_every", self.log_every), ("save_every", self.save_every)):
            require(value >= 1, f"train.{name} {value} must be at least 1")
        require(self.keep_last >= 1, f"train.keep_last {self.keep_last} must be at least 1")
        require(self.keep_best >= 0, f"train.keep_best {self.keep_best} must not be negative")
        require(self.max_nonfinite >= 0, f"train.max_nonfinite {self.max_nonfinite} must not be negative")

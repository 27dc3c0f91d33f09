"""`xllm-speech train`: train the model that a configuration describes, or go on where an earlier run stopped."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.description = (
        "Train, or go on where the run in DIR stopped. Several processes: put `torchrun --nproc-per-node N -m "
        "xllm_speech.bin.main` in place of `xllm-speech`, or set train.devices=N."
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the experiment, YAML")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="DIR", help="checkpoints, curves, best/ and final/ go here")
    what.add_argument("--show", action="store_true", help="print the experiment with all bases and defaults as YAML, and end")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="short for train.device=")
    parser.add_argument("--restart", action="store_true", help="start anew; an earlier run in DIR is moved to DIR.old-N")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="e.g. train.max_steps=100 optim.lr=1e-3")


def run(args: argparse.Namespace) -> int:
    """Train to the end of the configuration; returns the exit status."""
    from collections.abc import Callable
    from typing import Any

    from xllm_speech.base.config import as_yaml, load_config, read_key
    from xllm_speech.base.errors import ConfigError
    from xllm_speech.train import asr, lm, xllm
    from xllm_speech.train.devices import leave_processes
    from xllm_speech.train.loop import train

    overrides = [*args.overrides, *([f"train.device={args.device}"] if args.device else [])]
    experiment: Any
    make_task: Callable[..., Any]
    match task := read_key(args.config, "task", overrides, "asr"):
        case "asr":
            experiment, make_task = load_config(args.config, asr.AsrExperiment, overrides), asr.AsrTask
        case "lm":
            experiment, make_task = load_config(args.config, lm.LmExperiment, overrides), lm.LmTask
        case "align" | "integrate":
            experiment, make_task = load_config(args.config, xllm.XllmExperiment, overrides), xllm.XllmTask
        case _:
            raise ConfigError(f"{args.config}: task `{task}` is not one of asr, align, integrate, lm")
    if args.show:
        print(as_yaml(experiment), end="")
        return 0
    result = train(
        lambda fabric: make_task(experiment, args.out, fabric), experiment.optim, experiment.train, args.out, args.restart
    )
    leave_processes()
    if result.process == 0:
        best = "" if result.best is None else f", best on the development data: {result.best:.4g} at step {result.best_step}"
        state = "up to date" if result.up_to_date else "finished"
        print(f"{state}: {result.step} steps, {result.epoch} epochs{best}; model in {result.final}")
    return 0

"""`xllm-speech average`: the average of several checkpoints of a training run."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.add_argument("dir", type=Path, metavar="DIR", help="the --out of a training run")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--last", type=int, metavar="K", help="average the last K checkpoints")
    which.add_argument("--best", type=int, metavar="K", help="average the K checkpoints best on the development data")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the model directory goes (default: DIR/average)")


def run(args: argparse.Namespace) -> int:
    """Average and say what was made of what; returns the exit status."""
    from xllm_speech.train.average import average_checkpoints

    average = average_checkpoints(args.dir, args.last or 0, args.best or 0, args.out)
    for checkpoint in average.checkpoints:
        metric = "" if checkpoint.metric is None else f"  {checkpoint.best_key} {checkpoint.metric:.4g}"
        print(f"{checkpoint.path.name}{metric}")
    print(f"average of {len(average.checkpoints)} -> {average.path}")
    return 0

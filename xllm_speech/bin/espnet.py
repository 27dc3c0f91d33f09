"""`xllm-speech espnet`: models to and from ESPnet2's experiments."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.description = (
        "Models to and from ESPnet2. ESPnet's training of the CIF ASR is `python -m xllm_speech.neighbours.espnet_train`, "
        "with ESPnet's own options; docs/espnet.md shows the way."
    )
    commands = parser.add_subparsers(dest="kind", required=True, metavar="from | to")
    arriving = commands.add_parser("from", help="a model directory of ours from the output_dir of ESPnet's training")
    arriving.add_argument("experiment", type=Path, metavar="EXPERIMENT", help="ESPnet's output_dir, with its config.yaml")
    arriving.add_argument("--out", type=Path, required=True, metavar="DIR", help="the model directory to write")
    arriving.add_argument("--weights", metavar="FILE", help="a .pth file of it; default: valid.acc.ave.pth, else the next best")
    leaving = commands.add_parser("to", help="a folder from which ESPnet goes on with a model of ours")
    leaving.add_argument("model", type=Path, metavar="MODEL", help="a model directory, or the output of `train`")
    leaving.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets config.yaml, model.pth and token_table")


def run(args: argparse.Namespace) -> int:
    """Convert, and say in one line what stands where; exit status 0."""
    from xllm_speech.neighbours.espnet_experiment import export_experiment, start_experiment

    match args.kind:
        case "from":
            taken = export_experiment(args.experiment, args.out, args.weights)
            print(f"{taken} -> {args.out}; try: xllm-speech transcribe --model {args.out} --kaldi DIR")
        case _:
            start_experiment(args.model, args.out)
            print(
                f"{args.out}; try: python -m xllm_speech.neighbours.espnet_train --config {args.out}/config.yaml "
                f"--init_param {args.out}/model.pth ..."
            )
    return 0

"""`xllm-speech bench`: speed and memory as ratios against a named reference in the same run."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb; one subcommand per benchmark."""
    subparsers = parser.add_subparsers(dest="subject", required=True, metavar="SUBJECT")
    cif = subparsers.add_parser("cif", help="integrate-and-fire: ours, the loop and a plain scatter; forward and backward")
    cif.add_argument("--batch", type=int, default=16, help="utterances (default: 16)")
    cif.add_argument("--steps", type=int, default=500, help="encoder steps of the longest (default: 500)")
    cif.add_argument("--width", type=int, default=512, help="encoder width (default: 512)")
    cif.add_argument("--rate", type=float, default=0.25, help="units per step (default: 0.25)")
    asr = subparsers.add_parser("asr", help="a training step of the paper's encoder beside ESPnet2's of the same size")
    asr.add_argument("--batch", type=int, default=4, help="utterances (default: 4)")
    asr.add_argument("--seconds", type=float, default=8.0, help="length of each utterance (default: 8)")
    asr.add_argument("--position", choices=["rope", "relative"], default="rope", help="positions of ours (default: rope)")
    for sub in (cif, asr):
        sub.add_argument("--repeats", type=int, default=5, help="timed runs of each after one warm-up; the median counts")
        sub.add_argument("--threads", type=int, default=0, help="CPU threads (default: all cores)")
        sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
        sub.add_argument("--json", action="store_true", help="one JSON object on stdout instead of a table")


def run(args: argparse.Namespace) -> int:
    """Run one benchmark; exit status 0."""
    import torch

    from xllm_speech.models import bench

    if args.threads:
        torch.set_num_threads(args.threads)
    match args.subject:
        case "cif":
            result = bench.bench_cif(args.batch, args.steps, args.width, args.rate, args.repeats, args.device)
        case _:
            result = bench.bench_asr(args.batch, args.seconds, args.position, args.repeats, args.device)
    bench.print_result(result, as_json=args.json)
    return 0

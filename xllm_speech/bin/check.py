"""`xllm-speech check`: properties of a model that must hold."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    subparsers = parser.add_subparsers(dest="property", required=True, metavar="PROPERTY")
    invariance = subparsers.add_parser("invariance", help="padding and batching change no result")
    invariance.add_argument("model", type=Path, metavar="DIR", help="a model directory, or the output of `train`")
    invariance.add_argument("--cuts", type=Path, metavar="FILE", help="utterances to try; default: made-up ones")
    invariance.add_argument("--utterances", type=int, default=32, help="how many of them (default: 32)")
    invariance.add_argument("--search", nargs="+", choices=("greedy", "beam", "fast"), default=["greedy", "beam"],
                            help="searches to try (default: greedy beam)")
    invariance.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    invariance.add_argument("--json", action="store_true", help="one JSON object instead of lines")


def run(args: argparse.Namespace) -> int:
    """Check; exit status 1 when a result changed."""
    import json

    from xllm_speech.infer.invariance import check_invariance
    from xllm_speech.models.checkpoints import load_asr
    from xllm_speech.nn.device import choose_device

    device = choose_device(args.device)
    report = check_invariance(load_asr(args.model, device), args.search, args.cuts, args.utterances, device)
    if args.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        print(f"{report['utterances']} utterances, alone and in {report['batches']} batches of other company")
        print(f"encoder: largest difference {report['encoder_difference']:.2e}")
        print(f"units: {report['changed_units']} utterances with another number of units")
        for name, changed in report["changed_texts"].items():
            print(f"{name}: {len(changed)} texts changed{': ' + ', '.join(changed[:5]) if changed else ''}")
        print("invariant" if report["invariant"] else "NOT invariant")
    return 0 if report["invariant"] else 1

"""`xllm-speech features`: compute features once, and CMVN statistics."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--cuts", type=Path, required=True, metavar="FILE", help="cuts.jsonl or cuts.jsonl.gz")
    parser.add_argument("--out", type=Path, metavar="DIR", help="gets ark/, feats.scp, cuts.jsonl.gz and rejected.jsonl")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (1)")
    parser.add_argument(
        "--speeds", type=float, nargs="+", default=[1.0], metavar="X", help="speed factors, such as 0.9 1.0 1.1 (1.0)"
    )
    parser.add_argument("--cmvn", type=Path, metavar="FILE", help="compute CMVN statistics of the features and write them here")
    parser.add_argument("--channel", default="mix", help="mix, or a channel number, for audio of several channels (mix)")
    parser.add_argument(
        "--max-rejected", type=float, default=0.01, metavar="SHARE", help="largest share of unreadable items, 0..1 (0.01)"
    )


def run(args: argparse.Namespace) -> int:
    """Compute what was asked for; exit status 0."""
    from xllm_speech.base.errors import ConfigError
    from xllm_speech.features.store import compute_cmvn, compute_features
    from xllm_speech.manifests.cuts import load_cuts

    if args.out is None and args.cmvn is None:
        raise ConfigError("nothing to do: name --out DIR for features, --cmvn FILE for statistics, or both")
    if args.channel != "mix" and not args.channel.isdigit():
        raise ConfigError(f"--channel: `{args.channel}` is neither mix nor a number")
    if any(not 0.5 <= speed <= 2 for speed in args.speeds) or len(set(args.speeds)) != len(args.speeds):
        raise ConfigError(f"--speeds: {args.speeds}: each once, within 0.5 .. 2")
    source = args.cuts
    if args.out is not None:
        done = 0
        shown = sys.stderr.isatty()

        def progress(cuts: int) -> None:
            nonlocal done
            done += cuts
            if shown:
                print(f"\r{done} cuts", end="", file=sys.stderr, flush=True)

        counts = compute_features(
            load_cuts(args.cuts), args.out, args.jobs, args.speeds, args.channel, args.max_rejected, progress
        )
        if shown:
            print(file=sys.stderr)
        print(f"{args.out}: {', '.join(f'{name} {number}' for name, number in counts.items())}")
        source = args.out / "cuts.jsonl.gz"
    if args.cmvn is not None:
        stats = compute_cmvn(load_cuts(source), args.channel)
        stats.save(args.cmvn)
        print(f"{args.cmvn}: statistics over {stats.frames} frames")
    return 0

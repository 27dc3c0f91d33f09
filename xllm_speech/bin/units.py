"""`xllm-speech units`: CIF units of a manifest, stored once for phase 2 of the speech interface."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--model", required=True, metavar="DIR", help="model directory of the CIF ASR, or its experiment")
    parser.add_argument(
        "--cuts", type=Path, nargs="+", required=True, metavar="FILE", help="cuts.jsonl.gz, or folders that hold one"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the cache; a run that was killed goes on there")
    parser.add_argument(
        "--speeds", type=float, nargs="+", default=[1.0], metavar="X", help="speed factors, such as 0.9 1.0 1.1 (1.0)"
    )
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "float16"), help="how units are stored; float16 halves the space"
    )
    parser.add_argument("--batch-sec", type=float, default=60.0, metavar="SEC", help="audio seconds computed together (60)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes, each with its copy of the model (1)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (auto)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of a single job (PyTorch's choice)")
    parser.add_argument(
        "--max-rejected", type=float, default=0.01, metavar="SHARE", help="largest share of unreadable items, 0..1 (0.01)"
    )


def run(args: argparse.Namespace) -> int:
    """Fill the cache and say what it saves; exit status 0."""
    import sys

    from xllm_speech.infer.units import store_units
    from xllm_speech.nn.device import choose_device, limit_threads

    limit_threads(args.threads)
    done = 0
    shown = sys.stderr.isatty()

    def progress(utterances: int) -> None:
        nonlocal done
        done += utterances
        if shown:
            print(f"\r{done} utterances", end="", file=sys.stderr, flush=True)

    report = store_units(
        args.model, args.cuts, args.out, args.speeds, args.dtype, args.batch_sec, choose_device(args.device), args.jobs,
        args.max_rejected, progress,
    )
    if shown and done:
        print(file=sys.stderr)
    print(f"{args.out}: {report.units} units of {report.utterances} utterances, {report.rejected} rejected")
    if report.computed:
        rate = report.computed / report.computing_sec
        print(f"computed now: {report.computed} utterances in {report.computing_sec:.1f} s, {rate:.1f} a second")
    else:
        print("up to date: nothing to compute")
    if report.sample:
        compute, read = report.sample / report.compute_sec, report.sample / report.read_sec
        print(
            f"reading units: {read:.0f} utterances a second, computing them from the manifest: {compute:.1f}; "
            f"{read / compute:.0f} times faster (measured on {report.sample}, one process, files just written)"
        )
    return 0

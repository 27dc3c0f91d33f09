"""`xllm-speech report`: an experiment folder as one HTML file that needs nothing else to be read."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.description = (
        "Turn an experiment folder into one HTML file that opens anywhere, without a network: scores beside the paper's, "
        "training curves, alignments, sample answers with images and recordings, cost and hashes. What is not there yet is "
        "said so; a file with a fault is named and costs only its own part."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder with trainings and scores, such as exp")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (default: DIR/report/index.html)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables as Markdown, for RESULTS.md")
    parser.add_argument("--samples", type=int, default=4, metavar="N",
                        help="sample answers per task, and utterances with their alignment (default: 4)")
    parser.add_argument("--no-model", action="store_true", help="do not run the CIF ASR model; leaves the alignments out")
    parser.add_argument("--font", type=Path, metavar="FILE", help="font for Chinese in figures (default: one of this machine)")


def run(args: argparse.Namespace) -> int:
    """Write the report; exit status 0, files with faults told on stderr."""
    import sys

    from xllm_speech.report.page import ReportJob, write_report

    job = ReportJob(args.folder, args.out, args.markdown, args.samples, not args.no_model, args.font)
    out, experiment = write_report(job)
    for path, what in dict.fromkeys(experiment.problems):
        print(f"xllm-speech report: {path}: {what}", file=sys.stderr)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    return 0

"""`xllm-speech convert`: weights that others wrote, brought to our names, with an account of every tensor."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.add_argument("path", type=Path, nargs="+", metavar="PATH",
                        help="file or folder; for xllm also several files, in any order")
    parser.add_argument("--from", dest="layout", required=True, metavar="LAYOUT",
                        help="lavis, blip2-hf, xllm, eva, bert, clip, chatglm or espnet")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="DIR", help="write model.safetensors and report.json here")
    where.add_argument("--dry-run", action="store_true", help="write nothing; say what would become of each tensor")
    parser.add_argument("--json", action="store_true", help="print the report as JSON, with every name by itself")


def run(args: argparse.Namespace) -> int:
    """Convert, print the report; returns the exit status."""
    from xllm_speech.models.foreign.load import load_foreign, save_converted

    state, report = load_foreign(args.path, args.layout)
    if not args.dry_run:
        save_converted(args.out, state, report)
    print(json.dumps(report.to_dict(), ensure_ascii=False, indent=2) if args.json else report.table())
    if not args.json:
        print(f"{len(state)} tensors" + (" (nothing written)" if args.dry_run else f" -> {args.out}"))
    return 0

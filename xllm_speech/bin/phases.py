"""`xllm-speech phases`: what an experiment folder holds, phase by phase, and what stands on what."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.description = (
        "Show the models below DIR by phase: what trained and what was frozen, what it cost, and on which models each stands. "
        "A model that another was trained on and that is another one now, or gone, is marked."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder with trainings and models, such as exp")
    parser.add_argument("--json", action="store_true", help="print JSON with whole hashes")


def run(args: argparse.Namespace) -> int:
    """Show; exit status 0."""
    import json
    import logging
    import sys

    from rich.console import Console

    from xllm_speech.infer.phase_tree import PhaseReader, as_json, as_tree

    logging.getLogger("xllm_speech").setLevel(logging.WARNING)  # where paths were found stands in the tree itself
    nodes = PhaseReader(args.folder).read()
    if args.json:
        print(json.dumps({"folder": str(args.folder), "models": as_json(nodes)}, ensure_ascii=False, indent=2))
    else:
        width = None if sys.stdout.isatty() else 1000  # a pipe has no edge at which to break lines
        Console(highlight=False, width=width).print(as_tree(args.folder, nodes))
    return 0

"""`xllm-speech conditions`: does the image help? One multimodal test set under every condition, compared in pairs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

CONDITIONS = ("S", "S+V", "S+wrong", "S+blank", "S+L", "S+V+L")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.description = (
        "Recognise a multimodal test set with speech alone (S), with its images (S+V), with those of others (S+wrong), "
        "with grey ones (S+blank), with the captions (S+L), and with images and captions (S+V+L); compare the error rates in "
        "pairs, split by whether the image's caption holds the wrong words; and, with --wordings, under every wording of the "
        "instruction. Conditions that the model or the set has nothing for are left out with a sentence. The same command goes "
        "on where a run was killed."
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a model directory, or the output of `train`")
    parser.add_argument("--method", choices=("cif", "llm"), default="cif", help="the CIF ASR model (default), or an X-LLM")
    parser.add_argument("--cuts", type=Path, required=True, metavar="FILE",
                        help="lhotse cuts with transcripts, images and captions, or a folder with cuts.jsonl.gz")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="conditions.json, wordings.json and the hypotheses of every condition")
    parser.add_argument("--only", nargs="+", choices=CONDITIONS, default=list(CONDITIONS), metavar="NAME",
                        help=f"conditions; others are compared with the first (default: {' '.join(CONDITIONS)})")
    parser.add_argument("--wordings", action="store_true",
                        help="llm: also S and S+V under every wording of the instruction (else each is drawn by its id)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="only the first N utterances (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the wrong images and the bootstrap (default: 0)")
    parser.add_argument("--set-name", metavar="NAME", help="name of the test set, for the tables")
    parser.add_argument("--numbers", action="store_true", help="read digits in Mandarin on both sides (123 = 一百二十三)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="llm: most tokens of a text (default: 256)")
    parser.add_argument("--no-guard", action="store_true", help="take texts as they are, on silence too (see transcribe)")
    parser.add_argument("--batch-sec", type=float, default=60.0, help="audio seconds decoded together (default: 60)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: PyTorch's choice)")


def run(args: argparse.Namespace) -> int:
    """Recognise, compare, and show the tables; exit status 0."""
    from rich.console import Console

    from xllm_speech.bin.score import normal_form, print_conditions
    from xllm_speech.infer.conditions import ConditionsJob, load_recogniser, run_conditions
    from xllm_speech.nn.device import choose_device, limit_threads

    job = ConditionsJob(
        args.cuts, args.out, args.only, args.wordings, args.limit, args.seed, args.set_name, args.max_tokens,
        not args.no_guard, args.batch_sec,
    )
    limit_threads(args.threads)
    recogniser = load_recogniser(args.model, args.method, job, choose_device(args.device))
    found, worded = run_conditions(job, recogniser, normal_form(args.numbers))
    console = Console(highlight=False)
    print_conditions(found, console)
    _remark(found, console)
    for name, table in (worded or {}).get("wordings", {}).items():
        console.print(f"\n{name} under every wording of its instruction", markup=False)
        print_conditions(table, console)
    print(f"written: {args.out / 'conditions.json'}" + (f", {args.out / 'wordings.json'}" if worded else ""))
    return 0


def _remark(found: dict[str, Any], console: Any) -> None:
    """Say what was left out, and what is to be known of the results."""
    for name, why in found["left_out"].items():
        console.print(f"{name}: left out: {why}", markup=False, soft_wrap=True)
    for note in found["notes"]:
        console.print(note, markup=False, soft_wrap=True)

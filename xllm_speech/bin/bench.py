"""`xllm-speech bench`: speed and memory as ratios against a named reference in the same run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


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
    decode = subparsers.add_parser("decode", help="transcripts of an X-LLM: draft and verify beside plain greedy search")
    decode.add_argument("--model", type=Path, required=True, metavar="DIR", help="an X-LLM, or the output of its training")
    decode.add_argument("--cuts", type=Path, required=True, metavar="FILE", help="lhotse cuts, or a folder with cuts.jsonl.gz")
    decode.add_argument("--limit", type=int, metavar="N", help="no more than the first N cuts")
    decode.add_argument("--batch", type=int, default=1, help="utterances answered together (default: 1)")
    decode.add_argument("--max-tokens", type=int, metavar="N", help="most tokens of a text (default: 256)")
    decode.add_argument("--no-images", action="store_true", help="ignore the pictures that cuts bring along")
    interfaces = subparsers.add_parser("interfaces", help="a training step of an interface beside unfused attention")
    interfaces.add_argument("--kind", choices=["image", "speech"], default="image", help="which interface (default: image)")
    interfaces.add_argument("--items", type=int, default=4, help="pictures or utterances (default: 4)")
    interfaces.add_argument("--layers", type=int, default=12, help="layers of its transformer (default: 12)")
    glm = subparsers.add_parser("glm", help="ChatGLM reading and writing beside a Llama of its size, and without its cache")
    glm.add_argument("--batch", type=int, default=4, help="prompts (default: 4)")
    glm.add_argument("--prompt", type=int, default=128, help="tokens of a prompt (default: 128)")
    glm.add_argument("--answer", type=int, default=32, help="tokens of an answer (default: 32)")
    glm.add_argument("--width", type=int, default=512, help="hidden size, a multiple of 64 (default: 512)")
    glm.add_argument("--layers", type=int, default=6, help="layers (default: 6)")
    for sub in (cif, asr, interfaces, glm):
        sub.add_argument("--repeats", type=int, default=5, help="timed runs of each after one warm-up; the median counts")
    for sub in (cif, asr, interfaces, glm, decode):
        sub.add_argument("--threads", type=int, default=0, help="CPU threads (default: all cores)")
        sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
        sub.add_argument("--json", action="store_true", help="one JSON object on stdout instead of a table")


def run(args: argparse.Namespace) -> int:
    """Run one benchmark; exit status 0."""
    import torch

    from xllm_speech.models import bench, bench_llm

    if args.threads:
        torch.set_num_threads(args.threads)
    match args.subject:
        case "cif":
            result = bench.bench_cif(args.batch, args.steps, args.width, args.rate, args.repeats, args.device)
        case "decode":
            result = _decode(args)
        case "interfaces":
            result = bench_llm.bench_interfaces(args.kind, args.items, args.layers, args.repeats, args.device)
        case "glm":
            result = bench_llm.bench_glm(
                args.batch, args.prompt, args.answer, args.width, args.layers, args.repeats, args.device
            )
        case _:
            result = bench.bench_asr(args.batch, args.seconds, args.position, args.repeats, args.device)
    bench.print_result(result, as_json=args.json)
    return 0


def _decode(args: argparse.Namespace) -> dict[str, Any]:
    import itertools

    from xllm_speech.base.config import require
    from xllm_speech.infer.decode_bench import bench_decode
    from xllm_speech.infer.xllm import XLLM
    from xllm_speech.manifests.cuts import load_cuts

    require(args.batch >= 1, f"--batch {args.batch} must be at least 1")
    require(args.limit is None or args.limit >= 1, f"--limit {args.limit} must be at least 1")
    model = XLLM.from_pretrained(args.model, args.device)
    cuts = args.cuts / "cuts.jsonl.gz" if args.cuts.is_dir() else args.cuts
    chosen = itertools.islice(load_cuts(cuts), args.limit)
    return {"cuts": str(cuts), **bench_decode(model, chosen, args.batch, args.max_tokens, not args.no_images)}

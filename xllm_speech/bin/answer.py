"""`xllm-speech answer`: answer the conversations of a manifest."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.description = (
        "Answer the last question of every conversation in a manifest. An answer that already stands behind it is not read; "
        "it comes into the output as `reference`. A conversation that cannot be answered costs only itself: it is named on "
        "stderr, and its reason stands in the output as `error`."
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="an X-LLM: a model directory, or a training")
    parser.add_argument("--conversations", type=Path, required=True, metavar="FILE", help="conversations, .jsonl or .jsonl.gz")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a line {id, text, task, reference} for each")
    parser.add_argument("--tasks", metavar="A,B", help="only conversations of these tasks, such as vl,caption")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="only the first N of them (default: all)")
    parser.add_argument(
        "--without", action="append", default=[], metavar="KIND",
        help="leave out the media of this kind (image, speech, video ...), as a blind or deaf baseline; may be repeated",
    )
    parser.add_argument(
        "--wording", type=int, metavar="N", help="instruction for media without text, from 0 (default: drawn by the id)"
    )
    parser.add_argument(
        "--cuts", action="append", default=[], metavar="FILE", help="lhotse cuts with speech named by its id; may be repeated"
    )
    parser.add_argument("--units", type=Path, metavar="DIR", help="a cache of `xllm-speech units` to read in place of audio")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="most tokens of an answer (default: 256)")
    parser.add_argument("--beam", type=int, default=1, metavar="N", help="beams of the search (default: 1, greedy)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="conversations answered together (default: 16)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: PyTorch's choice)")


def run(args: argparse.Namespace) -> int:
    """Answer; exit status 1 when nothing at all could be answered."""
    from xllm_speech.infer.answer_file import AnswerJob, answer_file
    from xllm_speech.infer.xllm import XLLM
    from xllm_speech.nn.device import choose_device, limit_threads

    job = AnswerJob(
        args.conversations, args.out, tuple(args.tasks.split(",")) if args.tasks else (), args.limit, tuple(args.without),
        args.wording, tuple(args.cuts), args.units, args.max_tokens, args.beam, args.batch_size,
    )
    limit_threads(args.threads)
    device = choose_device(args.device)
    conversations = job.read()
    report = answer_file(XLLM.from_pretrained(args.model, device), job, conversations)
    return 1 if len(report.failed) == report.conversations else 0

"""`xllm-speech chat`: talk with an X-LLM."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.description = (
        "Talk with an X-LLM about images, clips and speech, in several rounds. At the terminal /help tells the commands; with "
        "--message, or where standard input is no terminal (a line is a question or a command), it answers and ends."
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="an X-LLM: a model directory, or a training")
    media = parser.add_argument_group("media in front of the first question")
    media.add_argument("--image", action="append", default=[], metavar="FILE", help="a picture; may be repeated")
    media.add_argument("--video", action="append", default=[], metavar="FILE", help="a clip; may be repeated")
    media.add_argument("--speech", action="append", default=[], metavar="FILE", help="a recording; may be repeated")
    parser.add_argument(
        "--message", action="append", default=[], metavar="TEXT", help="a question; may be repeated for more rounds"
    )
    answers = parser.add_argument_group("answers")
    answers.add_argument("--max-tokens", type=int, metavar="N", help="most tokens of an answer (default: 256)")
    answers.add_argument("--beam", type=int, default=1, metavar="N", help="beams of the search (default: 1)")
    answers.add_argument("--temperature", type=float, metavar="X", help="draw words at this temperature (default: do not draw)")
    answers.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest words that make up this share")
    answers.add_argument("--seed", type=int, default=0, help="of drawing (default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: PyTorch's choice)")


def run(args: argparse.Namespace) -> int:
    """Chat; exit status 1 when a question on the command line or in a pipe could not be answered."""
    import sys

    import torch

    from xllm_speech.infer.chat import run_chat
    from xllm_speech.infer.generation import AnswerOptions
    from xllm_speech.infer.xllm import XLLM
    from xllm_speech.nn.device import choose_device, limit_threads

    sampling = args.temperature is not None or args.top_p is not None
    options = {
        "max_new_tokens": args.max_tokens, "num_beams": args.beam, "do_sample": sampling,
        "temperature": 1.0 if args.temperature is None else args.temperature,
        "top_p": 1.0 if args.top_p is None else args.top_p,
    }
    AnswerOptions(**options)  # a wrong number is told before a model is loaded
    limit_threads(args.threads)
    torch.manual_seed(args.seed)
    model = XLLM.from_pretrained(args.model, choose_device(args.device))
    media = [(kind, path) for kind in ("image", "video", "speech") for path in vars(args)[kind]]
    interactive = not args.message and sys.stdin.isatty()
    return run_chat(model, media, args.message, interactive, **options)

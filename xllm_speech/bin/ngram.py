"""`xllm-speech ngram`: estimate an n-gram language model over a model's tokens."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.description = (
        "Estimate an n-gram language model (interpolated modified Kneser-Ney) from transcripts, over the tokens of a model, "
        "and write it as an ARPA file for `transcribe --lm`. A transcript with a character that the table does not know is "
        "left out."
    )
    parser.add_argument("--text", type=Path, nargs="+", required=True, metavar="FILE",
                        help="Kaldi `text`, JSON lines or lhotse cuts; with --plain, mere text")
    parser.add_argument("--plain", action="store_true", help="--text files hold one transcript per line, without ids")
    parser.add_argument("--tokens", type=Path, required=True, metavar="DIR", help="a token table, or a model directory")
    parser.add_argument("--order", type=int, default=3, help="longest n-gram (default: 3)")
    parser.add_argument("--prune", default="0", metavar="N,N,...",
                        help="for orders from 1: leave out n-grams with at most this count (default: 0, all stay)")
    parser.add_argument("--prune-entropy", type=float, default=0.0, metavar="X",
                        help="leave out n-grams without which perplexity rises by less than this share, such as 1e-7 (0)")
    parser.add_argument("--held-out", type=Path, nargs="+", default=[], metavar="FILE",
                        help="further transcripts, in the form of --text, whose perplexity is printed too")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="ARPA file; gzip where its name ends in .gz")


def run(args: argparse.Namespace) -> int:
    """Estimate, write and say what it holds; exit status 0."""
    from xllm_speech.base.errors import ConfigError
    from xllm_speech.models.ngram import make_ngram

    if not all(part.strip().isdigit() for part in args.prune.split(",")):
        raise ConfigError(f"--prune {args.prune}: expected counts with commas between them, such as 0,0,1")
    prune = [int(part) for part in args.prune.split(",")]
    made = make_ngram(
        args.text, args.plain, args.tokens, args.order, prune, args.out, args.prune_entropy, args.held_out
    )
    sizes = ", ".join(f"{count} {order}-grams" for order, count in enumerate(made.sizes, 1))
    print(f"{args.out}: {sizes} from {made.sentences} transcripts, {made.pruned} n-grams pruned; "
          f"{made.unknown} transcripts with unknown characters left out")
    for name, before, after in made.perplexities:
        pruning = f"; {before:.2f} before pruning by entropy" if args.prune_entropy else ""
        print(f"perplexity of {name}: {after:.2f}{pruning}")
    return 0

"""`xllm-speech prepare`: corpora and data directories to manifests, checks, and back to Kaldi's form."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One sub-command per corpus or task."""
    commands = parser.add_subparsers(dest="kind", metavar="CORPUS", required=True)

    kaldi = commands.add_parser("kaldi", help="a Kaldi data directory (wav.scp, text, segments, feats.scp) to cuts")
    kaldi.add_argument("--data-dir", type=Path, required=True, metavar="DIR", help="folder with wav.scp or feats.scp")
    kaldi.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets cuts.jsonl.gz and rejected.jsonl")
    kaldi.add_argument("--no-text", action="store_true", help="transcripts are not needed (speech to be recognised)")
    _add_max_rejected(kaldi)

    visdial = commands.add_parser("visdial", help="VisDial-style dialogues with images and speech to cuts and conversations")
    visdial.add_argument("--corpus", type=Path, required=True, metavar="DIR", help="folder of the corpus")
    visdial.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets one folder per set")
    _add_max_rejected(visdial)

    check = commands.add_parser("check", help="open every recording and picture that a manifest names")
    check.add_argument("--cuts", type=Path, required=True, metavar="FILE", help="cuts.jsonl or cuts.jsonl.gz")
    check.add_argument("--out", type=Path, metavar="FILE", help="write what is wrong as JSON lines")
    check.add_argument("--jobs", type=int, default=4, metavar="N", help="files open at a time (4)")
    _add_max_rejected(check)

    export = commands.add_parser("export-kaldi", help="cuts to a Kaldi data directory")
    export.add_argument("--cuts", type=Path, required=True, metavar="FILE", help="cuts.jsonl or cuts.jsonl.gz")
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="the data directory to write")


def _add_max_rejected(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-rejected", type=float, default=0.01, metavar="SHARE", help="largest share of bad items, 0..1 (0.01)"
    )


def run(args: argparse.Namespace) -> int:
    """Do it and print one line of counts; exit status 0."""
    match args.kind:
        case "kaldi":
            from xllm_speech.manifests.kaldi import prepare_kaldi

            counts = prepare_kaldi(args.data_dir, args.out, args.max_rejected, need_text=not args.no_text)
            _print_counts(args.out, counts)
        case "visdial":
            from xllm_speech.manifests.visdial import prepare_visdial

            _print_counts(args.out, prepare_visdial(args.corpus, args.out, args.max_rejected))
        case "check":
            _check(args)
        case _:
            from xllm_speech.manifests.cuts import load_cuts
            from xllm_speech.manifests.kaldi_export import write_kaldi_dir

            _print_counts(args.out, write_kaldi_dir(load_cuts(args.cuts), args.out))
    return 0


def _check(args: argparse.Namespace) -> None:
    from xllm_speech.base.rejects import Rejects
    from xllm_speech.datasets.checks import check_cuts
    from xllm_speech.manifests.cuts import load_cuts

    rejects = Rejects(args.max_rejected)
    total = check_cuts(load_cuts(args.cuts, rejects), rejects, args.jobs)
    for row in rejects.rows:
        print(f"{row['path']}: {row['id']}: {row['reason']}")
    print(f"{args.cuts}: {total} cuts checked, {rejects.summary()}")
    if args.out:
        rejects.write(args.out)
    rejects.check(total, args.out or args.cuts)


def _print_counts(out: Path, counts: dict[str, int]) -> None:
    print(f"{out}: {', '.join(f'{name} {number}' for name, number in counts.items())}")

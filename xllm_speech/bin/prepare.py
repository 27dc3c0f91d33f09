"""`xllm-speech prepare`: corpora and data directories to manifests, checks, and back to Kaldi's form."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from xllm_speech.bin.prepare_corpora import INSTRUCTION_KINDS, PICTURE_CORPORA, VIDEO_CORPORA, WEB_CORPORA, prepare_corpus


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

    for name, text in (("aishell1", "AISHELL-1 (data_aishell)"), ("aishell2", "AISHELL-2 (iOS/data; dev and test sets)")):
        aishell = commands.add_parser(name, help=f"{text} to cuts")
        aishell.add_argument("--corpus", type=Path, required=True, metavar="DIR", help="folder of the corpus, unpacked")
        _add_out(aishell)
    for name, (text, files) in PICTURE_CORPORA.items():
        captions = commands.add_parser(name, help=f"{text} to conversations")
        _add_annotations(captions, files)
        _add_media(captions, "images")
        captions.add_argument("--drop-repeats", action="store_true", help="leave out a text that its picture had before")
        if name == "minigpt4":
            captions.add_argument("--seed", type=int, default=1, metavar="N", help="of the questions to its pictures (1)")
        if name == "visual-genome":
            captions.add_argument("--image-data", type=Path, metavar="FILE", help="image_data.json: which pictures are COCO's")
            captions.add_argument(
                "--min-region", type=float, default=0.0, metavar="SHARE", help="least share of the picture a region covers (0)"
            )
    for name, (text, files) in WEB_CORPORA.items():
        _add_web(commands.add_parser(name, help=f"{text} (pictures of the web) to conversations"), files)
    for name, (text, files) in VIDEO_CORPORA.items():
        video = commands.add_parser(name, help=f"{text} to conversations")
        _add_annotations(video, files)
        _add_media(video, "videos")
        if name == "activitynet":
            video.add_argument("--events", action="store_true", help="one conversation per event instead of per video")

    scores = commands.add_parser("similarity", help="how well pictures and texts of a manifest agree, by CLIP")
    scores.add_argument("--input", type=Path, required=True, metavar="FILE", help="conversations.jsonl.gz")
    scores.add_argument("--clip", type=Path, required=True, metavar="DIR", help="local folder of CLIP or Chinese-CLIP")
    scores.add_argument("--out", type=Path, required=True, metavar="FILE", help="gets `id<TAB>score` lines, for --scores")
    scores.add_argument("--batch-size", type=int, default=64, metavar="N", help="pairs at a time (64)")
    scores.add_argument("--device", default="cpu", metavar="NAME", help="cpu or cuda:N (cpu)")

    released = commands.add_parser("released", help="the JSON files of the paper's authors to conversations")
    _add_annotations(released, "JSON arrays")
    released.add_argument("--videos", type=Path, nargs="*", default=[], metavar="DIR", help="folders of clips")
    released.add_argument("--units", type=Path, metavar="DIR", help="folder of the .npy files of units")
    _add_media(released, "images", required=False)

    _add_vsdial(commands)

    instructions = commands.add_parser("instructions", help="the instruction data of phase 3, chosen from prepared manifests")
    for kind, (count, text) in INSTRUCTION_KINDS.items():
        instructions.add_argument(f"--{kind}", type=Path, metavar="FILE", help=text)
        instructions.add_argument(f"--{kind}-count", type=int, default=count, metavar="N", help=f"how many of them ({count})")
    instructions.add_argument("--seed", type=int, default=1, metavar="N", help="of the choice (1)")
    instructions.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets conversations.jsonl.gz")

    check = commands.add_parser("check", help="open every recording and picture that a manifest names")
    check.add_argument("--cuts", type=Path, required=True, metavar="FILE", help="cuts.jsonl or cuts.jsonl.gz")
    check.add_argument("--out", type=Path, metavar="FILE", help="write what is wrong as JSON lines")
    check.add_argument("--jobs", type=int, default=4, metavar="N", help="files open at a time (4)")
    _add_max_rejected(check)

    export = commands.add_parser("export-kaldi", help="cuts to a Kaldi data directory")
    export.add_argument("--cuts", type=Path, required=True, metavar="FILE", help="cuts.jsonl or cuts.jsonl.gz")
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="the data directory to write")


def _add_vsdial(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    texts = commands.add_parser("visdial-texts", help="the texts of VisDial v1.0, once each, to translate and to speak")
    _add_annotations(texts, "visdial_1.0_train.json ...")
    texts.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets texts.jsonl")
    _add_max_rejected(texts)

    translate = commands.add_parser("translate", help="translate texts.jsonl, or a manifest of conversations")
    translate.add_argument("--input", type=Path, required=True, metavar="FILE", help="texts.jsonl or conversations.jsonl.gz")
    translate.add_argument("--out", type=Path, required=True, metavar="FILE", help="table, or manifest of conversations")
    translate.add_argument("--cache", type=Path, metavar="FILE", help="keeps answers for ever (default: OUT.cache.sqlite)")
    backend = translate.add_mutually_exclusive_group(required=True)
    backend.add_argument("--mbart", type=Path, metavar="DIR", help="local folder of mBART-50 many-to-many")
    backend.add_argument("--endpoint", metavar="URL", help="an OpenAI-compatible server, up to /v1; key in $OPENAI_API_KEY")
    backend.add_argument("--table", type=Path, metavar="FILE", help='ready table, jsonl of {"source", "target"}')
    translate.add_argument("--model", metavar="NAME", help="model of the endpoint")
    translate.add_argument("--from", dest="source", default="en_XX", metavar="CODE", help="mBART's language code (en_XX)")
    translate.add_argument("--to", dest="target", default="zh_CN", metavar="CODE", help="mBART's language code (zh_CN)")
    translate.add_argument("--batch-size", type=int, default=16, metavar="N", help="texts at a time (16)")
    translate.add_argument("--jobs", type=int, default=4, metavar="N", help="requests at a time (4)")
    translate.add_argument("--device", default="cpu", metavar="NAME", help="cpu or cuda:N, for mBART (cpu)")
    _add_max_rejected(translate)

    speak = commands.add_parser("synthesise", help="speak the questions of a table or of texts.jsonl")
    speak.add_argument("--input", type=Path, required=True, metavar="FILE", help="jsonl with `text` or `target`")
    speak.add_argument("--texts", type=Path, metavar="FILE", help="texts.jsonl: speak only the table's questions")
    speak.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets speech.jsonl and the recordings")
    voice = speak.add_mutually_exclusive_group(required=True)
    voice.add_argument("--command", metavar="LINE", help="any program, with {text}, {out} and {speaker}, that writes {out}")
    voice.add_argument("--espnet", type=Path, metavar="DIR", help="folder of an espnet2 TTS model (config.yaml and .pth)")
    voice.add_argument("--espeak", action="store_true", help="eSpeak NG, for smoke tests")
    speak.add_argument("--speakers", nargs="+", metavar="NAME", help="speakers to draw from (default: those of the voice)")
    speak.add_argument("--licence", default="", metavar="TEXT", help="of the recordings, told of each (default: none)")
    speak.add_argument("--seed", type=int, default=1, metavar="N", help="of the choice of speakers (1)")
    _add_jobs_and_rejected(speak)

    cuts = commands.add_parser("speech-cuts", help="speech.jsonl to cuts, for `xllm-speech transcribe`")
    cuts.add_argument("--speech", type=Path, required=True, metavar="DIR", help="folder with speech.jsonl")
    cuts.add_argument("--out", type=Path, required=True, metavar="FILE", help="cuts.jsonl.gz to write")

    trip = commands.add_parser("round-trip", help="drop speech that a recogniser did not understand")
    what = trip.add_mutually_exclusive_group(required=True)
    what.add_argument("--speech", type=Path, metavar="DIR", help="folder with speech.jsonl")
    what.add_argument("--cuts", type=Path, metavar="FILE", help="or cuts with their texts")
    trip.add_argument("--heard", type=Path, required=True, metavar="FILE", help="what `xllm-speech transcribe` wrote of it")
    trip.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets what was understood, and rejected.jsonl")
    trip.add_argument("--max-cer", type=float, default=0.3, metavar="X", help="largest share of wrong characters (0.3)")
    trip.add_argument(
        "--max-dropped", type=float, default=0.5, metavar="SHARE", help="largest share that may be dropped, 0..1 (0.5)"
    )

    build = commands.add_parser("vsdial-cn", help="VSDial-CN from VisDial v1.0, translations, speech and pictures")
    _add_annotations(build, "visdial_1.0_train.json ...")
    build.add_argument("--images", type=Path, nargs="+", required=True, metavar="DIR", help="folders of COCO and VisualDialog")
    build.add_argument("--translations", type=Path, metavar="FILE", help="table of `translate` (none: texts are Chinese)")
    build.add_argument("--speech", type=Path, required=True, metavar="DIR", help="folder with speech.jsonl")
    build.add_argument("--test-speech", type=Path, metavar="DIR", help="the same for the test sets (recordings of people)")
    build.add_argument("--art", type=Path, metavar="FILE", help='questions for test-art, jsonl of {"image_id", "question"}')
    build.add_argument("--test-count", type=int, default=2000, metavar="N", help="questions in test-orig (2000)")
    build.add_argument("--seed", type=int, default=1, metavar="N", help="of the choice of test-orig (1)")
    _add_out(build)


def _add_annotations(parser: argparse.ArgumentParser, files: str) -> None:
    parser.add_argument("--annotations", type=Path, nargs="+", required=True, metavar="FILE", help=files)


def _add_media(parser: argparse.ArgumentParser, name: str, required: bool = True) -> None:
    what = "pictures" if name == "images" else "clips"
    parser.add_argument(
        f"--{name}", type=Path, nargs="+" if required else "*", required=required, default=[], metavar="DIR",
        help=f"folders of the {what}",
    )
    parser.add_argument(
        "--skip-media", action="store_true", help="do not look for the media nor open them (they are elsewhere, or to come)"
    )
    _add_out(parser)


def _add_web(parser: argparse.ArgumentParser, files: str) -> None:
    _add_annotations(parser, files)
    _add_media(parser, "images")
    parser.add_argument(
        "--naming", default="md5", choices=("md5", "sha256", "row"), help="names of downloaded files: hash of the url, or row"
    )
    parser.add_argument("--min-side-px", type=int, default=32, metavar="N", help="smaller pictures are left out (32)")
    parser.add_argument("--max-aspect", type=float, default=3.0, metavar="X", help="longer or wider ones are left out (3)")
    parser.add_argument("--max-missing", type=float, default=0.5, metavar="SHARE", help="share never downloaded, 0..1 (0.5)")
    parser.add_argument("--scores", metavar="FILE", help="similarity of picture and text, `id<TAB>score` a line")
    parser.add_argument("--min-score", type=float, metavar="X", help="least score (CLIP 0.45, Chinese-CLIP ViT-B/16 0.475)")


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets one folder per set")
    _add_jobs_and_rejected(parser)


def _add_jobs_and_rejected(parser: argparse.ArgumentParser) -> None:
    jobs = min(16, os.cpu_count() or 1)
    parser.add_argument("--jobs", type=int, default=jobs, metavar="N", help=f"files open at a time ({jobs})")
    _add_max_rejected(parser)


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
        case "export-kaldi":
            from xllm_speech.manifests.cuts import load_cuts
            from xllm_speech.manifests.kaldi_export import write_kaldi_dir

            _print_counts(args.out, write_kaldi_dir(load_cuts(args.cuts), args.out))
        case _:
            _print_counts(args.out, prepare_corpus(args))
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


def _print_counts(out: Path, counts: Mapping[str, float]) -> None:
    print(f"{out}: {', '.join(f'{name} {number:.10g}' for name, number in counts.items())}")

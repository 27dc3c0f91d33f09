"""`xllm-speech transcribe`: turn speech into text."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.description = (
        "Recognise audio files, a lhotse manifest or a Kaldi data directory. Audio that cannot be read costs only itself: "
        "it is named on stderr, has an empty text, and its reason stands in the json output."
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a model directory, or the output of `train`")
    parser.add_argument("--method", choices=("cif",), default="cif", help="recogniser: cif, the CIF ASR model")
    source = parser.add_argument_group("speech, one of")
    source.add_argument("audio", nargs="*", metavar="AUDIO", help="audio files; `-` reads one from standard input")
    source.add_argument("--cuts", type=Path, metavar="FILE", help="lhotse cuts, or a folder with cuts.jsonl.gz")
    source.add_argument("--kaldi", type=Path, metavar="DIR", help="a Kaldi data directory")
    parser.add_argument("--channel", help="mix, or the number of a channel; default: as the model was trained")
    parser.add_argument("--image", type=Path, metavar="FILE", help="a picture that the speech is about, for all of it")
    parser.add_argument("--no-images", action="store_true", help="ignore the pictures that cuts bring along")
    parser.add_argument("--no-captions", action="store_true", help="ignore the captions that cuts bring along")
    parser.add_argument("--out", metavar="FILE", help="where to write; default and `-`: standard output")
    parser.add_argument("--format", choices=("json", "text", "srt", "ctm", "textgrid"), help="json in a file, else text")
    search = parser.add_argument_group("search")
    search.add_argument("--search", choices=("greedy", "beam", "fast"), default="greedy", help="default: greedy")
    search.add_argument("--beam", type=int, default=5, help="hypotheses kept by --search beam (default: 5)")
    search.add_argument("--ctc-weight", type=float, default=0.3, help="share of CTC in beam scores, in [0, 1) (default: 0.3)")
    search.add_argument("--passes", type=int, default=1, help="decoder passes of --search fast (default: 1)")
    parser.add_argument("--batch-sec", type=float, default=60.0, help="audio seconds decoded together (default: 60)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: PyTorch's choice)")


def run(args: argparse.Namespace) -> int:
    """Recognise; exit status 1 when nothing at all could be recognised."""
    import sys
    import time

    from xllm_speech.base.errors import ConfigError
    from xllm_speech.base.files import write_json
    from xllm_speech.infer.asr import CifAsr, DecodingReport
    from xllm_speech.infer.formats import write_hypotheses
    from xllm_speech.infer.sources import open_speech
    from xllm_speech.models.asr import SearchConfig
    from xllm_speech.nn.device import choose_device, limit_threads

    if args.image is not None and not args.image.is_file():
        raise ConfigError(f"--image {args.image}: no such file")
    limit_threads(args.threads)
    search = SearchConfig(method=args.search, beam=args.beam, ctc_weight=args.ctc_weight, passes=args.passes)
    device = choose_device(args.device)
    model = CifAsr.from_pretrained(args.model, device)
    if args.image is not None and not model.sees_images:
        raise ConfigError(f"--image: the model in {model.folder} was trained without pictures; leave it away")
    report = DecodingReport()
    begin = time.perf_counter()
    with open_speech(args.audio, args.cuts, args.kaldi) as speech:
        hypotheses = model.stream(
            speech, search, args.image, args.batch_sec, not args.no_images, not args.no_captions, report, args.channel
        )
        to_file = args.out is not None and args.out != "-"
        written = write_hypotheses(hypotheses, args.out, args.format or ("json" if to_file else "text"))
    wall_sec = time.perf_counter() - begin
    for name, reason in [*report.failed, *report.notes, *(row for row in written.skipped if row not in report.failed)]:
        print(f"xllm-speech transcribe: {name}: {reason}", file=sys.stderr)
    rate = f"{report.audio_sec / wall_sec:.0f} times real time" if wall_sec else ""
    print(
        f"{report.utterances - len(report.failed)} of {report.utterances} utterances recognised, "
        f"{report.audio_sec:.1f} s of audio in {wall_sec:.1f} s ({rate})", file=sys.stderr,
    )
    if to_file and len(written.files) == 1:
        write_json(
            f"{written.files[0]}.meta.json",
            {
                "model": str(args.model), "checkpoint_sha256": model.weights_sha256, "method": args.method,
                "config": {
                    "search": search.method, "beam": search.beam, "ctc_weight": search.ctc_weight, "passes": search.passes,
                },
                "images": not args.no_images or args.image is not None, "captions": not args.no_captions, "prompt": None,
                "utterances": report.utterances, "failed": len(report.failed), "audio_sec": report.audio_sec,
                "wall_sec": wall_sec, "includes": "reading audio or features, model and search; not loading the model",
                "loading_sec": report.loading_sec, "decoding_sec": report.decoding_sec, "device": str(device),
            },
        )
    return 1 if report.utterances == len(report.failed) else 0

"""`xllm-speech transcribe`: turn speech into text."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.description = (
        "Recognise audio files, a lhotse manifest or a Kaldi data directory, with the CIF ASR model or through the LLM of an "
        "X-LLM. Audio that cannot be read costs only itself: it is named on stderr, has an empty text, and its reason stands "
        "in the json output."
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a model directory, or the output of `train`")
    parser.add_argument(
        "--method", choices=("cif", "llm"), default="cif",
        help="recogniser: cif, the CIF ASR model (default); llm, an X-LLM, with times from its CIF units",
    )
    source = parser.add_argument_group("speech, one of")
    source.add_argument("audio", nargs="*", metavar="AUDIO", help="audio files; `-` reads one from standard input")
    source.add_argument("--cuts", type=Path, metavar="FILE", help="lhotse cuts, or a folder with cuts.jsonl.gz")
    source.add_argument("--kaldi", type=Path, metavar="DIR", help="a Kaldi data directory")
    parser.add_argument("--channel", help="mix, or the number of a channel; default: as the model was trained")
    parser.add_argument("--image", type=Path, metavar="FILE", help="a picture that the speech is about, for all of it")
    parser.add_argument("--no-images", action="store_true", help="ignore the pictures that cuts bring along")
    parser.add_argument("--no-captions", action="store_true", help="ignore the captions that cuts bring along (cif)")
    parser.add_argument("--with-captions", action="store_true",
                        help="llm: the captions that cuts bring along stand in the prompt as text (S+L, S+V+L)")
    parser.add_argument("--out", metavar="FILE", help="where to write; default and `-`: standard output")
    parser.add_argument("--format", choices=("json", "text", "srt", "ctm", "textgrid"), help="json in a file, else text")
    search = parser.add_argument_group("search")
    search.add_argument("--search", choices=("greedy", "beam", "fast", "ctc", "graph", "graph-k2"), default="greedy",
                        help="cif; ctc: prefix beam search of the CTC head, graph: over --lexicon and --lm, graph-k2: by k2")
    search.add_argument("--lm", type=Path, metavar="FILE", help="cif: n-gram model of the model's tokens (see `ngram`)")
    search.add_argument("--lm-weight", type=float, default=0.3, help="cif: of its log probabilities (default: 0.3)")
    search.add_argument("--hotwords", type=Path, metavar="FILE", help="likely phrases, one per line")
    search.add_argument("--hotword-bonus", type=float, default=1.5, help="per token of a phrase, natural log (default: 1.5)")
    search.add_argument("--length-bonus", type=float, default=0.0, help="cif: per token of --search ctc (default: 0)")
    search.add_argument("--lexicon", type=Path, metavar="FILE", help="cif: words of --search graph; --lm is then of words")
    search.add_argument("--beam", type=int, help="cif: hypotheses kept by --search beam (default: 5); llm: beams (default: 1)")
    search.add_argument("--ctc-weight", type=float, default=0.3, help="cif: share of CTC in beam scores, in [0, 1) (0.3)")
    search.add_argument("--passes", type=int, default=1, help="cif: decoder passes of --search fast (default: 1)")
    search.add_argument("--wording", type=int, metavar="N", help="llm: instruction to give, from 0 (default: drawn by the id)")
    search.add_argument("--max-tokens", type=int, metavar="N", help="llm: most tokens of a text (default: 256)")
    search.add_argument(
        "--draft", choices=("cif", "none"),
        help="llm: what the LLM verifies in few passes: cif, the CIF hypothesis (default), or none; the text is the same",
    )
    search.add_argument(
        "--no-guard", action="store_true",
        help="take the text as it is, on silence and noise; llm: in a loop or far from what the CIF model heard too",
    )
    parser.add_argument("--long", action="store_true", help="cut audio files of any length by voice activity; a run "
                        "that was killed goes on where it was, by a journal beside --out")
    parser.add_argument("--longest-sec", type=float, metavar="SEC",
                        help="of a segment of --long (default: 20, less where the speech interface of an X-LLM takes less)")
    parser.add_argument("--batch-sec", type=float, default=60.0, help="audio seconds decoded together (default: 60)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: PyTorch's choice)")


def run(args: argparse.Namespace) -> int:
    """Recognise; exit status 1 when nothing at all could be recognised."""
    import sys
    import time

    from xllm_speech.base.errors import ConfigError
    from xllm_speech.base.files import write_json
    from xllm_speech.infer.asr import DecodingReport
    from xllm_speech.infer.formats import write_hypotheses
    from xllm_speech.infer.sources import open_speech
    from xllm_speech.nn.device import choose_device, limit_threads

    if args.image is not None and not args.image.is_file():
        raise ConfigError(f"--image {args.image}: no such file")
    if args.long and not args.audio:
        raise ConfigError("--long is for audio files, not for --cuts or --kaldi, which are cut already")
    if args.longest_sec is not None and not args.long:
        raise ConfigError("--longest-sec goes with --long")
    limit_threads(args.threads)
    device = choose_device(args.device)
    stream, described = (_load_cif if args.method == "cif" else _load_llm)(args, device)
    report = DecodingReport()
    begin = time.perf_counter()
    with open_speech(args.audio, args.cuts, args.kaldi) as speech:
        to_file = args.out is not None and args.out != "-"
        written = write_hypotheses(stream(speech, report), args.out, args.format or ("json" if to_file else "text"))
    wall_sec = time.perf_counter() - begin
    if args.long and to_file:
        from xllm_speech.infer.long_audio import remove_journals

        remove_journals(args.out, ["stdin.wav" if name == "-" else name for name in args.audio])  # the result is written
    for name, reason in [*report.failed, *report.notes, *(row for row in written.skipped if row not in report.failed)]:
        print(f"xllm-speech transcribe: {name}: {reason}", file=sys.stderr)
    rate = f"{report.audio_sec / wall_sec:.{0 if report.audio_sec > 9 * wall_sec else 2}f} times real time" if wall_sec else ""
    print(
        f"{report.utterances - len(report.failed)} of {report.utterances} utterances recognised, "
        f"{report.audio_sec:.1f} s of audio in {wall_sec:.1f} s ({rate})", file=sys.stderr,
    )
    if to_file and len(written.files) == 1:
        write_json(
            f"{written.files[0]}.meta.json",
            described | {
                "images": not args.no_images or args.image is not None,
                "captions": args.with_captions if args.method == "llm" else not args.no_captions,
                "utterances": report.utterances, "failed": len(report.failed), "audio_sec": report.audio_sec,
                "wall_sec": wall_sec, "includes": "reading audio or features, model and search; not loading the model",
                "rtf": wall_sec / report.audio_sec if report.audio_sec else None,
                "loading_sec": report.loading_sec, "decoding_sec": report.decoding_sec, "device": str(device),
            },
        )
    return 1 if report.utterances == len(report.failed) else 0


def _load_cif(args: argparse.Namespace, device: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """(speech, report) -> hypotheses of the CIF ASR model, and what describes it."""
    from xllm_speech.base.config import require
    from xllm_speech.infer.asr import CifAsr
    from xllm_speech.infer.segments import CifSegments
    from xllm_speech.models.search import describe_search, make_search

    for option in ("wording", "max_tokens", "draft"):
        require(vars(args)[option] is None, f"--{option.replace('_', '-')} is for --method llm; leave it away")
    require(not args.with_captions, "--with-captions is for --method llm; a CIF ASR model takes captions where it has them")
    beam = 5 if args.beam is None else args.beam
    model = CifAsr.from_pretrained(args.model, device)
    if args.no_guard:
        model.guard = None
    search = make_search(
        model.table, args.search, beam, args.ctc_weight, args.passes, args.length_bonus, args.lm, args.lm_weight,
        args.hotwords, args.hotword_bonus, args.lexicon,
    )
    require(
        args.image is None or model.sees_images,
        f"--image: the model in {model.folder} was trained without pictures; leave it away",
    )
    described = {
        "model": str(args.model), "checkpoint_sha256": model.weights_sha256, "method": "cif", "prompt": None,
        "config": describe_search(search) | {"long": args.long, "guard": not args.no_guard},
    }

    def stream(speech: Any, report: Any) -> Any:
        if args.long:
            return _stream_long(args, CifSegments(model, search, args.image, args.channel, args.batch_sec), speech, report)
        return model.stream(
            speech, search, args.image, args.batch_sec, not args.no_images, not args.no_captions, report, args.channel
        )

    return stream, described


def _load_llm(args: argparse.Namespace, device: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """(speech, report) -> hypotheses of an X-LLM, and what describes it."""
    from xllm_speech.base.config import require
    from xllm_speech.infer.asr import speech_items
    from xllm_speech.infer.generation import AnswerOptions
    from xllm_speech.infer.llm_hotwords import HotwordBias, Hotwords
    from xllm_speech.infer.segments import LlmSegments
    from xllm_speech.infer.transcribing import TranscribingReport
    from xllm_speech.infer.xllm import XLLM

    require(args.search == "greedy" and args.passes == 1, "--search and --passes are for --method cif; leave them away")
    for option in ("lm", "lexicon"):
        require(not vars(args)[option], f"--{option} is for --method cif; leave it away")
    beams = 1 if args.beam is None else args.beam
    require(beams == 1 or args.draft is None, "--draft is for greedy search; leave it or --beam away")
    draft, guard, told = args.draft or "cif", not args.no_guard, TranscribingReport()
    options = AnswerOptions(args.max_tokens, beams)
    hotwords = None if args.hotwords is None else Hotwords(args.hotwords, args.hotword_bonus)
    model = XLLM.from_pretrained(args.model, device)
    recogniser = model.make_recogniser(
        options, args.image, not args.no_images, args.wording, args.channel, draft, guard, told, args.with_captions,
        hotwords,
    )
    bias = recogniser.answerer.verifier.bias
    described = model.describe(args.wording) | {
        "config": {
            "max_tokens": args.max_tokens, "beam": beams, "draft": draft if beams == 1 else None, "guard": guard,
            "hotwords": bias.source if isinstance(bias, HotwordBias) else None, "long": args.long,
        },
    }

    def stream(speech: Any, report: Any) -> Any:
        if args.long:
            yield from _stream_long(args, LlmSegments(model, recogniser, args.image, args.batch_sec), speech, report)
        else:
            items = speech_items(speech, None if args.image is None else str(args.image))
            yield from recogniser.stream(items, args.batch_sec, report)
        described.update(told.describe())

    return stream, described


def _stream_long(args: argparse.Namespace, segments: Any, speech: Any, report: Any) -> Any:
    """Hypotheses of recordings of any length."""
    from xllm_speech.features.vad import VadConfig
    from xllm_speech.infer.long_audio import transcribe_recordings

    vad = None if args.longest_sec is None else VadConfig(longest_sec=args.longest_sec)
    return transcribe_recordings(segments, speech, None if args.out in (None, "-") else args.out, report, vad)

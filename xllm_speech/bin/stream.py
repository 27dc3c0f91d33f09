"""`xllm-speech stream`: turn speech into text while it is spoken."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.description = (
        "Recognise a microphone, raw samples from standard input (16 bits, little endian, 16 kHz, mono) or a file, as they "
        "come. The model must have been trained with model.encoder.chunk_steps above 0. On a terminal the text grows in its "
        "line; elsewhere each final text is a line, and --partial writes the growing ones too. Ctrl-C ends the stream, "
        "and what was said until then is still written."
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a model directory, or the output of `train`")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("audio", nargs="?", metavar="AUDIO", help="an audio file; `-` reads raw samples from standard input")
    source.add_argument("--microphone", nargs="?", const="", metavar="NAME",
                        help="a microphone by a part of its name or its number, by default the system's own")
    parser.add_argument("--image", type=Path, metavar="FILE", help="a picture that the speech is about")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: text")
    parser.add_argument("--partial", action="store_true", help="write partial results too, as lines of their own")
    parser.add_argument("--silence-sec", type=float, default=1.0, metavar="S",
                        help="an utterance ends after so long without speech; 0: only with the stream (default: 1)")
    parser.add_argument("--longest-sec", type=float, default=30.0, metavar="S",
                        help="an utterance is cut at this length; 0: never (default: 30)")
    parser.add_argument("--no-guard", action="store_true", help="take the text as it is, on silence and noise too")
    search = parser.add_argument_group("search of final texts; partial ones are greedy")
    search.add_argument("--search", choices=("greedy", "beam", "ctc"), default="greedy", help="default: greedy")
    search.add_argument("--beam", type=int, default=5, help="hypotheses kept (default: 5)")
    search.add_argument("--lm", type=Path, metavar="FILE", help="an n-gram model over the model's tokens (`xllm-speech ngram`)")
    search.add_argument("--lm-weight", type=float, default=0.3, help="default: 0.3")
    search.add_argument("--hotwords", type=Path, metavar="FILE", help="phrases that are likely, one per line")
    search.add_argument("--hotword-bonus", type=float, default=1.5, help="per token, natural log (default: 1.5)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: PyTorch's choice)")


def run(args: argparse.Namespace) -> int:
    """Recognise until the source ends or is interrupted."""
    import sys

    from xllm_speech.infer.asr import CifAsr
    from xllm_speech.infer.stream_output import StreamPrinter
    from xllm_speech.infer.stream_sources import read_microphone, read_pcm, read_recording, until_interrupted
    from xllm_speech.infer.streaming import EndpointConfig, StreamingRecogniser, stream_recordings
    from xllm_speech.models.search import make_search
    from xllm_speech.nn.device import choose_device, limit_threads

    limit_threads(args.threads)
    model = CifAsr.from_pretrained(args.model, choose_device(args.device))
    if args.no_guard:
        model.guard = None
    search = make_search(
        model.table, args.search, args.beam, lm=args.lm, lm_weight=args.lm_weight, hotwords=args.hotwords,
        hotword_bonus=args.hotword_bonus,
    )
    if args.microphone is not None:
        name, blocks = "microphone", read_microphone(args.microphone or None)
    elif args.audio == "-":
        name, blocks = "stdin", read_pcm(sys.stdin.buffer)
    else:
        name, blocks = Path(args.audio).stem, read_recording(args.audio)
    endpoint = EndpointConfig(args.silence_sec, args.longest_sec)
    recogniser = StreamingRecogniser(model, search, args.image, endpoint, name)
    with until_interrupted() as interrupted, StreamPrinter(sys.stdout, args.format, args.partial) as printer:
        for update in stream_recordings(recogniser, blocks, interrupted):
            printer.show(update)
    return 0

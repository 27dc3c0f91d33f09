"""Times of recognised characters beside the synthesiser's own.

    python3 score_times.py [--out times.json] CUTS HYP.jsonl        HYP: what `xllm-speech transcribe` wrote as json

eSpeak NG tells at which sample each word begins when a text is spoken once more, with the same voice, speed and pitch; the
pause in front of it is drawn anew from the corpus' seed, as `make_corpus.py` drew it. Most words are one character; a word
ends where the next one begins, the last where the voice ends. Compared are the edges of words, at characters that the
transcript and what was recognised share.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from noise import place
from plan import stream
from scipy.signal import resample_poly
from voices import (
    _CALLBACK,
    _CHARACTERS,
    _PITCH,
    _RATE,
    _UTF8,
    ENGINE_HZ,
    MISSING,
    SAMPLE_HZ,
    VOICE,
    _Engine,
    _reading,
    _wheel,
    speak,
)

from xllm_speech.base.errors import DataError, MissingDependency, UserError
from xllm_speech.base.files import read_jsonl, write_json
from xllm_speech.manifests.cuts import load_cuts
from xllm_speech.metrics.alignment import align

WORD_EVENT, SENTENCE_END_EVENT = 1, 5  # of espeak_EVENT_TYPE


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int), ("unique_identifier", ctypes.c_uint), ("text_position", ctypes.c_int),
        ("length", ctypes.c_int), ("audio_position", ctypes.c_int), ("sample", ctypes.c_int), ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


def speak_with_events(text: str, voice: str, speed: int, pitch: int) -> tuple[bytes, dict[int, int]]:
    """Samples, and the engine's sample at which a word begins by the place of its first character; the end by the length."""
    wheel = _wheel()
    if wheel is None:
        raise MissingDependency(MISSING)
    chunks: list[bytes] = []
    starts: dict[int, int] = {}
    ends: list[int] = []

    @_CALLBACK
    def collect(samples: int | None, count: int, events: int | None) -> int:
        if samples and count:
            chunks.append(ctypes.string_at(samples, 2 * count))
        if events:
            row = ctypes.cast(events, ctypes.POINTER(_Event))
            number = 0
            while row[number].type:
                if row[number].type == WORD_EVENT:
                    starts[row[number].text_position - 1] = row[number].sample  # places count from 1
                elif row[number].type == SENTENCE_END_EVENT:
                    ends.append(row[number].sample)
                number += 1
        return 0

    with _Engine(wheel) as engine:
        engine.library.espeak_SetSynthCallback(collect)
        engine.choose_voice(voice)
        engine.library.espeak_SetParameter(_RATE, speed, 0)
        engine.library.espeak_SetParameter(_PITCH, pitch, 0)
        letters = _reading(text).encode()
        engine.library.espeak_Synth(letters, len(letters) + 1, 0, _CHARACTERS, 0, _UTF8, None, None)
        engine.library.espeak_Synchronize()
    if not ends or not set(starts) <= set(range(len(text))):
        raise DataError(f"eSpeak NG told of words at {sorted(starts)} of the {len(text)} characters of {text!r}")
    return b"".join(chunks), {**starts, len(text): ends[-1]}


def true_edges(cut: Any) -> dict[int, float]:
    """Seconds of the recording at which the character at a place begins, where that is known; the end by the length."""
    custom, text = cut.custom, cut.supervisions[0].text
    voice, variant = custom["voice"], custom["voice"].partition("+")[2]
    if custom["voice"] != f"{VOICE}+{variant}":
        raise DataError(f"{cut.id}: voice {voice}, expected {VOICE}+...")
    said, starts = speak_with_events(text, voice, custom["speed"], custom["pitch"])
    whole = resample_poly(np.frombuffer(said, dtype=np.int16).astype(np.float64) / 32768, 320, 441)
    trimmed = speak(text, variant, custom["speed"], custom["pitch"])
    lead = int(np.flatnonzero(np.abs(whole) > 0.004)[0])  # what `speak` cut off in front
    if not np.array_equal(whole[lead : lead + len(trimmed)], trimmed):
        raise DataError(f"{cut.id}: eSpeak NG speaks otherwise with its events asked for")
    # The pause is the first that is drawn: put a single click between pauses and see where it lands.
    click = place(stream(custom["seed"], "sound", custom["image_id"]), np.ones(1), None, 0.0, [], SAMPLE_HZ)
    shift_sec = (int(np.argmax(np.abs(click.astype(np.int64)))) - lead) / SAMPLE_HZ
    return {number: sample / ENGINE_HZ + shift_sec for number, sample in starts.items()}


def compare(cut: Any, tokens: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
    """(start or end, error in seconds) at every character that both have and at which a word begins or ends."""
    edges, spelt = true_edges(cut), [token["text"] for token in tokens]
    mine = theirs = 0
    for step in align(list(cut.supervisions[0].text), spelt).steps:
        if step.operation == "C":
            for name, place_of_edge in (("start", mine), ("end", mine + 1)):
                if place_of_edge in edges:
                    yield name, tokens[theirs][name] - edges[place_of_edge]
        mine += step.reference is not None
        theirs += step.hypothesis is not None


def main() -> int:
    """Entry; the exit status is 1 where a file is broken or eSpeak NG is missing."""
    parser = argparse.ArgumentParser(description="Times of recognised characters beside the synthesiser's own.")
    parser.add_argument("cuts", type=Path, help="manifest of a set of the corpus")
    parser.add_argument("hypotheses", type=Path, help="json lines of `xllm-speech transcribe`")
    parser.add_argument("--out", type=Path, help="where the numbers go as json")
    args = parser.parse_args()
    try:
        cuts = {cut.id: cut for cut in load_cuts(args.cuts)}
        errors: dict[str, list[float]] = {"start": [], "end": []}
        for number, row in read_jsonl(args.hypotheses):
            if row["id"] not in cuts:
                raise DataError(f"{args.hypotheses}:{number}: {row['id']} is not in {args.cuts}")
            for name, error in compare(cuts[row["id"]], row["tokens"]):
                errors[name].append(error)
        if not errors["start"] or not errors["end"]:
            raise DataError(f"{args.hypotheses}: no character with a time that is in the transcripts of {args.cuts}")
        numbers: dict[str, float] = {}
        for name, values in errors.items():
            sizes = sorted(abs(error) * 1000 for error in values)
            numbers |= {
                f"{name}s": len(values),
                f"{name}_median_error_ms": round(statistics.median(sizes), 1),
                f"{name}_p90_error_ms": round(sizes[len(sizes) * 9 // 10], 1),
                f"{name}_median_bias_ms": round(1000 * statistics.median(values), 1),
            }
        numbers["median_error_ms"] = round(1000 * statistics.median(map(abs, errors["start"] + errors["end"])), 1)
        for name, value in numbers.items():
            print(f"{name}: {value}")
        if args.out:
            write_json(args.out, numbers)
    except UserError as error:
        print(f"score_times: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Transcripts in the forms of OpenAI's API: json, text, verbose_json, srt, vtt."""

from __future__ import annotations

import html
import re
from typing import Any

from xllm_speech.infer.subtitles import srt_document
from xllm_speech.infer.words import timed_words
from xllm_speech.records import Hypothesis
from xllm_speech.text.normalise import join_words

MEDIA_TYPES = {
    "text": "text/plain; charset=utf-8", "srt": "application/x-subrip; charset=utf-8", "vtt": "text/vtt; charset=utf-8",
}
TIMED = ("srt", "vtt", "verbose_json")
_CLOCK = re.compile(r"(\d\d:\d\d:\d\d),(\d\d\d)")


def whole_text(hypotheses: list[Hypothesis]) -> str:
    """The text of a recording, as it stands where there is but one piece."""
    if len(hypotheses) == 1:
        return hypotheses[0].text
    return join_words(" ".join(one.text for one in hypotheses if one.text))


def verbose(hypotheses: list[Hypothesis], duration_sec: float, language: str, granularities: list[str]) -> dict[str, Any]:
    """`verbose_json`: segments, and words where they are asked for; seconds."""
    segments = [_segment(number, one) for number, one in enumerate(one for one in hypotheses if one.text)]
    words = [
        {"word": word.text, "start": word.start_sec, "end": word.end_sec}
        for one in hypotheses for word in timed_words(one)[0]
    ]
    found: dict[str, Any] = {
        "task": "transcribe", "language": language, "duration": round(duration_sec, 3), "text": whole_text(hypotheses),
    }
    if not granularities or "segment" in granularities:
        found["segments"] = segments
    return found | ({"words": words} if "word" in granularities else {})


def _segment(number: int, one: Hypothesis) -> dict[str, Any]:
    words, _ = timed_words(one)
    start_sec = words[0].start_sec if words else one.start_sec
    end_sec = words[-1].end_sec if words else one.start_sec + (one.duration_sec or 0.0)
    # The fields of Whisper that an X-LLM has nothing for stand with values that say nothing.
    return {
        "id": number, "seek": 0, "start": round(start_sec, 3), "end": round(end_sec, 3), "text": one.text, "tokens": [],
        "temperature": 0.0, "avg_logprob": (one.score or 0.0) / max(1, len(one.tokens)), "compression_ratio": 1.0,
        "no_speech_prob": 0.0,
    }


def subtitles(hypotheses: list[Hypothesis], form: str) -> str:
    """`srt` or `vtt`."""
    document = srt_document(hypotheses)
    if form == "srt":
        return document
    cues = (block.split("\n", 2) for block in document.split("\n\n") if block)
    shown = ((_CLOCK.sub(r"\1.\2", times), html.escape(text, quote=False)) for _, times, text in cues)
    return "WEBVTT\n\n" + "".join(f"{times}\n{text}\n\n" for times, text in shown)

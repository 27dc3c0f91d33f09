"""Transcripts as files: json lines, Kaldi text, srt, ctm and Praat TextGrid.

Times are seconds from the start of the recording, as `TimedToken` carries them. Everything is UTF-8. A file appears whole
or not at all; on the standard output json, text and ctm come line by line as hypotheses arrive.

| format | one line or entry per | channel | what cannot be shown |
|---|---|---|---|
| json | utterance, every field | as in the record, from 0 | nothing: errors stand in `error` |
| text | utterance: `id text` | - | an error leaves the text empty |
| ctm | word: `recording channel start duration word [confidence]`, sorted in a file | from 1 | errors, text without times |
| srt | cue of at most 20 Chinese or 40 Latin characters, cut at pauses | mixed | errors |
| textgrid | interval; tiers `utterances` and `words`, per channel where there are several | from 1 | errors |

A srt or TextGrid file has one time axis, so it holds one recording; for several, the output is a directory with one file
per recording.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from xllm_speech.base.config import require_choice
from xllm_speech.base.errors import DataError
from xllm_speech.base.files import atomic_write
from xllm_speech.infer.subtitles import srt_document
from xllm_speech.infer.textgrid import textgrid_document
from xllm_speech.infer.words import timed_words
from xllm_speech.records import Hypothesis

FORMATS = ("json", "text", "srt", "ctm", "textgrid")
_SUFFIXES = {"srt": ".srt", "textgrid": ".TextGrid"}


@dataclass
class Written:
    """What `write_hypotheses` did: utterances seen, the files, and (id, reason) of those the format cannot show."""

    utterances: int = 0
    files: list[Path] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)


def write_hypotheses(hypotheses: Iterable[Hypothesis], out: str | Path | None, format: str) -> Written:
    """Write hypotheses, drawn one by one from an iterable, in one of `FORMATS`.

    out: a file; None or `-` for the standard output; for srt and textgrid also a directory (one that exists, or a name
    without suffix), which then gets `<recording>.srt` or `.TextGrid` for each recording.

    Raises:
        ConfigError: unknown format.
        DataError: srt or textgrid of several recordings into one file.
    """
    require_choice("format", format, FORMATS)
    written = Written()
    target = None if out is None or str(out) == "-" else Path(out)
    seen = _count(hypotheses, written)
    match format:
        case "json":
            _write_lines((json_line(hypothesis) for hypothesis in seen), target, written)
        case "text":
            _write_lines((text_line(hypothesis) for hypothesis in seen), target, written)
        case "ctm":
            rows = (row for hypothesis in seen for row in _ctm_rows(hypothesis, written))
            ordered = rows if target is None else iter(sorted(rows))
            _write_lines((_ctm_line(row) for row in ordered), target, written)
        case "srt":
            _write_documents(seen, target, format, srt_document, written)
        case _:
            _write_documents(seen, target, format, textgrid_document, written)
    return written


def json_line(hypothesis: Hypothesis) -> str:
    """One JSON object: id, text, tokens [{text, start, end, confidence}], score, recording, channel, start, duration, error.

    Token texts are the table's pieces. `extra` follows where it is not empty; numbers that are not finite become null.
    """
    value: dict[str, Any] = {
        "id": hypothesis.id,
        "text": hypothesis.text,
        "tokens": [
            {"text": token.text, "start": token.start_sec, "end": token.end_sec, "confidence": token.confidence}
            for token in hypothesis.tokens
        ],
        "score": hypothesis.score,
        "recording": hypothesis.recording,
        "channel": hypothesis.channel,
        "start": hypothesis.start_sec,
        "duration": hypothesis.duration_sec,
        "error": hypothesis.error,
    }
    if hypothesis.extra:
        value["extra"] = hypothesis.extra
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def text_line(hypothesis: Hypothesis) -> str:
    """`id text` as in a Kaldi `text` file; white space in the id becomes `_`, line breaks in the text become spaces."""
    return f"{_name(hypothesis.id)} {' '.join(hypothesis.text.split())}".rstrip()


def _plain(value: Any) -> Any:
    """Numbers rounded to a tenth of a millisecond (and null where not finite), so that a line stays readable."""
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _name(name: str) -> str:
    return re.sub(r"\s+", "_", name.strip())


def _count(hypotheses: Iterable[Hypothesis], written: Written) -> Iterator[Hypothesis]:
    for hypothesis in hypotheses:
        written.utterances += 1
        yield hypothesis


def _skips(hypothesis: Hypothesis, written: Written) -> bool:
    if hypothesis.error is not None:
        written.skipped.append((hypothesis.id, hypothesis.error))
    return hypothesis.error is not None


_CtmRow = tuple[str, int, float, float, str, float | None]


def _ctm_rows(hypothesis: Hypothesis, written: Written) -> list[_CtmRow]:
    if _skips(hypothesis, written):
        return []
    words, _ = timed_words(hypothesis)
    if hypothesis.text.strip() and not words:
        written.skipped.append((hypothesis.id, "its tokens have no times"))
    recording = _name(hypothesis.recording or hypothesis.id)
    return [
        (recording, hypothesis.channel + 1, word.start_sec, word.end_sec, _name(word.text), word.confidence)
        for word in words
    ]


def _ctm_line(row: _CtmRow) -> str:
    recording, channel, start, end, word, confidence = row
    # Rounding both ends, not the duration, keeps neighbours that touch from overlapping.
    duration = max(0.0, round(end, 3) - round(start, 3))
    line = f"{recording} {channel} {start:.3f} {duration:.3f} {word}"
    return line if confidence is None else f"{line} {confidence:.3f}"


def _write_lines(lines: Iterator[str], target: Path | None, written: Written) -> None:
    with contextlib.ExitStack() as stack:
        stream: IO[str] = sys.stdout if target is None else stack.enter_context(atomic_write(target))
        for line in lines:
            stream.write(line + "\n")
            if target is None:
                stream.flush()
    if target is not None:
        written.files.append(target)


def _write_documents(
    hypotheses: Iterator[Hypothesis],
    target: Path | None,
    format: str,
    document: Callable[[list[Hypothesis]], str],
    written: Written,
) -> None:
    into_directory = target is not None and (target.is_dir() or not (target.suffix or target.exists()))
    recordings: dict[str, list[Hypothesis]] = {}
    for hypothesis in hypotheses:
        members = recordings.setdefault(hypothesis.recording or hypothesis.id, [])
        if not into_directory and len(recordings) > 1:
            first, second = list(recordings)[:2]
            raise DataError(f"{format} holds one recording, here are {first} and {second}; give --out a directory")
        if not _skips(hypothesis, written):
            members.append(hypothesis)
    if target is None:
        sys.stdout.write("".join(document(members) for members in recordings.values()))
        sys.stdout.flush()
    elif not into_directory:
        with atomic_write(target) as stream:
            stream.write("".join(document(members) for members in recordings.values()))
        written.files.append(target)
    else:
        _write_directory(target, {name: document(members) for name, members in recordings.items()}, format, written)


def _write_directory(target: Path, documents: dict[str, str], format: str, written: Written) -> None:
    target.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    for recording, content in documents.items():
        name = re.sub(r"[\s/\\]+", "_", recording.strip())
        while name in taken:  # `a b` and `a/b` must not overwrite one another
            name += "_"
        taken.add(name)
        path = target / (name + _SUFFIXES[format])
        with atomic_write(path) as stream:
            stream.write(content)
        written.files.append(path)

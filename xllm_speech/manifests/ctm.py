"""NIST's ctm (recognised words with times) and stm (reference segments), in and out, as Kaldi and sclite use them.

    ctm   recording channel start duration word [confidence]
    stm   recording channel speaker start end [<labels>] transcript

Times are seconds from the start of the recording, channels count from 1 (or A) in the files and from 0 here. `;;` begins a
comment. Transcripts of recognition are written as ctm by `infer.formats`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.cut import Cut

from xllm_speech.base.errors import DataError
from xllm_speech.base.files import atomic_write, numbered_lines
from xllm_speech.manifests.cuts import utterance_of

IGNORED = "IGNORE_TIME_SEGMENT_IN_SCORING"  # an stm's word for "nobody knows what is said here"
MAX_OVERSHOOT_SEC = 0.5


@dataclass(frozen=True)
class CtmWord:
    """One line of a ctm; confidence in 0..1, or None."""

    recording: str
    channel: int
    start_sec: float
    end_sec: float
    text: str
    confidence: float | None = None


@dataclass(frozen=True)
class StmSegment:
    """One line of an stm; labels: the categories of its `<...>` field."""

    recording: str
    channel: int
    speaker: str
    start_sec: float
    end_sec: float
    text: str
    labels: tuple[str, ...] = ()

    @property
    def ignored(self) -> bool:
        """Whether it is left out of scoring."""
        return self.text.upper() == IGNORED


def read_ctm(path: str | Path) -> list[CtmWord]:
    """The words of a ctm in the order of the file.

    Raises:
        DataError: a line of another form, or alternatives (`<ALT>`), which have no single time line; names file and line.
    """
    words = []
    for where, fields in _lines(path):
        if len(fields) not in (5, 6):
            raise DataError(f"{where}: {len(fields)} fields, expected recording, channel, start, duration, word [confidence]")
        if fields[4].upper().startswith("<ALT") or "*" in fields[2:4]:
            raise DataError(f"{where}: alternatives ({fields[4]}) are not read; keep one of them")
        start_sec = _number(fields[2], where, "start")
        duration_sec = _number(fields[3], where, "duration")
        confidence = _number(fields[5], where, "confidence") if len(fields) == 6 and fields[5] != "NA" else None
        words.append(
            CtmWord(fields[0], _channel(fields[1], where), start_sec, start_sec + duration_sec, fields[4], confidence)
        )
    return words


def write_ctm(path: str | Path, words: Iterable[CtmWord]) -> int:
    """Write words, sorted by recording, channel and start, atomically; returns their number. Times have three decimals.

    Raises:
        DataError: a name or word with blanks in it.
    """
    count = 0
    with atomic_write(path) as stream:
        for word in sorted(words, key=lambda word: (word.recording, word.channel, word.start_sec, word.end_sec)):
            # Rounding both ends keeps neighbours that touch from overlapping.
            begin, end = round(word.start_sec, 3), round(word.end_sec, 3)
            line = f"{_bare(word.recording)} {word.channel + 1} {begin:.3f} {max(0.0, end - begin):.3f} {_bare(word.text)}"
            stream.write(line + ("\n" if word.confidence is None else f" {word.confidence:.3f}\n"))
            count += 1
    return count


def read_stm(path: str | Path) -> list[StmSegment]:
    """The segments of an stm in the order of the file, those that scoring ignores among them.

    Raises:
        DataError: a line of another form, or a segment that ends before it begins; names file and line.
    """
    segments = []
    for where, fields in _lines(path):
        if len(fields) < 5:
            raise DataError(f"{where}: {len(fields)} fields, expected recording, channel, speaker, start, end, text")
        start_sec, end_sec = _number(fields[3], where, "start"), _number(fields[4], where, "end")
        if end_sec <= start_sec:
            raise DataError(f"{where}: a segment from {start_sec} to {end_sec} s")
        rest = fields[5:]
        labels: tuple[str, ...] = ()
        if rest and re.fullmatch(r"<[^<>]*>", rest[0]):
            labels, rest = tuple(rest[0][1:-1].split(",")), rest[1:]
        text = " ".join(rest)
        segments.append(StmSegment(fields[0], _channel(fields[1], where), fields[2], start_sec, end_sec, text, labels))
    return segments


def write_stm(path: str | Path, segments: Iterable[StmSegment]) -> int:
    """Write segments, sorted by recording, channel and start, atomically; returns their number. Times have three decimals.

    Raises:
        DataError: a name with blanks in it.
    """
    count = 0
    with atomic_write(path) as stream:
        for part in sorted(segments, key=lambda part: (part.recording, part.channel, part.start_sec, part.end_sec)):
            labels = f" <{','.join(part.labels)}>" if part.labels else ""
            names = f"{_bare(part.recording)} {part.channel + 1} {_bare(part.speaker)}"
            text = " ".join(part.text.split())
            stream.write(f"{names} {part.start_sec:.3f} {part.end_sec:.3f}{labels} {text}".rstrip() + "\n")
            count += 1
    return count


def stm_of_cuts(cuts: Iterable[Cut]) -> Iterator[StmSegment]:
    """A segment for every cut with a transcript, such as the utterances of a Kaldi data directory; cuts without are left out.

    Raises:
        DataError: a cut without a recording.
    """
    for cut in cuts:
        utterance = utterance_of(cut)
        if utterance.text is None:
            continue
        if not getattr(cut, "has_recording", False) or not hasattr(cut, "recording"):
            raise DataError(f"{utterance.id}: an stm needs the recording that it is a part of")
        channel = cut.channel if isinstance(cut.channel, int) else 0
        speaker = utterance.speaker or utterance.id
        yield StmSegment(cut.recording.id, channel, speaker, cut.start, cut.start + cut.duration, utterance.text)


def cuts_of_stm(segments: Iterable[StmSegment], recordings: Mapping[str, Recording]) -> CutSet:
    """Cuts of the segments, ids `recording-channel-start-end` in hundredths of a second; ignored segments are left out.

    recordings: by the names that the stm uses.

    Raises:
        DataError: an unknown recording or channel, or a segment that reaches further than half a second past its recording.
    """
    cuts: dict[str, MonoCut] = {}
    for part in segments:
        if part.ignored:
            continue
        name = f"{part.recording}-{part.channel + 1}-{round(part.start_sec * 100):07d}-{round(part.end_sec * 100):07d}"
        recording = recordings.get(part.recording)
        if recording is None:
            raise DataError(f"{name}: no recording called {part.recording}")
        if part.channel not in recording.channel_ids:
            raise DataError(f"{name}: {part.recording} has channels {[number + 1 for number in recording.channel_ids]}")
        if part.start_sec >= recording.duration or part.end_sec > recording.duration + MAX_OVERSHOOT_SEC:
            raise DataError(f"{name}: ends at {part.end_sec} s, {part.recording} lasts {recording.duration:.3f} s")
        if name in cuts:
            raise DataError(f"{name}: the same segment twice")
        duration = min(part.end_sec, recording.duration) - part.start_sec
        supervision = SupervisionSegment(
            id=name, recording_id=recording.id, start=0, duration=duration, channel=part.channel, text=part.text or None,
            speaker=part.speaker,
        )
        cuts[name] = MonoCut(
            id=name, start=part.start_sec, duration=duration, channel=part.channel, recording=recording,
            supervisions=[supervision],
        )
    return CutSet(list(cuts.values()))


def _lines(path: str | Path) -> Iterator[tuple[str, list[str]]]:
    """`file:line` and fields; only ASCII blanks part them, for an ideographic space belongs to the text."""
    for number, line in numbered_lines(path):
        line = re.sub(r"(^|[ \t]);;.*", "", line.lstrip("\ufeff")).strip(" \t")
        if line:
            yield f"{path}:{number}", re.split(r"[ \t]+", line)


def _number(field: str, where: str, what: str) -> float:
    try:
        value = float(field)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise DataError(f"{where}: {what} `{field}` is not a number from 0 on")
    return value


def _channel(field: str, where: str) -> int:
    if re.fullmatch(r"[A-Ba-b]", field):
        return "AB".index(field.upper())
    if re.fullmatch(r"[1-9]\d*", field):
        return int(field) - 1
    raise DataError(f"{where}: channel `{field}`; expected A, B or a number from 1 on")


def _bare(name: str) -> str:
    if not name or re.search(r"\s", name):
        raise DataError(f"`{name}`: names and words of ctm and stm cannot be empty or hold blanks")
    return name

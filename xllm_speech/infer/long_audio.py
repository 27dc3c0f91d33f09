"""Recordings of any length: cut by voice activity, recognised piece by piece, with a journal that survives a kill.

Memory is bounded: the recording is read in blocks for the voice activity, and each segment once more for recognition.
Where there is no speech nothing is recognised, so silence, noise and music give no text.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import soundfile
from lhotse.cut import Cut
from lhotse.utils import fastcopy

from xllm_speech.base.config import require
from xllm_speech.base.errors import ConfigError, DataError, first_line
from xllm_speech.base.files import sha256_file
from xllm_speech.base.units import SAMPLE_RATE_HZ
from xllm_speech.features.audio import load_file, load_samples, soundfile_knows
from xllm_speech.features.vad import Segment, SpeechDetector, VadConfig, find_segments, load_vad
from xllm_speech.infer.asr import DecodingReport
from xllm_speech.infer.segments import SegmentRecogniser
from xllm_speech.records import Hypothesis, TimedToken
from xllm_speech.text.tokens import join_tokens

BLOCK_SEC = 30.0  # read at once for the voice activity
GROUP_SEC = 120.0  # of segments recognised between two entries of the journal
JOURNAL_FORMAT = "xllm-long-1"
NEAR_SEC = 0.4  # two pieces place the same token at most this far apart


def transcribe_long(
    recogniser: SegmentRecogniser,
    path: str | Path,
    journal: str | Path | None = None,
    vad: VadConfig | None = None,
    report: DecodingReport | None = None,
    on_progress: Callable[[DecodingReport], None] | None = None,
) -> Iterator[Hypothesis]:
    """Recognise one recording of any length; a hypothesis per segment in order of time, ids `NAME-00001` and on.

    A recording without speech gives one hypothesis with an empty text. Pieces of one stretch of speech overlap and are
    joined at a token that both have. Times count from the start of the recording.

    Args:
        journal: a file to which segments are appended as they are done; a later call with the same recording, model and
            settings goes on behind them. It stays when all is done: whoever has stored the result removes it.
        vad: None for the recogniser's own. report: filled in on the way. on_progress: called after each batch.

    Raises:
        DataError: unreadable audio. ConfigError: a journal of another recording, model or settings. MissingDependency: no VAD.
    """
    path, vad, report = Path(path), vad or recogniser.vad, report or DecodingReport()
    with contextlib.ExitStack() as stack:
        cut = stack.enter_context(_open_recording(path))
        done: dict[int, Hypothesis] = {}
        log: IO[str] | None = None
        if journal is not None:
            done, log = _open_journal(Path(journal), _describe_run(recogniser, path, vad))
            stack.callback(log.close)
        numbered = enumerate(find_segments(_probabilities(cut, recogniser.channel), cut.duration, vad), 1)
        found = False
        for hypothesis in _join_pieces(_recognise(recogniser, cut, numbered, done, log, report, on_progress)):
            found = True
            yield hypothesis
        if not found:
            report.utterances += 1
            yield Hypothesis(path.stem, "", recording=path.stem, duration_sec=round(cut.duration, 3))


def _recognise(
    recogniser: SegmentRecogniser, cut: Cut, numbered: Iterator[tuple[int, Segment]], done: dict[int, Hypothesis],
    log: IO[str] | None, report: DecodingReport, on_progress: Callable[[DecodingReport], None] | None,
) -> Iterator[tuple[Segment, Hypothesis]]:
    """Each segment with its hypothesis: from the journal where it is there, else recognised and entered."""
    for group in _groups(numbered):
        pieces = [
            fastcopy(cut.truncate(offset=segment.start_sec, duration=segment.duration_sec), id=f"{cut.id}-{number:05d}")
            for number, segment in group if number not in done
        ]
        fresh = recogniser.stream(pieces, report, on_progress)
        for number, segment in group:
            if number in done:
                report.utterances += 1
                yield segment, done.pop(number)
                continue
            hypothesis = next(fresh)
            if log is not None and hypothesis.error is None:
                log.write(json.dumps({"segment": number, "hypothesis": asdict(hypothesis)}, ensure_ascii=False) + "\n")
                log.flush()
            yield segment, hypothesis
        if log is not None:
            os.fsync(log.fileno())


def _groups(numbered: Iterator[tuple[int, Segment]]) -> Iterator[list[tuple[int, Segment]]]:
    group: list[tuple[int, Segment]] = []
    total_sec = 0.0
    for number, segment in numbered:
        if group and total_sec + segment.duration_sec > GROUP_SEC:
            yield group
            group, total_sec = [], 0.0
        group.append((number, segment))
        total_sec += segment.duration_sec
    if group:
        yield group


def _probabilities(cut: Cut, channel: str) -> Iterator[float]:
    """Probabilities of speech, one per 32 ms, of a recording read block by block."""
    detector = SpeechDetector(load_vad())
    for number in itertools.count():
        start_sec = number * BLOCK_SEC
        length_sec = min(BLOCK_SEC, cut.duration - start_sec)
        if length_sec * SAMPLE_RATE_HZ < 1:
            break
        block = fastcopy(cut.truncate(offset=start_sec, duration=length_sec), id=cut.id)
        yield from detector.push(load_samples(block, channel))
    yield from detector.finish()


@contextlib.contextmanager
def _open_recording(path: Path) -> Iterator[Cut]:
    """A cut over the whole file. What libsndfile does not read goes through PyAV into a temporary file, in blocks too."""
    if not path.is_file() or soundfile_knows(path):
        yield load_file(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "audio.wav"
        try:
            _decode_to_wav(path, copy)
        except Exception as error:  # every codec has its own exceptions
            raise DataError(f"{path}: unreadable audio ({first_line(error)})") from error
        yield load_file(copy, path.stem)


def _decode_to_wav(source: Path, target: Path) -> None:
    import av

    with av.open(str(source)) as container:
        if not container.streams.audio:
            raise DataError("no audio stream")
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="s16", layout=stream.layout, rate=SAMPLE_RATE_HZ)
        with soundfile.SoundFile(target, "w", SAMPLE_RATE_HZ, len(stream.layout.channels), "PCM_16") as out:
            for frame in itertools.chain(container.decode(stream), [None]):
                for block in resampler.resample(frame):
                    out.write(block.to_ndarray().reshape(-1, out.channels))


def _describe_run(recogniser: SegmentRecogniser, path: Path, vad: VadConfig) -> dict[str, Any]:
    """What a journal belongs to."""
    return {
        "format": JOURNAL_FORMAT, "audio": path.name, "audio_sha256": sha256_file(path), **recogniser.describe(),
        "vad": asdict(vad), "channel": recogniser.channel,
    }


def _open_journal(path: Path, head: dict[str, Any]) -> tuple[dict[int, Hypothesis], IO[str]]:
    """What is done already, and the journal open behind it. A line that a kill cut short is taken away."""
    done: dict[int, Hypothesis] = {}
    size = 0
    if path.is_file():
        with open(path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    row = json.loads(line)
                    if number == 1:
                        _check_head(path, row, head)
                    else:
                        done[int(row["segment"])] = _hypothesis(row["hypothesis"])
                except (ValueError, KeyError, TypeError) as error:
                    raise ConfigError(f"{path}:{number}: not a line of a journal; remove the file to start anew") from error
                size += len(line)
    path.parent.mkdir(parents=True, exist_ok=True)
    log = open(path, "a", encoding="utf-8")  # noqa: SIM115 - the caller closes it
    log.truncate(size)
    if size == 0:
        log.write(json.dumps(head, ensure_ascii=False) + "\n")
        log.flush()
    return done, log


def _check_head(path: Path, found: Any, head: dict[str, Any]) -> None:
    if not isinstance(found, dict) or found.get("format") != JOURNAL_FORMAT:
        raise ConfigError(f"{path}: not a journal of a long recording; give --out another name")
    other = [name for name in head if found.get(name) != head[name]]
    if other:
        raise ConfigError(
            f"{path}: the journal of another run: {', '.join(other)} differ; take up that run with its own options, or remove "
            "the file to start anew"
        )


def _hypothesis(row: dict[str, Any]) -> Hypothesis:
    return Hypothesis(**{**row, "tokens": [TimedToken(**token) for token in row["tokens"]]})


def _join_pieces(pairs: Iterable[tuple[Segment, Hypothesis]]) -> Iterator[Hypothesis]:
    """Let every token of overlapping pieces stand in one of them only."""
    before: Hypothesis | None = None
    for segment, hypothesis in pairs:
        if before is not None:
            if segment.joined and before.error is None and hypothesis.error is None:
                before, hypothesis = join_two(before, hypothesis)
            yield before
        before = hypothesis
    if before is not None:
        yield before


def join_two(first: Hypothesis, second: Hypothesis) -> tuple[Hypothesis, Hypothesis]:
    """Cut two hypotheses of overlapping stretches so that nothing is said twice.

    The first one ends with the token, nearest to the middle of the overlap, that both have at about the same time; the second
    begins behind it. Where they have none in common each keeps its side of the middle.
    """
    first_end_sec = first.start_sec + (first.duration_sec or 0.0)
    middle_sec = (second.start_sec + first_end_sec) / 2

    def centre(token: TimedToken) -> float:
        return (token.start_sec + token.end_sec) / 2

    # One pair of equal tokens per side of the overlap; a token at the very edge may be half of one, so the middle is best.
    common = [
        (abs(centre(left) - middle_sec) + abs(centre(right) - centre(left)), i, j)
        for i, left in enumerate(first.tokens) if left.end_sec > second.start_sec
        for j, right in enumerate(second.tokens) if right.start_sec < first_end_sec
        if left.text == right.text and abs(centre(left) - centre(right)) <= NEAR_SEC
    ]
    if common:
        _, i, j = min(common)
        kept, rest = first.tokens[: i + 1], second.tokens[j + 1 :]
        switch_sec = first.tokens[i].end_sec
    else:
        kept = [token for token in first.tokens if centre(token) < middle_sec]
        rest = [token for token in second.tokens if centre(token) >= middle_sec]
        switch_sec = middle_sec
    end_sec = second.start_sec + (second.duration_sec or 0.0)
    count = len(second.tokens)
    return (
        replace(first, tokens=kept, text=_spell(first, 0, len(kept)), duration_sec=round(switch_sec - first.start_sec, 3)),
        replace(
            second, tokens=rest, text=_spell(second, count - len(rest), count), start_sec=round(switch_sec, 3),
            duration_sec=round(max(0.0, end_sec - switch_sec), 3),
        ),
    )


def _spell(hypothesis: Hypothesis, begin: int, end: int) -> str:
    """The text of some of its tokens."""
    spelt = [token.text for token in hypothesis.tokens]
    if (begin, end) == (0, len(spelt)):
        return hypothesis.text
    if "".join(spelt) != "".join(hypothesis.text.split()):  # pieces of a token table, which bring their own spaces
        return join_tokens(spelt[begin:end])
    first, last = len("".join(spelt[:begin])), len("".join(spelt[:end]))
    places = [place for place, letter in enumerate(hypothesis.text) if not letter.isspace()][first:last]
    return hypothesis.text[places[0] : places[-1] + 1] if places else ""


def transcribe_recordings(
    recogniser: SegmentRecogniser, paths: Iterable[str | Path], out: str | Path | None = None,
    report: DecodingReport | None = None, vad: VadConfig | None = None,
) -> Iterator[Hypothesis]:
    """`transcribe_long` of each file, with a journal beside `out` (none for None); a file that fails costs only itself.

    Raises:
        ConfigError: two recordings of one file name with `out`, or a journal of another run.
    """
    report = report or DecodingReport()
    names: set[str] = set()
    for path in paths:
        require(
            out is None or Path(path).name not in names,
            f"two recordings are named {Path(path).name}, and so would be their journals beside {out}; rename one",
        )
        names.add(Path(path).name)
        journal = None if out is None else journal_path(out, path)
        try:
            yield from transcribe_long(recogniser, path, journal, vad, report)
        except DataError as error:
            name = Path(path).stem
            report.utterances += 1
            report.failed.append((name, str(error)))
            yield Hypothesis(name, "", recording=str(path), error=str(error))


def remove_journals(out: str | Path, audio: Iterable[str | Path]) -> None:
    """Once the output is written, its journals have done their work."""
    for path in audio:
        journal_path(out, path).unlink(missing_ok=True)


def journal_path(out: str | Path, audio: str | Path) -> Path:
    """Where the journal of one recording stands: beside the output."""
    return Path(out).with_name(f"{Path(out).name}.{Path(audio).name}.journal")

"""Kaldi data directories in: wav.scp (files, pipes, archives), segments, text, utt2spk, feats.scp (data.md, Manifests)."""

from __future__ import annotations

import io
import logging
import math
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import kaldiio
import numpy as np
import soundfile
from lhotse import CutSet, Features, MonoCut, MultiCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.cut import Cut
from lhotse.utils import fastcopy

from xllm_speech.base.errors import DataError
from xllm_speech.base.rejects import DEFAULT_MAX_SHARE, Rejects
from xllm_speech.base.units import FRAME_SHIFT_MS, MEL_BINS, SAMPLE_RATE_HZ
from xllm_speech.manifests.cuts import (
    CUTS_NAME,
    REJECTED_NAME,
    PathFinder,
    make_recording,
    map_in_threads,
    save_cuts,
)

logger = logging.getLogger(__name__)

# extract-segments clips an end this far past the recording, and skips what reaches further (--max-overshoot).
MAX_OVERSHOOT_SEC = 0.5
COMMAND_TIMEOUT_SEC = 600
FRAME_SHIFT_SEC = FRAME_SHIFT_MS / 1000


class Rejected(Exception):
    """Why one utterance cannot be used: a short kind, the reason in words, and where it stands."""

    def __init__(self, kind: str, reason: str, where: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.where = where


@dataclass(frozen=True)
class Entry:
    """One line of a Kaldi table: what follows the id, and `file:line`."""

    value: str
    where: str


def is_kaldi_dir(path: str | Path) -> bool:
    """Whether a folder holds a wav.scp or a feats.scp."""
    return any((Path(path) / name).is_file() for name in ("wav.scp", "feats.scp"))


def read_kaldi_dir(directory: str | Path, rejects: Rejects, need_text: bool = True) -> CutSet:
    """The usable utterances of a Kaldi data directory as cuts in memory; everything else goes to `rejects`.

    Any sample rate and number of channels. wav.scp may name files (from the working directory, else from the data
    directory or its parents), shell commands ending in `|`, which are run as Kaldi runs them, and `wav.ark:OFFSET`.
    Features of 80 bins in feats.scp are used as they are. Every id of wav.scp, segments, feats.scp and text ends in a cut
    or in `rejects`; of a doubled id the first line counts.

    Raises:
        DataError: no wav.scp and no feats.scp, or `need_text` and no text file.
    """
    return CutSet(list(KaldiDir(directory, rejects, need_text).cuts()))


def prepare_kaldi(
    directory: str | Path, out: str | Path, max_rejected: float = DEFAULT_MAX_SHARE, need_text: bool = True
) -> dict[str, int]:
    """Write `out/cuts.jsonl.gz` and `out/rejected.jsonl`; returns counts: `cuts`, `rejected`, and one per kind.

    Raises:
        DataError: nothing usable, or more than `max_rejected` is not; then there is no cuts.jsonl.gz.
    """
    out = Path(out)
    rejects = Rejects(max_rejected)
    part = out / f".part.{CUTS_NAME}"
    try:
        count = save_cuts(KaldiDir(directory, rejects, need_text).cuts(), part)
        rejects.write(out / REJECTED_NAME)
        rejects.check(count + len(rejects.rows), out / REJECTED_NAME)
        if not count:
            raise DataError(f"{directory}: no usable utterance ({rejects.summary()}; see {out / REJECTED_NAME})")
        os.replace(part, out / CUTS_NAME)
    finally:
        part.unlink(missing_ok=True)
    logger.info("%s: %d utterances, %s", directory, count, rejects.summary())
    return {"cuts": count, "rejected": len(rejects.rows), **rejects.counts}


class KaldiDir:
    """One data directory; `cuts` yields its usable utterances once, in the order of segments, wav.scp or feats.scp."""

    def __init__(self, directory: str | Path, rejects: Rejects, need_text: bool = True) -> None:
        self.directory = Path(directory)
        if not is_kaldi_dir(self.directory):
            raise DataError(f"{directory}: neither wav.scp nor feats.scp in it; not a Kaldi data directory")
        if need_text and not (self.directory / "text").is_file():
            raise DataError(f"{self.directory / 'text'}: no such file; training needs the transcripts")
        self.rejects = rejects
        self.need_text = need_text
        self.finder = PathFinder(self.directory)
        self.recordings: dict[str, Recording | Rejected] = {}
        self.noted: set[str] = set()
        self.words: dict[str, int] = {}

    def cuts(self) -> Iterator[Cut]:
        """The utterances; `rejects` is complete once this is exhausted."""
        self.wavs = self._read("wav.scp")
        self.segments = self._read("segments")
        self.features = self._read("feats.scp")
        self.text = self._read("text", may_be_empty=True)
        self.speakers = self._read("utt2spk", counts=False)
        self.has_segments = (self.directory / "segments").is_file()
        utterances = dict.fromkeys(self.segments if self.has_segments else self.wavs)
        utterances.update(dict.fromkeys(self.features))
        for utterance_id, found in map_in_threads(self._try_utterance, utterances):
            if isinstance(found, Rejected):
                self._reject(utterance_id, found)
            else:
                yield found
        self._account_for_the_rest(utterances)
        if (self.directory / "cmvn.scp").is_file():
            logger.info("%s: not used; statistics are computed over the training set", self.directory / "cmvn.scp")
        for word, number in self.words.items():
            logger.warning("%s: %d utterances %s", self.directory, number, word)

    def _read(self, name: str, may_be_empty: bool = False, counts: bool = True) -> dict[str, Entry]:
        """id -> entry of one table, {} where it is absent; lines that cannot be used are rejected."""
        path = self.directory / name
        table: dict[str, Entry] = {}
        if not path.is_file():
            return table
        with open(path, "rb") as stream:
            for number, raw in enumerate(stream, 1):
                where = f"{path}:{number}"
                try:
                    line = raw.decode("utf-8").lstrip("\ufeff").strip(" \t\r\n")
                except UnicodeDecodeError as error:
                    line = raw.decode("utf-8", "replace").strip(" \t\r\n")
                    if counts:
                        self._reject(_split(line)[0], Rejected("bad-line", f"not UTF-8 ({error.reason})", where))
                    continue
                if not line:
                    continue
                utterance_id, value = _split(line)
                if utterance_id in table:
                    if counts:
                        reason = f"id again in {name}; the first, {table[utterance_id].where}, counts"
                        self._reject(utterance_id, Rejected("duplicate-id", reason, where))
                elif not value and not may_be_empty:
                    if counts:
                        self._reject(utterance_id, Rejected("bad-line", f"nothing after the id in {name}", where))
                else:
                    table[utterance_id] = Entry(value, where)
        return table

    def _reject(self, utterance_id: str, rejected: Rejected) -> None:
        self.noted.add(utterance_id)
        self.rejects.add(utterance_id, rejected.where, str(rejected), rejected.kind)

    def _say(self, word: str) -> None:
        self.words[word] = self.words.get(word, 0) + 1

    def _account_for_the_rest(self, utterances: dict[str, None]) -> None:
        for utterance_id, entry in self.text.items():
            if utterance_id not in utterances and utterance_id not in self.noted:
                rejected = Rejected("text-without-audio", "a transcript without audio or features", entry.where)
                self._reject(utterance_id, rejected)
        if self.has_segments:
            used = {entry.value.split()[0] for entry in self.segments.values()}
            for recording_id, entry in self.wavs.items():
                if recording_id not in used and recording_id not in utterances:
                    self._reject(recording_id, Rejected("unused-recording", "no segment names this recording", entry.where))
        if self.speakers:
            silent = sum(1 for utterance_id in utterances if utterance_id not in self.speakers)
            if silent:
                self.words["have no speaker in utt2spk"] = silent

    def _try_utterance(self, utterance_id: str) -> Cut | Rejected:
        try:
            return self._utterance(utterance_id)
        except Rejected as rejected:
            return rejected

    def _utterance(self, utterance_id: str) -> Cut:
        text = self.text.get(utterance_id)
        own = self.segments.get(utterance_id) or self.wavs.get(utterance_id) or self.features[utterance_id]
        if self.need_text and text is None:
            raise Rejected("no-transcript", "no line in text", own.where)
        if self.need_text and text is not None and not text.value:
            raise Rejected("empty-transcript", "its line in text has no words", text.where)
        cut = self._audio_part(utterance_id)
        features = self._stored_features(utterance_id, cut)
        if cut is None:
            if features is None:
                raise Rejected("missing-audio", "neither a recording nor usable features", own.where)
            cut = MonoCut(id=utterance_id, start=0, duration=features.duration, channel=0, features=features)
        elif features is not None:
            cut = fastcopy(cut, features=features)
        speaker = self.speakers.get(utterance_id)
        supervision = SupervisionSegment(
            id=utterance_id, recording_id=getattr(cut, "recording_id", utterance_id), start=0, duration=cut.duration,
            channel=cut.channel, text=text.value if text and text.value else None, speaker=speaker.value if speaker else None,
        )
        return fastcopy(cut, supervisions=[supervision])

    def _audio_part(self, utterance_id: str) -> MonoCut | MultiCut | None:
        """The recording, or the part of it that segments names; None where there are only features."""
        segment = self.segments.get(utterance_id)
        if segment is None:
            if self.has_segments or utterance_id not in self.wavs:
                return None
            recording = self._recording(utterance_id)
            return _cut(utterance_id, recording, 0.0, recording.duration, None)
        recording_id, start_sec, end_sec, channel = _parse_segment(segment)
        if recording_id not in self.wavs:
            if utterance_id in self.features:
                return None
            raise Rejected("missing-audio", f"recording {recording_id} is not in wav.scp", segment.where)
        recording = self._recording(recording_id)
        total = recording.duration
        if end_sec < 0:
            end_sec = total
        span = f"segment {start_sec} .. {end_sec} s of {recording_id}, which lasts {total:.3f} s"
        if start_sec >= total or end_sec > total + MAX_OVERSHOOT_SEC:
            raise Rejected("segment-outside", f"{span}: outside it", segment.where)
        if end_sec > total:
            self._say(f"end up to {MAX_OVERSHOOT_SEC} s past their recording; cut off there")
            end_sec = total
        if round((end_sec - start_sec) * recording.sampling_rate) < 1:
            raise Rejected("zero-length", f"{span}: no sample long", segment.where)
        if channel is not None and channel not in recording.channel_ids:
            raise Rejected("segment-outside", f"{span}: no channel {channel}", segment.where)
        return _cut(utterance_id, recording, start_sec, end_sec, channel)

    def _recording(self, recording_id: str) -> Recording:
        found = self.recordings.get(recording_id)
        if found is None:
            found = self._open(recording_id, self.wavs[recording_id])
            if self.has_segments:  # else every recording is asked for once
                self.recordings[recording_id] = found
        if isinstance(found, Rejected):
            raise found
        return found

    def _open(self, recording_id: str, entry: Entry) -> Recording | Rejected:
        if entry.value.endswith("|"):
            return _open_command(recording_id, entry.value.rstrip("| \t"), entry.where)
        archive = re.fullmatch(r"(.+):(\d+)", entry.value)
        if archive and not os.path.exists(entry.value):
            path = self.finder.find(archive[1], probe=True)
            return _open_command(recording_id, _archive_command(path, int(archive[2])), entry.where)
        path = self.finder.find(entry.value, probe=True)
        if not os.path.isfile(path):
            what = "a folder" if os.path.isdir(path) else "no such file"
            return Rejected("missing-audio", f"{entry.value}: {what}", entry.where)
        try:
            return make_recording(recording_id, path)
        except DataError as error:
            return Rejected("unreadable-audio", str(error), entry.where)

    def _stored_features(self, utterance_id: str, cut: MonoCut | MultiCut | None) -> Features | None:
        """Features of feats.scp; None where the audio must serve instead."""
        entry = self.features.get(utterance_id)
        if entry is None:
            return None
        path, colon, offset = entry.value.rpartition(":")
        position = f"{self.finder.find(path, probe=True)}{colon}{offset}" if colon else self.finder.find(offset, probe=True)
        try:
            matrix = np.asarray(kaldiio.load_mat(position))
            if matrix.ndim != 2 or matrix.shape[1] != MEL_BINS or not len(matrix):
                raise ValueError(f"shape {matrix.shape}, wanted [frames, {MEL_BINS}]")
        except Exception as error:  # kaldiio raises whatever the bytes lead it to
            if cut is not None:
                self._say(f"have unusable features in feats.scp (such as {utterance_id}); their audio is used")
                return None
            raise Rejected("unreadable-features", f"{entry.value}: {error}", entry.where) from error
        duration = cut.duration if cut is not None else len(matrix) * FRAME_SHIFT_SEC
        return Features(
            type="kaldi-fbank", num_frames=len(matrix), num_features=MEL_BINS, frame_shift=FRAME_SHIFT_SEC,
            sampling_rate=cut.sampling_rate if cut is not None else SAMPLE_RATE_HZ,
            start=cut.start if cut is not None else 0.0, duration=duration, storage_type="kaldiio", storage_path=position,
            storage_key=utterance_id, recording_id=cut.recording_id if cut is not None else utterance_id,
            channels=0 if cut is None else cut.channel,
        )


def _split(line: str) -> tuple[str, str]:
    """The id and the rest. Only ASCII blanks part them: an ideographic space belongs to the text."""
    parts = re.split(r"[ \t]+", line, maxsplit=1)
    return parts[0], parts[1] if len(parts) > 1 else ""


def _parse_segment(entry: Entry) -> tuple[str, float, float, int | None]:
    fields = entry.value.split()
    try:
        recording_id, start_sec, end_sec = fields[0], float(fields[1]), float(fields[2])
        channel = int(fields[3]) if len(fields) == 4 else None
        if len(fields) > 4 or not math.isfinite(start_sec) or not math.isfinite(end_sec):
            raise ValueError
    except (ValueError, IndexError):
        reason = f"`{entry.value}` is not: recording start end, in seconds"
        raise Rejected("bad-line", reason, entry.where) from None
    if start_sec < 0:
        raise Rejected("segment-outside", f"begins at {start_sec} s, before its recording", entry.where)
    if end_sec <= start_sec and end_sec != -1:
        raise Rejected("zero-length", f"lasts from {start_sec} to {end_sec} s", entry.where)
    return recording_id, start_sec, end_sec, channel


def _cut(
    utterance_id: str, recording: Recording, start_sec: float, end_sec: float, channel: int | None
) -> MonoCut | MultiCut:
    # To whole samples of the recording, so that what is read later has exactly the length that stands here.
    rate_hz = recording.sampling_rate
    first, last = round(start_sec * rate_hz), min(round(end_sec * rate_hz), recording.num_samples)
    start, duration = first / rate_hz, (last - first) / rate_hz
    if recording.num_channels == 1 or channel is not None:
        number = recording.channel_ids[0] if channel is None else channel
        return MonoCut(id=utterance_id, start=start, duration=duration, channel=number, recording=recording)
    numbers = list(recording.channel_ids)
    return MultiCut(id=utterance_id, start=start, duration=duration, channel=numbers, recording=recording)


def _open_command(recording_id: str, command: str, where: str) -> Recording | Rejected:
    """Run a command of wav.scp once, to learn what it yields."""
    try:
        done = subprocess.run(command, shell=True, capture_output=True, timeout=COMMAND_TIMEOUT_SEC, check=False)
    except subprocess.TimeoutExpired:
        return Rejected("unreadable-audio", f"`{command}` did not end within {COMMAND_TIMEOUT_SEC} s", where)
    words = done.stderr.decode("utf-8", "replace").strip().splitlines()
    if done.returncode or not done.stdout:
        said = f": {words[-1]}" if words else ""
        return Rejected("unreadable-audio", f"`{command}` ended with status {done.returncode}{said}", where)
    try:
        with soundfile.SoundFile(io.BytesIO(done.stdout)) as stream:
            rate_hz, channels, count = stream.samplerate, stream.channels, len(stream.read(always_2d=True))
    except (soundfile.LibsndfileError, RuntimeError) as error:
        return Rejected("unreadable-audio", f"`{command}` gave no audio that libsndfile knows ({error})", where)
    if not count:
        return Rejected("unreadable-audio", f"`{command}` gave no samples", where)
    numbers = list(range(channels))
    return Recording(
        id=recording_id, sources=[AudioSource("command", numbers, command)], sampling_rate=rate_hz, num_samples=count,
        duration=count / rate_hz, channel_ids=numbers,
    )


def _archive_command(path: str, offset: int) -> str:
    """A command that prints the WAV at `offset` of an archive, by the size in its header."""
    import shlex
    import struct

    size = 0
    try:
        with open(path, "rb") as stream:
            stream.seek(offset)
            header = stream.read(8)
        if header[:4] == b"RIFF":
            size = struct.unpack("<I", header[4:8])[0] + 8
    except (OSError, struct.error):
        pass  # the command itself says what is wrong
    return f"tail -c +{offset + 1} {shlex.quote(path)}" + (f" | head -c {size}" if size else "")

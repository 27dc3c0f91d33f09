"""Kaldi data directories out: wav.scp, segments, text, utt2spk, spk2utt, feats.scp, sorted as LC_ALL=C sorts."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from lhotse import MonoCut, MultiCut, Recording
from lhotse.cut import Cut

from xllm_speech.base.errors import DataError
from xllm_speech.base.files import atomic_dir
from xllm_speech.manifests.cuts import utterance_of


def write_kaldi_dir(cuts: Iterable[Cut], directory: str | Path) -> dict[str, int]:
    """Write a data directory, replacing an older one whole; returns the number of lines per file.

    When every cut is a whole recording, utterance and recording ids are the same and there is no segments file. A cut of
    one channel of several becomes a `sox ... remix` pipe, as Kaldi does it. feats.scp holds the cuts that carry Kaldi
    features. utt2spk names the utterance itself where the speaker is unknown.

    Raises:
        DataError: a cut that Kaldi's form cannot hold (perturbed or resampled audio, audio in memory, blanks in an id,
            an id twice); nothing is written then.
    """
    tables = _Tables()
    for cut in cuts:
        tables.add(cut)
    return tables.write(Path(directory))


class _Tables:
    def __init__(self) -> None:
        self.whole = True
        self.by_utterance: dict[str, str] = {}
        self.by_recording: dict[str, str] = {}
        self.segments: dict[str, str] = {}
        self.text: dict[str, str] = {}
        self.speakers: dict[str, str] = {}
        self.feats: dict[str, str] = {}
        self.frames: dict[str, str] = {}

    def add(self, cut: Cut) -> None:
        utterance = utterance_of(cut)
        _check_id(utterance.id)
        if utterance.id in self.speakers:
            raise DataError(f"{utterance.id}: this id occurs twice")
        if not isinstance(cut, MonoCut | MultiCut):
            raise DataError(f"{utterance.id}: a {type(cut).__name__} has no form in a Kaldi data directory")
        if not cut.has_recording and not cut.has_features:
            raise DataError(f"{utterance.id}: neither a recording nor features")
        if cut.has_recording:
            self._add_audio(cut)
        if utterance.text is not None:
            self.text[utterance.id] = " ".join(utterance.text.split())
        speaker = utterance.speaker or utterance.id
        _check_id(speaker)
        self.speakers[utterance.id] = speaker
        if cut.has_features and cut.features.storage_type == "kaldiio" and not str(cut.features.storage_path).endswith(".scp"):
            self.feats[utterance.id] = str(cut.features.storage_path)
            self.frames[utterance.id] = str(cut.features.num_frames)

    def _add_audio(self, cut: MonoCut | MultiCut) -> None:
        recording = cut.recording
        channels = [cut.channel] if isinstance(cut.channel, int) else list(cut.channel)
        value = _wav_value(cut.id, recording, channels)
        # One recording may serve several channels; each then is a recording of its own to Kaldi.
        recording_id = recording.id if len(channels) == recording.num_channels else f"{recording.id}-{channels[0]}"
        _check_id(recording_id)
        if self.by_recording.setdefault(recording_id, value) != value:
            raise DataError(f"{cut.id}: two different recordings are called {recording_id}")
        self.by_utterance[cut.id] = value
        if cut.start > 0 or round((recording.duration - cut.duration) * recording.sampling_rate) > 0:
            self.whole = False
        self.segments[cut.id] = f"{recording_id} {_seconds(cut.start)} {_seconds(cut.end)}"

    def write(self, directory: Path) -> dict[str, int]:
        utterances: dict[str, list[str]] = {}
        for utterance_id in _sorted(self.speakers):
            utterances.setdefault(self.speakers[utterance_id], []).append(utterance_id)
        files = {
            "wav.scp": self.by_utterance if self.whole else self.by_recording,
            "segments": {} if self.whole else self.segments,
            "text": self.text,
            "utt2spk": self.speakers,
            "spk2utt": {speaker: " ".join(ids) for speaker, ids in utterances.items()},
            "feats.scp": self.feats,
            "utt2num_frames": self.frames,
        }
        with atomic_dir(directory) as part:
            for name, table in files.items():
                if table:
                    lines = (f"{key} {table[key]}\n" for key in _sorted(table))
                    (part / name).write_text("".join(lines), encoding="utf-8")
        return {name: len(table) for name, table in files.items() if table}


def _sorted(table: Iterable[str]) -> list[str]:
    return sorted(table, key=lambda key: key.encode("utf-8"))


def _check_id(name: str) -> None:
    if not name or any(character in " \t\r\n" for character in name):
        raise DataError(f"`{name}`: Kaldi's ids cannot be empty or hold blanks")


def _seconds(value: float) -> str:
    return f"{value:.7f}".rstrip("0").rstrip(".")


def _wav_value(utterance_id: str, recording: Recording, channels: list[int]) -> str:
    if recording.transforms:
        raise DataError(
            f"{utterance_id}: its audio is perturbed or resampled on the fly; export the cuts it was made from"
        )
    if len(recording.sources) != 1 or recording.sources[0].type not in ("file", "command"):
        raise DataError(f"{utterance_id}: its audio is not one file or command but {recording.sources[0].type}")
    source = recording.sources[0]
    everything = len(channels) == recording.num_channels
    if source.type == "command":
        pipe = str(source.source)
        return f"{pipe} |" if everything else f"{pipe} | sox -t wav - -t wav - remix {_remix(channels)} |"
    path = str(source.source)
    return path if everything else f"sox {shlex.quote(path)} -t wav - remix {_remix(channels)} |"


def _remix(channels: list[int]) -> str:
    return " ".join(str(channel + 1) for channel in channels)

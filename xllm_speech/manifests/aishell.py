"""AISHELL-1 and AISHELL-2 as they are distributed, to cuts (data.md, Corpora).

    data_aishell/{wav/{train,dev,test}/S0002/*.wav, transcript/aishell_transcript_v0.8.txt}
    AISHELL-2/iOS/data/{trans.txt, wav.scp, wav/...}, {iOS,Android,Mic}/{dev,test}/{trans.txt, wav.scp, wav/...}

lhotse has recipes for both. They hold a whole corpus in memory, know only the iOS sets of AISHELL-2, change letters of the
transcripts, and pass over what is missing with a line in a log; the tests compare these modules with them.
"""

from __future__ import annotations

import logging
import os
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lhotse import MonoCut, SupervisionSegment

from xllm_speech.base.errors import DataError
from xllm_speech.base.rejects import DEFAULT_MAX_SHARE
from xllm_speech.base.units import SAMPLE_RATE_HZ
from xllm_speech.manifests.cuts import CUTS_NAME, make_recording
from xllm_speech.manifests.pictures import clean_text
from xllm_speech.manifests.pieces import DEFAULT_JOBS, Fault, Item, Outcome, Row, SetPlan, prepare_sets
from xllm_speech.manifests.text_lines import NOT_UTF8, readable_lines

log = logging.getLogger(__name__)

TRANSCRIPT_1 = Path("transcript") / "aishell_transcript_v0.8.txt"
SETS_1 = ("train", "dev", "test")
DEVICES = ("iOS", "Android", "Mic")
# Below the folder that the user names: AISHELL-2 itself, and the archive that its dev and test sets come in.
PLACES_2 = (".", "AISHELL-2", "AISHELL-DEV-TEST-SET", "AISHELL-2/AISHELL-DEV-TEST-SET")
# Utterances. AISHELL-1: the 141 600 lines of its transcript by set; some hundred recordings have none. AISHELL-2: 2500 and
# 5000 for dev and test on each device, "around 1 million" for training (README of Kaldi's egs/aishell2).
ROUGHLY = {"aishell2": ("train",)}
PUBLISHED = {
    "aishell1": {"train": 120098, "dev": 14326, "test": 7176},
    "aishell2": {
        "train": 1009223, **{f"dev-{device.lower()}": 2500 for device in DEVICES},
        **{f"test-{device.lower()}": 5000 for device in DEVICES},
    },
}


def prepare_aishell1(
    corpus: str | Path, out: str | Path, jobs: int = DEFAULT_JOBS, max_rejected: float = DEFAULT_MAX_SHARE
) -> dict[str, float]:
    """AISHELL-1: `out/{train,dev,test}/cuts.jsonl.gz`, with rejected.jsonl and statistics.json beside each.

    Args:
        corpus: `data_aishell`, or the folder it is in. Sets that are not there are left away.

    Raises:
        DataError: not AISHELL-1, an archive that is still packed, or too much broken.
    """
    top = _find(Path(corpus), (".", "data_aishell"), TRANSCRIPT_1)
    if top is None:
        raise DataError(f"{corpus}: neither {TRANSCRIPT_1} nor data_aishell/{TRANSCRIPT_1} in it; not AISHELL-1")
    present = [name for name in SETS_1 if (top / "wav" / name).is_dir()]
    if not present:
        packed = next(iter(sorted((top / "wav").glob("*.tar.gz"))), None)
        hint = f"unpack {packed.name} and the archives beside it there" if packed else "expected train, dev or test"
        raise DataError(f"{top / 'wav'}: no set in it; {hint}")
    words, faults = read_transcripts(top / TRANSCRIPT_1)
    speakers = {name: sorted(p.name for p in (top / "wav" / name).iterdir() if p.is_dir()) for name in present}
    places = {speaker: name for name, members in speakers.items() for speaker in members}
    lost: dict[str, list[Item | Fault]] = {name: [] for name in present}
    lost[present[0]] += faults
    elsewhere = 0
    for utterance_id, (_, where) in words.items():
        speaker = _speaker_in_id(utterance_id)
        name = places.get(speaker)
        if name is None:
            elsewhere += 1
        elif not (top / "wav" / name / speaker / f"{utterance_id}.wav").is_file():
            lost[name].append(Fault(utterance_id, where, "a transcript without its recording", "text-without-audio"))
    if elsewhere:
        log.warning("%s: %d transcripts of speakers that are in no set here", top, elsewhere)
    return prepare_sets(
        Path(out),
        [
            _plan(name, _walk(top / "wav" / name, speakers[name], words, lost[name]), [top / TRANSCRIPT_1], "aishell1")
            for name in present
        ],
        jobs,
        max_rejected,
    )


def prepare_aishell2(
    corpus: str | Path, out: str | Path, jobs: int = DEFAULT_JOBS, max_rejected: float = DEFAULT_MAX_SHARE
) -> dict[str, float]:
    """AISHELL-2: `out/{train,dev-ios,dev-android,dev-mic,test-ios,...}/cuts.jsonl.gz`, of those sets that are there.

    Args:
        corpus: the folder with `iOS`, `Android` and `Mic`, or one above it. A folder that holds trans.txt itself is the
            one set `data`.

    Raises:
        DataError: no set of AISHELL-2 there, or too much broken.
    """
    corpus = Path(corpus)
    folders = {"train": _find(corpus, PLACES_2, Path("iOS/data/trans.txt"), Path("iOS/data"))}
    for part in ("dev", "test"):
        for device in DEVICES:
            folder = Path(device) / part
            folders[f"{part}-{device.lower()}"] = _find(corpus, PLACES_2, folder / "trans.txt", folder)
    if (corpus / "trans.txt").is_file():
        folders["data"] = corpus
    sets = {name: folder for name, folder in folders.items() if folder is not None}
    if not sets:
        raise DataError(f"{corpus}: no iOS/data/trans.txt and no {{iOS,Android,Mic}}/{{dev,test}}/trans.txt; not AISHELL-2")
    if absent := [name for name, folder in folders.items() if folder is None]:
        log.warning("%s: not here: %s", corpus, ", ".join(absent))
    return prepare_sets(Path(out), (_plan_2(name, folder) for name, folder in sets.items()), jobs, max_rejected)


def _find(corpus: Path, places: tuple[str, ...], wanted: Path, folder: Path = Path()) -> Path | None:
    return next((corpus / place / folder for place in places if (corpus / place / wanted).is_file()), None)


def _speaker_in_id(utterance_id: str) -> str:
    """BAC009S0002W0122 -> S0002."""
    return utterance_id[6:11]


def read_transcripts(path: Path) -> tuple[dict[str, tuple[str, str]], list[Fault]]:
    """id -> (text, file:line) of lines `id text`, and the lines that are none. Blanks within Chinese text are joined."""
    words: dict[str, tuple[str, str]] = {}
    faults = []
    for number, line in readable_lines(path):
        where = f"{path}:{number}"
        if line is None:
            faults.append(Fault(f"line-{number}", where, NOT_UTF8, "bad-line"))
            continue
        name, *rest = line.split(maxsplit=1) or [""]
        if not name:
            continue
        if name in words:
            faults.append(Fault(name, where, f"id again; {words[name][1]} counts", "duplicate-id"))
        else:
            words[name] = (clean_text(rest[0]) if rest else "", where)
    return words, faults


def _walk(
    folder: Path, speakers: list[str], words: dict[str, tuple[str, str]], lost: list[Item | Fault]
) -> Iterator[Item | Fault]:
    for speaker in speakers:
        for name in sorted(os.listdir(folder / speaker)):
            if name.endswith(".wav"):
                path = str(folder / speaker / name)
                text, where = words.get(name[:-4], (None, path))
                yield Item(name[:-4], where, (path, text))
    yield from lost


def _plan_2(name: str, folder: Path) -> SetPlan:
    words, faults = read_transcripts(folder / "trans.txt")
    sources = [folder / "trans.txt"]
    if (folder / "wav.scp").is_file():
        sources.append(folder / "wav.scp")
    return _plan(name, _items_2(folder, words, faults), sources, "aishell2")


def _items_2(folder: Path, words: dict[str, tuple[str, str]], faults: list[Fault]) -> Iterator[Item | Fault]:
    yield from faults
    used = set()
    for name, path, where in _recordings_2(folder):
        used.add(name)
        if not path:
            yield Fault(name, where, "not `id path` in UTF-8", "bad-line")
            continue
        text, line = words.get(name, (None, where))
        yield Item(name, line, (path, text))
    for name, (_, where) in words.items():
        if name not in used:
            yield Fault(name, where, "a transcript without its recording", "text-without-audio")


def _recordings_2(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(id, path, file:line) by wav.scp, whose paths hold from its folder; without one, by the files below wav/."""
    table = folder / "wav.scp"
    if table.is_file():
        for number, line in readable_lines(table):
            parts = [f"line-{number}"] if line is None else line.split(maxsplit=1)
            if parts:
                path = os.path.join(folder, parts[1].strip()) if len(parts) > 1 else ""
                yield parts[0], path, f"{table}:{number}"
        return
    for path_found in sorted((folder / "wav").rglob("*.wav")):
        yield path_found.stem, str(path_found), str(path_found)


def _plan(name: str, items: Iterator[Item | Fault], sources: list[Path], corpus: str) -> SetPlan:
    return SetPlan(
        name=name, manifest=CUTS_NAME, items=items, work=_make_cut, unit="cuts", settings={"corpus": corpus, "set": name},
        sources=sources, measure=_measure, group=("speakers", lambda row: str(row["supervisions"][0]["speaker"])),
        published=PUBLISHED[corpus].get(name), roughly=name in ROUGHLY.get(corpus, ()),
    )


def _measure(row: Row) -> dict[str, float]:
    return {"hours": row["duration"] / 3600, "characters": len(row["supervisions"][0]["text"])}


def _make_cut(item: Item) -> Outcome:
    """The cut of one recording with its transcript; the audio file's folder is its speaker."""
    path, text = item.value
    if text is None:
        return Fault(item.id, item.where, "a recording without a transcript", "no-transcript")
    if not text:
        return Fault(item.id, item.where, "an empty transcript", "empty-transcript")
    if not os.path.isfile(path):
        return Fault(item.id, item.where, f"{path}: no such audio file", "missing-audio")
    try:
        recording = make_recording(item.id, path)
    except DataError as error:
        return Fault(item.id, path, str(error), "unreadable-audio")
    if recording.sampling_rate != SAMPLE_RATE_HZ:
        return Fault(item.id, path, f"{recording.sampling_rate} Hz, the corpus has {SAMPLE_RATE_HZ} Hz", "wrong-rate")
    promised = _promised_samples(path)
    if promised is not None and promised > recording.num_samples:
        reason = f"truncated: {recording.num_samples} of {promised} samples are there"
        return Fault(item.id, path, reason, "truncated-audio")
    return _cut_row(item.id, recording, text, Path(path).parent.name)


def _promised_samples(path: str) -> int | None:
    """What the header of a WAV file says; libsndfile tells only what is there."""
    try:
        with wave.open(path, "rb") as stream:
            return stream.getnframes()
    except (wave.Error, EOFError, OSError):
        return None


def _cut_row(name: str, recording: Any, text: str, speaker: str) -> Row:
    supervision = SupervisionSegment(
        id=name, recording_id=name, start=0.0, duration=recording.duration, channel=recording.channel_ids[0], text=text,
        speaker=speaker, language="Chinese",
    )
    cut = MonoCut(
        id=name, start=0.0, duration=recording.duration, channel=recording.channel_ids[0], supervisions=[supervision],
        recording=recording,
    )
    return dict(cut.to_dict())

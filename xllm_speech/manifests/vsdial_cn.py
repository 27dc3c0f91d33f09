"""VSDial-CN from its parts: VisDial v1.0, its texts in Chinese, its questions spoken, and the pictures (paper, A.1).

    translations    jsonl of {"source", "target"}, as `prepare translate` writes it
    speech          folder with speech.jsonl, {"text", "path"} and, where they are known, "speaker", "provenance", "licence",
                    as `prepare synthesise` writes it; paths hold from the folder. Recordings of people are brought in the
                    same way.

Where a recording comes from and its licence ride on the `custom` of its cuts; where the rest does, and how it is licensed,
stands in statistics.json of each set. One recording serves every round that asks its question. The test split gives
`test-orig`, a seeded choice of rounds with an answer; questions of one's own about its pictures, jsonl of {"image_id",
"question"} with "answer" or not, give `test-art`.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lhotse import MonoCut, Recording, SupervisionSegment

from xllm_speech.base.errors import DataError
from xllm_speech.base.files import read_jsonl
from xllm_speech.base.rejects import DEFAULT_MAX_SHARE
from xllm_speech.manifests.captions import CONVERSATIONS_NAME
from xllm_speech.manifests.conversations import write_conversations
from xllm_speech.manifests.cuts import CUTS_NAME, make_recording
from xllm_speech.manifests.llava_test import LEFT_OUT_KIND, is_llava_test_image
from xllm_speech.manifests.pictures import KEPT_RESULTS, Pictures, clean_text, is_whole
from xllm_speech.manifests.pieces import DEFAULT_JOBS, Fault, Item, LeftOut, Outcome, Row, SetPlan, prepare_set
from xllm_speech.manifests.visdial_source import question_key, read_source
from xllm_speech.records.manifest import Conversation, ConversationItem, Message

log = logging.getLogger(__name__)

SPEECH_NAME = "speech.jsonl"
# Of the parts (visualdialog.org; cocodataset.org/#termsofuse). The whole is under all of them together.
LICENCES = {
    "dialogues": "CC BY 4.0 (VisDial v1.0)",
    "pictures": "their photographers', by the terms of Flickr (COCO and VisualDialog); not part of the corpus",
}
SETS = {"train": "train", "val": "dev", "test": "test-orig"}
ART_SET = "test-art"


@dataclass(frozen=True)
class VsdialSettings:
    """translations: file, or None where the texts are Chinese already. test_count: rounds of `test-orig`, chosen by `seed`."""

    translations: str | None = None
    test_count: int = 2000
    seed: int = 1


@dataclass(frozen=True)
class Recorded:
    """A recording: its file, who speaks, where it comes from and under which licence it is, as far as that is known."""

    path: str
    speaker: str | None = None
    provenance: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Round:
    """One question about a picture, in the language of the source."""

    image_id: int
    split: str
    round: int
    question: str
    answer: str | None
    caption: str


def prepare_vsdial_cn(
    settings: VsdialSettings, annotations: Sequence[str | Path], speech: str | Path, images: Sequence[str | Path],
    out: str | Path, art: str | Path | None = None, test_speech: str | Path | None = None, jobs: int = DEFAULT_JOBS,
    max_rejected: float = DEFAULT_MAX_SHARE,
) -> dict[str, float]:
    """`out/<set>/{cuts,conversations}.jsonl.gz` with rejected.jsonl and statistics.json for each file of VisDial.

    Args:
        test_speech: folder for `test-orig` and `test-art`, where it is another one (recordings of people).

    Raises:
        DataError: not VisDial, no translations or speech, or too much missing or broken.
    """
    pictures = Pictures(images)
    words = None if settings.translations is None else read_table(settings.translations)
    folders = {True: Path(test_speech or speech), False: Path(speech)}
    counts: dict[str, float] = {}
    captions: dict[int, str] = {}
    sources = [(Path(path), _split_of(Path(path))) for path in annotations]
    for path, split in sources:
        chosen = _choose(path, settings) if split == "test" else None
        items = _rounds(path, chosen)
        name = SETS.get(split, split)
        maker = _Maker(words, folders[split == "test"], pictures)
        counts.update(_prepare(settings, name, items, maker, path, Path(out), jobs, max_rejected))
        if art is not None and split == "test":
            captions = {r.image_id: r.caption for r in _all_rounds(path)}
    if art is not None:
        items = _art_rounds(Path(art), captions)
        maker = _Maker(None, folders[True], pictures)
        counts.update(_prepare(settings, ART_SET, items, maker, Path(art), Path(out), jobs, max_rejected))
    return counts


def read_table(path: str | Path) -> dict[str, str]:
    """source -> target of a translation table; `DataError` names a line that is none."""
    table = {}
    for number, row in read_jsonl(path):
        source, target = row.get("source"), row.get("target")
        if not isinstance(source, str) or not isinstance(target, str):
            raise DataError(f"{path}:{number}: no `source` and `target`")
        if not is_whole(target):
            raise DataError(f"{path}:{number}: half a character in `target`: {target[:40]!r}")
        table[clean_text(source)] = clean_text(target)
    return table


def read_speech(folder: Path) -> dict[str, Recorded]:
    """Key of a question -> its recording; of several the first.

    Raises:
        DataError: no speech.jsonl, or a line of it that names no text and file.
    """
    path = folder / SPEECH_NAME
    if not path.is_file():
        raise DataError(f"{path}: no such file; `xllm-speech prepare synthesise` writes it, or write one for your recordings")
    found: dict[str, Recorded] = {}
    for number, row in read_jsonl(path):
        if not isinstance(row.get("text"), str) or not isinstance(row.get("path"), str):
            raise DataError(f"{path}:{number}: no `text` and `path`")
        told = {key: str(row[key]) for key in ("speaker", "provenance", "licence") if row.get(key) is not None}
        found.setdefault(question_key(row["text"]), Recorded(str(folder / row["path"]), **told))
    return found


def _split_of(path: Path) -> str:
    dialog = next(iter(read_source(path)), None)
    if dialog is None:
        raise DataError(f"{path}: no dialogue in it")
    return dialog.id.partition("-")[0] if isinstance(dialog, Fault) else dialog.split


def _all_rounds(path: Path) -> Iterator[Round]:
    for dialog in read_source(path):
        if not isinstance(dialog, Fault):
            for turn in dialog.turns:
                yield Round(dialog.image_id, dialog.split, turn.round, turn.question, turn.answer, dialog.caption)


def _choose(path: Path, settings: VsdialSettings) -> set[tuple[int, int]]:
    """The rounds of `test-orig`: those with the smallest hashes, whatever the order of the file."""

    def order(entry: Round) -> bytes:
        return hashlib.sha256(f"{settings.seed}\n{entry.image_id}\n{entry.round}".encode()).digest()

    answered = (entry for entry in _all_rounds(path) if entry.answer is not None)
    return {(entry.image_id, entry.round) for entry in heapq.nsmallest(settings.test_count, answered, key=order)}


def _rounds(path: Path, chosen: set[tuple[int, int]] | None) -> Iterator[Item | Fault | LeftOut]:
    for dialog in read_source(path):
        if isinstance(dialog, Fault):
            yield dialog
            continue
        if chosen is None:
            yield from dialog.faults
        for turn in dialog.turns:
            if chosen is not None and (dialog.image_id, turn.round) not in chosen:
                continue
            if is_llava_test_image(dialog.image_id):
                yield LeftOut(LEFT_OUT_KIND)
                continue
            entry = Round(dialog.image_id, dialog.split, turn.round, turn.question, turn.answer, dialog.caption)
            yield Item(f"{dialog.split}-{dialog.image_id}-{turn.round}", f"{dialog.where}.dialog[{turn.round}]", entry)


def _art_rounds(path: Path, captions: dict[int, str]) -> Iterator[Item | Fault]:
    uses: dict[int, int] = {}
    for number, row in read_jsonl(path):
        image_id, question, answer = row.get("image_id"), row.get("question"), row.get("answer")
        where = f"{path}:{number}"
        if not isinstance(image_id, int) or not isinstance(question, str) or not question.strip():
            yield Fault(f"art-line-{number}", where, "no `image_id` or no `question`", "bad-line")
            continue
        if answer is not None and not isinstance(answer, str):
            yield Fault(f"art-line-{number}", where, f"`answer` is {answer!r}", "bad-line")
            continue
        place = uses[image_id] = uses.get(image_id, -1) + 1
        caption = row.get("caption", captions.get(image_id, ""))
        entry = Round(image_id, "test", place, clean_text(question), clean_text(answer) if answer else None, str(caption))
        yield Item(f"art-{image_id}-{place}", where, entry)


class _Maker:
    """Puts a round, its translation, its recording and its picture together; opens each file once."""

    def __init__(self, words: dict[str, str] | None, folder: Path, pictures: Pictures) -> None:
        self.words = words
        self.folder = folder
        self.speech = read_speech(folder)
        self.pictures = pictures
        self.recording = functools.lru_cache(maxsize=KEPT_RESULTS)(_open_recording)

    def _translate(self, text: str) -> str | None:
        return text if self.words is None else self.words.get(clean_text(text)) or None

    def cut(self, item: Item) -> Outcome:
        """The cut of one round, or what it lacks."""
        entry: Round = item.value
        question, caption = self._translate(entry.question), self._translate(entry.caption) if entry.caption else ""
        answer = None if entry.answer is None else self._translate(entry.answer)
        for text, source in ((question, entry.question), (caption, entry.caption), (answer, entry.answer)):
            if text is None and source is not None:
                return Fault(item.id, item.where, f"no translation of {source!r}", "no-translation")
        assert question is not None
        spoken = self.speech.get(question_key(question))
        if spoken is None:
            return Fault(item.id, item.where, f"no recording of {question!r} in {self.folder / SPEECH_NAME}", "no-speech")
        found = self.pictures.check(item, picture_names(entry.image_id))
        if isinstance(found, Fault):
            return found
        recording = self.recording(spoken.path)
        if isinstance(recording, str):
            return Fault(item.id, item.where, recording, "unreadable-audio")
        custom = {
            "image": found[0], "caption": caption, "dialog_id": f"{entry.split}-{entry.image_id}", "round": entry.round,
            **({} if answer is None else {"answer": answer}),
            **({} if spoken.provenance is None else {"provenance": spoken.provenance}),
            **({} if spoken.licence is None else {"licence": spoken.licence}),
        }
        return _cut_row(item.id, question, spoken.speaker, recording, custom)

    def provenance(self) -> dict[str, Any]:
        """What is known of the recordings: each provenance and licence with the number of recordings."""
        told = Counter((one.provenance or "not told", one.licence or "not told") for one in self.speech.values())
        rows = [{"from": source, "licence": licence, "recordings": n} for (source, licence), n in told.most_common()]
        return {"speech": rows}


def _open_recording(path: str) -> Recording | str:
    try:
        return make_recording(Path(path).stem, path)
    except DataError as error:
        return str(error)


def _cut_row(name: str, text: str, speaker: str | None, recording: Recording, custom: dict[str, Any]) -> Row:
    assert recording.channel_ids is not None
    supervision = SupervisionSegment(
        id=name, recording_id=recording.id, start=0.0, duration=recording.duration, channel=recording.channel_ids[0],
        text=text, speaker=speaker, language="Chinese",
    )
    cut = MonoCut(
        id=name, start=0.0, duration=recording.duration, channel=recording.channel_ids[0], supervisions=[supervision],
        recording=recording, custom=custom,
    )
    return dict(cut.to_dict())


def picture_names(image_id: int) -> tuple[str, ...]:
    """What a picture of VisDial may be called, below its folder: COCO's names for train, VisualDialog's for val and test."""
    number = f"{image_id:012d}.jpg"
    coco = [f"COCO_{split}_{number}" for split in ("train2014", "val2014")]
    own = [f"VisualDialog_{split}_{number}" for split in ("val2018", "test2018")]
    nested = [f"{name.split('_')[1]}/{name}" for name in coco] + [f"{name.rsplit('_', 1)[0]}/{name}" for name in own]
    return (*coco, *own, *nested, number)


def _prepare(
    settings: VsdialSettings, name: str, items: Iterator[Item | Fault | LeftOut], maker: _Maker, source: Path, out: Path,
    jobs: int, max_rejected: float,
) -> dict[str, float]:
    plan = SetPlan(
        name=name, manifest=CUTS_NAME, items=items, work=maker.cut, unit="cuts",
        settings={
            "corpus": "vsdial-cn", **asdict(settings), "speech": str(maker.folder),
            "images": [str(folder) for folder in maker.pictures.folders],
        },
        sources=[source, maker.folder / SPEECH_NAME, *([Path(settings.translations)] if settings.translations else [])],
        measure=lambda row: {"hours": row["duration"] / 3600, "characters": len(row["supervisions"][0]["text"])},
        group=("recordings", lambda row: str(row["recording"]["id"])),
        provenance={
            "dialogues": {"from": source.name, "licence": LICENCES["dialogues"]},
            "pictures": {"from": [str(folder) for folder in maker.pictures.folders], "licence": LICENCES["pictures"]},
            "translations": {"from": settings.translations or "none: the texts are in Chinese"}, **maker.provenance(),
        },
    )
    counts = prepare_set(out, plan, jobs, max_rejected)
    cuts = (row for _, row in read_jsonl(out / name / CUTS_NAME))
    counts["conversations"] = write_conversations(out / name / CONVERSATIONS_NAME, conversations_of(cuts))
    return {f"{name}.{key}": value for key, value in counts.items()}


def conversations_of(cuts: Iterator[Row]) -> Iterator[Conversation]:
    """The conversations in cuts of VSDial-CN: captions once each (`caption`), questions typed (`vl`) and spoken (`vsd`)."""
    told = ""
    for row in cuts:
        custom, question = row["custom"], row["supervisions"][0]["text"]
        image = ConversationItem("image", path=custom["image"])
        if custom["dialog_id"] != told and custom["caption"]:  # the rounds of a dialogue stand together
            told = custom["dialog_id"]
            caption = ConversationItem("text", text=custom["caption"])
            asked = Message("user", (image,))
            yield Conversation(f"{row['id']}-caption", "caption", (asked, Message("assistant", (caption,))))
        if "answer" in custom:
            answer = Message("assistant", (ConversationItem("text", text=custom["answer"]),))
            rides = {"dialog_id": custom["dialog_id"], "round": custom["round"]}
            typed = Message("user", (image, ConversationItem("text", text=question)))
            yield Conversation(f"{row['id']}-vl", "vl", (typed, answer), dict(rides))
            path = os.fspath(row["recording"]["sources"][0]["source"])
            spoken = Message("user", (image, ConversationItem("speech", path=path)))
            yield Conversation(f"{row['id']}-vsd", "vsd", (spoken, answer), {**rides, "question": question})

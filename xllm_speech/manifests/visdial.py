"""VisDial v1.0 and corpora in its form (VSDial-CN, the mini corpus): dialogues about pictures, with or without speech.

    corpus/visdial_1.0_{train,val,test}.json   pools of questions and answers, dialogues of indexes into them
    corpus/images/<split>/                     pictures; the last number in a file's name is the image id
    corpus/speech.jsonl, corpus/speech/...     one row per spoken question; absent in VisDial itself

A row of `speech.jsonl` has `id`, `split`, `image_id`, `round` and `path` (relative to the corpus); `text` (else the
question's own), `speaker`, `language`, `sets` (names of test sets) are optional and whatever else it has is kept.

What comes out: a directory `train`, `dev` (the split `val`) and `test`, or `test_<set>` for rows that name sets, each
with `cuts.jsonl.gz` and `text` (where there is speech) and `conversations.jsonl.gz`. Paths in them begin with the corpus
path as it was given: a relative one is meant from the directory the command ran in, and recipes run in theirs.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from xllm_speech.base.errors import DataError
from xllm_speech.base.files import atomic_write, numbered_lines, read_json, write_jsonl
from xllm_speech.base.rejects import DEFAULT_MAX_SHARE, Rejects
from xllm_speech.manifests.conversations import write_conversations
from xllm_speech.records.manifest import Conversation, ConversationItem, Message

log = logging.getLogger(__name__)

SPLITS = {"train": "train", "val": "dev", "test": "test"}
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_SPEECH_KEYS = ("id", "path", "text", "speaker", "language")
Given = TypeVar("Given")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Turn:
    """One round of a dialogue; no answer in the last round of VisDial's test split."""

    round: int
    question: str
    answer: str | None


@dataclass(frozen=True)
class Dialog:
    """One picture with its caption and the turns that could be read, by round."""

    id: str
    split: str
    image: str
    caption: str
    turns: dict[int, Turn]


@dataclass
class _Spoken:
    """One readable spoken question: its row, its dialogue, its recording (lhotse) and its transcript."""

    row: dict[str, Any]
    dialog: Dialog
    round: int
    recording: Any
    text: str


@dataclass
class _Tally:
    """What was rejected, counted apart for dialogues, rounds and utterances: each has its own share."""

    max_share: float
    dialogs: Rejects = field(init=False)
    rounds: Rejects = field(init=False)
    speech: Rejects = field(init=False)
    seen: dict[str, int] = field(default_factory=lambda: {"dialogs": 0, "rounds": 0, "speech": 0})

    def __post_init__(self) -> None:
        self.dialogs, self.rounds, self.speech = (Rejects(self.max_share) for _ in range(3))

    def close(self, path: Path) -> int:
        """Write every rejected item to `path` and fail where a share is too large; returns their number."""
        rows = [*self.dialogs.rows, *self.rounds.rows, *self.speech.rows]
        write_jsonl(path, rows)
        for name, rejects in (("dialogs", self.dialogs), ("rounds", self.rounds), ("speech", self.speech)):
            if rejects.rows:
                log.warning("%s: %s of %d %s", path, rejects.summary(), self.seen[name], name)
            rejects.check(self.seen[name], path)
        return len(rows)


def _in_threads(check: Callable[[Given], Found], items: list[Given]) -> list[Found]:
    """`check` of every item, in order; decoding releases the interpreter's lock, so threads are enough."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(check, items))


def _picture_fault(path: Path) -> str | None:
    """Why a picture cannot be used, or None. JPEG is decoded at an eighth of its size: enough to find it truncated."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture.draft("RGB", (picture.width // 8, picture.height // 8))
            picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"picture cannot be read ({error})"
    return None


def _open_speech(path: Path, recording_id: str) -> tuple[Any, str | None]:
    """(lhotse recording, None) of a speech file that decodes to its end, or (None, why not)."""
    import soundfile
    from lhotse import Recording

    if not path.is_file():
        return None, "speech file is missing"
    try:
        samples, _ = soundfile.read(path, dtype="int16", always_2d=True)
        recording = Recording.from_file(path, recording_id=recording_id)
    except Exception as error:  # libsndfile and lhotse's back-ends each have errors of their own
        return None, f"speech cannot be read ({str(error).splitlines()[0]})"
    if not len(samples):
        return None, "speech is empty"
    if len(samples) < recording.num_samples:
        return None, f"speech is truncated: {len(samples)} of {recording.num_samples} samples can be read"
    return recording, None


def index_pictures(corpus: Path, split: str) -> dict[int, Path]:
    """Pictures of a split by image id, the last number in their names (`VisualDialog_val2018_000000239030.jpg`).

    Looks in `images/<split>*`, else in all of `images`.
    """
    images = corpus / "images"
    folders = sorted(folder for folder in images.glob(f"{split}*") if folder.is_dir()) or [images]
    found: dict[int, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            numbers = re.findall(r"\d+", path.stem)
            if numbers and path.suffix.lower() in PICTURES:
                found.setdefault(int(numbers[-1]), path)
    return found


def _pools(path: Path, tree: Any) -> tuple[list[str], list[str], list[Any]]:
    try:
        data = tree["data"]
        pools = data["questions"], data["answers"], data["dialogs"]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: not VisDial v1.0: no `data` with `questions`, `answers` and `dialogs`") from error
    for name, pool in zip(("questions", "answers", "dialogs"), pools, strict=True):
        if not isinstance(pool, list):
            raise DataError(f"{path}: not VisDial v1.0: `{name}` is a {type(pool).__name__}, expected a list")
    return pools


def _entry(pool: list[str], index: Any) -> str | None:
    """Entry of a pool, or None where the index or the entry is not one."""
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(pool):
        return None
    entry = pool[index]
    return entry if isinstance(entry, str) and entry.strip() else None


def _read_turn(number: int, turn: Any, questions: list[str], answers: list[str]) -> Turn | str:
    """One round, or the reason why it cannot be used."""
    if not isinstance(turn, dict) or "question" not in turn:
        return "round without a question"
    question = _entry(questions, turn["question"])
    if question is None:
        return f"question {turn['question']!r} is not an entry of the pool of {len(questions)}"
    answer = None
    if turn.get("answer") is not None:
        answer = _entry(answers, turn["answer"])
        if answer is None:
            return f"answer {turn['answer']!r} is not an entry of the pool of {len(answers)}"
    options, right = turn.get("answer_options"), turn.get("gt_index")
    if answer is not None and options is not None and right is not None:
        # Pools repeat entries, so the two indexes may differ while the words agree.
        marked = options[right] if isinstance(right, int) and 0 <= right < len(options) else None
        if _entry(answers, marked) != answer:
            return f"gt_index {right!r} of {len(options)} options does not lead to answer {turn['answer']!r}"
    return Turn(number, question.strip(), answer.strip() if answer else None)


def read_dialogs(corpus: Path, split: str, tally: _Tally) -> dict[int, Dialog]:
    """Dialogues of a split by image id; broken pictures, doubled dialogues and bad pool indexes go to `tally`."""
    path = corpus / f"visdial_1.0_{split}.json"
    questions, answers, dialogs = _pools(path, read_json(path))
    pictures = index_pictures(corpus, split)
    known = [value for value in dialogs if isinstance(value, dict) and isinstance(value.get("image_id"), int)]
    shown = [pictures[value["image_id"]] for value in known if value["image_id"] in pictures]
    faults = dict(zip(shown, _in_threads(_picture_fault, shown), strict=True))
    found: dict[int, Dialog] = {}
    for order, value in enumerate(dialogs):
        tally.seen["dialogs"] += 1
        where = f"{path}: dialogs[{order}]"
        if not isinstance(value, dict) or not isinstance(value.get("image_id"), int):
            tally.dialogs.add(f"{split}-{order}", where, "dialogue without image_id", "dialogue")
            continue
        image_id, caption, turns = value["image_id"], value.get("caption"), value.get("dialog")
        name = f"{split}-{image_id}"
        picture = pictures.get(image_id)
        if image_id in found:
            tally.dialogs.add(name, where, f"image {image_id} has a dialogue already", "duplicate")
        elif not isinstance(caption, str) or not isinstance(turns, list):
            tally.dialogs.add(name, where, "dialogue without caption or rounds", "dialogue")
        elif picture is None:
            tally.dialogs.add(name, where, f"no picture {image_id} under {corpus / 'images'}", "picture missing")
        elif fault := faults[picture]:
            tally.dialogs.add(name, picture, fault, "picture broken")
        else:
            good: dict[int, Turn] = {}
            for number, raw in enumerate(turns):
                tally.seen["rounds"] += 1
                turn = _read_turn(number, raw, questions, answers)
                if isinstance(turn, str):
                    tally.rounds.add(f"{name}-{number}", f"{where}.dialog[{number}]", turn, "round")
                else:
                    good[number] = turn
            found[image_id] = Dialog(name, split, str(picture), caption.strip(), good)
    return found


def _speech_rows(path: Path, tally: _Tally) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, row) of `speech.jsonl`; a line that is no row is rejected alone."""
    ids: dict[str, int] = {}
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        tally.seen["speech"] += 1
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            tally.speech.add(f"line-{number}", where, f"not JSON ({error.msg} at column {error.colno})", "row")
            continue
        name = row.get("id") if isinstance(row, dict) else None
        if not isinstance(name, str) or not name or re.search(r"\s", name):
            tally.speech.add(f"line-{number}", where, f"id {name!r} is not a word without spaces", "row")
        elif name in ids:
            tally.speech.add(name, where, f"id was used in line {ids[name]}", "duplicate")
        elif not isinstance(row.get("path"), str):
            tally.speech.add(name, where, "row without path", "row")
        elif not isinstance(row.get("sets", []), list):
            tally.speech.add(name, where, f"sets {row['sets']!r} is not a list", "row")
        else:
            ids[name] = number
            yield where, row


def read_speech(corpus: Path, dialogs: dict[str, dict[int, Dialog]], tally: _Tally) -> list[_Spoken]:
    """Spoken questions that belong to a readable dialogue and decode; the others go to `tally`."""
    chosen: list[tuple[dict[str, Any], Dialog, int, str]] = []
    for where, row in _speech_rows(corpus / "speech.jsonl", tally):
        dialog = dialogs.get(str(row.get("split")), {}).get(row.get("image_id", -1))
        turn = dialog.turns.get(row.get("round", -1)) if dialog else None
        text = row["text"] if isinstance(row.get("text"), str) else turn.question if turn else ""
        text = " ".join(text.split())
        if dialog is None:
            reason = f"no usable dialogue about image {row.get('image_id')} in split {row.get('split')}"
            tally.speech.add(row["id"], where, reason, "dialogue missing")
        elif turn is None:
            tally.speech.add(row["id"], where, f"dialogue {dialog.id} has no usable round {row.get('round')}", "round missing")
        elif not text:
            tally.speech.add(row["id"], where, "empty transcript", "transcript")
        else:
            chosen.append((row, dialog, turn.round, text))
    opened = _in_threads(lambda item: _open_speech(corpus / item[0]["path"], item[0]["id"]), chosen)
    spoken = []
    for (row, dialog, number, text), (recording, fault) in zip(chosen, opened, strict=True):
        if fault is not None:
            tally.speech.add(row["id"], corpus / row["path"], fault, "speech broken")
        else:
            spoken.append(_Spoken(row, dialog, number, recording, text))
    return spoken


def _cut(spoken: _Spoken) -> dict[str, Any]:
    """The lhotse cut of a spoken question, as it is written down."""
    from lhotse import MonoCut, SupervisionSegment

    row, dialog, recording = spoken.row, spoken.dialog, spoken.recording
    custom = {key: value for key, value in row.items() if key not in _SPEECH_KEYS and value is not None}
    custom.update(image=dialog.image, caption=dialog.caption, dialog_id=dialog.id, round=spoken.round)
    answer = dialog.turns[spoken.round].answer
    if answer is not None:
        custom["answer"] = answer
    supervision = SupervisionSegment(
        id=row["id"],
        recording_id=recording.id,
        start=0.0,
        duration=recording.duration,
        channel=recording.channel_ids[0],
        text=spoken.text,
        speaker=row.get("speaker"),
        language=row.get("language"),
    )
    cut = MonoCut(
        id=row["id"],
        start=0.0,
        duration=recording.duration,
        channel=recording.channel_ids[0],
        supervisions=[supervision],
        recording=recording,
        custom=custom,
    )
    return dict(cut.to_dict())


def _ask(name: str, task: str, items: Iterable[ConversationItem], answer: str, **custom: object) -> Conversation:
    reply = Message("assistant", (ConversationItem("text", text=answer),))
    return Conversation(name, task, (Message("user", tuple(items)), reply), dict(custom))


def conversations_about(dialogs: Iterable[Dialog], spoken: Iterable[_Spoken]) -> Iterator[Conversation]:
    """Caption of every picture (task `caption`), every typed question (`vl`), every spoken one (`vsd`).

    Rounds without an answer give none. `caption` and `vsd` leave the instruction to the data set.
    """
    for dialog in dialogs:
        image = ConversationItem("image", path=dialog.image)
        if dialog.caption:
            yield _ask(f"{dialog.id}-caption", "caption", [image], dialog.caption)
        for turn in dialog.turns.values():
            if turn.answer is not None:
                question = ConversationItem("text", text=turn.question)
                name = f"{dialog.id}-{turn.round}"
                yield _ask(name, "vl", [image, question], turn.answer, dialog_id=dialog.id, round=turn.round)
    for item in spoken:
        answer = item.dialog.turns[item.round].answer
        if answer is not None:
            source = str(item.recording.sources[0].source)
            speech = ConversationItem("speech", path=source, cut=item.row["id"])
            items = [ConversationItem("image", path=item.dialog.image), speech]
            custom = {"dialog_id": item.dialog.id, "round": item.round, "question": item.text}
            yield _ask(f"{item.row['id']}-vsd", "vsd", items, answer, **custom)


def _write_set(folder: Path, dialogs: list[Dialog], spoken: list[_Spoken], with_speech: bool) -> dict[str, int]:
    counts = {f"{folder.name}.dialogs": len(dialogs)}
    counts[f"{folder.name}.conversations"] = write_conversations(
        folder / "conversations.jsonl.gz", conversations_about(dialogs, spoken)
    )
    if with_speech:
        with atomic_write(folder / "text") as stream:
            for name, text in sorted((item.row["id"], item.text) for item in spoken):
                stream.write(f"{name} {text}\n")
        # Last: where the cuts stand, the set is whole.
        counts[f"{folder.name}.cuts"] = write_jsonl(folder / "cuts.jsonl.gz", (_cut(item) for item in spoken))
    return counts


def prepare_visdial(corpus: Path, out: Path, max_rejected: float = DEFAULT_MAX_SHARE) -> dict[str, int]:
    """Turn a corpus in VisDial's form into manifests (the module's docstring shows both forms).

    Args:
        corpus: folder with `visdial_1.0_*.json`; any of the three splits may be absent.
        out: folder for `train`, `dev`, `test...` and `rejected.jsonl`.
        max_rejected: share (0..1) of dialogues, of rounds or of utterances that may be unusable.

    Returns: `<set>.dialogs`, `<set>.cuts`, `<set>.conversations` for each set, and `rejected`.

    Raises:
        DataError: nothing to read, not VisDial's form, or too much rejected (`rejected.jsonl` is written before).
    """
    corpus, out = Path(corpus), Path(out)
    present = [split for split in SPLITS if (corpus / f"visdial_1.0_{split}.json").is_file()]
    if not present:
        raise DataError(f"{corpus}: no visdial_1.0_train.json, _val.json or _test.json; is this the corpus folder?")
    tally = _Tally(max_rejected)
    dialogs = {split: read_dialogs(corpus, split, tally) for split in present}
    with_speech = (corpus / "speech.jsonl").is_file()
    spoken = read_speech(corpus, dialogs, tally) if with_speech else []
    counts = {"rejected": tally.close(out / "rejected.jsonl")}
    for split in present:
        sets: dict[str, list[_Spoken]] = {}
        for item in spoken:
            if item.dialog.split == split:
                for name in item.row.get("sets") or [""]:
                    sets.setdefault(f"{SPLITS[split]}_{name}" if name else SPLITS[split], []).append(item)
        for name, members in sorted(sets.items() or [(SPLITS[split], [])]):
            # A named set holds the dialogues its utterances are about; an unnamed one holds the whole split.
            about = dialogs[split] if name == SPLITS[split] else {item.dialog.id: item.dialog for item in members}
            counts.update(_write_set(out / name, list(about.values()), members, bool(members)))
    return counts

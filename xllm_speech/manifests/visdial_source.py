"""VisDial v1.0 as published: its dialogues one at a time, the texts in them once each, and its relevance annotations.

    visdial_1.0_{train,val,test}.json    {"version", "split", "data": {"questions", "answers", "dialogs"}}
    ..._dense_annotations.json           [{"image_id", "round_id", "gt_relevance" or "relevance"}]

`manifests.visdial` reads corpora of this form that are whole (pictures, speech) and small; the training file alone is
most of a gigabyte. Nothing here is translated or spoken: `prepare translate` and `prepare synthesise` do that from the
texts, and `manifests.vsdial_cn` puts the three together.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xllm_speech.base.errors import DataError
from xllm_speech.base.files import write_json, write_jsonl
from xllm_speech.base.rejects import DEFAULT_MAX_SHARE, Rejects
from xllm_speech.manifests.json_stream import stream_json
from xllm_speech.manifests.llava_test import is_llava_test_image
from xllm_speech.manifests.pictures import clean_text, is_whole
from xllm_speech.manifests.pieces import REJECTED_NAME, STATISTICS_NAME, Fault

log = logging.getLogger(__name__)

TEXTS_NAME = "texts.jsonl"
# Dialogues by the `split` that a file names (train, val2018, test2018), v1.0. One to a picture: train has the 82 783 +
# 40 504 of COCO 2014, val and test pictures of their own (visualdialog.org/data).
PUBLISHED = {"train": 123287, "val": 2064, "test": 8000}
ROLES = ("question", "answer", "caption")


@dataclass(frozen=True)
class SourceTurn:
    """One round as it stands: its number from 0, question, and answer (none in the last round of the test split)."""

    round: int
    question: str
    answer: str | None


@dataclass(frozen=True)
class SourceDialog:
    """One picture's caption and rounds, in the order of the file; `where` is its entry. faults: rounds left away."""

    image_id: int
    split: str
    caption: str
    turns: tuple[SourceTurn, ...]
    where: str
    faults: tuple[Fault, ...] = ()


def read_source(path: str | Path) -> Iterator[SourceDialog | Fault]:
    """The dialogues of one file, in order; bad entries and rounds as faults. The LLaVA-test pictures are among them.

    Raises:
        DataError: not JSON, or not of VisDial's form.
    """
    path = Path(path)
    pools: dict[str, list[str | None]] = {"questions": [], "answers": []}
    split, dialogs = "", False
    for entry in stream_json(path, into=("data",)):
        if entry.key in pools and entry.index is not None:
            text = clean_text(entry.value) if isinstance(entry.value, str) else ""
            pools[entry.key].append(text if text and is_whole(text) else None)
        elif entry.key == "split":
            split = str(entry.value)
        dialogs = dialogs or entry.key == "dialogs"
    if not dialogs or not all(pools.values()):
        raise DataError(f"{path}: not VisDial v1.0: no `data` with `questions`, `answers` and `dialogs`")
    split = next((name for name in PUBLISHED if split.startswith(name)), split or path.stem)
    for entry in stream_json(path, into=("data",)):
        if entry.key == "dialogs" and entry.index is not None:
            yield _read_dialog(entry.value, entry.where(path), split, entry.index, pools)


def _read_dialog(
    value: Any, where: str, split: str, index: int, pools: dict[str, list[str | None]]
) -> SourceDialog | Fault:
    value = value if isinstance(value, dict) else {}
    image_id, caption, rounds = value.get("image_id"), value.get("caption"), value.get("dialog")
    name = f"{split}-{image_id if isinstance(image_id, int) else f'entry-{index}'}"
    if isinstance(image_id, bool) or not isinstance(image_id, int):
        return Fault(name, where, f"`image_id` is {image_id!r}", "bad-entry")
    if not isinstance(caption, str) or not isinstance(rounds, list) or not is_whole(caption):
        return Fault(name, where, "no `caption` that can be read, or no `dialog`", "bad-entry")
    turns, faults = [], []
    for number, turn in enumerate(rounds):
        found = _read_turn(number, turn, pools)
        if isinstance(found, SourceTurn):
            turns.append(found)
        else:
            faults.append(Fault(f"{name}-{number}", f"{where}.dialog[{number}]", found, "bad-round"))
    return SourceDialog(image_id, split, clean_text(caption), tuple(turns), where, tuple(faults))


def _read_turn(number: int, turn: Any, pools: dict[str, list[str | None]]) -> SourceTurn | str:
    """One round, or why it cannot be used."""
    if not isinstance(turn, dict) or "question" not in turn:
        return "a round without question"
    question = _entry(pools["questions"], turn["question"])
    if question is None:
        return f"question {turn['question']!r} names no text among the {len(pools['questions'])} of the pool"
    if turn.get("answer") is None:
        return SourceTurn(number, question, None)
    answer = _entry(pools["answers"], turn["answer"])
    if answer is None:
        return f"answer {turn['answer']!r} names no text among the {len(pools['answers'])} of the pool"
    return SourceTurn(number, question, answer)


def _entry(pool: list[str | None], index: Any) -> str | None:
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(pool):
        return None
    return pool[index]


def read_dense(path: str | Path) -> dict[tuple[int, int], list[float]]:
    """(image id, round from 1 as in the file) -> relevance of each answer option, 0..1.

    Raises:
        DataError: an entry that is none; names it.
    """
    found: dict[tuple[int, int], list[float]] = {}
    for entry in stream_json(path):
        value = entry.value if isinstance(entry.value, dict) else {}
        scores: Any = value.get("gt_relevance", value.get("relevance"))
        key = value.get("image_id"), value.get("round_id")
        numbers = [score for score in scores if isinstance(score, int | float)] if isinstance(scores, list) else []
        if not numbers or len(numbers) != len(scores) or not all(isinstance(part, int) for part in key):
            raise DataError(f"{entry.where(path)}: no `image_id`, `round_id` or `gt_relevance`")
        found[int(str(key[0])), int(str(key[1]))] = [float(score) for score in numbers]
    return found


def prepare_visdial_texts(
    files: Sequence[str | Path], out: str | Path, max_rejected: float = DEFAULT_MAX_SHARE
) -> dict[str, float]:
    """`out/texts.jsonl`: every text of the dialogues once, as {"text", "roles", "count"}, most frequent first.

    The paper translates all of them and has each question spoken once (A.1: 1.2 million questions, 370 thousand
    different ones); `count` tells how often a text occurs. Only texts that a dialogue uses are written: the pools hold
    more. Dialogues about the LLaVA-test pictures are left out. rejected.jsonl and statistics.json stand beside it.

    Raises:
        DataError: a file that is not VisDial v1.0, or too many bad dialogues or rounds.
    """
    out = Path(out)
    rejects = Rejects(max_rejected)
    texts: dict[str, list[int]] = {}  # how often as question, answer, caption
    counts: dict[str, float] = {"dialogs": 0, "rounds": 0, "left_out": 0}
    for file in files:
        dialogs, split = 0, ""
        for dialog in read_source(file):
            if isinstance(dialog, Fault):
                rejects.add(dialog.id, dialog.where, dialog.reason, dialog.kind)
                continue
            for fault in dialog.faults:
                rejects.add(fault.id, fault.where, fault.reason, fault.kind)
            dialogs, split = dialogs + 1, dialog.split
            if is_llava_test_image(dialog.image_id):
                counts["left_out"] += 1
                continue
            _count(texts, dialog.caption, 2)
            for turn in dialog.turns:
                counts["rounds"] += 1
                _count(texts, turn.question, 0)
                _count(texts, turn.answer, 1)
        counts["dialogs"] += dialogs
        if split in PUBLISHED and dialogs != PUBLISHED[split]:
            log.warning("%s: %d dialogues, %d were published; is the file whole?", file, dialogs, PUBLISHED[split])
    rejects.write(out / REJECTED_NAME)
    rejects.check(int(counts["rounds"]) + len(rejects.rows), out / REJECTED_NAME)
    if not texts:
        raise DataError(f"{', '.join(map(str, files))}: no dialogue that can be used")
    for place, role in enumerate(ROLES):
        counts[f"different_{role}s"] = sum(1 for uses in texts.values() if uses[place])
    order = sorted(texts.items(), key=lambda pair: (-sum(pair[1]), pair[0]))
    write_json(out / STATISTICS_NAME, {"statistics": {**counts, "rejected": len(rejects.rows)}, "settings": {
        "corpus": "visdial", "files": [str(file) for file in files]}})
    counts["texts"] = write_jsonl(out / TEXTS_NAME, (
        {"text": text, "roles": [role for role, uses in zip(ROLES, by_role, strict=True) if uses], "count": sum(by_role)}
        for text, by_role in order
    ))
    return {**counts, "rejected": len(rejects.rows)}


def _count(texts: dict[str, list[int]], text: str | None, place: int) -> None:
    if text:
        texts.setdefault(text, [0, 0, 0])[place] += 1


def question_key(text: str) -> str:
    """What makes two questions one: letters in one case, blanks and the mark at the end do not count."""
    return clean_text(text).casefold().rstrip("?？ 。.")

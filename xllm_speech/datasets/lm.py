"""Text in place of media, for a recipe's own small language model (mini.md, row LM): prompts about captions, and answers.

Where a picture, a clip or an utterance will stand, its caption or its words stand as text, in the template of the
recipe. The n-th batch of an epoch is a function of (texts, settings, seed, epoch) and of nothing else.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from xllm_speech.base.config import require
from xllm_speech.base.errors import DataError
from xllm_speech.base.files import read_jsonl
from xllm_speech.prompts.instructions import INSTRUCTIONS
from xllm_speech.prompts.templates import CHINESE, TAGS

IGNORED_LABEL = -100
SEPARATOR = "，"  # between the questions of one prompt, and between their answers


@dataclass
class LmMix:
    """How often each kind of prompt is drawn, relative to the others.

    copy: the words of an utterance -> the same. scramble: the same with characters by chance, so that copying is learnt and
    not the corpus. caption: of a picture or clip. question: one typed. questions: several typed at once, answers in their
    order (each prompt then teaches as much as several). spoken: one spoken about a picture. multimodal: an utterance
    with its picture, whose homophones may be spelt wrong in the prompt -> spelt right.
    """

    copy: float = 2.0
    scramble: float = 1.0
    caption: float = 1.5
    question: float = 3.0
    questions: float = 3.0
    spoken: float = 2.0
    multimodal: float = 1.5

    def __post_init__(self) -> None:
        shares = self.shares()
        require(min(shares.values()) >= 0, "data.mix: shares must not be negative")
        require(sum(shares.values()) > 0, "data.mix: at least one share must be above 0")

    def shares(self) -> dict[str, float]:
        """Share of each kind, by name."""
        return {
            "copy": self.copy, "scramble": self.scramble, "caption": self.caption, "question": self.question,
            "questions": self.questions, "spoken": self.spoken, "multimodal": self.multimodal,
        }


@dataclass
class LmDataConfig:
    """The text of a corpus and what is asked about it.

    texts: jsonl of {id, kind: scene | clip, caption, dialog: [{question, answer, kind}, ...]}; kind, of the question, may be
    absent. twins: pairs of words that sound
    alike; a caption tells which is meant. twin_share: of utterances with such a word, how many are spelt with the other one.
    held_out: captions kept out of training for evaluation. batch_size: prompts. epoch_batches: batches in an epoch.
    pool_batches: so many batches are drawn together and sorted by length. scramble_chars: longest string by chance.
    most_questions: in one prompt of several. signs: words of captions; where given, these alone stand for a picture or clip,
    in their order and each as one token of its own (`sign`): as few as an interface has vectors, and nothing to spell out.
    """

    texts: str = ""
    twins: list[list[str]] = field(default_factory=list)
    twin_share: float = 0.5
    held_out: int = 120
    batch_size: int = 64
    epoch_batches: int = 100
    pool_batches: int = 10
    scramble_chars: int = 12
    most_questions: int = 4
    signs: list[str] = field(default_factory=list)
    seed: int = 1
    mix: LmMix = field(default_factory=LmMix)

    def __post_init__(self) -> None:
        require(all(len(pair) == 2 and all(pair) for pair in self.twins), f"data.twins {self.twins}: pairs of two words each")
        require(all(self.signs), f"data.signs {self.signs}: an empty word")
        require(0 <= self.twin_share <= 1, f"data.twin_share {self.twin_share} must lie in 0..1")
        require(self.held_out >= 1, f"data.held_out {self.held_out} must be at least 1")
        for name, value in (("batch_size", self.batch_size), ("epoch_batches", self.epoch_batches)):
            require(value >= 1, f"data.{name} {value} must be at least 1")
        require(self.pool_batches >= 1, f"data.pool_batches {self.pool_batches} must be at least 1")
        require(self.scramble_chars >= 2, f"data.scramble_chars {self.scramble_chars} must be at least 2")
        require(self.most_questions >= 1, f"data.most_questions {self.most_questions} must be at least 1")


@dataclass(frozen=True)
class TextRow:
    """One picture or clip in words. kind: image | video. dialog: (question, answer) pairs. sorts: of each question, "" where
    the corpus does not tell.
    """

    id: str
    kind: str
    caption: str
    dialog: tuple[tuple[str, str], ...]
    sorts: tuple[str, ...] = ()

    def texts(self) -> list[str]:
        """All that is said."""
        return [self.caption, *itertools.chain(*self.dialog)]


@dataclass(frozen=True)
class Sample:
    """A prompt, media as text, and its answer.

    task: a name of `LmMix.shares`. hints: for each question in the prompt the number of characters up to its end, and its
    answer.
    """

    id: str
    task: str
    prompt: str
    answer: str
    hints: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class LmBatch:
    """Framed prompts with answers, padded on the right. ids_BL, labels_BL (-100 outside answers): int64; mask_BL: bool.

    hints_BL: int64, at the last token of every question in a prompt the first token of its answer, -100 elsewhere. Unlike
    labels these stand where they are to be known, not one place behind it.
    """

    ids: list[str]
    ids_BL: torch.Tensor
    mask_BL: torch.Tensor
    labels_BL: torch.Tensor
    hints_BL: torch.Tensor

    @property
    def seconds(self) -> float:
        """Of audio: none."""
        return 0.0

    def to(self, device: torch.device | str) -> LmBatch:
        """The same batch on `device`."""
        return LmBatch(
            self.ids, self.ids_BL.to(device), self.mask_BL.to(device), self.labels_BL.to(device), self.hints_BL.to(device)
        )


def read_texts(path: str | Path) -> list[TextRow]:
    """The captions and dialogues of a corpus.

    Raises:
        DataError: a line lacks something, or the file holds no line; named with its place.
    """
    rows = []
    kinds = {"scene": "image", "clip": "video"}
    for number, line in read_jsonl(path):
        try:
            dialog = tuple((str(turn["question"]), str(turn["answer"])) for turn in line["dialog"])
            sorts = tuple(str(turn.get("kind", "")) for turn in line["dialog"])
            row = TextRow(str(line["id"]), kinds[line["kind"]], str(line["caption"]), dialog, sorts)
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}:{number}: needs id, kind (scene or clip), caption and dialog ({error!r})") from error
        if not row.caption or not row.dialog or not all(question and answer for question, answer in row.dialog):
            raise DataError(f"{path}:{number}: {row.id} has an empty caption, dialogue, question or answer")
        rows.append(row)
    if not rows:
        raise DataError(f"{path}: holds no text")
    return rows


def _number(*words: object) -> int:
    return int.from_bytes(hashlib.blake2b("\0".join(map(str, words)).encode(), digest_size=8).digest(), "big")


def hold_out(rows: Sequence[TextRow], count: int, seed: int) -> tuple[list[TextRow], list[TextRow]]:
    """(training rows, held-out rows): all rows of `count` captions, chosen by hash, so that no caption is in both.

    Raises:
        DataError: nothing would be left for training.
    """
    captions = sorted({row.caption for row in rows}, key=lambda caption: _number(seed, caption))
    chosen = set(captions[:count])
    kept = [row for row in rows if row.caption not in chosen]
    if not kept:
        raise DataError(f"{len(captions)} captions, of which data.held_out keeps {count} from training; nothing is left")
    first: dict[str, TextRow] = {}
    for row in rows:
        if row.caption in chosen:
            first.setdefault(row.caption, row)
    return kept, [first[caption] for caption in captions[:count]]


def sign(word: str) -> str:
    """The token that stands for a word of a caption in place of a picture or clip."""
    return f"<{word}>"


def media(kind: str, text: str) -> str:
    """Text in place of one media item, between its tags."""
    return f"{TAGS[kind].open}{text}{TAGS[kind].close}"


def ask(question: str) -> str:
    """A question or an instruction in the template of one round."""
    return f"{CHINESE.before}{question}{CHINESE.after}"


class LmSamples:
    """Draws prompts with answers from the text of a corpus.

    Args:
        rows: to draw from. twins: pairs of words that sound alike. twin_share, scramble_chars, most_questions, signs: as in
            `LmDataConfig`.

    Raises:
        DataError: a caption holds none of the signs.
    """

    def __init__(
        self, rows: Sequence[TextRow], twins: Sequence[Sequence[str]] = (), twin_share: float = 0.5, scramble_chars: int = 12,
        most_questions: int = 4, signs: Sequence[str] = (),
    ) -> None:
        self.rows = list(rows)
        self.scenes = [row for row in rows if row.kind == "image"] or self.rows
        self.twins = {a: b for one, other in twins for a, b in ((one, other), (other, one))}
        self.twin_share, self.scramble_chars, self.most_questions = twin_share, scramble_chars, most_questions
        self.letters = sorted({letter for row in rows for text in row.texts() for letter in text})
        longest_first = sorted(signs, key=lambda word: (-len(word), word))
        self._sign = re.compile("|".join(map(re.escape, longest_first))) if signs else None
        for row in rows:
            if not self._shown(row):
                raise DataError(f"{row.id}: the caption {row.caption} holds none of data.signs ({', '.join(signs)})")

    def _shown(self, row: TextRow) -> str:
        """What stands in place of a picture or clip."""
        return row.caption if self._sign is None else "".join(map(sign, self._sign.findall(row.caption)))

    def draw(self, task: str, rng: random.Random) -> Sample:
        """One prompt of a task named in `LmMix`, by chance.

        Raises:
            ValueError: no such kind.
        """
        row = rng.choice(self.rows)
        match task:
            case "copy":
                text = row.caption if rng.random() < 0.2 else rng.choice(row.dialog)[0]
                return self.copy(row.id, text, rng)
            case "scramble":
                text = "".join(rng.choices(self.letters, k=rng.randint(2, self.scramble_chars)))
                return self.copy(row.id, text, rng, task)
            case "caption":
                return self.caption(row, rng)
            case "question":
                return self.question(row, self._choose(row, 1, rng)[0])
            case "questions":
                return self.questions(row, self._choose(row, self.most_questions, rng))
            case "spoken":
                row = rng.choice(self.scenes)
                return self.spoken(row, self._choose(row, 1, rng)[0], rng)
            case "multimodal":
                row = rng.choice(self.scenes)
                return self.multimodal(row, rng.choice(row.dialog)[0], rng)
            case _:
                raise ValueError(f"task {task} is not one of {', '.join(LmMix().shares())}")

    def _choose(self, row: TextRow, most: int, rng: random.Random) -> list[tuple[str, str]]:
        """At most so many questions about a row: kinds evenly, however many questions there are of each."""
        by_sort: dict[str, list[tuple[str, str]]] = {}
        for sort, turn in zip(row.sorts or ("",) * len(row.dialog), row.dialog, strict=True):
            by_sort.setdefault(sort, []).append(turn)
        turns: list[tuple[str, str]] = []
        while by_sort and len(turns) < most:
            for sort in rng.sample(sorted(by_sort), len(by_sort)):
                if len(turns) < most:
                    turns.append(by_sort[sort].pop(rng.randrange(len(by_sort[sort]))))
                if not by_sort[sort]:
                    del by_sort[sort]
        return turns

    def copy(self, id: str, text: str, rng: random.Random, task: str = "copy") -> Sample:
        """The words of an utterance -> the same words."""
        return Sample(id, task, media("speech", text) + ask(rng.choice(INSTRUCTIONS["asr"])), text)

    def caption(self, row: TextRow, rng: random.Random) -> Sample:
        """A picture or clip -> its caption."""
        wording = rng.choice(INSTRUCTIONS["video" if row.kind == "video" else "caption"])
        return Sample(row.id, "caption", media(row.kind, self._shown(row)) + ask(wording), row.caption)

    def question(self, row: TextRow, turn: tuple[str, str]) -> Sample:
        """A typed question about a picture or clip -> its answer."""
        return replace(self.questions(row, [turn]), task="question")

    def questions(self, row: TextRow, turns: Sequence[tuple[str, str]]) -> Sample:
        """Typed questions about a picture or clip, in one prompt -> their answers."""
        shown = media(row.kind, self._shown(row))
        hints, end = [], len(shown) + len(CHINESE.before) - len(SEPARATOR)
        for question, answer in turns:
            end += len(SEPARATOR) + len(question)
            hints.append((end, answer))
        prompt = shown + ask(SEPARATOR.join(question for question, _ in turns))
        return Sample(row.id, "questions", prompt, SEPARATOR.join(answer for _, answer in turns), tuple(hints))

    def spoken(self, row: TextRow, turn: tuple[str, str], rng: random.Random) -> Sample:
        """A spoken question about a picture -> its answer; a word in it may be heard as its twin."""
        heard = self._mishear(turn[0], rng)
        shown = media(row.kind, self._shown(row)) + media("speech", heard)
        hint = (len(shown) - len(TAGS["speech"].close), turn[1])
        return Sample(row.id, "spoken", shown + ask(rng.choice(INSTRUCTIONS["vsd"])), turn[1], (hint,))

    def multimodal(self, row: TextRow, text: str, rng: random.Random) -> Sample:
        """A picture and an utterance -> the utterance; a word in it may be heard as its twin."""
        heard = self._mishear(text, rng)
        prompt = media(row.kind, self._shown(row)) + media("speech", heard) + ask(rng.choice(INSTRUCTIONS["masr"]))
        return Sample(row.id, "multimodal", prompt, text)

    def _mishear(self, text: str, rng: random.Random) -> str:
        for word, twin in self.twins.items():
            if word in text and rng.random() < self.twin_share:
                return text.replace(word, twin)
        return text


@dataclass(frozen=True)
class LmFrame:
    """How prompts become ids. encode: text alone. gmask_id, sop_id, eop_id, pad_id: around prompt and answer."""

    encode: Callable[[str], list[int]]
    gmask_id: int
    sop_id: int
    eop_id: int
    pad_id: int

    def batch(self, samples: Sequence[Sample]) -> LmBatch:
        """Prompt `[gMASK]` `<sop>` answer `<eop>`, padded on the right; labels on the answer and `<eop>` only.

        A question must not end within a piece of the vocabulary, lest its hint stand behind it.
        """
        rows, starts, hints = [], [], []
        for number, sample in enumerate(samples):
            prompt = [*self.encode(sample.prompt), self.gmask_id, self.sop_id]
            for end, answer in sample.hints:
                hints.append((number, len(self.encode(sample.prompt[:end])) - 1, self.encode(answer)[0]))
            rows.append([*prompt, *self.encode(sample.answer), self.eop_id])
            starts.append(len(prompt))
        longest = max(map(len, rows))
        ids_BL = torch.tensor([row + [self.pad_id] * (longest - len(row)) for row in rows])
        places = torch.arange(longest)
        lens_B1, starts_B1 = torch.tensor([[len(row)] for row in rows]), torch.tensor(starts)[:, None]
        mask_BL = places < lens_B1
        labels_BL = ids_BL.masked_fill(~mask_BL | (places < starts_B1), IGNORED_LABEL)
        hints_BL = torch.full_like(ids_BL, IGNORED_LABEL)
        for number, place, first in hints:
            hints_BL[number, place] = first
        return LmBatch([sample.id for sample in samples], ids_BL, mask_BL, labels_BL, hints_BL)


def train_batches(
    samples: LmSamples, frame: LmFrame, config: LmDataConfig, epoch: int, skip: int = 0, rank: int = 0, world_size: int = 1
) -> Iterator[LmBatch]:
    """The batches of one process in one epoch, after the first `skip`: prompts of like length together, in random order."""
    shares = config.mix.shares()
    tasks, weights = list(shares), list(shares.values())
    wanted = config.epoch_batches // world_size * world_size or world_size
    drawn = 0
    for pool in itertools.count():
        count = min(config.pool_batches * world_size, wanted - drawn)
        if count <= 0:
            return
        mine = [number for number in range(count) if (drawn + number) % world_size == rank]
        drawn += count
        if len(mine) <= skip:
            skip -= len(mine)
            continue
        rng = random.Random(_number("lm", config.seed, epoch, pool))
        found = [samples.draw(task, rng) for task in rng.choices(tasks, weights, k=count * config.batch_size)]
        found.sort(key=lambda sample: len(frame.encode(sample.prompt + sample.answer)))
        starts = list(range(0, len(found), config.batch_size))
        rng.shuffle(starts)
        for number in mine[skip:]:
            yield frame.batch(found[starts[number] : starts[number] + config.batch_size])
        skip = 0

"""What the mini corpus holds, decided before anything is drawn or spoken: pictures, dialogues, utterances, clips, texts.

Every item has its own random stream, named by the seed, its kind and its number: nothing depends on the order of work.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from clips import Clip, draw_clip
from dialogues import ANSWERS, Question, hold_dialogue, questions_about, spoken_question
from noise import KINDS as NOISE_KINDS
from scenes import HELD_OUT, PAIRS, SEEN_PAIRS, Scene, draw_scene
from voices import VARIANTS, VOICE

TEST_SETS = ("mixed", "clean", "homophone", "noisy", "unseen")
SPLITS = ("train", "val", "test")
NOISY_SHARE = 0.4
HOMOPHONE_SHARE = 0.15  # of the train-like questions that must be ambiguous; by chance others are too
OPTIONS = 10
LICENCE = "Apache-2.0"


@dataclass(frozen=True)
class Sizes:
    """How much to make. train, dev: spoken questions; test: spoken questions in each of the five test sets."""

    train: int = 2400
    train_images: int = 4800
    dev: int = 120
    test: int = 200
    train_clips: int = 600
    test_clips: int = 100
    texts: int = 8000
    rounds: int = 4


def stream(seed: int, kind: str, number: int) -> np.random.Generator:
    """The random stream of one item."""
    return np.random.default_rng([seed, number, *kind.encode()])


@dataclass(frozen=True)
class Utterance:
    """One spoken question: how it is spoken and what is mixed in (`noise` None: nothing)."""

    id: str
    text: str
    variant: str
    speed: int
    pitch: int
    noise: str | None
    snr_db: float
    ambiguous: bool


@dataclass(frozen=True)
class Picture:
    """One picture with its dialogue; `round` is the one that is spoken, if any, in the test set `subset` if any."""

    image_id: int
    split: str
    scene: Scene
    dialogue: tuple[Question, ...]
    round: int | None = None
    utterance: Utterance | None = None
    subset: str | None = None

    @property
    def path(self) -> str:
        """File of the picture within the corpus."""
        return f"images/{self.split}/{self.image_id}.png"

    @property
    def speech_path(self) -> str:
        """File of its spoken question within the corpus."""
        assert self.utterance is not None
        return f"speech/{self.split}/{self.utterance.id}.flac"


@dataclass(frozen=True)
class PlannedClip:
    """One clip and where it goes."""

    id: str
    split: str
    clip: Clip

    @property
    def path(self) -> str:
        """File of the clip within the corpus."""
        return f"clips/{self.split}/{self.id}.mp4"


def plan_picture(seed: int, split: str, number: int, image_id: int, subset: str | None, spoken: bool, rounds: int) -> Picture:
    """Decide one picture: its scene, its dialogue, which round is spoken, by whom and in what noise."""
    rng = stream(seed, f"{split}-{subset}", number)
    want = "any"
    if subset in ("homophone", "unseen"):
        want = subset
    elif rng.random() < HOMOPHONE_SHARE:
        want = "homophone"
    held_out = sorted(HELD_OUT)
    question = None
    while question is None:
        first = held_out[int(rng.integers(len(held_out)))] if want == "unseen" else None
        scene = draw_scene(rng, SEEN_PAIRS, first)
        question = spoken_question(rng, scene, SEEN_PAIRS, want)
    dialogue = hold_dialogue(rng, scene, SEEN_PAIRS, rounds, question)
    if not spoken:
        return Picture(image_id, split, scene, tuple(dialogue))
    place = dialogue.index(question)
    noisy = {"noisy": True, "mixed": rng.random() < NOISY_SHARE, None: rng.random() < NOISY_SHARE}.get(subset, False)
    variant = VARIANTS[int(rng.integers(len(VARIANTS)))]
    utterance = Utterance(
        id=f"{variant}-{image_id}-{place}",
        text=question.text,
        variant=variant,
        speed=int(rng.integers(170, 241)),
        pitch=int(rng.integers(25, 76)),
        noise=NOISE_KINDS[int(rng.integers(len(NOISE_KINDS)))] if noisy else None,
        snr_db=round(float(rng.uniform(-5, 5)), 1),
        ambiguous=question.ambiguous,
    )
    return Picture(image_id, split, scene, tuple(dialogue), place, utterance, subset)


def plan_pictures(seed: int, sizes: Sizes) -> list[Picture]:
    """All pictures: training (the first `train` of them with speech), development, then the test sets."""
    pictures = [
        plan_picture(seed, "train", number, 100_000 + number, None, number < sizes.train, sizes.rounds)
        for number in range(sizes.train_images)
    ]
    pictures += [
        plan_picture(seed, "val", number, 200_000 + number, None, True, sizes.rounds) for number in range(sizes.dev)
    ]
    for order, subset in enumerate(TEST_SETS):
        pictures += [
            plan_picture(seed, "test", number, 300_000 + order * sizes.test + number, subset, True, sizes.rounds)
            for number in range(sizes.test)
        ]
    return pictures


def plan_clips(seed: int, sizes: Sizes) -> list[PlannedClip]:
    """All clips; held-out pairs only in the test clips."""
    clips = [
        PlannedClip(f"train-{number:05d}", "train", draw_clip(stream(seed, "clip-train", number), SEEN_PAIRS))
        for number in range(sizes.train_clips)
    ]
    clips += [
        PlannedClip(f"test-{number:05d}", "test", draw_clip(stream(seed, "clip-test", number), PAIRS))
        for number in range(sizes.test_clips)
    ]
    return clips


def visdial(pictures: list[Picture], split: str, seed: int) -> dict[str, Any]:
    """One split in the form of VisDial v1.0: pools of questions and answers, dialogues of indexes into them."""
    chosen = [picture for picture in pictures if picture.split == split]
    questions = sorted({question.text for picture in chosen for question in picture.dialogue})
    question_index = {text: index for index, text in enumerate(questions)}
    answers = sorted(ANSWERS)
    answer_index = {text: index for index, text in enumerate(answers)}
    dialogs = []
    for picture in chosen:
        rng = stream(seed, "options", picture.image_id)
        rounds = []
        for question in picture.dialogue:
            right = answer_index[question.answer]
            others = [index for index in range(len(answers)) if index != right]
            options = [right, *(others[int(place)] for place in rng.permutation(len(others))[: OPTIONS - 1])]
            options = [options[int(place)] for place in rng.permutation(OPTIONS)]
            rounds.append(
                {
                    "question": question_index[question.text],
                    "answer": right,
                    "answer_options": options,
                    "gt_index": options.index(right),
                }
            )
        dialogs.append({"image_id": picture.image_id, "caption": picture.scene.caption, "dialog": rounds})
    return {
        "version": "1.0",
        "split": split,
        "data": {"questions": questions, "answers": answers, "dialogs": dialogs},
    }


def speech_rows(pictures: list[Picture], engine: str, seed: int) -> list[dict[str, Any]]:
    """One row per spoken question, for `speech.jsonl`."""
    rows = []
    for picture in pictures:
        spoken = picture.utterance
        if spoken is None:
            continue
        rows.append(
            {
                "id": spoken.id,
                "split": picture.split,
                "image_id": picture.image_id,
                "round": picture.round,
                "path": picture.speech_path,
                "text": spoken.text,
                "language": "zh",
                "speaker": f"espeak-{spoken.variant}",
                "voice": f"{VOICE}+{spoken.variant}",
                "speed": spoken.speed,
                "pitch": spoken.pitch,
                "noise": spoken.noise,
                "snr_db": spoken.snr_db if spoken.noise else None,
                "seed": seed,
                "homophone": spoken.ambiguous,
                "sets": [picture.subset] if picture.subset else [],
                "provenance": f"synthesised by {engine}",
                "licence": LICENCE,
            }
        )
    return rows


def scene_rows(pictures: list[Picture]) -> list[dict[str, Any]]:
    """Ground truth of every picture, for `scenes.jsonl`."""
    return [
        {
            "image_id": picture.image_id,
            "split": picture.split,
            "path": picture.path,
            "caption": picture.scene.caption,
            **picture.scene.record(),
        }
        for picture in pictures
    ]


def clip_rows(clips: list[PlannedClip]) -> list[dict[str, Any]]:
    """One row per clip, for `clips.jsonl`."""
    return [
        {
            "id": clip.id,
            "split": clip.split,
            "path": clip.path,
            "caption": clip.clip.caption,
            "answer": clip.clip.answer,
            **asdict(clip.clip),
            "held_out": (clip.clip.colour, clip.clip.shape) in HELD_OUT,
        }
        for clip in clips
    ]


ABSENT_PAIRS = 3  # that a text asks after


def text_rows(seed: int, sizes: Sizes) -> list[dict[str, Any]]:
    """Text without pictures or speech, over all pairs, for a small language model: `text.jsonl`.

    Four in five rows are a scene with every question about what is in it and some about what is not, the others a clip. Each
    turn tells the kind of its question.
    """
    rows: list[dict[str, Any]] = []
    for number in range(sizes.texts):
        rng = stream(seed, "text", number)
        if number % 5 == 4:
            clip = draw_clip(rng, PAIRS)
            turn = {"question": clip.question, "answer": clip.answer, "kind": "direction"}
            row = {"kind": "clip", "caption": clip.caption, "dialog": [turn]}
        else:
            scene = draw_scene(rng, PAIRS)
            absent = [PAIRS[int(place)] for place in rng.choice(len(PAIRS), size=ABSENT_PAIRS, replace=False)]
            held = questions_about(scene, absent)
            turns = [{"question": question.text, "answer": question.answer, "kind": question.kind} for question in held]
            row = {"kind": "scene", "caption": scene.caption, "dialog": turns}
        rows.append({"id": f"text-{number:06d}", **row})
    return rows


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()

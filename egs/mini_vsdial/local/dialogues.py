"""Questions about a scene and their answers: eight kinds, each in two wordings.

A shape whose name has a twin in sound (旗子/棋子, 钟/盅) is named only where the picture decides how it is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scenes import CELLS, COLOURS, HELD_OUT, SHAPES, TWINS, Scene, Thing

WORDINGS: dict[str, tuple[str, str]] = {
    "count": ("图里有几个{shape}", "{shape}一共有几个"),
    "colour": ("{shape}是什么颜色", "图里的{shape}是哪种颜色"),
    "shape": ("{colour}色的是什么形状", "哪种东西是{colour}色的"),
    "where": ("{colour}色的{shape}在哪里", "{colour}色的{shape}在什么位置"),
    "total": ("图里一共有几个东西", "图里总共有多少东西"),
    "exist": ("图里有{colour}色的{shape}吗", "有没有{colour}色的{shape}"),
    "colour_at": ("{cell}是什么颜色", "{cell}的东西是哪种颜色"),
    "shape_at": ("{cell}是什么形状", "{cell}的东西是什么"),
}
KINDS = tuple(WORDINGS)
NUMBERS = ("没有", "一个", "两个", "三个")
# A shape with a twin in sound is named only where it is there: how many there are would be known before the picture is seen.
TWIN_KINDS = ("colour", "where", "exist")
TWIN_SHARE = 0.4  # of questions whether something is there: about a shape with a twin
# How often these and counts are about something absent, with a twin and without: then a picture often allows for nothing else.
ABSENT_SHARE = {True: 0.5, False: 0.25}
ANSWERS = ("有", *NUMBERS, *(f"{colour}色" for colour in COLOURS), *SHAPES, *CELLS)


@dataclass(frozen=True)
class Question:
    """A question with its answer. names: the shape it names, if any; pair: the (colour, shape) it names, if any."""

    kind: str
    text: str
    answer: str
    names: str | None = None
    pair: tuple[str, str] | None = None

    @property
    def ambiguous(self) -> bool:
        """Whether the sound alone does not tell how the question is written."""
        return self.names in TWINS


def _make(kind: str, answer: str, *, colour: str = "", shape: str = "", cell: str = "") -> list[Question]:
    pair = (colour, shape) if colour and shape else None
    return [
        Question(kind, wording.format(colour=colour, shape=shape, cell=cell), answer, shape or None, pair)
        for wording in WORDINGS[kind]
    ]


def questions_about(scene: Scene, pairs: Iterable[tuple[str, str]], about: Thing | None = None) -> list[Question]:
    """Every question one can ask about a scene whose answer is certain.

    Args:
        scene: the picture.
        pairs: (colour, shape) pairs that a question about something absent may name.
        about: keep only questions on this object (and none about something absent).
    """
    found: list[Question] = []
    for thing in scene.things if about is None else (about,):
        shape, colour, cell = thing.shape, thing.colour, CELLS[thing.cell]
        same_shape, same_colour = scene.with_shape(shape), scene.with_colour(colour)
        if scene.decides(shape):
            found += _make("count", NUMBERS[len(same_shape)], shape=shape)
            found += _make("where", cell, colour=colour, shape=shape)
            found += _make("exist", "有", colour=colour, shape=shape)
            if len(same_shape) == 1:
                found += _make("colour", f"{colour}色", shape=shape)
        if len(same_colour) == 1:
            found += _make("shape", shape, colour=colour)
        found += _make("colour_at", f"{colour}色", cell=cell)
        found += _make("shape_at", shape, cell=cell)
    if about is None:
        found += _make("total", NUMBERS[len(scene.things)])
        here = {thing.pair for thing in scene.things}
        for colour, shape in pairs:
            if (colour, shape) not in here and scene.decides(shape):
                found += _make("exist", "没有", colour=colour, shape=shape)
            if not scene.with_shape(shape) and scene.decides(shape):
                found += _make("count", NUMBERS[0], shape=shape)
    unique = {question.text: question for question in found}  # two objects of one shape give its count twice
    return list(unique.values())


def choose(rng: np.random.Generator, candidates: list[Question], kinds: Iterable[str] = KINDS) -> Question:
    """One question: first its kind, evenly among those that are possible, then which.

    Of questions whether and how many there are, it is chosen first whether there is any, lest a guess without the picture be
    right mostly.
    """
    candidates = [question for question in candidates if question.kind in TWIN_KINDS or not question.ambiguous]
    possible = [kind for kind in kinds if any(question.kind == kind for question in candidates)]
    kind = possible[int(rng.integers(len(possible)))]
    rest = [question for question in candidates if question.kind == kind]
    if kind in ("exist", "count"):
        twin = rng.random() < TWIN_SHARE
        rest = [question for question in rest if question.ambiguous == twin] or rest
        absent = [question for question in rest if question.answer == NUMBERS[0]]
        present = [question for question in rest if question.answer != NUMBERS[0]]
        rest = (absent if rng.random() < ABSENT_SHARE[rest[0].ambiguous] else present) or rest
    return rest[int(rng.integers(len(rest)))]


def hold_dialogue(
    rng: np.random.Generator, scene: Scene, pairs: tuple[tuple[str, str], ...], rounds: int, first: Question | None = None
) -> list[Question]:
    """A dialogue of `rounds` different questions about one scene; `first`, when given, is one of them, anywhere."""
    candidates = questions_about(scene, pairs)
    held: list[Question] = [] if first is None else [first]
    while len(held) < rounds:
        question = choose(rng, [item for item in candidates if item not in held])
        held.append(question)
    return [held[int(place)] for place in rng.permutation(len(held))]


def spoken_question(rng: np.random.Generator, scene: Scene, pairs: tuple[tuple[str, str], ...], want: str) -> Question | None:
    """The question to be spoken about a scene, or None when the scene has none of the wanted sort.

    Args:
        want: `any`; `homophone`: one whose writing only the picture decides; `unseen`: one about an object of a held-out
            pair, by preference naming that pair.
    """
    match want:
        case "any":
            return choose(rng, questions_about(scene, pairs))
        case "homophone":
            candidates = [question for question in questions_about(scene, pairs) if question.ambiguous]
            return choose(rng, candidates) if candidates else None
        case "unseen":
            thing = next((thing for thing in scene.things if thing.pair in HELD_OUT), None)
            if thing is None or not scene.decides(thing.shape):
                return None
            kinds = ("where", "exist") if rng.random() < 0.7 else KINDS
            return choose(rng, questions_about(scene, pairs, about=thing), kinds)
        case _:
            raise ValueError(f"want `{want}` is not one of any, homophone, unseen")

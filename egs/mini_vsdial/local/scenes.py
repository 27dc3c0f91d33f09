"""The little world of the mini corpus: coloured shapes on a 2 x 2 grid, and how a picture is described in Chinese."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Colour name (without 色) -> RGB. The pairs 红/黄 and 青/橙 sound alike at a glance.
COLOURS: dict[str, tuple[int, int, int]] = {
    "红": (225, 35, 40),
    "橙": (245, 135, 20),
    "黄": (240, 225, 40),
    "绿": (40, 165, 55),
    "青": (50, 215, 215),
    "蓝": (45, 80, 225),
    "紫": (155, 55, 190),
    "白": (240, 240, 240),
}
SHAPES = ("圆形", "方形", "三角形", "星形", "心形", "菱形", "旗子", "棋子", "钟", "盅")
# Names that are spoken alike: only the picture tells which one is meant.
TWINS = {"旗子": "棋子", "棋子": "旗子", "钟": "盅", "盅": "钟"}
CELLS = ("左上", "右上", "左下", "右下")
# Pairs that no training picture shows and no training speech names: the test set `unseen` is about them.
HELD_OUT = frozenset(zip(COLOURS, ("菱形", "旗子", "心形", "钟", "方形", "三角形", "圆形", "棋子"), strict=True))
PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
SEEN_PAIRS = tuple(pair for pair in PAIRS if pair not in HELD_OUT)


@dataclass(frozen=True)
class Thing:
    """One object: its cell (0..3, reading order), colour, shape, and how it is drawn.

    offset: shift of its centre from the cell's centre and radius: half its height, both in pixels of a 64 x 64 picture.
    """

    cell: int
    colour: str
    shape: str
    offset: tuple[float, float] = (0.0, 0.0)
    radius: float = 11.5

    @property
    def pair(self) -> tuple[str, str]:
        """(colour, shape)."""
        return self.colour, self.shape

    @property
    def words(self) -> str:
        """The object in words, e.g. 红色的圆形."""
        return f"{self.colour}色的{self.shape}"


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn: one to three objects in different cells, in reading order, no pair twice."""

    things: tuple[Thing, ...]

    @property
    def caption(self) -> str:
        """The picture in words, e.g. 左上有红色的圆形，右下有绿色的旗子."""
        return "，".join(f"{CELLS[thing.cell]}有{thing.words}" for thing in self.things)

    def with_shape(self, shape: str) -> list[Thing]:
        """Objects of that shape."""
        return [thing for thing in self.things if thing.shape == shape]

    def with_colour(self, colour: str) -> list[Thing]:
        """Objects of that colour."""
        return [thing for thing in self.things if thing.colour == colour]

    def at(self, cell: int) -> Thing | None:
        """The object in that cell, or None."""
        return next((thing for thing in self.things if thing.cell == cell), None)

    def decides(self, shape: str) -> bool:
        """Whether the picture tells how to write that shape's name: it is there and its twin in sound is not."""
        if shape not in TWINS:
            return True
        return bool(self.with_shape(shape)) and not self.with_shape(TWINS[shape])

    def record(self) -> dict[str, object]:
        """Ground truth for `scenes.jsonl`: every object with its cell, colour, shape and box (left, top, right, bottom)."""
        return {"objects": [_thing_record(thing) for thing in self.things]}


def centre(thing: Thing) -> tuple[float, float]:
    """Centre of an object in pixels (x, y)."""
    return 16 + 32 * (thing.cell % 2) + thing.offset[0], 16 + 32 * (thing.cell // 2) + thing.offset[1]


def _thing_record(thing: Thing) -> dict[str, object]:
    x, y = centre(thing)
    box = [round(value, 1) for value in (x - thing.radius, y - thing.radius, x + thing.radius, y + thing.radius)]
    return {"cell": thing.cell, "colour": thing.colour, "shape": thing.shape, "box": box}


def _choose_pair(rng: np.random.Generator, pairs: tuple[tuple[str, str], ...]) -> tuple[str, str]:
    # Shapes with a twin in sound are drawn more often, so that a few hundred spoken questions are about them.
    weights = np.array([1.6 if shape in TWINS else 1.0 for _, shape in pairs])
    return pairs[int(rng.choice(len(pairs), p=weights / weights.sum()))]


def draw_scene(
    rng: np.random.Generator,
    pairs: tuple[tuple[str, str], ...] = SEEN_PAIRS,
    first: tuple[str, str] | None = None,
) -> Scene:
    """Draw a scene of one to three objects by chance; `first` fixes the (colour, shape) of one of them."""
    count = int(rng.integers(3)) + 1
    cells = rng.permutation(4)[:count]
    chosen: list[tuple[str, str]] = [] if first is None else [first]
    while len(chosen) < count:
        pair = _choose_pair(rng, pairs)
        if pair not in chosen:
            chosen.append(pair)
    things = [
        Thing(
            cell=int(cell),
            colour=colour,
            shape=shape,
            offset=(float(rng.uniform(-3, 3)), float(rng.uniform(-3, 3))),
            radius=float(rng.uniform(10, 12.5)),
        )
        for cell, (colour, shape) in zip(cells, chosen, strict=True)
    ]
    return Scene(tuple(sorted(things, key=lambda thing: thing.cell)))

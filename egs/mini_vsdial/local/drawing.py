"""Drawing of scenes as 64 x 64 RGB pictures: flat shapes, four times oversampled, on a dark ground with pixel noise."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw
from scenes import COLOURS, Scene, centre

SIDE = 64
SCALE = 4
Rgb = tuple[int, int, int]


def _polygon(x: float, y: float, radius: float, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x + radius * px, y + radius * py) for px, py in points]


def draw_shape(
    pen: ImageDraw.ImageDraw, shape: str, centre_xy: tuple[float, float], radius: float, fill: Rgb, ground: Rgb
) -> None:
    """Draw one shape; centre and radius in pixels of the 64 x 64 picture, `ground` for details cut out of it."""
    x, y, r = centre_xy[0] * SCALE, centre_xy[1] * SCALE, radius * SCALE

    def box(left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
        return x + r * left, y + r * top, x + r * right, y + r * bottom

    match shape:
        case "圆形":
            pen.ellipse(box(-0.84, -0.84, 0.84, 0.84), fill=fill)
        case "方形":
            pen.rectangle(box(-0.88, -0.88, 0.88, 0.88), fill=fill)
        case "三角形":
            pen.polygon(_polygon(x, y, r, [(0, -1), (0.98, 0.8), (-0.98, 0.8)]), fill=fill)
        case "星形":
            points = []
            for corner in range(10):
                reach = 1.08 if corner % 2 == 0 else 0.43
                angle = math.pi * corner / 5
                points.append((reach * math.sin(angle), -reach * math.cos(angle) + 0.08))
            pen.polygon(_polygon(x, y, r, points), fill=fill)
        case "心形":
            turns = [2 * math.pi * step / 60 for step in range(60)]
            heart = [
                (
                    math.sin(t) ** 3,
                    -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16 - 0.1,
                )
                for t in turns
            ]
            pen.polygon(_polygon(x, y, r, heart), fill=fill)
        case "菱形":
            pen.polygon(_polygon(x, y, r, [(0, -1.05), (0.68, 0), (0, 1.05), (-0.68, 0)]), fill=fill)
        case "旗子":  # a pole with a flag that flies to the right
            pen.rectangle(box(-0.75, -1, -0.53, 1), fill=fill)
            pen.polygon(_polygon(x, y, r, [(-0.55, -1), (0.95, -0.5), (-0.55, 0.1)]), fill=fill)
        case "棋子":  # a pawn: head, collar, body, foot
            pen.ellipse(box(-0.38, -1, 0.38, -0.24), fill=fill)
            pen.rectangle(box(-0.5, -0.3, 0.5, -0.12), fill=fill)
            pen.polygon(_polygon(x, y, r, [(-0.22, -0.2), (0.22, -0.2), (0.55, 0.75), (-0.55, 0.75)]), fill=fill)
            pen.rectangle(box(-0.8, 0.66, 0.8, 1), fill=fill)
        case "钟":  # a clock face with two hands
            pen.ellipse(box(-0.98, -0.98, 0.98, 0.98), fill=fill)
            pen.ellipse(box(-0.72, -0.72, 0.72, 0.72), fill=ground)
            pen.line(_polygon(x, y, r, [(0, -0.62), (0, 0.08)]), fill=fill, width=round(0.22 * r))
            pen.line(_polygon(x, y, r, [(-0.08, 0), (0.52, 0)]), fill=fill, width=round(0.22 * r))
        case "盅":  # a small lidded cup
            pen.ellipse(box(-0.17, -1, 0.17, -0.66), fill=fill)
            pen.pieslice(box(-0.8, -0.72, 0.8, 0.36), 180, 360, fill=fill)
            pen.polygon(_polygon(x, y, r, [(-0.98, -0.02), (0.98, -0.02), (0.5, 0.95), (-0.5, 0.95)]), fill=fill)
        case _:
            raise ValueError(f"shape `{shape}` cannot be drawn")


def _tint(rng: np.random.Generator, colour: Rgb, spread: int) -> Rgb:
    red, green, blue = (int(np.clip(value + rng.integers(-spread, spread + 1), 0, 255)) for value in colour)
    return red, green, blue


def blank(rng: np.random.Generator) -> tuple[Image.Image, ImageDraw.ImageDraw, Rgb]:
    """An oversampled empty picture on a dark ground of chance, its pen and the ground's colour."""
    level = int(rng.integers(18, 52))
    ground = _tint(rng, (level, level, level), 6)
    canvas = Image.new("RGB", (SIDE * SCALE, SIDE * SCALE), ground)
    return canvas, ImageDraw.Draw(canvas), ground


def shade(rng: np.random.Generator, colour: str) -> Rgb:
    """The RGB of a named colour, a little different in every picture."""
    return _tint(rng, COLOURS[colour], 12)


def finish(canvas: Image.Image, noise: np.ndarray) -> Image.Image:
    """Reduce an oversampled picture to 64 x 64 and add noise [64, 64, 3]."""
    small = np.asarray(canvas.reduce(SCALE), dtype=np.float64)
    return Image.fromarray(np.clip(np.rint(small + noise), 0, 255).astype(np.uint8))


def draw_picture(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """The scene as a 64 x 64 RGB picture with Gaussian pixel noise (standard deviation 4 to 9 of 255)."""
    canvas, pen, ground = blank(rng)
    for thing in scene.things:
        draw_shape(pen, thing.shape, centre(thing), thing.radius, shade(rng, thing.colour), ground)
    return finish(canvas, rng.normal(0, rng.uniform(4, 9), (SIDE, SIDE, 3)))

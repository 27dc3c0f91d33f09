"""Short clips of one moving shape: eight frames, two seconds, MP4."""

from __future__ import annotations

import io
from dataclasses import dataclass

import av
import numpy as np
from drawing import SIDE, blank, draw_shape, finish, shade
from PIL import ImageDraw

DIRECTIONS: dict[str, tuple[int, int]] = {"左": (-1, 0), "右": (1, 0), "上": (0, -1), "下": (0, 1)}
QUESTIONS = ("它向哪边移动", "图形往哪个方向移动")
FRAMES = 8
RATE_FPS = 4


@dataclass(frozen=True)
class Clip:
    """A clip before it is drawn."""

    colour: str
    shape: str
    direction: str
    question: str

    @property
    def caption(self) -> str:
        """The clip in words, e.g. 红色的圆形向左移动."""
        return f"{self.colour}色的{self.shape}向{self.direction}移动"

    @property
    def answer(self) -> str:
        """Answer to its question: the direction."""
        return f"向{self.direction}"


def draw_clip(rng: np.random.Generator, pairs: tuple[tuple[str, str], ...]) -> Clip:
    """A clip by chance: pair, direction and the wording of its question."""
    colour, shape = pairs[int(rng.integers(len(pairs)))]
    direction = list(DIRECTIONS)[int(rng.integers(len(DIRECTIONS)))]
    return Clip(colour, shape, direction, QUESTIONS[int(rng.integers(len(QUESTIONS)))])


def clip_frames(clip: Clip, rng: np.random.Generator) -> np.ndarray:
    """The frames of a clip: [8, 64, 64, 3] uint8. The shape crosses 26 to 34 pixels at even speed."""
    step_x, step_y = DIRECTIONS[clip.direction]
    reach = rng.uniform(26, 34)
    radius = rng.uniform(9, 12)
    across = rng.uniform(18, SIDE - 18)  # where it stands on the axis it does not move on
    fill = shade(rng, clip.colour)
    noise = rng.normal(0, 3, (SIDE, SIDE, 3))
    canvas, _, ground = blank(rng)
    frames = []
    for frame in range(FRAMES):
        along = (frame / (FRAMES - 1) - 0.5) * reach
        x = SIDE / 2 + step_x * along if step_x else across
        y = SIDE / 2 + step_y * along if step_y else across
        picture = canvas.copy()
        draw_shape(ImageDraw.Draw(picture), clip.shape, (x, y), radius, fill, ground)
        frames.append(np.asarray(finish(picture, noise)))
    return np.stack(frames)


def encode_clip(frames: np.ndarray) -> bytes:
    """Frames [T, H, W, 3] uint8 as an MP4 file (H.264, four frames a second); one thread, so that bytes repeat."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE_FPS, options={"crf": "16", "preset": "veryfast", "threads": "1"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return target.getvalue()

"""Units of time: samples, frames (10 ms), steps (80 ms) and seconds. Every conversion in the package goes through here.

A frame is one fbank vector, a step one encoder output (system.md, Words). Halving is always ceil(n / 2): the convolution
of the front-end pads by one on the left, and the pools keep a last odd frame.
"""

from __future__ import annotations

from typing import TypeVar

SAMPLE_RATE_HZ = 16000
FRAME_SHIFT_MS = 10
FRAME_LENGTH_MS = 25
MEL_BINS = 80
FRAMES_PER_STEP = 8
STEP_SEC = FRAMES_PER_STEP * FRAME_SHIFT_MS / 1000

# int, or an integer tensor of any shape.
Count = TypeVar("Count")


def frames_from_samples(samples: int, sample_rate_hz: int = SAMPLE_RATE_HZ) -> int:
    """Number of frames of a recording, Kaldi's `snip_edges=False`: one per full or half-full 10 ms shift."""
    shift = sample_rate_hz * FRAME_SHIFT_MS // 1000
    return (samples + shift // 2) // shift


def halve(count: Count) -> Count:
    """ceil(count / 2), for ints and integer tensors: what one stride-2 layer leaves."""
    return (count + 1) // 2  # type: ignore[operator, return-value]


def steps_from_frames(frames: Count) -> Count:
    """Encoder steps that `frames` fbank frames become: the front-end and the two pools each halve."""
    return halve(halve(halve(frames)))


def sec_from_steps(steps: float) -> float:
    """Seconds from the start of the utterance at `steps` (fractional) encoder steps."""
    return steps * STEP_SEC

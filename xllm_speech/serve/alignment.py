"""A picture of how the CIF ASR model laid its tokens along a recording."""

from __future__ import annotations

import functools
import re

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findSystemFonts, fontManager

from xllm_speech.base.units import SAMPLE_RATE_HZ, sec_from_steps
from xllm_speech.records import TimedToken

_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "SimHei")
_FILE = re.compile(r"noto.*cjk.*regular|sourcehansans.*regular|wqy|simhei", re.IGNORECASE)
MOST_WIDTH = 30.0  # inches
SHADES = ("#dbe9f6", "#f6ead7")


def draw_alignment(samples_N: np.ndarray, alpha_S: np.ndarray, tokens: list[TimedToken]) -> np.ndarray:
    """RGB picture [height, width, 3]: the wave, the span of each token, and below the weights that fired it.

    samples_N: at 16 kHz. alpha_S: CIF weights, one per step; empty where they are not known. Without a font for Chinese the
    tokens are numbered.
    """
    duration_sec = len(samples_N) / SAMPLE_RATE_HZ
    figure = Figure(figsize=(min(MOST_WIDTH, max(8.0, 0.4 * len(tokens))), 4.0), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    wave, weights = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    font = _find_font()
    stride = max(1, len(samples_N) // 20_000)
    wave.plot(np.arange(len(samples_N))[::stride] / SAMPLE_RATE_HZ, samples_N[::stride], linewidth=0.5, color="#456")
    top = max(1e-4, float(np.abs(samples_N).max(initial=0.0)))
    for number, token in enumerate(tokens):
        wave.axvspan(token.start_sec, token.end_sec, color=SHADES[number % 2], zorder=0)
        name = token.text if font or token.text.isascii() else str(number + 1)
        middle_sec = (token.start_sec + token.end_sec) / 2
        wave.text(middle_sec, 1.05 * top, name, ha="center", va="bottom", family=font or "sans-serif", fontsize=12)
        weights.axvline(token.end_sec, color="#b33", linewidth=0.8)
    wave.set_ylim(-1.05 * top, 1.4 * top)
    wave.set_yticks([])
    wave.set_xlim(0, max(0.01, duration_sec))
    steps_sec = np.array([sec_from_steps(step + 0.5) for step in range(len(alpha_S))])
    weights.bar(steps_sec, alpha_S, width=0.9 * sec_from_steps(1), color="#7a9")
    weights.set_ylabel("alpha")
    weights.set_xlabel("s")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


@functools.cache
def _find_font() -> str | None:
    """A family with Chinese characters; those that were installed after matplotlib made its list are looked for too."""
    for path in () if any(font.name in _FONTS for font in fontManager.ttflist) else findSystemFonts():
        if _FILE.search(path):
            fontManager.addfont(path)
    known = {font.name for font in fontManager.ttflist}
    return next((name for name in _FONTS if name in known), None)

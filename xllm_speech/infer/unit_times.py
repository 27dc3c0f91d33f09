"""When the tokens of an utterance were said: CIF's weights, spread over the time in which somebody speaks.

By cif.md a unit lasts from the fire of the one before to its own. A model may give weight to the pauses around the speech
too; fires then drift away from what was said, the first and the last by all of the pause. Nobody speaks there, so the
weight in between is cut into the units anew. Where pauses have no weight this changes nothing but the two ends.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from xllm_speech.base.units import FRAME_SHIFT_MS, STEP_SEC
from xllm_speech.records import TimedToken

SMOOTHED_FRAMES = 3
QUIET_AND_LOUD = (5, 95)  # percentiles of log energy
LOUD_SHARE = 0.3  # of the way from the quiet frames to the loud ones
LEAST_RANGE = 2.0  # in log energy; with less there is nothing to tell speech from


def frame_energies(feats_TF: torch.Tensor) -> np.ndarray:
    """Mean log mel energy of each frame [T], from the features [T, F] as they are before CMVN."""
    return feats_TF.float().mean(1).cpu().numpy()


def speech_span(energy_T: np.ndarray) -> tuple[float, float]:
    """Seconds at which the speech of an utterance begins and ends, from its `frame_energies`; all of it in doubt."""
    if len(energy_T) <= SMOOTHED_FRAMES or energy_swing(energy_T) < LEAST_RANGE:
        return 0.0, len(energy_T) * FRAME_SHIFT_MS / 1000
    smooth_T = _smooth(energy_T)
    quiet, loud = np.percentile(smooth_T, QUIET_AND_LOUD)
    places = np.flatnonzero(smooth_T > quiet + LOUD_SHARE * (loud - quiet))
    return float(places[0]) * FRAME_SHIFT_MS / 1000, float(places[-1] + 1) * FRAME_SHIFT_MS / 1000


def energy_swing(energy_T: np.ndarray) -> float:
    """From the quiet frames of an utterance to the loud ones, in log energy."""
    if len(energy_T) <= SMOOTHED_FRAMES:
        return 0.0
    quiet, loud = np.percentile(_smooth(energy_T), QUIET_AND_LOUD)
    return float(loud - quiet)


def _smooth(energy_T: np.ndarray) -> np.ndarray:
    smooth_T = np.convolve(energy_T, np.full(SMOOTHED_FRAMES, 1 / SMOOTHED_FRAMES), "same")
    smooth_T[[0, -1]] = smooth_T[[1, -2]]  # the sums at the ends are of two frames
    return smooth_T


def token_spans(alpha_S: torch.Tensor, count: int, energy_T: np.ndarray) -> list[tuple[float, float]]:
    """Seconds from the start of an utterance at which its tokens begin and end.

    Args:
        alpha_S: CIF's weights. count: of its units; or of the tokens of a text of the CTC head, whose own steps tell less.
            energy_T: its `frame_energies`.
    """
    return list(itertools.pairwise(unit_edges(alpha_S, count, *speech_span(energy_T))))


def place_tokens(tokens: Sequence[TimedToken], start_sec: float, duration_sec: float) -> list[TimedToken]:
    """Tokens of an utterance with times from the start of the recording, none behind its end; rounded to be written."""
    return [
        TimedToken(
            token.text, round(start_sec + min(token.start_sec, duration_sec), 3),
            round(start_sec + min(token.end_sec, duration_sec), 3),
            None if token.confidence is None else round(token.confidence, 4),
        )
        for token in tokens
    ]


def unit_edges(alpha_S: torch.Tensor, units: int, begin_sec: float, end_sec: float) -> list[float]:
    """Seconds at which units begin, and the end of the last: `units` + 1 of them, between `begin_sec` and `end_sec`.

    alpha_S: the weights of the encoder steps, as integrated. Each unit gets an equal share of the weight inside; without any
    weight there, an equal share of the time.
    """
    weights_S = alpha_S.double().cpu().numpy()
    times = np.arange(len(weights_S) + 1) * STEP_SEC
    total = np.concatenate([[0.0], np.cumsum(weights_S)])
    inside = np.concatenate([[begin_sec], times[(times > begin_sec) & (times < end_sec)], [end_sec]])
    weight = np.interp(inside, times, total)
    if weight[-1] - weight[0] <= 0:
        return list(np.linspace(begin_sec, end_sec, units + 1))
    # A step without weight has no time of its own; the least of slopes makes times a function of weight all the same.
    weight = weight + 1e-9 * (inside - inside[0])
    shares = weight[0] + (weight[-1] - weight[0]) * np.arange(units + 1) / max(1, units)
    return [float(value) for value in np.interp(shares, weight, inside)]

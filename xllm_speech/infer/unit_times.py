"""When the tokens of an utterance were said: CIF's weights, spread over the time in which somebody speaks.

By cif.md a unit lasts from the fire of the one before to its own. A model may give weight to the pauses around the speech
too; fires then drift away from what was said, the first and the last by all of the pause. Nobody speaks there, so the
weight in between is cut into the units anew. Where pauses have no weight this changes nothing but the two ends.
"""

from __future__ import annotations

import numpy as np
import torch

from xllm_speech.base.units import FRAME_SHIFT_MS, STEP_SEC

SMOOTHED_FRAMES = 3
LOUD_SHARE = 0.3  # of the way from the quiet frames (5th percentile of log energy) to the loud ones (95th)
LEAST_RANGE = 2.0  # in log energy; with less there is nothing to tell speech from


def speech_span(feats_TF: torch.Tensor) -> tuple[float, float]:
    """Seconds at which the speech of an utterance begins and ends, from its log mel energies [T, F]; all of it in doubt."""
    energy_T = feats_TF.float().mean(1).cpu().numpy()
    whole = 0.0, len(energy_T) * FRAME_SHIFT_MS / 1000
    if len(energy_T) <= SMOOTHED_FRAMES:
        return whole
    smooth_T = np.convolve(energy_T, np.full(SMOOTHED_FRAMES, 1 / SMOOTHED_FRAMES), "same")
    smooth_T[[0, -1]] = smooth_T[[1, -2]]  # the sums at the ends are of two frames
    quiet, loud = np.percentile(smooth_T, [5, 95])
    if loud - quiet < LEAST_RANGE:
        return whole
    places = np.flatnonzero(smooth_T > quiet + LOUD_SHARE * (loud - quiet))
    return float(places[0]) * FRAME_SHIFT_MS / 1000, float(places[-1] + 1) * FRAME_SHIFT_MS / 1000


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

"""Rates over a test set: bootstrap intervals, the paired test of two systems, loops and hallucinations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xllm_speech.base.errors import SeamError

RESAMPLES = 2000
LEVEL = 0.95
_BLOCK = 1 << 22  # drawn indices held at once: 32 MiB

LOOP_REPEATS = 4
LOOP_LONGEST = 16
_LOOP = re.compile(rf"(.{{1,{LOOP_LONGEST}}}?)\1{{{LOOP_REPEATS - 1},}}", re.DOTALL)


def bootstrap_interval(
    errors: Sequence[float], lengths: Sequence[float], resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the error rate in percent, utterances drawn with replacement.

    errors, lengths: errors and reference tokens per utterance (or any two quantities per item whose ratio of sums is asked
    for, such as two systems' scores). Equal input and seed give equal numbers. None where no utterance has reference tokens.
    (Bisani and Ney 2004, Bootstrap estimates for confidence intervals in ASR.)
    """
    if not sum(lengths):
        return None
    return _interval(_resampled_percent(errors, lengths, resamples, seed), level)


@dataclass(frozen=True)
class PairedDifference:
    """Error rate of the first system minus that of the second, in points (below 0: the first is better).

    p: two-sided, the share of resamples in which the difference changes its sign, doubled.
    """

    difference: float
    interval: tuple[float, float]
    p: float


def paired_bootstrap(
    first_errors: Sequence[float],
    second_errors: Sequence[float],
    lengths: Sequence[float],
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> PairedDifference | None:
    """Compare two systems on the same utterances, each drawn with both of its results; None without reference tokens.

    Raises `SeamError` where the three sequences differ in length.
    """
    if not len(first_errors) == len(second_errors) == len(lengths):
        raise SeamError(f"paired bootstrap: {len(first_errors)}, {len(second_errors)} and {len(lengths)} utterances")
    if not sum(lengths):
        return None
    gaps = [first - second for first, second in zip(first_errors, second_errors, strict=True)]
    drawn = _resampled_percent(gaps, lengths, resamples, seed)
    return PairedDifference(100 * sum(gaps) / sum(lengths), _interval(drawn, level), sign_p(drawn))


def sign_p(drawn: np.ndarray) -> float:
    """Two-sided p of drawn differences: the share of them in which the sign changes, doubled; never below 1 / draws."""
    below, above = float(np.mean(drawn <= 0)), float(np.mean(drawn >= 0))
    return min(1.0, max(2 * min(below, above), 1 / len(drawn)))


def wilson_interval(right: int, total: int, level: float = LEVEL) -> tuple[float, float] | None:
    """Wilson's interval of a share, in percent; it says something where all or none are right. None of nothing."""
    from scipy.stats import binomtest

    if not total:
        return None
    found = binomtest(right, total).proportion_ci(level, method="wilson")
    return 100 * float(found.low), 100 * float(found.high)


def _resampled_percent(errors: Sequence[float], lengths: Sequence[float], resamples: int, seed: int) -> np.ndarray:
    """100 * errors / lengths of each draw of all utterances with replacement, draws without reference tokens left out."""
    error_U, length_U = np.asarray(errors, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    size = len(error_U)
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // size)
    totals = []
    for start in range(0, resamples, block):
        index_RU = generator.integers(0, size, (min(block, resamples - start), size))
        totals.append(np.stack([error_U[index_RU].sum(1), length_U[index_RU].sum(1)]))
    error_R, length_R = np.concatenate(totals, axis=1)
    return 100 * error_R[length_R > 0] / length_R[length_R > 0]


def _interval(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.percentile(values, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def loops(reference: str, hypothesis: str) -> bool:
    """True where the hypothesis says something over and over that the reference does not.

    A loop is a stretch of 1 to 16 characters that follows itself at once so that it stands at least four times in a row,
    spaces not counted, while the reference does not hold that same fourfold stretch (哈哈哈哈 may have been said).
    """
    said = reference.replace(" ", "")
    return any(match[1] * LOOP_REPEATS not in said for match in _LOOP.finditer(hypothesis.replace(" ", "")))

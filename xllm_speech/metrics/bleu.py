"""BLEU of drawn items: its intervals, and the paired difference of two systems. Counting and formula are sacreBLEU's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xllm_speech.metrics.rates import LEVEL, RESAMPLES


@dataclass(frozen=True)
class BleuCounts:
    """Counts behind BLEU, item by item (I): right and all n-grams by length (L), tokens written, and wanted by the closest
    reference."""

    right_IL: np.ndarray
    total_IL: np.ndarray
    written_I: np.ndarray
    wanted_I: np.ndarray
    smoothing: str

    @classmethod
    def of(cls, lines: Sequence[str], references: Sequence[Sequence[str]], tokenize: str, smoothing: str) -> BleuCounts:
        """Count lines beside one or several references each; tokenize and smoothing: as sacreBLEU calls them."""
        from sacrebleu.metrics import BLEU

        bleu = BLEU(tokenize=tokenize, smooth_method=smoothing, effective_order=True)  # of a line only the counts are used
        rows = [bleu.sentence_score(line, list(group)) for line, group in zip(lines, references, strict=True)]
        return cls(
            np.array([row.counts for row in rows]), np.array([row.totals for row in rows]),
            np.array([row.sys_len for row in rows]), np.array([row.ref_len for row in rows]), smoothing,
        )

    def score(self, length: int, index_I: np.ndarray | None = None) -> float:
        """BLEU with n-grams up to `length` over all items, or over the drawn ones."""
        from sacrebleu.metrics import BLEU

        chosen = slice(None) if index_I is None else index_I
        return float(BLEU.compute_bleu(
            self.right_IL[chosen, :length].sum(0).tolist(), self.total_IL[chosen, :length].sum(0).tolist(),
            int(self.written_I[chosen].sum()), int(self.wanted_I[chosen].sum()), self.smoothing, max_ngram_order=length,
        ).score)

    def draw(self, length: int, seed: int) -> np.ndarray:
        """BLEU of each of `rates.RESAMPLES` draws of all items with replacement; equal seeds draw the same items."""
        generator = np.random.default_rng(seed)
        size = len(self.written_I)
        return np.array([self.score(length, generator.integers(0, size, size)) for _ in range(RESAMPLES)])


def interval_of(values: np.ndarray) -> list[float]:
    """The 95 % percentile interval of drawn values."""
    return [float(value) for value in np.percentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])]

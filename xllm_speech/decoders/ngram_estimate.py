"""Estimating an n-gram model: interpolated modified Kneser-Ney smoothing, pruning by counts, an ARPA file.

Chen and Goodman 1999, section 3; adjusted counts, the treatment of `<s>` and of pruned n-grams as Heafield et al. 2013,
Scalable Modified Kneser-Ney Language Model Estimation, sections 3.1 to 3.3. Counts are held in memory.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from xllm_speech.base.config import require
from xllm_speech.base.errors import DataError
from xllm_speech.base.files import atomic_write
from xllm_speech.decoders.ngram import BEGIN, END, UNKNOWN

logger = logging.getLogger(__name__)

Words = tuple[str, ...]
FALLBACK = (0.5, 1.0, 1.5)  # discounts where there are too few n-grams to estimate them
BEGIN_LOG10 = -99.0  # of <s>, which is never predicted


@dataclass(frozen=True)
class NgramCounts:
    """Raw counts of the n-grams of each order from 1, with `<s>` and `</s>`; and the sentences counted."""

    by_order: list[Counter[Words]]
    sentences: int


@dataclass
class NgramEstimate:
    """A model ready to be written. grams: by order, {words: (log10 probability, log10 back-off weight)}.

    discounts: by order, for counts of 1, 2, and 3 or more. pruned: by order, how many n-grams were left out.
    """

    grams: list[dict[Words, tuple[float, float]]]
    discounts: list[tuple[float, float, float]]
    pruned: list[int]


def count_ngrams(sentences: Iterable[Sequence[str]], order: int) -> NgramCounts:
    """Count sentences of tokens; an empty one does not count.

    Raises:
        DataError: no sentence at all, or a token that ARPA keeps for itself.
    """
    require(order >= 1, f"order {order} must be at least 1")
    by_order: list[Counter[Words]] = [Counter() for _ in range(order)]
    number = 0
    for sentence in sentences:
        if not sentence:
            continue
        number += 1
        padded = (BEGIN, *sentence, END)
        if {BEGIN, END, UNKNOWN} & set(sentence):
            raise DataError(f"sentence {number}: {BEGIN}, {END} and {UNKNOWN} are not words; leave them out")
        for length in range(1, order + 1):
            by_order[length - 1].update(padded[i : i + length] for i in range(len(padded) - length + 1))
    if not number:
        raise DataError("no sentence to estimate a language model from")
    return NgramCounts(by_order, number)


def estimate_ngram(counts: NgramCounts, prune: Sequence[int] = (), vocabulary: Iterable[str] = ()) -> NgramEstimate:
    """Interpolated modified Kneser-Ney.

    Args:
        prune: for each order from 1, n-grams with at most that count are left out; the last number goes on for higher
            orders; unigrams stay. vocabulary: further words that the model must know, such as the whole token table.

    Raises:
        ConfigError: thresholds that fall from one order to the next, or prune unigrams.
    """
    order = len(counts.by_order)
    thresholds = [*prune, *[prune[-1] if prune else 0] * order][:order]
    require(thresholds[0] == 0, f"prune {list(prune)}: unigrams cannot be pruned; begin with 0")
    require(thresholds == sorted(thresholds), f"prune {list(prune)}: a threshold may not be below the one of a lower order")
    adjusted = _adjust(counts.by_order)
    words = {*(word for (word,) in adjusted[0]), *vocabulary, UNKNOWN} - {BEGIN}
    estimate = NgramEstimate([], [], [])
    probabilities: list[dict[Words, float]] = []
    weights: list[dict[Words, float]] = []
    for level in range(order):
        discounts = _discounts(adjusted[level], level + 1)
        kept: dict[Words, float] = {}
        totals, held = defaultdict[Words, float](float), defaultdict[Words, float](float)
        for gram, count in adjusted[level].items():
            if gram == (BEGIN,):
                continue
            totals[gram[:-1]] += count
            if counts.by_order[level][gram] > thresholds[level]:
                discount = discounts[min(count, 3) - 1]
                kept[gram] = count - discount
                held[gram[:-1]] += discount
            else:
                held[gram[:-1]] += count
        weight = {context: held[context] / total for context, total in totals.items()}
        if level == 0:
            probabilities.append({
                (word,): kept.get((word,), 0.0) / totals[()] + weight[()] / len(words) for word in words
            })
        else:
            # What a kept n-gram ends in is kept too: it is at least as frequent, and its threshold no higher.
            shorter = probabilities[-1]
            probabilities.append({
                gram: mass / totals[gram[:-1]] + weight[gram[:-1]] * shorter[gram[1:]] for gram, mass in kept.items()
            })
        weights.append(weight)
        estimate.discounts.append(discounts)
        estimate.pruned.append(len(adjusted[level]) - len(kept) - ((BEGIN,) in adjusted[level]))
    estimate.grams = _as_logs(probabilities, weights)
    return estimate


def _adjust(by_order: list[Counter[Words]]) -> list[Counter[Words]]:
    """Below the highest order an n-gram counts once per different word before it; one that begins with <s> as it is."""
    adjusted: list[Counter[Words]] = []
    for level, raw in enumerate(by_order[:-1]):
        counts: Counter[Words] = Counter({gram: count for gram, count in raw.items() if gram[0] == BEGIN})
        counts.update(gram[1:] for gram in by_order[level + 1])
        adjusted.append(counts)
    return [*adjusted, by_order[-1]]


def _discounts(counts: Counter[Words], order: int) -> tuple[float, float, float]:
    """D1, D2, D3+ of Chen and Goodman, equation 26; the fallback where counts of 1 to 4 do not all occur or do not fall."""
    n1, n2, n3, n4 = (sum(count == value for gram, count in counts.items() if gram != (BEGIN,)) for value in (1, 2, 3, 4))
    if min(n1, n2, n3, n4) > 0:
        share = n1 / (n1 + 2 * n2)
        first, second, third = 1 - 2 * share * n2 / n1, 2 - 3 * share * n3 / n2, 3 - 4 * share * n4 / n3
        if 0 <= first <= 1 and 0 <= second <= 2 and 0 <= third <= 3:
            return first, second, third
    logger.info("%d-grams: too few to estimate discounts (%d, %d, %d, %d with counts 1 to 4); %s are used",
                order, n1, n2, n3, n4, FALLBACK)
    return FALLBACK


def _as_logs(
    probabilities: list[dict[Words, float]], weights: list[dict[Words, float]]
) -> list[dict[Words, tuple[float, float]]]:
    """log10 of probabilities and of the back-off weights of their words as a context."""
    grams: list[dict[Words, tuple[float, float]]] = []
    for level, table in enumerate(probabilities):
        following = weights[level + 1] if level + 1 < len(weights) else {}
        rows = {gram: (math.log10(value), _log10(following.get(gram, 1.0))) for gram, value in table.items()}
        if level == 0:
            rows[(BEGIN,)] = (BEGIN_LOG10, _log10(following.get((BEGIN,), 1.0)))
        grams.append(dict(sorted(rows.items())))
    return grams


def _log10(value: float) -> float:
    return math.log10(value) if value > 0 else BEGIN_LOG10


def write_arpa(path: str | Path, grams: Sequence[dict[Words, tuple[float, float]]]) -> None:
    """Write an ARPA file, atomically; gzip where its name ends in `.gz`."""
    with atomic_write(path) as stream:
        stream.write("\\data\\\n" + "".join(f"ngram {n}={len(table)}\n" for n, table in enumerate(grams, 1)))
        for n, table in enumerate(grams, 1):
            stream.write(f"\n\\{n}-grams:\n")
            for gram, (probability, weight) in table.items():
                tail = "" if n == len(grams) else f"\t{weight:.7g}"
                stream.write(f"{probability:.7g}\t{' '.join(gram)}{tail}\n")
        stream.write("\n\\end\\\n")

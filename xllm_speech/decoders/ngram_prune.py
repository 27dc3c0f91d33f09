"""Leaving out the n-grams that a model hardly misses: relative-entropy pruning (Stolcke 1998, arXiv cs/0006025).

An n-gram goes where the model without it, its context's back-off weight set anew, has a perplexity that is higher by less
than a threshold. Histories have the share that they have in the counted text: the lower orders of a Kneser-Ney model are no
marginals, so its own probability of a history would mislead (Chelba et al. 2010).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from xllm_speech.base.config import require
from xllm_speech.decoders.ngram import BEGIN, LOG_10, ArpaModel
from xllm_speech.decoders.ngram_estimate import BEGIN_LOG10, NgramCounts, Words

Grams = list[dict[Words, tuple[float, float]]]
NOTHING = 1e-12  # less of a distribution than this is a rounding error


def prune_entropy(grams: Sequence[dict[Words, tuple[float, float]]], counts: NgramCounts, threshold: float) -> Grams:
    """A smaller model, with back-off weights that make every context sum to one.

    Unigrams stay, and so does an n-gram that is the context of a longer one that stays. All of one order are judged beside the
    whole model, then left out together, the longest first.

    Args:
        grams: by order, {words: (log10 probability, log10 back-off weight)}. counts: of the text that histories are weighed
            by, of the same order. threshold: relative rise of perplexity, such as 1e-7; 0 leaves the model as it is.

    Raises:
        ConfigError: a negative threshold.
    """
    require(threshold >= 0, f"prune_entropy {threshold:g} must not be negative")
    kept = [dict(table) for table in grams]
    if threshold == 0:
        return kept
    contexts: set[Words] = set()  # of the n-grams one word longer that stay
    for level in range(len(grams) - 1, 0, -1):
        rises = perplexity_rises(grams, counts, level)
        kept[level] = {gram: row for gram, row in grams[level].items() if gram in contexts or rises[gram] >= threshold}
        contexts = {gram[:-1] for gram in kept[level]}
    return reweigh(kept)


def perplexity_rises(
    grams: Sequence[dict[Words, tuple[float, float]]], counts: NgramCounts, level: int
) -> dict[Words, float]:
    """By how much (relatively) perplexity rises without each n-gram of `level` + 1 words, all others staying."""
    model, shares, rises = ArpaModel(grams, []), _shares(counts, level), {}
    for context, rows in _by_context(grams[level]).items():
        long, short = _two_masses(model, context, rows)
        left, below = max(0.0, 1 - sum(long)), max(0.0, 1 - sum(short))
        for gram, p, q in zip(rows, long, short, strict=True):
            weight = (left + p) / (below + q)  # of the context without this n-gram
            loss = p * math.log(p / (q * weight))
            if left > NOTHING and below > NOTHING:
                loss -= left * math.log(weight * below / left)
            rises[gram] = math.expm1(shares.get(context, 0.0) * loss)
    return rises


def reweigh(grams: Sequence[dict[Words, tuple[float, float]]]) -> Grams:
    """The same n-grams, with the back-off weights under which every context sums to one."""
    found = [dict(table) for table in grams]
    model = ArpaModel(found, [])  # sees the weights of shorter contexts as they are set
    for level in range(len(found) - 1):
        groups = _by_context(found[level + 1])
        for context, (probability, _) in found[level].items():
            weight = 0.0
            if context in groups:
                long, short = (sum(masses) for masses in _two_masses(model, context, groups[context]))
                if 1 - short > NOTHING:
                    weight = math.log10((1 - long) / (1 - short)) if 1 - long > NOTHING else BEGIN_LOG10
            found[level][context] = probability, weight
    return found


def perplexity(grams: Sequence[dict[Words, tuple[float, float]]], counts: NgramCounts) -> float:
    """Of the counted text, its sentence ends predicted too; `counts` is of the model's order."""
    model, order, total = ArpaModel(grams, []), len(grams), 0.0
    for level, table in enumerate(counts.by_order[:order]):
        # Shorter n-grams stand where the sentence begins; anywhere else there is a whole history.
        total += sum(
            count * model.log10(gram[:-1], gram[-1]) for gram, count in table.items()
            if gram != (BEGIN,) and (level == order - 1 or gram[0] == BEGIN)
        )
    return math.exp(-total * LOG_10 / _predicted(counts))


def _by_context(table: dict[Words, tuple[float, float]]) -> dict[Words, list[Words]]:
    groups: dict[Words, list[Words]] = defaultdict(list)
    for gram in table:
        groups[gram[:-1]].append(gram)
    return groups


def _two_masses(model: ArpaModel, context: Words, rows: list[Words]) -> tuple[list[float], list[float]]:
    """P(word | context) of its n-grams, and P(word | context without its first word)."""
    table = model.grams[len(context)]
    return [10 ** table[gram][0] for gram in rows], [10 ** model.log10(context[1:], gram[-1]) for gram in rows]


def _shares(counts: NgramCounts, level: int) -> dict[Words, float]:
    """How often a history of `level` words stands before a predicted one, as a share of these."""
    predicted = _predicted(counts)
    return {gram: count / predicted for gram, count in counts.by_order[level - 1].items()}


def _predicted(counts: NgramCounts) -> int:
    return sum(count for gram, count in counts.by_order[0].items() if gram != (BEGIN,))

"""Captions, short answers and translations beside their references (evaluation.md, Captions and answers).

Captions: CIDEr-D, BLEU-1 to BLEU-4, ROUGE-L. Answers: exact match and token F1, the best of several references. Both over
the tokens of the normal form: a Chinese character, or a Latin word or number. Translations: BLEU as sacreBLEU counts it and
chrF, over the text as it stands. BLEU and chrF are sacreBLEU's, the common sequence of ROUGE-L is rapidfuzz's; all numbers are
percentages.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xllm_speech.base.config import require_choice
from xllm_speech.base.errors import DataError
from xllm_speech.base.header import run_header
from xllm_speech.metrics.bleu import BleuCounts, interval_of
from xllm_speech.metrics.rates import bootstrap_interval, paired_bootstrap, sign_p
from xllm_speech.metrics.score_file import NormalForm
from xllm_speech.metrics.transcripts import pair_transcripts, read_answers, read_texts

KINDS = ("caption", "answer", "translation")
COUNTED = "Chinese characters, Latin words"
CIDER_LENGTHS = 4
CIDER_SIGMA = 6.0
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd]")

Tokens = Sequence[str]


@dataclass(frozen=True)
class _Scored:
    """scores by name. per_item: of those that are means over items (chrF: of its sentence form). tokens: what was counted.
    lengths: n-grams of each kind of BLEU, with its counts."""

    scores: dict[str, float]
    per_item: list[dict[str, float]]
    tokens: str
    lengths: dict[str, int] = field(default_factory=dict)
    bleu: BleuCounts | None = None

    def interval(self, seed: int) -> dict[str, list[float] | None]:
        found = {name: _interval([row[name] for row in self.per_item], seed) for name in self.per_item[0]}
        if self.bleu is not None:
            found |= {name: interval_of(self.bleu.draw(length, seed)) for name, length in self.lengths.items()}
        return found


def score_texts(
    ref: str | Path | None, hyp: str | Path, kind: str, form: NormalForm, set_name: str | None = None, seed: int = 0,
    compare: str | Path | None = None, task: str | None = None,
) -> dict[str, Any]:
    """Compare generated texts with one or several references each; returns the content of the score file.

    Both files: see `read_texts`; in JSON lines "text" may be a list of references. Without ref, hyp is the output of
    `xllm-speech answer`, of which the answers to `task` are scored. compare: other texts for the same references. form: its
    normalise and mer_tokens are used for captions and answers, and its id stands in the file.

    Keys: metrics (the kind), set, items, references, scores by name, interval of each (95 % bootstrap over items; of chrF for
    the mean of its sentence form), tokens (what was counted), normaliser, test_set_sha256, compare, header, per_item. compare
    has hypothesis, scores, and differences by name: points (above 0: hyp is better), interval and p of the paired bootstrap.

    Raises:
        ConfigError: no such kind.
        DataError: unless every reference id is answered exactly once, and for every line that cannot be read.
    """
    require_choice("--metrics", kind, KINDS)
    if ref is None:
        references, given = read_answers(hyp, str(task))
        others = None if compare is None else read_answers(compare, str(task))[1]
    else:
        references, given = read_texts(ref, several=True), read_texts(hyp)
        others = None if compare is None else read_texts(compare)
    pairs = pair_transcripts(references, given, ref or hyp, hyp)
    several = [asked.fields.get("texts") or [asked.text] for asked, _ in pairs]
    hashed = several if kind == "translation" else [[form.normalise(text) for text in group] for group in several]
    scored = _score([answer.text for _, answer in pairs], several, kind, form)
    compared = None
    if others is not None and compare is not None:
        rest = [answer.text for _, answer in pair_transcripts(references, others, ref or hyp, compare)]
        compared = {"hypothesis": str(compare), **_differences(scored, _score(rest, several, kind, form), seed)}
    digest = "".join(sorted(json.dumps([asked.id, *group]) + "\n" for (asked, _), group in zip(pairs, hashed, strict=True)))
    return {
        "metrics": kind,
        "set": set_name,
        "reference": str(ref or hyp),
        "task": task,
        "hypothesis": str(hyp),
        "items": len(pairs),
        "references": sum(len(group) for group in several),
        "scores": scored.scores,
        "interval": scored.interval(seed),
        "tokens": scored.tokens,
        "normaliser": "none: the text as it stands" if kind == "translation" else form.id,
        "test_set_sha256": hashlib.sha256(digest.encode()).hexdigest(),
        "compare": compared,
        "header": run_header(seed),
        "per_item": [{"id": asked.id, **row} for (asked, _), row in zip(pairs, scored.per_item, strict=True)],
    }


def _score(texts: Sequence[str], several: Sequence[Sequence[str]], kind: str, form: NormalForm) -> _Scored:
    if kind == "translation":
        return _translations(texts, several)
    answers = [form.mer_tokens(form.normalise(text)) for text in texts]
    wanted = [[form.mer_tokens(form.normalise(text)) for text in group] for group in several]
    return _captions(answers, wanted) if kind == "caption" else _answers(answers, wanted)


def _differences(ours: _Scored, theirs: _Scored, seed: int) -> dict[str, Any]:
    """Paired differences, both systems on the same drawn items."""
    found: dict[str, Any] = {}
    for name in ours.scores:
        if name in ours.per_item[0]:
            mine, other = ([row[name] / 100 for row in scored.per_item] for scored in (ours, theirs))
            paired = paired_bootstrap(mine, other, [1] * len(mine), seed=seed)
            assert paired is not None  # no item is without weight
            found[name] = {"points": paired.difference, "interval": list(paired.interval), "p": paired.p}
        elif ours.bleu is not None and theirs.bleu is not None:
            drawn = ours.bleu.draw(ours.lengths[name], seed) - theirs.bleu.draw(ours.lengths[name], seed)
            found[name] = {
                "points": ours.scores[name] - theirs.scores[name], "interval": interval_of(drawn), "p": sign_p(drawn),
            }
    return {"scores": theirs.scores, "differences": found}


def cider(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """CIDEr-D of every hypothesis, in percent (a perfect caption of rare words nears 1000).

    TF-IDF vectors of n-grams of 1 to 4 tokens; document frequencies are those of the given references, so scores of
    different test sets do not compare. (Vedantam et al. 2015, CIDEr, section 4 and the clipped, length-damped form "D".)

    Raises:
        DataError: fewer than two items, of which nothing could be told rare.
    """
    if len(references) < 2:
        raise DataError(f"CIDEr needs at least two items to tell common words from rare ones; there is {len(references)}")
    counted = [[_ngrams(tokens) for tokens in group] for group in references]
    frequency: Counter[tuple[str, ...]] = Counter()
    for group in counted:
        frequency.update({ngram for grams in group for ngram in grams})
    weight = {ngram: math.log(len(references) / count) for ngram, count in frequency.items()}
    rarest = math.log(len(references))  # of an n-gram that no reference holds

    def vectors(grams: Counter[tuple[str, ...]]) -> tuple[dict[tuple[str, ...], float], list[float]]:
        vector = {ngram: count * weight.get(ngram, rarest) for ngram, count in grams.items()}
        squares = [0.0] * CIDER_LENGTHS
        for ngram, value in vector.items():
            squares[len(ngram) - 1] += value * value
        return vector, [math.sqrt(square) for square in squares]

    scores = []
    for tokens, others, grams in zip(hypotheses, references, counted, strict=True):
        vector, norms = vectors(_ngrams(tokens))
        total = 0.0
        for other_tokens, other_grams in zip(others, grams, strict=True):
            other, other_norms = vectors(other_grams)
            products = [0.0] * CIDER_LENGTHS
            for ngram in vector.keys() & other.keys():
                products[len(ngram) - 1] += min(vector[ngram], other[ngram]) * other[ngram]
            damping = math.exp(-((len(tokens) - len(other_tokens)) ** 2) / (2 * CIDER_SIGMA**2))
            total += damping * sum(
                product / (norm * other_norm)
                for product, norm, other_norm in zip(products, norms, other_norms, strict=True) if norm and other_norm
            )
        scores.append(1000 * total / CIDER_LENGTHS / len(others))
    return scores


def token_f1(hypothesis: Tokens, reference: Tokens) -> float:
    """Harmonic mean of precision and recall of the tokens, each counted as often as it occurs, 0..1; 1 where both are empty."""
    if not hypothesis or not reference:
        return float(not hypothesis and not reference)
    shared = (Counter(hypothesis) & Counter(reference)).total()
    return 2 * shared / (len(hypothesis) + len(reference))


def _captions(hypotheses: list[list[str]], references: list[list[list[str]]]) -> _Scored:
    from rapidfuzz.distance import LCSseq

    per_item = []
    for score, tokens, group in zip(cider(hypotheses, references), hypotheses, references, strict=True):
        overlap = [2 * LCSseq.similarity(tokens, other) / max(1, len(tokens) + len(other)) for other in group]
        per_item.append({"cider": score, "rouge_l": 100 * max(overlap)})
    lines = [" ".join(tokens) for tokens in hypotheses]  # no token of the normal form holds a space
    bleu = BleuCounts.of(lines, [[" ".join(tokens) for tokens in group] for group in references], "none", "none")
    lengths = {f"bleu{length}": length for length in range(1, 5)}
    scores = {**_means(per_item), **{name: bleu.score(length) for name, length in lengths.items()}}
    return _Scored(scores, per_item, COUNTED, lengths, bleu)


def _answers(hypotheses: list[list[str]], references: list[list[list[str]]]) -> _Scored:
    per_item = [
        {"exact_match": 100.0 * (tokens in group), "token_f1": 100 * max(token_f1(tokens, other) for other in group)}
        for tokens, group in zip(hypotheses, references, strict=True)
    ]
    return _Scored(_means(per_item), per_item, COUNTED)


def _translations(texts: Sequence[str], references: Sequence[Sequence[str]]) -> _Scored:
    from sacrebleu.metrics import BLEU, CHRF

    chinese = any(_HAN.search(text) for group in references for text in group)
    tokenize = "zh" if chinese else "13a"
    bleu, chrf, streams = BLEU(tokenize=tokenize), CHRF(), _streams(references)
    scores = {"bleu": bleu.corpus_score(list(texts), streams).score, "chrf": chrf.corpus_score(list(texts), streams).score}
    counted = f"BLEU {bleu.get_signature()}; chrF {chrf.get_signature()}"
    per_item = [{"chrf": chrf.sentence_score(text, list(group)).score} for text, group in zip(texts, references, strict=True)]
    return _Scored(scores, per_item, counted, {"bleu": 4}, BleuCounts.of(texts, references, tokenize, "exp"))


def _streams(references: Sequence[Sequence[str]]) -> Any:
    """References as sacreBLEU takes them: the first of every item, the second of every item or None, ..."""
    most = max(map(len, references))
    return [[group[number] if number < len(group) else None for group in references] for number in range(most)]


def _means(per_item: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in per_item])) for name in per_item[0]}


def _ngrams(tokens: Tokens) -> Counter[tuple[str, ...]]:
    return Counter(
        tuple(tokens[start : start + length])
        for length in range(1, CIDER_LENGTHS + 1) for start in range(len(tokens) - length + 1)
    )


def _interval(values: Sequence[float], seed: int) -> list[float] | None:
    found = bootstrap_interval([value / 100 for value in values], [1] * len(values), seed=seed)
    return None if found is None else list(found)

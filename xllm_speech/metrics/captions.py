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
from pathlib import Path
from typing import Any

import numpy as np

from xllm_speech.base.config import require_choice
from xllm_speech.base.errors import DataError
from xllm_speech.base.header import run_header
from xllm_speech.metrics.rates import bootstrap_interval
from xllm_speech.metrics.score_file import NormalForm
from xllm_speech.metrics.transcripts import pair_transcripts, read_texts

KINDS = ("caption", "answer", "translation")
CIDER_LENGTHS = 4
CIDER_SIGMA = 6.0
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd]")

Tokens = Sequence[str]
_Scored = tuple[dict[str, float], list[dict[str, float]], str]  # scores, per item, what was counted


def score_texts(
    ref: str | Path, hyp: str | Path, kind: str, form: NormalForm, set_name: str | None = None, seed: int = 0
) -> dict[str, Any]:
    """Compare generated texts with one or several references each; returns the content of the score file.

    Both files: see `read_texts`; in JSON lines "text" may be a list of references. form: its normalise and mer_tokens are
    used for captions and answers, and its id stands in the file.

    Keys: metrics (the kind), set, items, references, scores by name, interval of each score that is a mean over items (95 %
    bootstrap), tokens (what was counted), normaliser, test_set_sha256, header, per_item.

    Raises:
        ConfigError: no such kind.
        DataError: unless every reference id is answered exactly once, and for every line that cannot be read.
    """
    require_choice("--metrics", kind, KINDS)
    references = read_texts(ref, several=True)
    pairs = pair_transcripts(references, read_texts(hyp), ref, hyp)
    texts = [answer.text for _, answer in pairs]
    several = [asked.fields.get("texts") or [asked.text] for asked, _ in pairs]
    match kind:
        case "translation":
            used, hashed = "none: the text as it stands", several
            scores, per_item, tokens = _translations(texts, several)
        case _:
            used, hashed = form.id, [[form.normalise(text) for text in group] for group in several]
            answers = [form.mer_tokens(form.normalise(text)) for text in texts]
            wanted = [[form.mer_tokens(text) for text in group] for group in hashed]
            scores, per_item, tokens = _captions(answers, wanted) if kind == "caption" else _answers(answers, wanted)
    digest = "".join(sorted(json.dumps([asked.id, *group]) + "\n" for (asked, _), group in zip(pairs, hashed, strict=True)))
    return {
        "metrics": kind,
        "set": set_name,
        "reference": str(ref),
        "hypothesis": str(hyp),
        "items": len(pairs),
        "references": sum(len(group) for group in several),
        "scores": scores,
        "interval": {name: _interval([row[name] for row in per_item], seed) for name in per_item[0]},
        "tokens": tokens,
        "normaliser": used,
        "test_set_sha256": hashlib.sha256(digest.encode()).hexdigest(),
        "header": run_header(seed),
        "per_item": [{"id": asked.id, **row} for (asked, _), row in zip(pairs, per_item, strict=True)],
    }


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
    from sacrebleu.metrics import BLEU

    per_item = []
    for score, tokens, group in zip(cider(hypotheses, references), hypotheses, references, strict=True):
        overlap = [2 * LCSseq.similarity(tokens, other) / max(1, len(tokens) + len(other)) for other in group]
        per_item.append({"cider": score, "rouge_l": 100 * max(overlap)})
    lines = [" ".join(tokens) for tokens in hypotheses]  # no token of the normal form holds a space
    streams = _streams([[" ".join(tokens) for tokens in group] for group in references])
    bleus = {
        f"bleu{length}": BLEU(max_ngram_order=length, tokenize="none", smooth_method="none").corpus_score(lines, streams).score
        for length in range(1, 5)
    }
    return {**_means(per_item), **bleus}, per_item, "Chinese characters, Latin words"


def _answers(hypotheses: list[list[str]], references: list[list[list[str]]]) -> _Scored:
    per_item = [
        {"exact_match": 100.0 * (tokens in group), "token_f1": 100 * max(token_f1(tokens, other) for other in group)}
        for tokens, group in zip(hypotheses, references, strict=True)
    ]
    return _means(per_item), per_item, "Chinese characters, Latin words"


def _translations(texts: list[str], references: list[list[str]]) -> _Scored:
    from sacrebleu.metrics import BLEU, CHRF

    chinese = any(_HAN.search(text) for group in references for text in group)
    bleu, chrf, streams = BLEU(tokenize="zh" if chinese else "13a"), CHRF(), _streams(references)
    scores = {"bleu": bleu.corpus_score(texts, streams).score, "chrf": chrf.corpus_score(texts, streams).score}
    counted = f"BLEU {bleu.get_signature()}; chrF {chrf.get_signature()}"
    per_item = [{"chrf": chrf.sentence_score(text, group).score} for text, group in zip(texts, references, strict=True)]
    return scores, per_item, counted


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

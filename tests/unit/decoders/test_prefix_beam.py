"""Prefix beam search against the sum over all paths, with and without a language model, hotwords and a length bonus."""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict

import pytest
import torch

from xllm_speech.decoders.fusion import Fusion
from xllm_speech.decoders.hotwords import HotwordGraph
from xllm_speech.decoders.ngram import ArpaModel
from xllm_speech.decoders.ngram_estimate import count_ngrams, estimate_ngram
from xllm_speech.decoders.prefix_beam import search_prefix

VOCAB, EOS = 5, 4
PIECES = ["<blank>", "a", "b", "c", "<sos/eos>"]


def merge(path):
    return tuple(token for i, token in enumerate(path) if token != 0 and (i == 0 or path[i - 1] != token))


def all_texts(log_probs):
    """log of the summed probability of all paths of each text, banned tokens left out."""
    sums = defaultdict(float)
    for path in itertools.product(range(VOCAB - 1), repeat=len(log_probs)):
        sums[merge(path)] += math.exp(sum(float(log_probs[s, token]) for s, token in enumerate(path)))
    return {text: math.log(value) for text, value in sums.items()}


def make_fusion():
    generator = random.Random(0)
    sentences = [generator.choices("abc", weights=[4, 2, 1], k=generator.randint(1, 5)) for _ in range(50)]
    model = ArpaModel(estimate_ngram(count_ngrams(sentences, 3), (), "abc").grams, PIECES)
    return Fusion(EOS, model, 0.6, HotwordGraph([[2, 1], [3, 3]], 0.8))


def fusion_score(fusion, text):
    state, total = fusion.start(), 0.0
    for token in text:
        score, state = fusion.step(state, token)
        total += score
    return total + fusion.finish(state)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("fused", "length_bonus"), [(False, 0.0), (False, 0.9), (True, 0.4)])
def test_a_wide_beam_finds_the_best_text_and_its_exact_score(seed, fused, length_bonus):
    generator = torch.Generator().manual_seed(seed)
    log_probs = (torch.randn(5, VOCAB, generator=generator) * 1.5).log_softmax(-1)
    fusion = make_fusion() if fused else None
    scores = {
        text: value + length_bonus * len(text) + (0.0 if fusion is None else fusion_score(fusion, text))
        for text, value in all_texts(log_probs).items()
    }
    best = max(scores, key=scores.__getitem__)
    found = search_prefix(log_probs, 10_000, 0, (EOS,), fusion, length_bonus, candidates=VOCAB)
    assert tuple(found.tokens) == best
    assert found.score == pytest.approx(scores[best], abs=1e-4)
    assert found.steps == sorted(set(found.steps))
    assert len(found.steps) == len(best)
    narrow = search_prefix(log_probs, 1, 0, (EOS,), fusion, length_bonus)
    assert narrow.score <= found.score + 1e-4


def test_steps_are_those_of_the_best_path():
    log_probs = torch.full((7, VOCAB), -20.0)
    for step, token in enumerate([0, 1, 1, 0, 1, 2, 0]):
        log_probs[step, token] = -0.01
    found = search_prefix(log_probs, 4, 0, (EOS,))
    assert found.tokens == [1, 1, 2]
    assert found.steps == [1, 4, 5]
    assert found.log_probs == pytest.approx([-0.01] * 3)


def test_no_steps_give_no_text():
    assert search_prefix(torch.zeros(0, VOCAB), 3).tokens == []

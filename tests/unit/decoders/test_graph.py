"""Graph search against the best of all paths and sentences."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from xllm_speech.base.errors import DataError
from xllm_speech.decoders.graph import build_graph, search_graph
from xllm_speech.decoders.ngram import LOG_10, ArpaModel
from xllm_speech.decoders.ngram_estimate import count_ngrams, estimate_ngram

pytest.importorskip("kaldifst", reason="the optional package kaldifst is not installed")
pytest.importorskip("kaldi_decoder", reason="the optional package kaldi-decoder is not installed")

TOKENS = 4
# Words that begin alike, homophones, a word with two spellings, a doubled token.
LEXICON = {"x": [[1]], "xy": [[1, 2]], "yy": [[2, 2]], "z": [[3], [2]], "zz": [[3]]}


def make_grams(order=2):
    generator = random.Random(1)
    sentences = [generator.choices(list(LEXICON), k=generator.randint(1, 4)) for _ in range(40)]
    return estimate_ngram(count_ngrams(sentences, order)).grams


def merge(path):
    return tuple(token for i, token in enumerate(path) if token != 0 and (i == 0 or path[i - 1] != token))


def best_of_all(log_probs, grams, lm_weight):
    """The best path of each token sequence, and the best sentence that is spelt so."""
    paths = {}
    for path in itertools.product(range(TOKENS), repeat=len(log_probs)):
        score = sum(float(log_probs[s, token]) for s, token in enumerate(path))
        paths[merge(path)] = max(score, paths.get(merge(path), -1e9))
    model = ArpaModel(grams, [])
    best = (-1e9, ())
    for length in range(len(log_probs) + 1):
        for sentence in itertools.product(LEXICON, repeat=length):
            context, lm = ("<s>",), 0.0
            for word in [*sentence, "</s>"]:
                lm += model.log10(context, word) * LOG_10
                context = (*context, word)[-(len(grams) - 1) :]
            for spelling in itertools.product(*(LEXICON[word] for word in sentence)):
                tokens = tuple(itertools.chain(*spelling))
                if tokens in paths:
                    best = max(best, (paths[tokens] + lm_weight * lm, sentence))
    return best


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("order", "lm_weight"), [(2, 0.5), (3, 1.0)])
def test_the_best_sentence_of_all_is_found(seed, order, lm_weight):
    grams = make_grams(order)
    log_probs = (torch.randn(4, TOKENS, generator=torch.Generator().manual_seed(seed)) * 2).log_softmax(-1)
    found = search_graph(build_graph(LEXICON, grams, TOKENS, lm_weight), log_probs, beam=100.0)
    score, sentence = best_of_all(log_probs, grams, lm_weight)
    # A path may back off although the model knows the n-gram, so a score can be a little better than the model's own.
    assert found.score >= score - 1e-3
    assert found.score <= score + 0.3
    assert tuple(found.words) == sentence or found.score > score + 1e-3
    assert len(found.tokens) == 4


def test_a_doubled_token_needs_a_blank_between():
    graph = build_graph(LEXICON, make_grams(), TOKENS, 0.1)
    log_probs = torch.full((4, TOKENS), -12.0)
    for step, token in enumerate([2, 0, 2, 2]):
        log_probs[step, token] = 0.0
    assert search_graph(graph, log_probs).tokens == [2, 0, 2, 2]
    assert search_graph(graph, log_probs).words in (["yy"], ["z", "z"])
    log_probs[1] = torch.tensor([-50.0, -50.0, 0.0, -50.0])
    assert search_graph(graph, log_probs).words == ["z"]


def test_an_utterance_that_breaks_off_inside_a_word_keeps_the_words_before():
    graph = build_graph({"x": [[1]], "long": [[2, 3, 2]]}, [{("x",): (-1.0, 0.0), ("long",): (-1.0, 0.0),
                                                             ("</s>",): (-1.0, 0.0)}], TOKENS)
    log_probs = torch.full((3, TOKENS), -90.0)
    for step, token in enumerate([1, 2, 3]):
        log_probs[step, token] = 0.0
    assert search_graph(graph, log_probs).words == ["x"]


def test_nothing_comes_of_nothing_and_mistakes_are_named():
    graph = build_graph(LEXICON, make_grams(), TOKENS)
    assert search_graph(graph, torch.zeros(0, TOKENS)).words == []
    with pytest.raises(DataError, match="none of the lexicon's 1 words"):
        build_graph({"w": [[1]]}, make_grams(), TOKENS)
    with pytest.raises(DataError, match=r"`x` has the spelling \[9\]; expected ids of 1..3"):
        build_graph({"x": [[9]]}, make_grams(), TOKENS)

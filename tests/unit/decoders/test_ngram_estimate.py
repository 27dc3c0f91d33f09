"""Modified Kneser-Ney against the formula computed another way, probabilities that sum to one, pruning."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import pytest

from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.decoders.ngram import ArpaModel, read_arpa
from xllm_speech.decoders.ngram_estimate import count_ngrams, estimate_ngram, write_arpa

WORDS = "abcdefghijklmnopqrstuvwxyz"


def make_sentences(count=200, seed=3):
    generator = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(len(WORDS))]
    return [generator.choices(WORDS, weights, k=generator.randint(1, 9)) for _ in range(count)]


def kneser_ney(sentences, order, discounts):
    """P(word | context) straight from the definition, recursively, from sets and sums; no tables of probabilities."""
    padded = [("<s>", *sentence, "</s>") for sentence in sentences]
    vocabulary = {word for sentence in padded for word in sentence[1:]} | {"<unk>"}
    count = [defaultdict(int) for _ in range(order + 1)]
    for sentence in padded:
        for n in range(1, order + 1):
            for i in range(len(sentence) - n + 1):
                count[n][sentence[i : i + n]] += 1

    def adjusted(gram):
        n = len(gram)
        if n == order or gram[0] == "<s>":
            return count[n].get(gram, 0)
        return sum(longer[1:] == gram for longer in count[n + 1])

    def probability(word, context):
        n = len(context) + 1
        counts = {w: adjusted((*context, w)) for w in vocabulary}
        total = sum(counts.values())
        below = 1 / len(vocabulary) if not context else probability(word, context[1:])
        if total == 0:
            return below
        held = sum(min(c, discounts[n - 1][min(c, 3) - 1]) for c in counts.values() if c)
        c = counts[word]
        return (c - discounts[n - 1][min(c, 3) - 1] if c else 0) / total + held / total * below

    return probability, vocabulary


def test_probabilities_equal_the_definition_and_sum_to_one(tmp_path):
    sentences = make_sentences()
    estimate = estimate_ngram(count_ngrams(sentences, 3))
    assert all(found != (0.5, 1.0, 1.5) for found in estimate.discounts[1:])  # enough data for real ones
    reference, vocabulary = kneser_ney(sentences, 3, estimate.discounts)
    write_arpa(tmp_path / "lm.arpa", estimate.grams)
    model = ArpaModel(read_arpa(tmp_path / "lm.arpa"), [])
    for context in [("a", "b"), ("<s>", "a"), ("h", "h"), ("c",), ("<s>",), ()]:
        found = {word: 10 ** model.log10(context, word) for word in vocabulary}
        assert sum(found.values()) == pytest.approx(1, abs=1e-5)
        for word in vocabulary:
            assert found[word] == pytest.approx(reference(word, context), rel=1e-4)


def test_discounts_are_those_of_chen_and_goodman():
    sentences = make_sentences()
    counts = Counter(count_ngrams(sentences, 2).by_order[1].values())
    n1, n2, n3, n4 = (counts[value] for value in (1, 2, 3, 4))
    share = n1 / (n1 + 2 * n2)
    expected = (1 - 2 * share * n2 / n1, 2 - 3 * share * n3 / n2, 3 - 4 * share * n4 / n3)
    assert estimate_ngram(count_ngrams(sentences, 2)).discounts[1] == pytest.approx(expected)


def test_pruning_takes_rare_ngrams_and_keeps_a_distribution():
    sentences = make_sentences()
    counts = count_ngrams(sentences, 3)
    whole, pruned = estimate_ngram(counts), estimate_ngram(counts, (0, 1, 2))
    assert set(pruned.grams[1]) == {gram for gram, count in counts.by_order[1].items() if count > 1}
    assert set(pruned.grams[2]) == {gram for gram, count in counts.by_order[2].items() if count > 2}
    assert pruned.pruned == [0, *(len(whole.grams[n]) - len(pruned.grams[n]) for n in (1, 2))]
    model = ArpaModel(pruned.grams, [])
    for context in [*[gram for gram in pruned.grams[1] if gram[1] != "</s>"][:40], ("h", "h"), ("zz", "a")]:
        total = sum(10 ** model.log10(context, word) for word in [*WORDS, "</s>", "<unk>"])
        assert total == pytest.approx(1, abs=1e-6)


def test_words_of_the_vocabulary_that_were_never_seen_have_a_share():
    estimate = estimate_ngram(count_ngrams([["a"]], 2), vocabulary=["a", "b"])
    assert estimate.grams[0][("b",)] == estimate.grams[0][("<unk>",)]
    assert 10 ** estimate.grams[0][("b",)][0] > 0


def test_wrong_arguments_say_what_is_wrong():
    with pytest.raises(DataError, match="no sentence"):
        count_ngrams([[]], 2)
    with pytest.raises(DataError, match="sentence 2: <s>, </s> and <unk> are not words"):
        count_ngrams([["a"], ["<unk>"]], 2)
    with pytest.raises(ConfigError, match="order 0"):
        count_ngrams([["a"]], 0)
    counts = count_ngrams([["a"]], 2)
    with pytest.raises(ConfigError, match="unigrams cannot be pruned"):
        estimate_ngram(counts, (1,))
    with pytest.raises(ConfigError, match="lower order"):
        estimate_ngram(count_ngrams([["a"]], 3), (0, 2, 1))

"""Relative-entropy pruning beside divergences that are computed the long way, over the whole vocabulary."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest

from xllm_speech.base.errors import ConfigError
from xllm_speech.decoders.ngram import ArpaModel, load_ngram
from xllm_speech.decoders.ngram_estimate import count_ngrams, estimate_ngram, write_arpa
from xllm_speech.decoders.ngram_prune import perplexity, perplexity_rises, prune_entropy, reweigh

WORDS = "abcde"
PREDICTED = [*WORDS, "</s>", "<unk>"]


@pytest.fixture(scope="module")
def sentences():
    """Text in which a word depends on the two before it, some of it by chance."""
    generator = random.Random(5)
    found = []
    for _ in range(120):
        sentence = generator.choices(WORDS, [5, 4, 3, 2, 1], k=2)
        while len(sentence) < 9 and generator.random() < 0.8:
            favourite = WORDS[(ord(sentence[-1]) + ord(sentence[-2])) % 5]
            sentence.append(favourite if generator.random() < 0.6 else generator.choice(WORDS))
        found.append(sentence)
    return found


@pytest.fixture(scope="module")
def counts(sentences):
    return count_ngrams(sentences, 3)


@pytest.fixture(scope="module")
def whole(counts):
    return estimate_ngram(counts).grams


def distribution(grams, context):
    return {word: 10 ** ArpaModel(grams, []).log10(context, word) for word in PREDICTED}


def all_contexts(grams):
    return [(), *itertools.chain(*([gram for gram in table if gram[-1] != "</s>"] for table in grams[:-1])), ("zz", "a")]


def assert_sums_to_one(grams):
    for context in all_contexts(grams):
        assert sum(distribution(grams, context).values()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("level", [1, 2])
def test_the_rise_is_the_divergence_of_the_model_without_the_ngram(sentences, counts, whole, level):
    rises = perplexity_rises(whole, counts, level)
    assert set(rises) == set(whole[level])
    padded = [("<s>", *sentence, "</s>") for sentence in sentences]
    histories = Counter(words[i - level : i] for words in padded for i in range(level, len(words)))
    predicted = sum(len(words) - 1 for words in padded)
    for gram in list(whole[level])[::3]:
        context = gram[:-1]
        without = [dict(table) for table in whole]
        del without[level][gram]
        # The weight of this context alone, from the definition: what its n-grams leave, over what the shorter context leaves.
        explicit = [other for other in without[level] if other[:-1] == context]
        left = 1 - sum(10 ** without[level][other][0] for other in explicit)
        below = 1 - sum(distribution(whole, context[1:])[other[-1]] for other in explicit)
        without[level - 1][context] = without[level - 1][context][0], math.log10(left / below)
        before, after = distribution(whole, context), distribution(without, context)
        assert sum(after.values()) == pytest.approx(1, abs=1e-9)
        divergence = sum(before[word] * math.log(before[word] / after[word]) for word in PREDICTED)
        rise = math.expm1(histories[context] / predicted * divergence)
        assert rises[gram] == pytest.approx(rise, rel=1e-6, abs=1e-12)


def test_a_pruned_model_is_normalised_smaller_and_hardly_worse(counts, whole):
    before, sizes, perplexities = perplexity(whole, counts), [], []
    for threshold in (1e-5, 1e-4, 1e-3, 1e-2):
        pruned = prune_entropy(whole, counts, threshold)
        assert_sums_to_one(pruned)
        assert set(pruned[0]) == set(whole[0])
        for level in (1, 2):
            assert all(gram[:-1] in pruned[level - 1] for gram in pruned[level])
            assert all(pruned[level][gram][0] == whole[level][gram][0] for gram in pruned[level])
        sizes.append(sum(map(len, pruned)))
        perplexities.append(perplexity(pruned, counts))
    assert sum(map(len, whole)) > sizes[0] > sizes[1] > sizes[2] > sizes[3]
    assert perplexities[0] < before * 1.01
    assert perplexities == sorted(perplexities)


def test_what_goes_is_what_is_missed_least(counts, whole):
    """By pruning at random to the same size perplexity rises more."""
    pruned = prune_entropy(whole, counts, 1e-3)
    ours = perplexity(pruned, counts)
    generator = random.Random(0)
    for _ in range(3):
        chance = [whole[0], dict(generator.sample(sorted(whole[1].items()), len(pruned[1])))]
        longest = [item for item in sorted(whole[2].items()) if item[0][:-1] in chance[1]]
        chance.append(dict(generator.sample(longest, min(len(longest), len(pruned[2])))))
        assert perplexity(reweigh(chance), counts) > ours


def test_perplexity_is_that_of_every_word_in_turn(sentences, counts, whole):
    for grams in (whole, whole[:1], whole[:2]):
        model, logs = ArpaModel(reweigh(grams), []), []
        for sentence in sentences:
            words = ["<s>", *sentence, "</s>"]
            logs += [model.log10(tuple(words[max(0, i - len(grams) + 1) : i]), words[i]) for i in range(1, len(words))]
        assert perplexity(reweigh(grams), counts) == pytest.approx(10 ** (-sum(logs) / len(logs)))


def test_weights_of_an_estimate_are_found_again(whole):
    for ours, theirs in zip(reweigh(whole), whole, strict=True):
        for gram, row in ours.items():
            assert row == pytest.approx(theirs[gram], abs=1e-9)


def test_a_context_that_knows_every_word_keeps_a_distribution():
    full = [["a"], ["a", "a"], ["b", "a", "b"], ["b", "b"], ["a", "b", "</unseen>"]] * 3
    counts = count_ngrams(full, 2)
    grams = estimate_ngram(counts).grams
    grams[1][("a", "<unk>")] = (-9.0, 0.0)
    assert all(math.isfinite(rise) for rise in perplexity_rises(grams, counts, 1).values())


def test_zero_leaves_all_and_less_is_refused(counts, whole):
    assert prune_entropy(whole, counts, 0) == whole
    with pytest.raises(ConfigError, match=r"prune_entropy -0\.1 must not be negative"):
        prune_entropy(whole, counts, -0.1)


def test_kenlm_reads_a_pruned_model_and_agrees(counts, whole, tmp_path):
    pytest.importorskip("kenlm", reason="the optional package kenlm is not installed")
    pruned = prune_entropy(whole, counts, 3e-3)
    assert any(gram[1:] not in pruned[1] for gram in pruned[2])  # an n-gram whose ending is not in the model
    write_arpa(tmp_path / "lm.arpa", pruned)
    pieces = ["<blank>", "<unk>", *WORDS, "<sos/eos>"]
    ours, theirs = (load_ngram(tmp_path / "lm.arpa", pieces, use_kenlm=choice) for choice in (False, True))
    generator = random.Random(1)
    for _ in range(2000):
        states = [ours.start(), theirs.start()]
        for token in generator.choices(range(1, 7), k=generator.randint(0, 9)):
            (first, states[0]), (second, states[1]) = ours.step(states[0], token), theirs.step(states[1], token)
            assert first == pytest.approx(second, abs=1e-4)
        assert ours.finish(states[0]) == pytest.approx(theirs.finish(states[1]), abs=1e-4)

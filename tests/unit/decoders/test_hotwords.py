"""The bonus of a whole text is that of its covered tokens, whatever phrases overlap; the vector of all tokens is its steps."""

from __future__ import annotations

import random

import pytest

from xllm_speech.decoders.hotwords import START, HotwordGraph


def covered_tokens(text, phrases):
    inside = [False] * len(text)
    for phrase in phrases:
        for i in range(len(text) - len(phrase) + 1):
            if phrase and text[i : i + len(phrase)] == list(phrase):
                inside[i : i + len(phrase)] = [True] * len(phrase)
    return sum(inside)


@pytest.mark.parametrize("seed", range(20))
def test_sum_of_steps_is_the_bonus_of_covered_tokens(seed):
    generator = random.Random(seed)
    phrases = [generator.choices(range(3), k=generator.randint(1, 5)) for _ in range(generator.randint(1, 6))]
    graph = HotwordGraph(phrases, bonus=0.5)
    for _ in range(40):
        text = generator.choices(range(4), k=generator.randint(0, 14))
        state, total = START, 0.0
        for token in text:
            earned, state = graph.step(state, token)
            total += earned
            assert total >= -1e-9
        assert total + graph.finish(state) == pytest.approx(0.5 * covered_tokens(text, phrases))


def test_a_begun_phrase_earns_at_once_and_is_paid_back():
    graph = HotwordGraph([[1, 2, 3]], bonus=2.0)
    first, state = graph.step(START, 1)
    second, state = graph.step(state, 2)
    failed, after = graph.step(state, 5)
    assert (first, second, failed) == (2.0, 2.0, -4.0)
    assert after == START
    assert graph.finish(state) == -4.0


def test_scores_of_all_tokens_are_the_single_steps():
    generator = random.Random(1)
    graph = HotwordGraph([generator.choices(range(5), k=4) for _ in range(12)], bonus=0.7)
    states = [START]
    for _ in range(30):
        states.append(graph.step(states[-1], generator.randrange(6))[1])
    rows = graph.scores(states, vocab=7)
    for row, state in zip(rows.tolist(), states, strict=True):
        assert row == pytest.approx([graph.step(state, token)[0] for token in range(7)], abs=1e-6)


def test_empty_and_equal_phrases_change_nothing():
    assert len(HotwordGraph([[], [1, 2], [1, 2], [2]])) == 2
    assert HotwordGraph([[]]).step(START, 1) == (0.0, START)

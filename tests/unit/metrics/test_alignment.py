from __future__ import annotations

import itertools
import random

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xllm_speech.metrics.alignment import Counts, align


def slow_distance(reference: list[str], hypothesis: list[str]) -> int:
    """Textbook dynamic programme."""
    row = list(range(len(hypothesis) + 1))
    for i, token in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(hypothesis, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (token != other))
    return row[-1]


tokens = st.lists(st.sampled_from(["今", "天", "气", "hello", "world"]), max_size=12)


@given(tokens, tokens)
@settings(max_examples=400, deadline=None)
def test_alignment_is_cheapest_and_spells_both_sides(reference: list[str], hypothesis: list[str]) -> None:
    alignment = align(reference, hypothesis)
    counts = alignment.counts
    assert counts.errors == slow_distance(reference, hypothesis)
    assert len(reference) == counts.N
    assert [step.reference for step in alignment.steps if step.reference is not None] == reference
    assert [step.hypothesis for step in alignment.steps if step.hypothesis is not None] == hypothesis
    for operation, ours, theirs in alignment.steps:
        expected = "I" if ours is None else "D" if theirs is None else "C" if ours == theirs else "S"
        assert operation == expected
    assert align(reference, hypothesis) == alignment


def check_against_jiwer(reference: list[str], hypothesis: list[str]) -> None:
    theirs = jiwer.process_words(" ".join(reference), " ".join(hypothesis))
    ours = align(reference, hypothesis).counts
    assert (theirs.substitutions, theirs.deletions, theirs.insertions) == (ours.S, ours.D, ours.I)
    assert ours.percent == pytest.approx(100 * theirs.wer)


def test_counts_agree_with_jiwer_on_random_text() -> None:
    generator = random.Random(1)
    for _ in range(300):
        reference = generator.choices("今天气好abc", k=generator.randint(1, 20))
        check_against_jiwer(reference, generator.choices("今天气好abc", k=generator.randint(0, 20)))


def test_counts_agree_with_jiwer_on_real_text(shared_data) -> None:
    lines = (shared_data / "aishell1_sample_S0150" / "kaldi" / "text").read_text(encoding="utf-8").splitlines()
    texts = [list("".join(line.split()[1:])) for line in lines]
    generator = random.Random(2)
    for text, other in itertools.pairwise(texts):
        damaged = [generator.choice(other) if generator.random() < 0.2 else token for token in text]
        check_against_jiwer(text, [token for token in damaged if generator.random() < 0.9])


def test_counts_add_up_and_rate_without_reference_is_none() -> None:
    total = align("今天", "今").counts + align("", "好的").counts
    assert total == Counts(N=2, S=0, D=1, I=2)
    assert total.percent == 150.0
    assert align("", "好").counts.percent is None
    assert align("", "").operations == ""

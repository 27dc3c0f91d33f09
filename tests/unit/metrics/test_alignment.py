from __future__ import annotations

import itertools
import random

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xllm_speech.metrics import alignment
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
    found = align(reference, hypothesis)
    counts = found.counts
    assert counts.errors == slow_distance(reference, hypothesis)
    assert len(reference) == counts.N
    assert [step.reference for step in found.steps if step.reference is not None] == reference
    assert [step.hypothesis for step in found.steps if step.hypothesis is not None] == hypothesis
    for operation, ours, theirs in found.steps:
        expected = "I" if ours is None else "D" if theirs is None else "C" if ours == theirs else "S"
        assert operation == expected
    assert align(reference, hypothesis) == found


def check_against_jiwer(reference: list[str], hypothesis: list[str]) -> None:
    theirs = jiwer.process_words(" ".join(reference), " ".join(hypothesis))
    ours = align(reference, hypothesis).counts
    assert theirs.deletions - theirs.insertions == ours.D - ours.I
    assert theirs.substitutions >= ours.S  # of equally few errors sclite's choice has the fewest substitutions
    assert ours.percent == pytest.approx(100 * theirs.wer)


# Counted by sclite 2.4.10 (NIST SCTK) over characters: right, substituted, deleted, inserted.
SCLITE = [
    ("天上", "上天", (1, 0, 1, 1)),
    ("今天天气很好", "今天气很好", (5, 0, 1, 0)),
    ("红色的方块", "红色方块的", (4, 0, 1, 1)),
    ("一二三四五", "二三四五六", (4, 0, 1, 1)),
    ("一二三四五", "六七八九十", (0, 5, 0, 0)),
    ("一二三四五", "一三二四五", (4, 0, 1, 1)),
    ("一二一二一二", "二一二一二一", (5, 0, 1, 1)),
    ("今天", "", (0, 0, 2, 0)),
    ("a b c", "a x c d", (2, 1, 0, 1)),
]


@pytest.mark.parametrize(("reference", "hypothesis", "counts"), SCLITE)
def test_counts_are_those_of_sclite(reference: str, hypothesis: str, counts: tuple[int, int, int, int]) -> None:
    sides = [text.split() if " " in text else list(text) for text in (reference, hypothesis)]
    found = align(*sides)
    assert (found.operations.count("C"), found.counts.S, found.counts.D, found.counts.I) == counts


def test_sequences_too_long_for_a_table_have_as_few_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(4)
    pairs = [(generator.choices("今天气好", k=40), generator.choices("今天气好", k=35)) for _ in range(20)]
    small = [align(*pair) for pair in pairs]
    monkeypatch.setattr(alignment, "MOST_CELLS", 10)
    for pair, expected in zip(pairs, small, strict=True):
        found = align(*pair)
        assert found.counts.errors == expected.counts.errors
        assert [step.hypothesis for step in found.steps if step.hypothesis is not None] == pair[1]


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

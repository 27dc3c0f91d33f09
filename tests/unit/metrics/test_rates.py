from __future__ import annotations

import numpy as np
import pytest

from xllm_speech.base.errors import SeamError
from xllm_speech.metrics import rates
from xllm_speech.metrics.rates import bootstrap_interval, loops, paired_bootstrap


def slow_interval(errors: list[int], lengths: list[int], resamples: int) -> tuple[float, float]:
    generator = np.random.default_rng(7)
    values = []
    for _ in range(resamples):
        drawn = [int(generator.integers(len(errors))) for _ in errors]
        values.append(100 * sum(errors[i] for i in drawn) / sum(lengths[i] for i in drawn))
    return tuple(np.percentile(values, [2.5, 97.5]))


def test_interval_agrees_with_a_loop_that_draws_one_by_one() -> None:
    generator = np.random.default_rng(0)
    lengths = generator.integers(5, 20, 80).tolist()
    errors = generator.binomial(lengths, 0.1).tolist()
    low, high = bootstrap_interval(errors, lengths, resamples=4000)
    slow_low, slow_high = slow_interval(errors, lengths, 4000)
    assert low == pytest.approx(slow_low, abs=0.25)
    assert high == pytest.approx(slow_high, abs=0.25)
    assert low < 100 * sum(errors) / sum(lengths) < high


def test_interval_is_seeded_and_does_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    errors, lengths = [0, 1, 2, 0, 3, 1], [5, 6, 7, 4, 9, 5]
    whole = bootstrap_interval(errors, lengths, seed=3)
    assert whole == bootstrap_interval(errors, lengths, seed=3)
    assert whole != bootstrap_interval(errors, lengths, seed=4)
    monkeypatch.setattr(rates, "_BLOCK", 60)
    assert bootstrap_interval(errors, lengths, seed=3) == whole


def test_interval_of_certain_and_of_empty_sets() -> None:
    assert bootstrap_interval([0, 0], [4, 5]) == (0.0, 0.0)
    assert bootstrap_interval([1], [4]) == (25.0, 25.0)
    assert bootstrap_interval([3, 0], [0, 0]) is None
    assert bootstrap_interval([], []) is None
    low, high = bootstrap_interval([2, 1], [0, 4])  # draws of the silent utterance alone have no rate
    assert low == 25.0
    assert high >= 75.0


def test_paired_difference_sees_what_unpaired_intervals_do_not() -> None:
    generator = np.random.default_rng(5)
    lengths = [20] * 300
    second = generator.integers(0, 20, 300)
    first = np.maximum(0, second - (generator.random(300) < 0.2))
    result = paired_bootstrap(first.tolist(), second.tolist(), lengths)
    assert result.difference == pytest.approx(100 * (first.sum() - second.sum()) / 6000)
    assert result.interval[0] < result.difference < result.interval[1] < 0
    assert result.p < 0.01
    swapped = paired_bootstrap(second.tolist(), first.tolist(), lengths)
    assert (swapped.difference, swapped.p) == (-result.difference, result.p)
    ours, theirs = (bootstrap_interval(errors.tolist(), lengths) for errors in (first, second))
    assert ours[1] > theirs[0]


def test_paired_difference_of_equal_systems_and_of_noise() -> None:
    same = paired_bootstrap([1, 2, 0], [1, 2, 0], [5, 5, 5])
    assert (same.difference, same.interval, same.p) == (0.0, (0.0, 0.0), 1.0)
    generator = np.random.default_rng(9)
    noise = paired_bootstrap(generator.integers(0, 5, 100).tolist(), generator.integers(0, 5, 100).tolist(), [10] * 100)
    assert noise.interval[0] < 0 < noise.interval[1]
    assert noise.p > 0.05
    assert paired_bootstrap([1], [0], [0]) is None
    with pytest.raises(SeamError, match="2 and 1"):
        paired_bootstrap([1, 2], [1, 2], [3])


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("今天天气", "今天天气", False),
        ("今天", "今天今天今天", False),
        ("今天", "今天今天今天今天", True),
        ("", "的的的的", True),
        ("哈哈哈哈", "哈哈哈哈哈", False),
        ("哈哈", "哈哈哈哈", True),
        ("the end", "the the the the end", True),
        ("是", "是" + "一二三四五六七八九十甲乙丙丁戊己" * 4, True),
        ("是", "是" + "一二三四五六七八九十甲乙丙丁戊己庚" * 4, False),
        ("", "", False),
    ],
)
def test_loops(reference: str, hypothesis: str, expected: bool) -> None:
    assert loops(reference, hypothesis) is expected

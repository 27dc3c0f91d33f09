"""Hotword counts on texts counted by hand."""

from __future__ import annotations

import pytest

from xllm_speech.base.errors import DataError
from xllm_speech.metrics.hotwords import score_hotwords


def score(phrases, *pairs):
    return score_hotwords({phrase: list(phrase) for phrase in phrases}, [(list(a), list(b)) for a, b in pairs])


def test_recall_and_precision_by_hand():
    report = score(["旗子", "钟"], ("红的旗子和钟", "红的棋子和钟"), ("旗子旗子", "旗子齐子"), ("没有", "旗子"))
    flag, clock = report.phrases["旗子"], report.phrases["钟"]
    assert (flag.said, flag.written, flag.right) == (3, 2, 1)
    assert (flag.recall, flag.precision) == (pytest.approx(1 / 3), 0.5)
    assert (clock.said, clock.written, clock.right) == (1, 1, 1)
    assert (report.total.said, report.total.written, report.total.right) == (4, 3, 2)
    # Inside: 旗->棋, 旗->齐. Outside: 没有->旗子.
    assert (report.inside.N, report.inside.S) == (7, 2)
    assert (report.outside.N, report.outside.S) == (5, 2)


def test_an_insertion_inside_breaks_a_phrase():
    report = score(["旗子"], ("旗子", "旗的子"))
    assert report.total.right == 0
    assert report.inside.I == 1


def test_never_said_or_written_is_no_rate():
    count = score(["钟"], ("旗", "旗")).phrases["钟"]
    assert count.recall is None
    assert count.precision is None


def test_a_phrase_without_tokens_is_refused():
    with pytest.raises(DataError, match="hotword `x`"):
        score_hotwords({"x": []}, [])

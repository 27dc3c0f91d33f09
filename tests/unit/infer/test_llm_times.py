"""Times of an LLM's text from the units it was read from."""

from __future__ import annotations

import math

import pytest

from tests.unit.infer.test_draft import Letters
from xllm_speech.infer.listening import Heard
from xllm_speech.infer.llm_times import letter_log_probs, time_text
from xllm_speech.infer.words import timed_words
from xllm_speech.records import Hypothesis, TimedToken


def heard(*pieces, confidence=0.81):
    """Units of one second each."""
    tokens = [TimedToken(piece, float(number), number + 1.0, confidence) for number, piece in enumerate(pieces)]
    return Heard("".join(pieces), tokens, len(pieces), None, 15.0)


def spans(tokens):
    return [(token.text, token.start_sec, token.end_sec) for token in tokens]


def test_equal_texts_take_their_units():
    found = time_text("左上是", heard("左", "上", "是"), [math.log(0.64)] * 3)
    assert spans(found) == [("左", 0, 1), ("上", 1, 2), ("是", 2, 3)]
    assert [token.confidence for token in found] == pytest.approx([0.72] * 3)  # sqrt(0.64 x 0.81)


def test_a_replaced_character_takes_the_unit_of_the_other():
    found = time_text("左下是", heard("左", "上", "是"), [0.0] * 3)
    assert spans(found) == [("左", 0, 1), ("下", 1, 2), ("是", 2, 3)]
    assert [token.confidence for token in found] == pytest.approx([0.9, math.sqrt(0.19), 0.9])


def test_a_left_out_character_leaves_its_time():
    assert spans(time_text("左是", heard("左", "上", "是"))) == [("左", 0, 1), ("是", 2, 3)]
    assert spans(time_text("上是", heard("左", "上", "是"))) == [("上", 1, 2), ("是", 2, 3)]


def test_characters_put_in_share_a_unit():
    found = time_text("左上边是", heard("左", "上", "是"))
    assert spans(found) == [("左", 0, 1), ("上", 1, 1.5), ("边", 1.5, 2), ("是", 2, 3)]
    assert [token.confidence for token in found] == pytest.approx([0.81, 0.81, 0.5, 0.81])
    assert spans(time_text("在这左上", heard("左", "上"))) == [
        ("在", 0, pytest.approx(1 / 3)), ("这", pytest.approx(1 / 3), pytest.approx(2 / 3)), ("左", pytest.approx(2 / 3), 1),
        ("上", 1, 2),
    ]


def test_words_of_several_pieces_and_pieces_of_several_letters():
    found = time_text("说 hello了", heard("说", "▁hel", "lo", "了"))
    assert spans(found) == [("说", 0, 1), ("hello", 1, 3), ("了", 3, 4)]
    words, spelt = timed_words(Hypothesis("a", "说 hello了", tokens=found))
    assert spelt
    assert [word.text for word in words] == ["说", "hello", "了"]


def test_nothing_said_or_heard_has_no_times():
    assert time_text("", heard("左")) == []
    assert time_text(" ", heard("左")) == []
    assert time_text("左", heard()) == []
    assert spans(time_text("左上", heard("<space>"))) == [("左", 0, 1), ("上", 0, 1)]


def test_times_never_run_backwards():
    for text in ("左上是什么", "什么左上", "颜颜颜颜颜颜", "上左", "是"):
        found = time_text(text, heard("左", "上", "是", "什", "么"))
        assert "".join(token.text for token in found) == text
        edges = [edge for token in found for edge in (token.start_sec, token.end_sec)]
        assert edges == sorted(edges)
        assert all(0 <= token.confidence <= 1 for token in found)


def test_probabilities_of_tokens_reach_their_characters():
    llm = Letters()
    assert letter_log_probs(llm, llm.encode("abc"), [-1.0, -2.0]) == [-1.0, -1.0, -2.0]
    assert letter_log_probs(llm, [], []) == []
    # a piece without a whole character counts to the character that follows
    assert letter_log_probs(llm, [1, 6, 3], [-1.0, -0.5, -2.0])[0] == -1.0

"""Pieces of text: whole characters only, and together the text."""

from __future__ import annotations

import pytest

from xllm_speech.base.errors import ConfigError
from xllm_speech.infer.generation import AnswerOptions, TextPieces


def pieces_of(chunks, decode):
    """What comes out for ids 0 to n - 1, and at the end."""
    pieces = TextPieces(decode)
    return [pieces.add(index) for index in range(len(chunks))], pieces.end()


def test_characters_come_when_all_their_bytes_are_there():
    raw = "红a😀色".encode()
    chunks = [raw[place : place + 1] for place in range(len(raw))]
    decode = lambda ids: b"".join(chunks[index] for index in ids).decode("utf-8", errors="replace")  # noqa: E731
    found, rest = pieces_of(chunks, decode)
    assert [piece for piece in found if piece] == ["红", "a", "😀", "色"]
    assert found[0] == found[1] == ""
    assert rest == ""


def test_a_character_that_stays_incomplete_comes_at_the_end():
    chunks = ["好".encode(), "好".encode()[:2]]
    decode = lambda ids: b"".join(chunks[index] for index in ids).decode("utf-8", errors="replace")  # noqa: E731
    assert pieces_of(chunks, decode) == (["好", ""], "\ufffd")


def test_text_that_a_tokenizer_rewrites_is_not_said_twice():
    texts = ["", "ab", "ab ", "ab.", "ab. c"]
    found, rest = pieces_of(texts[1:], lambda ids: texts[len(ids)])
    assert found == ["ab", " ", ".", " c"]
    assert rest == ""
    shrinking = ["", "abc", "ab", "abcd"]
    assert pieces_of(shrinking[1:], lambda ids: shrinking[len(ids)]) == (["abc", "", "d"], "")


@pytest.mark.parametrize(("options", "max_tokens", "room"), [({}, 2048, 256), ({}, 100, 50), ({"max_new_tokens": 99}, 100, 99)])
def test_room_for_an_answer(options, max_tokens, room):
    assert AnswerOptions(**options).room(max_tokens) == room


def test_no_room_for_a_question_is_refused():
    with pytest.raises(ConfigError, match="max_new_tokens 100 leaves no room for a question: the model takes 100"):
        AnswerOptions(100).room(100)

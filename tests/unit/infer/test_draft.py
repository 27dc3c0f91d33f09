"""Drafts: what of the expected text is still to come."""

from __future__ import annotations

import itertools

import pytest
from rapidfuzz.distance import Levenshtein

from xllm_speech.infer.draft import INCOMPLETE, Drafter, rest_of


@pytest.mark.parametrize(
    ("expected", "written", "rest"),
    [
        ("右上是什么", "", "右上是什么"),
        ("右上是什么", "右上", "是什么"),
        ("右上是什么", "右下", "是什么"),  # one character replaced
        ("右上是什么", "右是", "什么"),  # one left out: what it wrote last decides
        ("右上是什么", "右上面", "什么"),  # replaced or put in? the next pass will tell
        ("右上是什么", "右上面是", "什么"),  # put in
        ("右上是什么", "右上是什么", ""),
        ("右上是什么", "右上是什么吗", ""),
        ("", "右上", ""),
        ("是是是什么", "是是", "是什么"),
    ],
)
def test_the_rest_begins_where_the_text_stands(expected, written, rest):
    assert rest_of(expected, written) == rest


def test_no_other_place_would_be_nearer():
    texts = ["".join(letters) for size in range(5) for letters in itertools.product("ab", repeat=size)]
    for expected, written in itertools.product(texts, texts):
        rest = rest_of(expected, written)
        assert expected.endswith(rest)
        costs = [Levenshtein.distance(written, expected[:length]) for length in range(len(expected) + 1)]
        assert costs[len(expected) - len(rest)] == min(costs)


class Letters:
    """A language model of which only the tokenizer is asked: a token is a character, but "ab" is one."""

    table = ("ab", *"abcde", INCOMPLETE)

    def encode(self, text):
        found = []
        while text:
            piece = "ab" if text.startswith("ab") else text[0]
            found.append(self.table.index(piece))
            text = text[len(piece) :]
        return found

    def decode(self, ids):
        return "".join(self.table[index] for index in ids)


def test_drafts_go_on_in_the_models_tokens():
    llm = Letters()
    draft = Drafter(llm, ["abcde", "e"])
    assert draft(0, []) == llm.encode("abcde")
    assert draft(0, [0]) == llm.encode("cde")
    assert draft(0, llm.encode("ac")) == llm.encode("de")  # b left out
    assert draft(0, [1, 2]) == llm.encode("cde")  # the model cut "ab" otherwise than its tokenizer would
    assert draft(0, [0, 3, 6]) == llm.encode("de")  # bytes of a character that is not whole yet
    assert draft(1, [5]) == []

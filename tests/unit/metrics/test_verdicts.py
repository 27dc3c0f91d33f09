from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xllm_speech.metrics.verdicts import read_verdict

EN = "The scores for Assistant 1 and Assistant 2 are 3 and 8, respectively."


@pytest.mark.parametrize(
    ("text", "scores", "form"),
    [
        # one sentence about both
        (EN, (3, 8), "sentence"),
        ("The scores for Assistant 2 and Assistant 1 are 9 and 3, respectively.", (3, 9), "sentence"),
        ("For Assistant 1 and 2, the scores are 3 and 8.", (3, 8), "sentence"),
        ("The scores are 3 and 8 for Assistant 1 and Assistant 2 respectively.", (3, 8), "sentence"),
        ("The score for Assistant 1 is 3 and the score for Assistant 2 is 9.", (3, 9), "sentence"),
        ("I would rate Assistant 1 a 3 out of 10 and Assistant 2 an 8 out of 10.", (3, 8), "sentence"),
        ("I give Assistant 2 a 9 and Assistant 1 a 4.", (4, 9), "sentence"),
        ("A score of 3 goes to Assistant 1 and 8 to Assistant 2.", (3, 8), "sentence"),
        ("Scores: 8 (Assistant 1), 9 (Assistant 2)", (8, 9), "sentence"),
        ("On a scale of 1 to 10, Assistant 1 gets 3 and Assistant 2 gets 8.", (3, 8), "sentence"),
        ("The first assistant gets 3/10; the second assistant gets 8/10.", (3, 8), "sentence"),
        ("Assistant 1 receives a score of three, while Assistant 2 receives a score of eight.", (3, 8), "sentence"),
        ("Both Assistant 1 and Assistant 2 receive a score of 9.", (9, 9), "sentence"),
        ("Assistant 1's answer is worse than Assistant 2's, so it gets a score of 4, and Assistant 2 gets a score of 9.",
         (4, 9), "sentence"),
        ("助手1和助手2的得分分别为3和8。", (3, 8), "sentence"),
        ("助手1得3分，助手2得8分。", (3, 8), "sentence"),
        ("我会给助手1评3分（满分10分），给助手2评9分（满分10分）。", (3, 9), "sentence"),
        ("两位助手都得8分", (8, 8), "sentence"),
        ("Assistant 2 receives a higher score of 9 compared to Assistant 1 with a score of 2.", (2, 9), "sentence"),
        ("Score (Assistant 1/Assistant 2): 3/8", (3, 8), "sentence"),
        ("Both assistants receive a 9.", (9, 9), "sentence"),
        ("Assistant 1 and Assistant 2 both receive 8.", (8, 8), "sentence"),
        ("Assistant 2 deserves a 9, Assistant 1 only a 3.", (3, 9), "sentence"),
        ("The scores for Assistants 1 and 2 are 2 and 9, respectively.", (2, 9), "sentence"),
        ("Score for Assistant 1 and Assistant 2: 2 9", (2, 9), "sentence"),
        ("I rate Assistant 1's response 3/10 and Assistant 2's response 9/10.", (3, 9), "sentence"),
        # a heading before a pair
        ("The skateboard lies upside down.\n\nScores: 8 9\n\nAssistant 1 is vague.", (8, 9), "scores"),
        ("Scores: 3/10 and 8/10", (3, 8), "scores"),
        ("Scores:\n8 9", (8, 9), "scores"),
        ("评分：8 9\n两个助手都不错", (8, 9), "scores"),
        # labels
        ("Assistant 1: 3\nAssistant 2: 8", (3, 8), "labels"),
        ("**Assistant 1:** 8/10  \n**Assistant 2:** 9.5/10", (8, 9.5), "labels"),
        ("Assistant 1 - 2\nAssistant 2 - 9", (2, 9), "labels"),
        ("Assistant 1's score: 3. Good.\n\nAssistant 2's score: 8.", (3, 8), "labels"),
        ("| Assistant 1 | 3 |\n| Assistant 2 | 8 |", (3, 8), "labels"),
        ('{"assistant_1": 3,\n "assistant_2": 8}', (3, 8), "labels"),
        ("Assistant A: 7-8\nAssistant B: 9", (7.5, 9), "labels"),
        ("助手一：八分\n助手二：九分", (8, 9), "labels"),
        ("Assistant 1\n3\n\nAssistant 2\n9", (3, 9), "labels"),
        ("## Scores\n\n- **Assistant 1**: 3\n- **Assistant 2**: 9\n\n1. Assistant 1 lists 4 items.", (3, 9), "labels"),
        ("Score for Assistant 1: 8\nScore for Assistant 2: 9", (8, 9), "labels"),
        ("assistant 1=8\nassistant 2=9", (8, 9), "labels"),
        ("1. Assistant 1: 8\n2. Assistant 2: 9", (8, 9), "labels"),
        ("1) 8\n2) 9", (8, 9), "labels"),
        ("Here they are:\n1. 7.5/10\n2. 9/10\n\nThe second is better.", (7.5, 9), "labels"),
        ("The score for Assistant 1 is 3. The score for Assistant 2 is 9.", (3, 9), "labels"),
        # a bare pair where it was asked for
        ("8 9", (8, 9), "first line"),
        ("8 9 ", (8, 9), "first line"),
        ("8 9\r\nwhy", (8, 9), "first line"),
        ("\ufeff8 9", (8, 9), "first line"),
        ("8\t9", (8, 9), "first line"),
        ("8 and 9", (8, 9), "first line"),
        ("8/10 and 9/10", (8, 9), "first line"),
        ("9 out of 10, 10 out of 10", (9, 10), "first line"),
        ("８：９", (8, 9), "first line"),
        ("8、9", (8, 9), "first line"),
        ("8 9 (Assistant 2 is better)", (8, 9), "first line"),
        ("8 9 - Assistant 2 is more detailed.", (8, 9), "first line"),
        ("8,9: because both are right", (8, 9), "first line"),
        ("8,9\nBoth are fine.", (8, 9), "first line"),
        ("8, 9", (8, 9), "first line"),
        ("8.5 9", (8.5, 9), "first line"),
        ("**8 9** \n\nBoth are fine.", (8, 9), "first line"),
        ("8/10 9/10", (8, 9), "first line"),
        ("8/9", (8, 9), "first line"),
        ("8-9", (8, 9), "first line"),
        ("7-8 9", (7.5, 9), "first line"),
        ("[[8, 9]]", (8, 9), "first line"),
        ("8\n9\nBoth are fine.", (8, 9), "first line"),
        ("8 9 Both are fine.", (8, 9), "first line"),
        ("Eight, nine.\nBoth are fine.", (8, 9), "first line"),
        ("８　９\n解释", (8, 9), "first line"),
        ("8分，9分", (8, 9), "first line"),
        ("<think>maybe 3 4\n5 6</think>\n8 9", (8, 9), "first line"),
        # further down
        ("Let me explain first.\n\n8 9", (8, 9), "further down"),
        ("Assistant 1 is off topic and receives a score of 2.\n\nAssistant 2 is precise. It receives a score of 9.", (2, 9),
         "further down"),
        ("I would rate the performance of Assistant 1 as 2 out of 10.\n\nI would rate that of Assistant 2 as 9 out of 10.",
         (2, 9), "further down"),
        ("Assistant 2's answer is better than Assistant 1's, earning a score of 9. Assistant 1 earns a lower score of 4.",
         (4, 9), "further down"),
        ("助手1的回答不相关，因此得2分。\n助手2的回答准确，因此得9分。", (2, 9), "further down"),
        ("Assistant 1's answer is irrelevant. It misses the giraffe. Therefore, the score is 2.\n\n"
         "Assistant 2's answer is right. Therefore, the score is 9.", (2, 9), "further down"),
        # none
        ("Assistant 1: N/A\nAssistant 2: 9", None, None),
        ("9/10", None, None),
        ("8.9", None, None),
        ("80 90", None, None),
        ("2 9 9", None, None),
        ("1.8\n2.9", (1.8, 2.9), "first line"),
        ("3 dogs - 4 cats", None, None),
        ("-1 -1", None, None),
        ("Assistant 1: 8", None, None),
        ("Assistant 1 gives 3 reasons and Assistant 2 gives 5 reasons.", None, None),
        ("There are 3 giraffes and 4 zebras, as both assistants say.", None, None),
        ("I cannot judge this.", None, None),
        ("", None, None),
    ],
)
def test_every_form_is_read(text: str, scores: tuple[float, float] | None, form: str | None) -> None:
    reading = read_verdict(text)
    assert (reading.scores, reading.form) == (scores, form)
    assert not reading.conflict


@pytest.mark.parametrize(
    ("text", "scores", "form"),
    [
        ("2 9 \n\nThe score for Assistant 1 is 3 and the score for Assistant 2 is 9.", (3, 9), "sentence"),
        ("Scores: 7 8\n\nOverall, the scores for Assistant 1 and 2 are 3 and 8.", (3, 8), "sentence"),
        ("5 6\n\nScores: 7 8", (7, 8), "scores"),
        ("5 6\n\nAssistant 1: 7\nAssistant 2: 8", (7, 8), "labels"),
        ("1 9\n\nAssistant 1 is wrong and receives a score of 2. Assistant 2 receives a score of 9.", (1, 9), "first line"),
    ],
)
def test_the_order_of_forms_decides_and_the_contradiction_is_told(text: str, scores: tuple, form: str) -> None:
    reading = read_verdict(text)
    assert (reading.scores, reading.form, reading.conflict) == (scores, form, True)


def test_an_overall_score_stands_before_those_of_criteria() -> None:
    text = ("Assistant 1:\nHelpfulness: 3/10\nRelevance: 4/10\nOverall: 2/10\nClarity: 5/10\n\n"
            "Assistant 2:\nHelpfulness: 9/10\nOverall score: 8/10")
    assert read_verdict(text).scores == (2, 8)
    assert read_verdict("Assistant 1 has accuracy: 3/10, relevance: 5/10.\nAssistant 2 has accuracy: 8/10.").scores is None


SCORES = st.integers(0, 20).map(lambda half: half / 2)
TEMPLATES = (
    "{0:g} {1:g}", "{0:g},{1:g}", "{0:g}, {1:g}\nwhy", "**{0:g}** **{1:g}**", "({0:g}, {1:g})", "{0:g}/10, {1:g}/10",
    "Scores: {0:g} {1:g}", "scores: {0:g} and {1:g}.", "Assistant 1: {0:g}\nAssistant 2: {1:g}",
    "Assistant 2: {1:g}/10; Assistant 1: {0:g}/10", "Assistant 1 ({0:g})\nAssistant 2 ({1:g})",
    "The scores for Assistant 1 and Assistant 2 are {0:g} and {1:g}, respectively.",
    "Assistant 2 receives a score of {1:g} out of 10, whereas Assistant 1 receives a score of {0:g} out of 10.",
    "Assistant 1 earns a score of {0:g}.\n\nAssistant 2 earns a score of {1:g}.",
    "评分：{0:g}，{1:g}", "助手1：{0:g}分\n助手2：{1:g}分", "助手1得{0:g}分，助手2得{1:g}分。",
    "助手1和助手2的得分分别是{0:g}和{1:g}。",
)


@settings(max_examples=150, deadline=None)
@given(SCORES, SCORES, st.sampled_from(TEMPLATES), st.sampled_from(("", "\n\nAssistant 1 names 3 dogs, Assistant 2 names 12.")))
def test_any_two_scores_in_any_template(one: float, two: float, template: str, tail: str) -> None:
    reading = read_verdict(template.format(one, two) + tail)
    assert reading.scores == (one, two)
    assert not reading.conflict


BITS = ["Assistant 1", "Assistant 2", "both assistants", "score", "of", "8", "9.5", "/10", "and", ",", ".", "\n", "分", "得",
        "助手1", "rate", "out of 10", "7-8", "**", ":", "for", "八", "overall", "(", ")", "-1", "44", "respectively",
        "\ue001", "٣"]


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=200), st.lists(st.sampled_from(BITS), max_size=50).map(" ".join)))
def test_no_text_breaks_the_reader_and_scores_keep_to_the_scale(text: str) -> None:
    reading = read_verdict(text)
    assert reading.scores is None or all(0 <= score <= 10 for score in reading.scores)
    assert (reading.scores is None) == (reading.form is None)


def test_long_and_hostile_texts_take_no_time() -> None:
    generator = random.Random(0)
    begin = time.perf_counter()
    for text in ("(" * 20000, "8 " * 5000, "score " * 5000, "Assistant 1 and " * 3000, "8-" * 5000, "give " * 5000,
                 " ".join(generator.choices(BITS, k=8000))):
        read_verdict(text)
    assert time.perf_counter() - begin < 5


def test_stored_scores_of_the_authors_are_what_their_texts_say(shared_data: Path) -> None:
    path = shared_data / "annotation_samples" / "xllm_eval_llava" / "review.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    stored = [row for row in rows if row["tuple"][0] >= 0]
    assert len(stored) == 83
    for row in stored:
        reading = read_verdict(row["content"])
        assert (list(reading.scores or ()), reading.conflict) == (row["tuple"], False)

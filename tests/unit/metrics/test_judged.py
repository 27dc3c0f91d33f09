from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.metrics.judged import read_verdicts, stored_scores, summarise

TABLE = {  # evaluation.md, known facts: the authors' first verdict file
    "paper-1": (85.4, 83.5, 84.6, 84.5, 7),
    "paper-2": (70.7, 81.1, 84.6, 78.8, 7),
    "reparse": (79.2, 82.2, 84.6, 82.0, 0),
}


def row(question: object = 0, scores: object = (8, 9), content: str = "", category: str = "conv", **more: object) -> dict:
    return {"question_id": question, "category": category, "content": content, "tuple": scores, **more}


def write(path: Path, rows: list[dict], array: bool = False) -> Path:
    text = json.dumps(rows, indent=1) if array else "".join(json.dumps(item) + "\n" for item in rows)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("policy", TABLE)
@pytest.mark.parametrize("array", [False, True])
def test_the_authors_verdicts_give_their_row(policy: str, array: bool, shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "annotation_samples" / "xllm_eval_llava" / "review.jsonl"
    if array:
        lines = path.read_text(encoding="utf-8").splitlines()
        path = write(tmp_path / "review.json", [json.loads(line) for line in lines if line.strip()], array=True)
    summary = summarise(read_verdicts(path), policy)
    found = tuple(round(summary["relative"][name], 1) for name in ("conv", "detail", "complex", "all"))
    assert (*found, summary["unparsed"]) == TABLE[policy]
    assert (summary["policy"], summary["verdicts"], summary["conflicts"]) == (policy, 90, 2)
    for name, relative in summary["relative"].items():
        low, high = summary["interval"][name]
        assert low < relative < high
    assert summary["conflict_ids"] == ["36", "39"]
    assert summary["reread"] == (7 if policy == "reparse" else 0)
    assert sum(summary["outcomes"]["all"].values()) == 90 - summary["unparsed"]


def test_policies_and_outcomes_on_a_small_file(tmp_path: Path) -> None:
    path = write(tmp_path / "v.jsonl", [
        row(0, [8, 9]), row(1, [-1, -1], "3 8\nwhy"), row(2, [-1, -1], "no idea", "detail"),
        row(3, [9.5, 9], category="detail"),
        row(4, None, "7 7", category="video"), row("x", [9, 9], "8 9", category="video"),
    ])
    verdicts = read_verdicts(path)
    summary = summarise(verdicts)
    assert summary["relative"] == pytest.approx(
        {"conv": 100 * 11 / 17, "detail": 100 * 9.5 / 9, "complex": None, "video": 100.0, "all": 100 * 36.5 / 42}
    )
    assert (summary["unparsed"], summary["unparsed_ids"], summary["stored_conflicts"]) == (1, ["2"], 1)
    assert summary["outcomes"]["all"] == {"win": 1, "tie": 2, "loss": 2}
    assert summary["mean"]["conv"] == [5.5, 8.5]
    assert (summary["interval"]["complex"], summary["mean"]["complex"]) == (None, None)
    assert summarise(verdicts, "paper-1")["relative"]["conv"] == pytest.approx(100 * (8 - 1) / (9 - 1))
    assert summarise(verdicts, "paper-2")["relative"]["detail"] == pytest.approx(100 * (9.5 + 1) / (9 + 9))
    assert summarise(verdicts, "paper-2")["unparsed"] == 3
    with pytest.raises(ConfigError, match="`best` is not one of reparse, paper-1, paper-2"):
        summarise(verdicts, "best")


def test_both_orders_are_averaged_and_the_model_comes_first(tmp_path: Path) -> None:
    path = write(tmp_path / "v.jsonl", [
        row(0, [6, 8], order="given"), row(0, None, "9 7\nAssistant 2 lost.", order="swapped"),
        row(1, None, "nothing", order="given", attempt=1), row(1, None, "Scores: 5 10", order="given", attempt=2),
        row(1, [6, 6], order="swapped"), row(2, [4, 8], order="given"), row(2, None, "who knows", order="swapped"),
    ])
    summary = summarise(read_verdicts(path))
    assert summary["mean"]["conv"] == pytest.approx([(6.5 + 5.5 + 4) / 3, (8.5 + 8 + 8) / 3])
    assert (summary["questions"], summary["verdicts"], summary["unparsed"]) == (3, 6, 1)
    assert summary["orders"]["given"] == {"relative": pytest.approx(100 * 15 / 26), "verdicts": 3}
    assert summary["orders"]["swapped"] == {"relative": pytest.approx(100 * 13 / 15), "verdicts": 3}


def test_the_interval_is_that_of_a_plain_bootstrap(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    pairs = generator.integers(4, 11, (40, 2))
    verdicts = read_verdicts(write(tmp_path / "v", [row(n, [int(a), int(b)]) for n, (a, b) in enumerate(pairs)]))
    ratios = []
    for _ in range(4000):
        drawn = pairs[generator.integers(0, 40, 40)]
        ratios.append(100 * drawn[:, 0].sum() / drawn[:, 1].sum())
    assert summarise(verdicts)["interval"]["all"] == pytest.approx(np.percentile(ratios, [2.5, 97.5]), abs=1.0)


@pytest.mark.parametrize("value", [None, [-1, -1], [8], [8, 11], [True, 8], ["8", "x"], [float("nan"), 8], "8", "-1 -1"])
def test_what_is_no_pair_of_scores_counts_as_a_failure(value: object) -> None:
    assert stored_scores(value) is None


@pytest.mark.parametrize("value", [[8, 9.5], ["8", " 9.5"], "8 9.5", "(8, 9.5)", "[8,9.5]"])
def test_scores_may_be_stored_as_text(value: object) -> None:
    assert stored_scores(value) == (8, 9.5)


def test_verdicts_without_ids_are_read_in_order(tmp_path: Path) -> None:
    rows = [{"category": "conv", "content": "x", "tuple": pair} for pair in ([8, 9], [-1, -1], [4, 9])]
    (tmp_path / "v.json").write_text(json.dumps(rows))
    verdicts = read_verdicts(tmp_path / "v.json")
    assert [verdict.question for verdict in verdicts] == ["1", "2", "3"]
    assert summarise(verdicts)["unparsed_ids"] == ["2"]
    rows[1]["question_id"] = 7
    (tmp_path / "v.json").write_text(json.dumps(rows[1:] + rows[:1]))
    with pytest.raises(DataError, match='item 2: expected "question_id"'):
        read_verdicts(tmp_path / "v.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no verdict in it"),
        ("[]", "no verdict in it"),
        ("[1]", r"item 1: expected a JSON object, found int"),
        (json.dumps(row()) + "\n" + json.dumps(row()), r"v:2: question 0 was judged before, at .*v:1; keep one"),
        (json.dumps(row(None)), r'v:1: expected "question_id" to be a number or a string, found None'),
        (json.dumps(row(category="")), r'v:1: question 0: expected "category" to be a string \(conv, detail, complex\)'),
        (json.dumps(row(content=5)), r'v:1: question 0: expected "content" to be the text'),
        (json.dumps(row(order="other")), r"\"order\" is 'other'.*given or swapped"),
        ('{"question_id": 0', r"v:1: not JSON"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "v").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_verdicts(tmp_path / "v")

"""local/score_answers.py: answers become figures of metrics.json, with their intervals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def score(folder: Path, top: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(top / "local/score_answers.py"), "--out", "answers.json", *words],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )


def test_shares_and_error_rates_have_intervals(tmp_path: Path, top: Path) -> None:
    rows = [
        {"id": f"{number}-{task}", "task": task, "reference": "红色。", "text": "红色" if number < right else "红"}
        for number in range(10) for task, right in (("vl", 10), ("caption", 5))
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["image/accuracy=a.jsonl#vl", "image/caption_cer=a.jsonl#caption", "image/chance=chance:a.jsonl#vl"]
    result = score(tmp_path, top, *words)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "answers.json").read_text())
    assert found["image"] == {"accuracy": 100, "caption_cer": 25, "chance": 100}
    low, high = found["intervals"]["image"]["accuracy"]
    assert (low, high) == (pytest.approx(100 * 10 / (10 + 1.959964**2), abs=0.01), 100)  # Wilson's, all right
    low, high = found["intervals"]["image"]["caption_cer"]
    assert 5 < low < 25 < high < 45
    assert set(found["intervals"]["image"]) == {"accuracy", "caption_cer"}
    assert "image/accuracy: 100.00 % (72.25 to 100.00) of 10 (vl)" in result.stdout
    shown = subprocess.run(
        [sys.executable, str(top / "local/show_results.py"), "--out", "metrics.json", "--answers", "answers.json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )
    assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize(
    ("rows", "word", "message"),
    [
        ([{"id": "a", "task": "vl", "text": "x"}], "a/b=a.jsonl#vl", "a.jsonl:1: needs `id`, `reference` and `text`"),
        ([{"id": "a", "task": "vl", "text": "x", "reference": "x"}] * 2, "a/b=a.jsonl#vl", "a.jsonl:2: id a is doubled"),
        ([{"id": "a", "task": "vl", "text": "x", "reference": "x"}], "a/b=a.jsonl#vsd", "no answer to task `vsd`; it has vl"),
        ([], "a/b=a.jsonl", "expected KEY=FILE#TASK"),
    ],
)
def test_broken_answers_are_named(rows: list, word: str, message: str, tmp_path: Path, top: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = score(tmp_path, top, word)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "answers.json").exists()

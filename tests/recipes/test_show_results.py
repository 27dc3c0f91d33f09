"""local/show_results.py: scores and minutes become one table and one metrics.json."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCORE = {"counts": {"N": 200, "S": 3, "D": 1, "I": 2}, "cer": 3.0, "interval": [1.5, 4.75]}


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    (tmp_path / "score.json").write_text(json.dumps(SCORE))
    (tmp_path / "minutes.tsv").write_text("stage\ttitle\tminutes\n1\tmake it\t0.50\n11\ttrain\t6.25\n")
    return tmp_path


def show(folder: Path, top: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(top / "local/show_results.py"), "--out", "report/metrics.json", *words],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )


def test_metrics_are_merged_and_shown(scores: Path, top: Path) -> None:
    (scores / "report").mkdir()
    old = {"video": {"chance": 25}, "cif_asr": {"clean": {"S": 9.0, "S+V": 1.0}, "mixed": {"S": 8.0}}}
    (scores / "report/metrics.json").write_text(json.dumps(old))
    result = show(scores, top, "--minutes", "minutes.tsv", "cif_asr/clean/S=score.json", "cif_asr/noisy/S+V=score.json",
                  "cif_asr/unseen/S=absent.json")
    assert result.returncode == 0, result.stderr
    assert json.loads((scores / "report/metrics.json").read_text()) == {
        "video": {"chance": 25},
        "cif_asr": {"clean": {"S": 3.0, "S+V": 1.0}, "mixed": {"S": 8.0}, "noisy": {"S+V": 3.0}},
        "minutes": {"1": 0.5, "11": 6.25, "total": 6.75},
    }
    row = next(line for line in result.stdout.splitlines() if "noisy" in line)
    for word in ("cif_asr", "S+V", "3.00", "1.50 - 4.75", "200"):
        assert word in row
    assert "not scored yet: absent.json" in result.stdout


def test_nothing_scored_writes_nothing(scores: Path, top: Path) -> None:
    result = show(scores, top, "cif_asr/clean/S=absent.json")
    assert result.returncode == 0
    assert not (scores / "report").exists()


@pytest.mark.parametrize(
    ("content", "word", "message"),
    [
        ("{broken", "a/b/S=bad.json", "bad.json: not JSON"),
        ("{}", "a/b/S=bad.json", "bad.json: not a score file"),
        ("{}", "bad.json", "expected KEY=FILE"),
    ],
)
def test_broken_files_are_named(scores: Path, top: Path, content: str, word: str, message: str) -> None:
    (scores / "bad.json").write_text(content)
    result = show(scores, top, "a/c/S=score.json", word)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (scores / "report").exists()


def test_broken_minutes_name_the_line(scores: Path, top: Path) -> None:
    (scores / "minutes.tsv").write_text("stage\ttitle\tminutes\n1 make 2\n")
    result = show(scores, top, "--minutes", "minutes.tsv", "a/c/S=score.json")
    assert result.returncode == 1
    assert "minutes.tsv:2: expected stage, title and minutes" in result.stderr

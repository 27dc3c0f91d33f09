from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from xllm_speech.bin import judge
from xllm_speech.metrics import judged

sys.path.insert(0, str(Path(__file__).parents[1] / "infer"))
from stub_endpoint import Reply, Stub, chat

PROGRAM = """
import argparse, sys
from xllm_speech.bin import judge
parser = argparse.ArgumentParser()
judge.add_arguments(parser)
sys.exit(judge.run(parser.parse_args()))
"""
KEY = "sk-very-secret"


def call(*words: object) -> int:
    parser = argparse.ArgumentParser()
    judge.add_arguments(parser)
    return judge.run(parser.parse_args([str(word) for word in words]))


def question_set(folder: Path, number: int = 6) -> list[object]:
    words: list[object] = []
    for name, rows in {
        "questions": [{"question_id": n, "text": f"what {n}?", "category": "conv"} for n in range(number)],
        "answers": [{"question_id": n, "text": f"ours {n}"} for n in range(number)],
        "reference": [{"question_id": n, "text": f"theirs {n}"} for n in range(number)],
    }.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        words += [f"--{name}", folder / name]
    return words


def test_the_choices_are_those_of_the_library() -> None:
    assert judge.POLICIES == judged.POLICIES


@pytest.mark.parametrize(("policy", "conv"), [("reparse", 79.2), ("paper-1", 85.4), ("paper-2", 70.7)])
def test_summarize_prints_json_or_a_table(
    policy: str, conv: float, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shared_data / "annotation_samples" / "xllm_eval_llava" / "review.jsonl"
    assert call("summarize", path, "--failures", policy, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert round(summary["relative"]["conv"], 1) == conv
    assert list(summary["relative"]) == ["conv", "detail", "complex", "all"]
    assert summary["policy"] == policy
    assert call("summarize", path, "--failures", policy) == 0
    shown = capsys.readouterr().out
    assert f" {conv} " in shown
    assert f"failures: {policy}; {summary['unparsed']} unparsed" in shown
    assert ("7 read from their text, 2 of them contradict themselves: questions 36, 39" in shown) == (policy == "reparse")


def test_a_killed_run_goes_on_and_asks_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    process: list[subprocess.Popen[str]] = []
    answered: Counter[str] = Counter()

    def script(request: dict[str, Any], number: int) -> Reply:
        if number == 6:
            os.kill(process[0].pid, signal.SIGKILL)
            process[0].wait()
            return chat("9 1")
        answered[request["messages"][1]["content"]] += 1
        return chat("Scores: 6 8")

    stub = Stub(script)
    try:
        words = ["run", *question_set(tmp_path), "--url", stub.url, "--model", "judge", "--out", tmp_path / "v.jsonl"]
        words[words.index(stub.url)] = stub.url + "?token=quiet"
        command = [sys.executable, "-c", PROGRAM, *map(str, words), "--api-key-env", "JUDGE_KEY"]
        environment = {**os.environ, "JUDGE_KEY": KEY}
        process.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
        assert process[0].wait(60) == -signal.SIGKILL
        assert len((tmp_path / "v.jsonl").read_text().splitlines()) == 5
        again = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60, env=environment)
    finally:
        stub.close()
    assert again.returncode == 0, again.stderr
    assert "6 questions: 7 verdicts asked for, 5 there before, 0 without scores" in again.stderr
    assert set(answered.values()) == {1}
    assert len(answered) == 12
    summary = json.loads(again.stdout)
    assert (summary["verdicts"], summary["questions"], summary["unparsed"]) == (12, 6, 0)
    assert summary["orders"]["given"]["relative"] == pytest.approx(75)
    assert summary["orders"]["swapped"]["relative"] == pytest.approx(100 * 8 / 6)
    assert stub.headers[-1]["authorization"] == f"Bearer {KEY}"
    left = "".join(path.read_text() for path in tmp_path.iterdir())
    for secret in (KEY, "quiet"):
        assert secret not in left + again.stdout + again.stderr


def test_questions_without_an_answer_are_named_and_make_the_run_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    stub = Stub(lambda request, _: Reply(b"no", 400) if "what 1?" in request["messages"][1]["content"] else chat("6 8"))
    try:
        words = ["run", *question_set(tmp_path, 2), "--url", stub.url, "--model", "judge", "--out", tmp_path / "v.jsonl"]
        assert call(*words, "--orders", "given") == 1
        shown = capsys.readouterr()
        assert "question 1, order given: " in shown.err
        assert "1 verdicts are missing; the same command asks for them" in shown.err
        assert "1 verdicts on 1 questions" in shown.out
        question_set(tmp_path, 1)
        words[-1] = tmp_path / "w.jsonl"
        monkeypatch.setattr("xllm_speech.infer.judge.FAILURES_IN_A_ROW", 9)
        (tmp_path / "questions").write_text('{"question_id": 0, "text": "what 1?", "category": "conv"}\n')
        assert call(*words) == 1
    finally:
        stub.close()

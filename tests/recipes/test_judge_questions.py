"""local/judge_questions.py of the mini recipe: answers become a question set that `xllm-speech judge run` reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from xllm_speech.infer.judge import read_questions


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def talk(name: str, task: str, items: list[dict], answer: str, **custom: str) -> dict:
    messages = [{"role": "user", "content": items}, {"role": "assistant", "content": answer}]
    return {"id": name, "task": task, "messages": messages, "custom": custom}


def test_questions_have_their_answers_and_the_caption_as_context(tmp_path: Path, top: Path) -> None:
    image = {"type": "image", "path": "1.png"}
    talks = [talk("c", "caption", [image], "红色的圆形")]
    talks += [talk(f"t{number}", "vl", [image, {"type": "text", "text": f"问{number}"}], "红色") for number in range(6)]
    talks.append(talk("s", "vsd", [image, {"type": "speech", "path": "s.flac"}], "红色", question="说的问"))
    talks.append(talk("e", "asr", [{"type": "speech", "path": "s.flac"}], "红色"))
    answers = [
        {"id": row["id"], "task": row["task"], "text": f"我{row['id']}", "reference": row["messages"][1]["content"]}
        for row in talks
    ]
    words = [sys.executable, str(top / "egs/mini_vsdial/local/judge_questions.py"), "--out", str(tmp_path / "set")]
    words += ["--each", "4", "--conversations", str(write(tmp_path / "talks", talks)), "--answers"]
    done = subprocess.run([*words, str(write(tmp_path / "answers", answers))], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = {name: tmp_path / "set" / f"{name}.jsonl" for name in ("questions", "answers", "reference", "contexts")}
    questions = {question.id: question for question in read_questions(*files.values())}
    assert sorted(question.category for question in questions.values()) == ["conv"] * 4 + ["detail", "spoken"]
    said = questions["s"]
    assert (said.text, said.model_answer, said.reference_answer, said.context) == ("说的问", "我s", "红色", "红色的圆形")
    assert questions["c"].text == "请描述这张图片。"
    stale = write(tmp_path / "stale", [{**answers[0], "id": "gone"}])
    done = subprocess.run([*words, str(stale)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "gone is not in" in done.stderr

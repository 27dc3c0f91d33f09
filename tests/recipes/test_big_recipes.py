"""What the recipes of the real corpora share: missing inputs, split decodings, batches on fewer GPUs, filtered speech."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import corpora
import pytest

from xllm_speech.base.files import read_jsonl, write_json, write_jsonl


def script(top: Path, name: str, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(top / name), *words], capture_output=True, text=True, timeout=60, check=False, cwd=cwd
    )


def test_what_is_missing_is_told_by_stage(top: Path, tmp_path: Path) -> None:
    here = corpora.aishell1(tmp_path, speakers=1, utterances=1)
    words = [f"aishell1@1:--aishell1-dir={here}", "chatglm@21-22,40:--weights-dir=/nowhere/glm", "blip2@20:--weights-dir="]
    done = script(top, "local/check_weights.py", *words)
    assert done.returncode == 1
    assert "2 of 3 corpora and weights are missing" in done.stderr
    assert "ChatGLM-6B (about 13 GB), for stage 21-22,40\n    /nowhere/glm: not there" in done.stderr
    assert "no place named" in done.stderr
    assert "AISHELL" not in done.stderr
    assert script(top, "local/check_weights.py", "--stop-stage", "19", *words).returncode == 0
    assert script(top, "local/check_weights.py", "--stage", "22", "--stop-stage", "30", *words).returncode == 1
    assert script(top, "local/check_weights.py", "--stage", "23", "--stop-stage", "39", *words).returncode == 0
    assert script(top, "local/check_weights.py", "--plan", *words).returncode == 0
    (here / "transcript/aishell_transcript_v0.8.txt").unlink()
    assert "holds no data_aishell/transcript/*.txt, and no" in script(top, "local/check_weights.py", *words).stderr
    for word in ("aishel@1:--a=b", "aishell1@x:--a=b", "aishell1=b"):
        wrong = script(top, "local/check_weights.py", word)
        assert (wrong.returncode, "Traceback" in wrong.stderr) == (2, False), wrong.stderr
        assert word in wrong.stderr or "stages `x`" in wrong.stderr


def test_parts_are_put_together_in_order_and_a_lost_part_is_named(top: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "cuts.jsonl.gz", ({"id": f"u{number}"} for number in range(7)))
    parts, out = tmp_path / "parts", tmp_path / "S.jsonl"
    assert script(top, "local/spread.py", "split", str(tmp_path / "cuts.jsonl.gz"), "3", "--out", str(parts)).returncode == 0
    for number in (1, 2, 3):
        rows = [{"id": row["id"], "text": row["id"]} for _, row in read_jsonl(parts / f"{number}.jsonl.gz")]
        write_jsonl(parts / f"{number}.jsonl", rows)
        meta = {"model": "m", "utterances": len(rows), "failed": 0, "audio_sec": 10.0, "wall_sec": float(number)}
        write_json(parts / f"{number}.jsonl.meta.json", meta)
    lost = (parts / "2.jsonl").read_text()
    (parts / "2.jsonl").write_text(lost.splitlines()[0] + "\n")
    done = script(top, "local/spread.py", "merge", str(out), str(parts))
    assert done.returncode == 1
    assert "2.jsonl: 1 of 2 lines are there" in done.stderr
    assert not out.exists()
    (parts / "2.jsonl").write_text(lost)
    assert script(top, "local/spread.py", "merge", str(out), str(parts)).returncode == 0
    assert [row["id"] for _, row in read_jsonl(out)] == [f"u{number}" for number in range(7)]
    meta = json.loads(Path(f"{out}.meta.json").read_text())
    assert (meta["utterances"], meta["audio_sec"], meta["wall_sec"], meta["rtf"], meta["parts"]) == (7, 30.0, 3.0, 0.1, 3)
    write_jsonl(tmp_path / "a.jsonl", [{"id": "u5"}, {"id": "u2"}])
    write_jsonl(tmp_path / "b.jsonl.gz", [{"id": "u0"}])
    pairs = [f"{tmp_path}/{cuts}={tmp_path}/{hyp}" for cuts, hyp in (("a.jsonl", "a/S.jsonl"), ("b.jsonl.gz", "b/S.jsonl"))]
    assert script(top, "local/spread.py", "deal", str(out), *pairs).returncode == 0
    assert [row["id"] for _, row in read_jsonl(tmp_path / "a/S.jsonl")] == ["u5", "u2"]
    assert json.loads((tmp_path / "b/S.jsonl.meta.json").read_text())["utterances"] == 1
    write_jsonl(tmp_path / "b.jsonl.gz", [{"id": "u2"}])
    assert "u2 stands in another" in script(top, "local/spread.py", "deal", str(out), *pairs).stderr
    write_jsonl(tmp_path / "b.jsonl.gz", [{"id": "u9"}])
    assert "nothing for u9" in script(top, "local/spread.py", "deal", str(out), *pairs).stderr
    few = script(top, "local/spread.py", "split", str(tmp_path / "cuts.jsonl.gz"), "20", "--out", str(tmp_path / "few"))
    assert "7 lines in 7 parts" in few.stdout
    (tmp_path / "empty.jsonl").write_text("")
    empty = script(top, "local/spread.py", "split", str(tmp_path / "empty.jsonl"), "2", "--out", str(tmp_path / "no"))
    assert (empty.returncode, (tmp_path / "no").exists()) == (1, False)


@pytest.mark.parametrize(
    ("given", "paper", "said"),
    [
        ("device=cuda gpus=8 nodes=1 train_cmd=local", "8 16", "devices=8 accumulate=16"),
        ("device=cuda gpus=2 nodes=1 train_cmd=local", "8 16", "devices=2 accumulate=64"),
        ("device=cuda gpus=8 nodes=1 train_cmd=local", "2 16", "devices=2 accumulate=16"),
        ("device=cuda gpus=8 nodes=1 train_cmd='torchrun 8'", "2 16", "devices=8 accumulate=4"),
        ("device=cuda gpus=16 nodes=2 train_cmd='srun -N 2'", "8 16", "devices=8 accumulate=8"),
        ("device=cpu gpus=8 nodes=1 train_cmd=local", "8 1", "devices=1 accumulate=8"),
        ("device=cuda gpus=3 nodes=1 train_cmd=local", "8 16", "--gpus 3: 128 batches make a step"),
    ],
)
def test_a_step_sees_as_much_on_fewer_gpus(top: Path, given: str, paper: str, said: str) -> None:
    line = f". {top}/local/big_recipes.sh; {given}; gpu_words {paper}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=20, check=False)
    if said.startswith("--gpus"):
        assert (done.returncode, said in done.stderr) == (2, True)
        return
    assert done.stdout.split()[1:] == [f"train.{word}" for word in said.split()]


def test_each_recording_is_kept_once(top: Path, tmp_path: Path) -> None:
    rows = [{"id": f"q{number}", "recording": {"id": f"s{number % 2}"}} for number in range(5)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    words = ["--cuts", str(tmp_path / "train.jsonl"), "--out", str(tmp_path / "once.jsonl")]
    done = script(top, "egs/vsdial_cn/local/spoken.py", *words)
    assert done.returncode == 0, done.stderr
    assert [row["id"] for _, row in read_jsonl(tmp_path / "once.jsonl")] == ["q0", "q1"]


TRANSCRIBE = """
set -euo pipefail
stage_dir=. stage_current=16 nj=1 device=cpu decode_cmd=local decode_parts=3
. {top}/utils/run_cmd.sh
. {top}/local/big_recipes.sh
xllm-speech() {{ # transcribe --cuts CUTS --out OUT ...
  echo "part ${{5##*/}}" >>asked
  if [ "${{5##*/}}" = "$(cat fails)" ]; then return 1; fi
  zcat "$3" >"$5" && echo '{{"model": "m", "utterances": 2}}' >"$5.meta.json"
}}
transcribe cuts.jsonl.gz heard.jsonl --model m
"""


def test_parts_that_were_finished_before_a_kill_are_taken_up(top: Path, tmp_path: Path) -> None:
    folder = tmp_path / "house/egs/x"
    folder.mkdir(parents=True)
    (tmp_path / "house/local").symlink_to(top / "local")
    write_jsonl(folder / "cuts.jsonl.gz", ({"id": f"u{number}"} for number in range(6)))
    (folder / "16.began").write_text("needs model 1\n")

    def transcribe(fails: str) -> tuple[int, list[str]]:
        (folder / "fails").write_text(fails)
        (folder / "asked").write_text("")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", TRANSCRIBE.format(top=top)], cwd=folder, env={**os.environ, "PATH": path}, capture_output=True,
            text=True, timeout=60, check=False,
        )
        return done.returncode, (folder / "asked").read_text().splitlines()

    assert transcribe("2.jsonl") == (1, ["part 1.jsonl", "part 2.jsonl", "part 3.jsonl"])
    assert not (folder / "heard.jsonl").exists()
    assert transcribe("none") == (0, ["part 2.jsonl"])
    assert [row["id"] for _, row in read_jsonl(folder / "heard.jsonl")] == [f"u{number}" for number in range(6)]
    assert not (folder / "heard.jsonl.parts").exists()

    assert transcribe("2.jsonl")[0] == 1
    (folder / "16.began").write_text("needs model 2\n")  # another model: nothing of the old parts is taken
    assert transcribe("none") == (0, ["part 1.jsonl", "part 2.jsonl", "part 3.jsonl"])


def test_llava_test_finds_its_pictures_and_hands_answers_to_the_judge(top: Path, tmp_path: Path) -> None:
    name, image = "egs/vsdial_cn/local/llava_test.py", f"{corpora.LLAVA_TEST_ID:012d}.jpg"
    questions = corpora.write_json(tmp_path / "questions.json", [{"question_id": 0, "image": image, "text_zh": "是什么？"}])
    words = ["pictures", "--questions", str(questions), "--coco", str(tmp_path / "coco"), "--out", str(tmp_path / "images")]
    lacking = script(top, name, *words)
    assert lacking.returncode == 1
    assert f"no picture {image}" in lacking.stderr
    assert not (tmp_path / "images").exists()
    picture = corpora.picture(tmp_path / f"coco/val2014/COCO_val2014_{image}")
    assert script(top, name, *words).returncode == 0
    assert (tmp_path / "images" / image).resolve() == picture.resolve()

    answers = tmp_path / "answers.jsonl"
    write_jsonl(answers, [{"id": "question-0", "text": "一只狗"}, {"id": "question-7", "text": ""}])
    assert script(top, name, "texts", "--answers", str(answers), "--out", str(tmp_path / "texts.jsonl")).returncode == 0
    assert [row for _, row in read_jsonl(tmp_path / "texts.jsonl")] == [{"text": "一只狗"}]
    write_jsonl(tmp_path / "table.jsonl", [{"source": "一只狗", "target": "a dog"}])
    out = ["--table", str(tmp_path / "table.jsonl"), "--out", str(tmp_path / "judged.jsonl")]
    assert script(top, name, "answers", "--answers", str(answers), *out).returncode == 0
    assert [row for _, row in read_jsonl(tmp_path / "judged.jsonl")] == [
        {"question_id": 0, "text": "a dog"}, {"question_id": 7, "text": ""}
    ]


def test_results_stand_beside_the_papers(top: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "score.json", {"counts": {"N": 200, "S": 3, "D": 1, "I": 2}, "cer": 3.0, "interval": [1.5, 4.75]})
    relative = {"conv": 79.2, "detail": 82.2, "complex": 84.6, "all": 82.0}
    write_json(tmp_path / "judged.json", {"relative": relative, "unparsed": 2})
    done = script(
        top, "local/show_results.py", "--out", "metrics.json", "--markdown", "RESULTS.md", "--heading", "Results of x",
        "--judged", "X-LLM=judged.json", "X-LLM w/ 4M=absent.json", "--", "cif_asr/test-orig/S+V=score.json",
        "llm_asr/test-orig/S=absent.json", "llm_asr_4M/test-orig/S=score.json", cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "RESULTS.md").read_text()
    assert text.startswith("# Results of x\n")
    assert "| test set | CIF model S+V | X-LLM S | X-LLM (4M) S |" in text
    assert "| test-orig | 3.00 (1.50 to 4.75; paper 1.7) | – (paper 3.4) | 3.00 (1.50 to 4.75) |" in text
    assert "| X-LLM, 2 verdicts without scores | 79.2 | 82.2 | 84.6 | 82.0 |" in text
    (tmp_path / "judged.json").write_text("{}")
    words = ["--out", "m.json", "--markdown", "R.md", "--judged", "X-LLM=judged.json"]
    broken = script(top, "local/show_results.py", *words, cwd=tmp_path)
    assert (broken.returncode, (tmp_path / "R.md").exists()) == (1, False)
    assert "judged.json: no `relative` in it" in broken.stderr

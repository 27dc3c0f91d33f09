"""The mini recipe itself, from nothing to its table, on a miniature of its corpus; then again, and after a change."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "infer"))
from stub_endpoint import Stub, chat

MINIATURE = [
    "--corpus-options=--train 40 --train-images 60 --dev 8 --test 10 --train-clips 4 --test-clips 4 --texts 20",
    "--vision-options=--steps 2",
    "--lm-options=data.held_out=4 train.max_steps=4 train.save_every=4 train.eval_every=4 optim.warmup_steps=2 eval_items=2",
    "--xllm-options=train.max_steps=2 train.save_every=2 train.eval_every=2 optim.warmup_steps=1 data.batch_size=4 "
    "eval_items=2",
    "--condition-options=--limit 3 --max-tokens 8",
]
SMALL = "train.max_steps=4 train.save_every=2 train.eval_every=4 train.num_threads=1 optim.warmup_steps=2"


@pytest.fixture(scope="module")
def recipe(top: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe in a folder of its own, beside the toolkit's shared scripts."""
    house = tmp_path_factory.mktemp("house")
    for name in ("utils", "local", "conf", "xllm_speech"):
        (house / name).symlink_to(top / name)
    folder = house / "egs" / "mini_vsdial"
    ignore = shutil.ignore_patterns("data", "dump", "exp", "exp.*", "__pycache__")
    shutil.copytree(top / "egs" / "mini_vsdial", folder, ignore=ignore)
    return folder


def run(recipe: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run run.sh in the environment of the tests."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        [str(recipe / "run.sh"), *MINIATURE, *words], capture_output=True, text=True, timeout=1200,
        env={**os.environ, "XLLM_ENV": "none", "PATH": path}, check=False,
    )


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """A judge who likes the second answer better, wherever it comes from."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    stub = Stub(lambda request, number: chat("6 8\nwhy"))
    yield stub
    stub.close()


@pytest.mark.slow
def test_recipe_runs_to_its_table_and_again_does_nothing(recipe: Path, judge: Stub) -> None:
    judged = [f"--judge-url={judge.url}", "--judge-model=stub"]
    first = run(recipe, f"--train-options={SMALL}", *judged)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    metrics = json.loads((recipe / "exp/report/metrics.json").read_text())
    for model in ("cif_asr", "llm_asr"):
        assert set(metrics[model]) == {"mixed", "clean", "homophone", "noisy", "unseen"}
        for name, cer in metrics[model].items():
            assert set(cer) == {"S", "S+V"}, (model, name)
        assert set(metrics["homophone_accuracy"][model]) == {"S", "S+V"}
    assert set(metrics["image"]) == {"caption_cer", "question_accuracy", "blind_accuracy"}
    assert set(metrics["spoken_question"]) == {"accuracy", "no_image", "no_speech"}
    assert {"direction_accuracy", "chance"} <= set(metrics["video"])
    stages = {"0", "4", "10", "14", "15", "20", "21", "22", "30", "40", "41", "50", "51", "53", "54", "55"}
    assert stages | {"total"} <= set(metrics["minutes"])
    for prefix in ("", "llm_"):
        for condition in ("S", "S+V"):
            meta = json.loads((recipe / f"exp/decode/test_mixed/{prefix}{condition}.jsonl.meta.json").read_text())
            assert meta["images"] is (condition == "S+V")
            assert meta["failed"] == 0
    assert "CIF model" in first.stdout
    assert "spoken question" in first.stdout
    conditions = {
        model: list(json.loads((recipe / f"exp/conditions/{model}/conditions.json").read_text())["conditions"])
        for model in ("cif_asr", "llm_asr")
    }
    assert conditions["cif_asr"] == ["S", "S+V", "S+wrong", "S+blank"]
    assert conditions["llm_asr"] == ["S", "S+V", "S+wrong", "S+blank", "S+L", "S+V+L"]
    worded = json.loads((recipe / "exp/conditions/llm_asr/wordings.json").read_text())["wordings"]
    assert {name: len(table["conditions"]) for name, table in worded.items()} == {"S": 4, "S+V": 2}
    blind = json.loads((recipe / "exp/score/texts/typed_questions.json").read_text())["compare"]
    assert blind["hypothesis"] == "exp/answers/no_image.jsonl"
    summary = json.loads((recipe / "exp/judge/summary.json").read_text())
    assert (summary["relative"]["all"], summary["verdicts"]) == (100, len(judge.requests))
    assert summary["verdicts"] == 2 * summary["questions"] >= 40
    page = (recipe / "exp/report/index.html").read_text()
    assert "<html" in page[:200]
    for words in ("conditions side by side", "under every wording", "CIDEr", "token F1", "exp/judge/verdicts.jsonl"):
        assert words in page, words

    second = run(recipe, f"--train-options={SMALL}", *judged)
    assert second.returncode == 0
    assert second.stdout.count("up to date") >= 21
    assert "answers are not judged" not in second.stderr
    assert "(not done yet)" not in second.stdout

    plan = run(recipe, "--train-options", SMALL.replace("max_steps=4", "max_steps=5"), "--dry-run")
    assert plan.returncode == 0
    assert "answers are not judged: no --judge-url" in plan.stderr
    states = {line.split()[1]: line for line in plan.stdout.splitlines() if line.startswith("stage")}
    assert "up to date" in states["10"]
    assert "up to date" in states["20"]
    for number in ("11", "12", "13", "14", "15", "21", "22", "30", "40", "41", "50", "53", "54"):
        assert "would run" in states[number], states[number]

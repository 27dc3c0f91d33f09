"""egs/aishell2 from its corpora to its table on miniatures of both, again, without corpora, and with damaged ones."""

from __future__ import annotations

import json
from pathlib import Path

import corpora
import pytest
import tiny_weights
from tiny_recipes import ASR, copy_recipe, run

SPEECH = """base: {recipe}/conf/speech.yaml
model:
  llm: {{dtype: float32}}
  interfaces: {{speech: {{unit_width: 16, width: 16, layers: 1, heads: 2, feedforward: 24, positions: 64}}}}
data: {{num_workers: 0}}
optim: {{warmup_steps: 1}}
train: {{max_steps: 2, save_every: 2, eval_every: 2, num_threads: 1, precision: "32"}}
eval_items: 2
eval_tokens: 8
"""


@pytest.fixture(scope="module")
def recipe(top: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_recipe(top, tmp_path_factory.mktemp("house"), "aishell2")


@pytest.fixture(scope="module")
def words(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options for miniatures of all that the recipe reads."""
    folder = tmp_path_factory.mktemp("inputs")
    aishell1, aishell2 = corpora.aishell1(folder, utterances=3), corpora.aishell2(folder)
    for number, path in enumerate(sorted(folder.rglob("*.wav"))):
        corpora.wav(path, 0.8, seed=number)
    texts = [sentence.replace(" ", "") for sentence in corpora.SENTENCES]
    tiny_weights.make_chatglm(folder / "weights/chatglm-6b", texts)
    tiny_weights.make_bert(folder / "weights/bert-base-chinese", texts)
    (folder / "conf").mkdir()
    (folder / "conf/asr.yaml").write_text(ASR.format(recipe=recipe))
    (folder / "conf/speech.yaml").write_text(SPEECH.format(recipe=recipe))
    return [
        "--corpus-dir", str(aishell2), "--aishell1-dir", str(aishell1), "--weights-dir", str(folder / "weights"),
        "--conf", str(folder / "conf"), "--device", "cpu", "--gpus", "1", "--nj", "2", "--average", "2",
        "--xllm-options=train.accumulate=1", "--llm-decode-options=--max-tokens 8",
    ]


@pytest.mark.slow
def test_recipe_runs_to_its_table_and_again_does_nothing(recipe: Path, words: list[str]) -> None:
    first = run(recipe, *words)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    metrics = json.loads((recipe / "exp/report/metrics.json").read_text())
    for model in ("cif_asr", "llm_asr"):
        assert {name: set(cer) for name, cer in metrics[model].items()} == {
            name: {"S"} for name in ("test-ios", "test-android", "test-mic")
        }
    for name in ("S", "llm_S"):  # decoded in two parts and put together
        lines = (recipe / f"exp/decode/test-mic/{name}.jsonl").read_text().splitlines()
        assert [json.loads(line)["id"] for line in lines] == [f"MT0013W{number:04d}" for number in range(3)]
        meta = json.loads((recipe / f"exp/decode/test-mic/{name}.jsonl.meta.json").read_text())
        assert (meta["parts"], meta["utterances"], meta["failed"], meta["sets_together"]) == (2, 3, 0, 3)
        assert not list((recipe / "exp/decode").rglob("*.parts"))
        assert not list((recipe / "exp/decode").rglob("*.all*"))
    results = (recipe / "RESULTS.md").read_text()
    ios = next(line for line in results.splitlines() if line.startswith("| test-ios"))
    assert "paper 6.0" in ios
    assert "paper 8.7" in ios
    assert f"{metrics['cif_asr']['test-ios']['S']:.2f} (" in ios
    assert (recipe / "exp/report/index.html").stat().st_size > 1000
    assert "AISHELL-1 and AISHELL-2" in (recipe / "exp/export/README.md").read_text()
    assert (recipe / "exp/export/llm/config.json").is_file()

    second = run(recipe, *words)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count(": up to date") == 13
    assert "(not done yet)" not in second.stdout

    plan = run(recipe, *words, "--asr-options", "optim.lr=1e-4", "--dry-run")
    states = {line.split()[1]: line for line in plan.stdout.splitlines() if line.startswith("stage")}
    assert plan.returncode == 0
    assert "up to date" in states["3"]
    for number in ("11", "12", "13", "14", "15", "21", "40", "50", "52", "60"):
        assert "would run" in states[number], states[number]
    asked = run(recipe, *words, "--stage", "65")
    assert asked.returncode == 2
    assert "only with --demo true" in asked.stderr


def test_without_corpora_the_plan_is_shown_and_a_run_says_what_is_missing(top: Path, tmp_path: Path) -> None:
    recipe = copy_recipe(top, tmp_path, "aishell2")
    plan = run(recipe, "--dry-run", "true")
    assert plan.returncode == 0, plan.stderr
    numbers = [line.split()[1] for line in plan.stdout.splitlines() if line.startswith("stage")]
    assert numbers == ["1", "2", "3", "11", "12", "13", "14", "15", "21", "40", "50", "52", "60"]
    assert "4 of 4 corpora and weights are missing" in plan.stderr
    started = run(recipe)
    assert started.returncode == 1
    for what in ("AISHELL-1 (about 20 GB), for stage 1", "--corpus-dir", "https://www.openslr.org/33/", "zai-org/chatglm-6b"):
        assert what in started.stderr
    assert not (recipe / "data").exists()
    asr = run(recipe, "--stop-stage", "19", "--corpus-dir", str(tmp_path))
    assert asr.returncode == 1
    assert "2 of 2 corpora and weights are missing" in asr.stderr
    assert f"{tmp_path}: holds no iOS/data/trans.txt" in asr.stderr


def test_a_damaged_corpus_is_reported(top: Path, tmp_path: Path) -> None:
    (tmp_path / "house").mkdir()
    recipe = copy_recipe(top, tmp_path / "house", "aishell2")
    aishell1, aishell2 = corpora.aishell1(tmp_path), corpora.aishell2(tmp_path)
    gone = sorted((aishell1 / "wav/train").rglob("*.wav"))[:5]
    for path in gone:
        path.unlink()
    words = ["--corpus-dir", str(aishell2), "--aishell1-dir", str(aishell1), "--stop-stage", "1", "--nj", "1"]
    done = run(recipe, *words)
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "5 rejected (text-without-audio 5) of 8 items" in said
    assert "rejected.jsonl" in said
    assert "Traceback" not in said
    rows = [json.loads(line) for line in (recipe / "data/aishell1/train/rejected.jsonl").read_text().splitlines()]
    assert {(row["id"], row["reason"]) for row in rows} == {(path.stem, "a transcript without its recording") for path in gone}
    again = run(recipe, *words, "--max-rejected", "0.7")
    assert again.returncode == 0, again.stderr
    assert "120098 were published" in again.stdout  # toy counts are not those of the corpus, and it says so

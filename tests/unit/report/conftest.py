"""An experiment folder in miniature, as recipes leave one: a model, trainings, scores, answers with media, minutes."""

from __future__ import annotations

import shutil

import pytest

from xllm_speech.base.files import write_json, write_jsonl
from xllm_speech.metrics.score_file import NormalForm, score_files, write_score
from xllm_speech.text.normalise import NORMALISER, cer_tokens, mer_tokens, normalise


@pytest.fixture(scope="session")
def finished(world, tmp_path_factory):
    """A recipe's folder with `exp` inside; tests take copies of it."""
    top = tmp_path_factory.mktemp("recipe") / "tiny_recipe"
    exp = top / "exp"
    (top / "data" / "test_one").mkdir(parents=True)
    shutil.copy(world.cuts, top / "data" / "test_one" / "cuts.jsonl.gz")
    reference = top / "data" / "test_one" / "text"
    shutil.copytree(world.asr, exp / "asr" / "final")
    write_json(exp / "asr" / "header.json", {
        "torch": "2.0", "seed": 7, "threads": 2, "processes": 1, "trained_parameters": 77, "command": ["xllm-speech", "train"],
        "settings": {"task": "asr", "train": {"max_steps": 40}},
    })
    rows = [
        {"kind": "train", "step": step, "loss": 9.0 / step, "ce": 4.0 / step, "lr": 1e-3, "step_sec": 0.5}
        for step in (10, 20, 30)
    ]
    write_jsonl(exp / "asr" / "train.log", [*rows, {"kind": "dev", "step": 30, "cer": 12.5}])

    questions = ("是什么颜色", "在哪里", "有几个")
    texts = {f"u{number}": f"{'红绿蓝黄'[number % 4]}色{questions[number % 3]}" for number in range(12)}
    reference.write_text("".join(f"{id} {text}\n" for id, text in texts.items()), encoding="utf-8")
    rates: dict[str, dict[str, float]] = {}
    form = NormalForm(NORMALISER, normalise, cer_tokens, mer_tokens)
    for method, image, name, wrong in (("cif", False, "S", 4), ("cif", True, "S+V", 1), ("llm", False, "llm_S", 3)):
        hypothesis = exp / "decode" / "test_one" / f"{name}.jsonl"
        write_jsonl(hypothesis, [
            {"id": id, "text": text.replace("色", "瑟") if place < wrong else text}
            for place, (id, text) in enumerate(texts.items())
        ])
        meta = {"method": method, "images": image, "model": "exp/asr", "audio_sec": 10.0, "wall_sec": 2.0}
        write_json(f"{hypothesis}.meta.json", meta)
        score = score_files(reference, hypothesis, form, set_name=f"test_one {name.removeprefix('llm_')}")
        # A recipe runs in its own folder, so its paths hold from there.
        write_score(exp / "score" / "test_one" / f"{name}.json", score | {"reference": "data/test_one/text"})
        rates.setdefault(f"{method}_asr", {})[name.removeprefix("llm_")] = round(score["cer"], 3)

    tasks = {"caption": "色的圆形", "vl": "色", "vsd": "色", "video": "色的圆形移动"}
    for name, without in (("all", []), ("no_image", ["image"])):
        write_jsonl(exp / "answers" / f"{name}.jsonl", [
            {"id": f"{number}-{task}", "task": task, "text": "红色", "reference": "红绿蓝黄"[number % 4] + ending}
            for number in range(12) for task, ending in tasks.items() if not (without and task in ("caption", "video"))
        ])
        prompt = {"wording": None, "instructions": {"caption": ["请详细描述这张图片。"]}}
        meta = {"conversations": str(world.talks), "without": without, "prompt": prompt}
        write_json(exp / "answers" / f"{name}.jsonl.meta.json", meta)
    write_json(exp / "report" / "metrics.json", {
        **{model: {"one": row} for model, row in rates.items()}, "minutes": {"0": 0.5, "total": 0.5},
        "homophone_accuracy": {"cif_asr": {"S": 51.0}}, "image": {"question_accuracy": 64.0, "blind_accuracy": 25.0},
    })
    (exp / "minutes.tsv").write_text("stage\ttitle\tminutes\n0\tmake the corpus\t0.50\n11\ttrain\t2.25\n", encoding="utf-8")
    (top / "run.sh").write_text('stage 0 "make the corpus" --\nstage 11 "train" --\nstage 40 "answer" --\n', encoding="utf-8")
    return top


@pytest.fixture
def exp(finished, tmp_path):
    """A copy to change."""
    shutil.copytree(finished, tmp_path / "tiny_recipe")
    return tmp_path / "tiny_recipe" / "exp"

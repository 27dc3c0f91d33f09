"""egs/vsdial_cn from its corpora to its tables on miniatures, again, without corpora, and with damaged ones."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import corpora
import pytest
import tiny
import tiny_weights
from tiny_recipes import ASR, copy_recipe, interrupt, run, start

from xllm_speech.base.files import read_jsonl, write_jsonl

sys.path.insert(0, str(Path(__file__).parents[1] / "unit/infer"))
from stub_endpoint import Reply, Stub, chat

SIZES = """
model:
  llm: {{dtype: float32}}
  interfaces:
    image: {{qformer: {{encoder_width: 48, queries: 5, width: 32, layers: 3, heads: 4, feedforward: 48}}}}
    speech: {{unit_width: 16, width: 16, layers: 1, heads: 2, feedforward: 24, positions: 64}}
  video_frames: 2
data: {{num_workers: 0, epoch_batches: 8}}
optim: {{warmup_steps: 1}}
train: {{max_steps: 2, save_every: 2, eval_every: 2, num_threads: 1, precision: "32"}}
eval_items: 1
eval_tokens: 4
"""
SPEAK = """import sys, zlib
import numpy, soundfile
noise = numpy.random.default_rng(zlib.crc32(sys.argv[1].encode())).standard_normal(12800)
soundfile.write(sys.argv[2], 0.1 * noise, 16000)
"""
STAGES = [
    "0", "1", "2", "3", "4", "5", "6", "11", "12", "13", "14", "15", "16", "20", "21", "22", "30", "40", "41", "50", "52", "53",
    "59", "60",
]
CATEGORIES = ("conv", "detail", "complex")


def chinese(number: int) -> str:
    """A text of its own for every number."""
    return "".join("零一二三四五六七八九"[int(digit)] for digit in f"{number:03d}") + "号的问题"


def write_table(path: Path) -> list[str]:
    """Translations of whatever the toy corpora say; returns the Chinese texts."""
    sources = ["is it sunny", "how many people", "Is it sunny?", "what color", "never asked", "yes", "2", "no", "red",
               "A dog runs.", "He begins. He ends.", "He begins.", "He ends."]
    sources += [f"Two dogs , number {place} ." for place in range(5)]
    sources += [f"region {place} of {image}" for place in range(2) for image in (1, 2)]
    sources += [text for _, text in corpora.web_rows(4)]
    sources += [f"picture {image}" for image in (9, 25, 3, 77, 78, corpora.LLAVA_TEST_ID)]
    sources += [text.format(image) for image in range(4) for text in (
        "Picture {}.", "A picture {}.", "someone does {}", "The image shows thing {}.",
    )]
    targets = [chinese(number) for number in range(len(sources))]
    write_jsonl(path, ({"source": source, "target": target} for source, target in zip(sources, targets, strict=True)))
    return targets


@pytest.fixture(scope="module")
def recipe(top: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_recipe(top, tmp_path_factory.mktemp("house"), "vsdial_cn")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Miniatures of all that the recipe reads, in one folder."""
    folder = tmp_path_factory.mktemp("inputs")
    corpora.aishell1(folder, speakers=1, utterances=2)
    corpora.aishell2(folder)
    for number, path in enumerate(sorted(folder.rglob("*.wav"))):
        corpora.wav(path, 0.8, seed=number)
    for split, ids in (("train", (9, 25)), ("val", (3,)), ("test", (77, 78))):
        corpora.visdial(folder / "visdial", split, ids)
    for split in ("train2014", "val2014"):
        corpora.coco(folder / "coco", split)
    corpora.aic(folder / "aic")
    corpora.flickr30k(folder / "flickr30k")
    corpora.visual_genome(folder / "visual_genome")
    for make, name in ((corpora.cc3m, "cc3m"), (corpora.sbu, "sbu")):
        make(folder / name, corpora.web_rows(4))
        corpora.download(folder / name / "images", [url for url, _ in corpora.web_rows(3)])  # one was never to be had
    rows = [(f"http://pictures.example/{row}.jpg", chinese(900 + row)) for row in range(3)]
    corpora.wukong(folder / "wukong", rows)
    corpora.download(folder / "wukong/images", [url for url, _ in rows])
    corpora.msrvtt(folder / "msrvtt")
    corpora.activitynet(folder / "activitynet")
    corpora.minigpt4(folder / "minigpt4")
    targets = write_table(folder / "table.jsonl")
    art = [{"image_id": 77, "question": targets[0], "answer": targets[1]}]
    write_jsonl(folder / "art.jsonl", art)
    image = f"{corpora.LLAVA_TEST_ID:012d}.jpg"
    questions = [
        {"question_id": number, "image": image, "text": f"What {number}?", "text_zh": targets[2 + number], "category": category}
        for number, category in enumerate(CATEGORIES)
    ]
    corpora.write_json(folder / "llava/question90_zh.json", questions)
    write_jsonl(folder / "llava/question90.jsonl", questions)
    write_jsonl(folder / "llava/qa90_gpt4_answer.jsonl", ({"question_id": n, "text": f"theirs {n}"} for n in range(3)))
    captions = {"image": image, "captions": ["a dog on grass"], "instances": []}
    write_jsonl(folder / "llava/caps_boxes_coco2014_val_80.jsonl", [captions])
    weights = folder / "weights"
    texts = [*targets, *(text for _, text in rows), *(sentence.replace(" ", "") for sentence in corpora.SENTENCES)]
    tiny_weights.make_chatglm(weights / "chatglm-6b", texts)
    tiny_weights.make_bert(weights / "bert-base-chinese", texts)
    tiny_weights.make_clip(weights / "clip-vit-base-patch16")
    tiny_weights.make_eva(weights / "eva_vit_g.pth")
    tiny_weights.make_blip2(weights / "blip2_pretrained_opt6.7b.pth")
    tiny.make_asr(folder / "recogniser")
    (folder / "speak.py").write_text(SPEAK)
    return folder


@pytest.fixture(scope="module")
def words(recipe: Path, inputs: Path) -> list[str]:
    """Options for them."""
    conf = inputs / "conf"
    conf.mkdir()
    sees = "  visual: {width: 16}\n  linguistic: {width: 16}\ndata: {image_size: 16, "
    (conf / "asr.yaml").write_text(ASR.format(recipe=recipe).replace("data: {", sees))
    for name in ("image", "video", "speech", "integrate"):
        (conf / f"{name}.yaml").write_text(f"base: {recipe}/conf/{name}.yaml" + SIZES.format())
    names = (
        "visdial", "coco", "aishell1", "aishell2", "aic", "wukong", "flickr30k", "visual-genome", "cc3m", "sbu", "msrvtt",
        "activitynet", "minigpt4", "llava", "weights",
    )
    folders = {"aishell1": "data_aishell", "aishell2": "AISHELL-2", "visual-genome": "visual_genome"}
    given = [word for name in names for word in (f"--{name}-dir", str(inputs / folders.get(name, name)))]
    return [
        *given, "--min-score=-1", f"--translate-options=--table {inputs}/table.jsonl",
        "--speech-command", f"{sys.executable} {inputs}/speak.py {{text}} {{out}}",
        "--recogniser", str(inputs / "recogniser"), "--max-cer", "9", "--max-dropped", "0.9",
        "--test-art", str(inputs / "art.jsonl"), "--test-count", "2", "--device", "cpu", "--gpus", "1", "--nj", "1",
        "--conf", str(conf), "--average", "2", "--max-rejected", "0.2", "--asr-options=train.accumulate=1",
        "--xllm-options=train.accumulate=1 data.epoch_batches=8",
        "--llm-decode-options=--max-tokens 4",
    ]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """An endpoint that translates answers and judges them: eight points for the first answer, six for the second."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def script(request: dict[str, Any], number: int) -> Reply:
        return chat("8 6\nThe first is better." if request["model"] == "critic" else "an answer in English")

    stub = Stub(script)
    yield stub
    stub.close()


def show_demo(recipe: Path, words: list[str]) -> tuple[str, int]:
    """(what the recipe said, its exit status) with its demo started, visited and ended as by Ctrl-C."""
    import requests

    shown = start(recipe, *words, "--stage", "65", "--demo", "true", "--demo-port", "0")
    said: list[str] = []
    assert shown.stdout is not None
    for line in shown.stdout:
        said.append(line)
        if found := re.search(r"listening on (http://[0-9.:]+)/demo", line):
            try:
                assert requests.get(f"{found[1]}/demo/", timeout=20).status_code == 200
                assert requests.get(f"{found[1]}/v1/models", timeout=20).json()["data"][0]["id"] == "xllm"
            finally:
                interrupt(shown)
    return "".join(said), shown.wait(30)


@pytest.mark.slow
def test_recipe_runs_to_its_tables_and_again_does_nothing(recipe: Path, words: list[str], judge: Stub) -> None:
    unjudged = run(recipe, *words, "--stop-stage", "51")
    assert unjudged.returncode == 0, unjudged.stdout[-4000:] + unjudged.stderr[-3000:]
    assert "no --judge-url" in unjudged.stderr
    answers = [row for _, row in read_jsonl(recipe / "exp/answers/llava.jsonl")]
    assert [row["id"] for row in answers] == ["question-0", "question-1", "question-2"]
    assert not any("error" in row for row in answers)
    # So small a model says next to nothing.
    write_jsonl(recipe / "exp/answers/llava.jsonl", ({**row, "text": chinese(700 + n)} for n, row in enumerate(answers)))
    words = [
        *words, "--judge-url", judge.url, "--judge-model", "critic",
        f"--judge-translate-options=--endpoint {judge.url} --model translator",
    ]
    first = run(recipe, *words)
    assert first.returncode == 0, first.stdout[-4000:] + first.stderr[-3000:]
    metrics = json.loads((recipe / "exp/report/metrics.json").read_text())
    heard = {name: {"S"} for name in ("test-ios", "test-android", "test-mic")}
    assert {name: set(cer) for name, cer in metrics["cif_asr"].items()} == {
        **heard, "test-orig": {"S", "S+V", "S+V+L"}, "test-art": {"S", "S+V", "S+V+L"}
    }
    assert {name: set(cer) for name, cer in metrics["llm_asr"].items()} == {
        **heard, "test-orig": {"S", "S+V"}, "test-art": {"S", "S+V"}
    }
    for name, images, captions in (("S", False, False), ("S+V", True, False), ("S+V+L", True, True)):
        meta = json.loads((recipe / f"exp/decode/test-orig/{name}.jsonl.meta.json").read_text())
        assert (meta["images"], meta["captions"], meta["failed"]) == (images, captions, 0)
    kinds = {row["task"] for _, row in read_jsonl(recipe / "data/instructions/conversations.jsonl.gz")}
    assert kinds == {"vl", "asr", "video", "vsd", "masr"} or kinds == {"caption", "asr", "video", "vsd", "masr"}
    pictures = [row["id"] for _, row in read_jsonl(recipe / "data/pictures_14M/conversations.jsonl.gz")]
    assert {name.split("-")[0] for name in pictures} == {"coco", "aic", "wukong", "flickr30k", "visual", "cc3m", "sbu"}
    models = [request["model"] for request in judge.requests]
    assert (models.count("translator"), models.count("critic")) == (3, 6)  # three questions, in both orders
    assert all("an answer in English" in str(request) for request in judge.requests if request["model"] == "critic")
    assert all("a dog on grass" in str(request["messages"]) for request in judge.requests if request["model"] == "critic")
    summary = json.loads((recipe / "exp/judge/summary.json").read_text())
    assert {name: round(value) for name, value in summary["relative"].items()} == dict.fromkeys((*CATEGORIES, "all"), 100)
    results = (recipe / "RESULTS.md").read_text()
    assert "| X-LLM, 0 verdicts without scores | 100.0 | 100.0 | 100.0 | 100.0 |" in results
    assert "paper 4.7 / 4.3" in results
    assert "| X-LLM w/ 4M, no init | 64.7 | 71.9 | 85.0 | 73.8 |" in results

    compared = json.loads((recipe / "exp/conditions/cif_asr/conditions.json").read_text())
    assert set(compared["conditions"]) == {"S", "S+V", "S+blank", "S+L", "S+V+L"}  # there is one picture, so none is wrong
    wordings = json.loads((recipe / "exp/conditions/llm_asr/wordings.json").read_text())
    assert "请忠实地识别该语音" in str(wordings)

    kept = [row["id"] for _, row in read_jsonl(recipe / "data/understood/cuts.jsonl.gz")]
    dropped = [row["id"] for _, row in read_jsonl(recipe / "data/understood/rejected.jsonl")]
    spoken = [row["id"] for _, row in read_jsonl(recipe / "data/spoken/cuts.jsonl.gz")]
    assert sorted([*kept, *dropped]) == sorted(spoken)
    assert "AISHELL-1, AISHELL-2, VSDial-CN" in (recipe / "exp/export/README.md").read_text()

    second = run(recipe, *words)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count(": up to date") == len(STAGES) + 1  # and the judge

    said, status = show_demo(recipe, words)
    assert "up to date" not in said
    assert (status, "Traceback" in said) in ((0, False), (130, False)), said

    plan = run(recipe, *words, "--parallel", "2", "--dry-run")  # another way to run the same trainings
    assert plan.returncode == 0
    assert plan.stdout.count("up to date") == len(STAGES) + 1, plan.stdout

    plan = run(recipe, *words, "--pictures", "4M", "--init", "false", "--dry-run")
    assert plan.returncode == 0, plan.stdout[-2000:]
    assert "exp/xllm/integrate_4M_no_init" in plan.stdout
    assert re.search(r"stage 11  .* up to date", plan.stdout)  # what comes before the interfaces is taken over
    assert not (recipe / "exp/.stages_4M_no_init").exists()


def test_without_corpora_the_plan_is_shown_and_a_run_says_what_is_missing(top: Path, tmp_path: Path) -> None:
    recipe = copy_recipe(top, tmp_path, "vsdial_cn")
    plan = run(recipe, "--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert re.findall(r"^stage +(\d+)  ", plan.stdout, re.MULTILINE) == STAGES
    assert "22 of 22 corpora and weights are missing" in plan.stderr
    side_by_side = run(recipe, "--dry-run", "--parallel", "2", "--pictures", "4M")
    assert side_by_side.returncode == 0, side_by_side.stderr
    order = re.findall(r"^stage +(\d+)  ", side_by_side.stdout, re.MULTILINE)
    assert order.index("20") < order.index("11")  # what the image interface stands on comes before
    assert "Wukong" not in side_by_side.stderr
    started = run(recipe, "--stage", "11", "--stop-stage", "12")
    assert started.returncode == 1
    assert "2 of 2 corpora and weights are missing" in started.stderr
    assert "openai/clip-vit-base-patch16" in started.stderr
    assert not (recipe / "exp").exists()


@pytest.mark.parametrize(
    ("stage", "damage", "said"),
    [
        ("0", "json", "visdial_1.0_val.json"),
        ("5", "picture", "picture cannot be read"),
    ],
)
def test_a_damaged_corpus_is_reported(
    top: Path, inputs: Path, words: list[str], tmp_path: Path, stage: str, damage: str, said: str
) -> None:
    (tmp_path / "house").mkdir()
    recipe = copy_recipe(top, tmp_path / "house", "vsdial_cn")
    if damage == "json":
        for split, ids in (("train", (9, 25)), ("val", (3,)), ("test", (77, 78))):
            broken = corpora.visdial(tmp_path / "visdial", split, ids)
            if split == "val":
                corpora.truncate(broken)
        options = ["--visdial-dir", str(tmp_path / "visdial")]
    else:
        for split in ("train2014", "val2014"):
            corpora.coco(tmp_path / "coco", split)
        for path in (tmp_path / "coco").rglob("*.jpg"):
            path.write_bytes(b"no picture")
        options = ["--coco-dir", str(tmp_path / "coco"), "--picture-corpora", "coco"]
    done = run(recipe, *words, *options, "--stage", stage, "--stop-stage", stage)
    assert done.returncode == 1
    assert said in done.stdout + done.stderr
    assert "to retry:" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (recipe / "data/pictures_14M").exists()

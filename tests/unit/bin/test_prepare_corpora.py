"""`xllm-speech prepare CORPUS` for every corpus, from its form on disk to manifests that the readers take."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import corpora
from xllm_speech.base.files import read_jsonl, write_jsonl
from xllm_speech.bin.main import main
from xllm_speech.manifests.conversations import read_conversations
from xllm_speech.manifests.cuts import load_cuts

Options = list[object]


def web(top: Path, name: str) -> Options:
    rows = corpora.web_rows()
    corpora.download(top / "images", [url for url, _ in rows])
    path = {"cc3m": corpora.cc3m, "sbu": corpora.sbu, "wukong": corpora.wukong}[name](top, rows)
    return ["--annotations", path, "--images", top / "images"]


def released(top: Path) -> Options:
    files = corpora.released(top)
    media: Options = ["--images", top / "images", "--videos", top / "videos", "--units", top / "units"]
    return ["--annotations", *files.values(), *media]


# Corpus -> (its options, number of examples in all its sets).
CORPORA: dict[str, tuple[Callable[[Path], Options], int]] = {
    "aishell1": (lambda top: ["--corpus", corpora.aishell1(top)], 24),
    "aishell2": (lambda top: ["--corpus", corpora.aishell2(top)], 24),
    "coco": (lambda top: ["--annotations", corpora.coco(top), "--images", top], 4),
    "flickr30k": (lambda top: ["--annotations", corpora.flickr30k(top), "--images", top / "flickr30k-images"], 10),
    "aic": (lambda top: ["--annotations", corpora.aic(top), "--images", top / "caption_train_images_20170902"], 10),
    "visual-genome": (
        lambda top: ["--annotations", corpora.visual_genome(top), "--images", top, "--image-data", top / "image_data.json"], 4,
    ),
    "minigpt4": (lambda top: ["--annotations", corpora.minigpt4(top), "--images", top / "image"], 3),
    "cc3m": (lambda top: web(top, "cc3m"), 4),
    "sbu": (lambda top: web(top, "sbu"), 4),
    "wukong": (lambda top: web(top, "wukong"), 4),
    "msrvtt": (lambda top: ["--annotations", corpora.msrvtt(top), "--videos", top / "videos"], 6),
    "activitynet": (lambda top: ["--annotations", corpora.activitynet(top), "--videos", top / "videos"], 2),
    "avsd": (lambda top: ["--annotations", corpora.avsd(top), "--videos", top / "videos"], 1),
    "released": (released, 8),
}  # fmt: skip


def call(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.mark.parametrize("corpus", CORPORA)
def test_every_corpus(corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build, count = CORPORA[corpus]
    out = tmp_path / "out"
    assert call("prepare", corpus, *build(tmp_path / "corpus"), "--out", out, "--jobs", 2, "--max-rejected", 0) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{out}: ")
    assert "rejected 0" in said
    cuts = [cut for path in out.glob("*/cuts.jsonl.gz") for cut in load_cuts(path)]
    conversations = [item for path in out.glob("*/conversations.jsonl.gz") for item in read_conversations(path)]
    assert len(cuts) + len(conversations) == count
    ids = [one.id for one in [*cuts, *conversations]]
    assert len(set(ids)) == count
    for folder in out.iterdir():
        assert (folder / "rejected.jsonl").read_text() == ""
        assert (folder / "statistics.json").is_file()
    for item in conversations:
        for part in item.messages[0].items:
            assert part.path is None or Path(part.path).is_file()


@pytest.mark.parametrize("corpus", [name for name in CORPORA if not name.startswith("aishell")])
def test_annotations_without_their_media(corpus: str, tmp_path: Path) -> None:
    build, count = CORPORA[corpus]
    options = build(tmp_path / "corpus")
    for path in (tmp_path / "corpus").rglob("*"):
        if path.suffix in (".jpg", ".mp4", ".npy"):
            path.unlink()
    assert call("prepare", corpus, *options, "--out", tmp_path / "out", "--skip-media", "--max-rejected", 0) == 0
    paths = (tmp_path / "out").glob("*/conversations.jsonl.gz")
    assert sum(1 for path in paths for _ in read_conversations(path)) == count


def test_vsdial_cn_and_instructions_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    top = tmp_path / "visdial"
    files = [corpora.visdial(top), corpora.visdial(top, "test", ids=(77, 78))]
    annotations: Options = ["--annotations", *files]
    assert call("prepare", "visdial-texts", *annotations, "--out", tmp_path / "texts") == 0
    texts = [row["text"] for _, row in read_jsonl(tmp_path / "texts/texts.jsonl")]
    write_jsonl(tmp_path / "ready.jsonl", ({"source": text, "target": f"中文{text}"} for text in texts))
    table = tmp_path / "table.jsonl"
    source: Options = ["--input", tmp_path / "texts/texts.jsonl"]
    assert call("prepare", "translate", *source, "--table", tmp_path / "ready.jsonl", "--out", table) == 0
    (tmp_path / "speak.py").write_text(
        "import sys, wave\nwith wave.open(sys.argv[2], 'wb') as s:\n"
        "    s.setnchannels(1); s.setsampwidth(2); s.setframerate(16000); s.writeframes(bytes([0, 9]) * 4000)\n"
    )
    line = f"{sys.executable} {tmp_path / 'speak.py'} {{text}} {{out}} {{speaker}}"
    spoken: Options = ["--input", table, "--texts", tmp_path / "texts/texts.jsonl", "--command", line, "--speakers", "a", "b"]
    assert call("prepare", "synthesise", *spoken, "--out", tmp_path / "speech") == 0
    parts: Options = ["--images", top / "images", "--translations", table, "--speech", tmp_path / "speech"]
    out = tmp_path / "cn"
    assert call("prepare", "vsdial-cn", *annotations, *parts, "--out", out, "--test-count", 5, "--max-rejected", 0) == 0
    assert "train.cuts 8" in capsys.readouterr().out
    assert len(list(load_cuts(out / "test-orig/cuts.jsonl.gz"))) == 5
    chosen: Options = ["--vsd", out / "train/conversations.jsonl.gz", "--vsd-count", 3, "--masr", out / "train/cuts.jsonl.gz"]
    assert call("prepare", "instructions", *chosen, "--out", tmp_path / "instructions") == 0
    tasks = [item.task for item in read_conversations(tmp_path / "instructions/conversations.jsonl.gz")]
    assert sorted(tasks) == ["masr"] * 8 + ["vsd"] * 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("translate", "--input", "a", "--out", "b", "--endpoint", "http://x"), "--endpoint needs --model"),
        (("translate", "--input", "a", "--out", "b", "--table", "c", "--jobs", "0"), "--jobs 0 must be at least 1"),
        (("instructions", "--vl", "a", "--vl-count", "-1", "--out", "b"), "--vl-count -1 must not be negative"),
        (("instructions", "--out", "b"), "no manifest to choose from"),
        (("coco", "--annotations", "none.json", "--images", ".", "--out", "b"), "none.json: cannot be read"),
        (("aishell1", "--corpus", "nowhere", "--out", "b"), "not AISHELL-1"),
    ],
)
def test_mistakes_are_told_without_a_traceback(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("prepare", *words) == 1
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not [name for name in os.listdir(tmp_path) if name == "b" and any(Path(name).rglob("*.gz"))]

"""Training of the mini recipe's picture encoder on a corpus of a few pictures."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import drawing
import plan
import pytest
import scenes
import torch
import train_vision

from xllm_speech.base.files import read_json, write_json
from xllm_speech.encoders.vision import load_vision_encoder
from xllm_speech.features.images import load_pixels
from xllm_speech.records import PixelBatch

SCRIPT = Path(train_vision.__file__)
SIZES = plan.Sizes(train=0, train_images=10, dev=2, test=2)


def tiny_pictures() -> list[plan.Picture]:
    return plan.plan_pictures(5, SIZES)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and their table alone, without speech: all that the encoder learns from."""
    out = tmp_path_factory.mktemp("vision") / "corpus"
    pictures = tiny_pictures()
    for picture in pictures:
        path = out / picture.path
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing.draw_picture(picture.scene, plan.stream(5, "pixels", picture.image_id)).save(path)
    (out / "scenes.jsonl").write_bytes(plan.as_lines(plan.scene_rows(pictures)))
    write_json(out / "manifest.json", {"sha256": "0" * 64})
    return out


def run(corpus: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = ["--corpus", str(corpus), "--out", str(out), "--batch", "6", "--threads", "1", *more]
    return subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exp") / "vision"
    done = run(corpus, out, "--steps", "3")
    assert done.returncode == 0, done.stderr
    assert "step    3 of 3" in done.stdout
    return out


def test_the_encoder_loads_and_sees(corpus: Path, trained: Path) -> None:
    assert sorted(path.name for path in trained.iterdir()) == ["metrics.json", "model.safetensors", "vit.json"]
    encoder = load_vision_encoder("vit", str(trained))
    pixels = load_pixels(corpus / tiny_pictures()[0].path, encoder.image_size)
    memory = encoder(PixelBatch(pixels[None], torch.tensor([True])))
    assert memory.x_BND.shape == (1, 17, encoder.width)
    assert torch.isfinite(memory.x_BND).all()


def test_metrics_count_every_object_once(trained: Path) -> None:
    right = read_json(trained / "metrics.json")["right"]
    things = [thing for picture in tiny_pictures() if picture.split != "train" for thing in picture.scene.things]
    unseen = [thing for thing in things if thing.pair in scenes.HELD_OUT]
    assert right["unseen"]["count"] == len(unseen) > 0
    assert right["seen"]["count"] == len(things) - len(unseen)
    twins = right["twins"]["count"] + right["unseen_twins"]["count"]
    assert twins == sum(thing.shape in scenes.TWINS for thing in things)


def test_two_runs_give_the_same_bytes_and_another_seed_others(corpus: Path, trained: Path, tmp_path: Path) -> None:
    for name, seed in (("again", "2023"), ("other", "7")):
        assert run(corpus, tmp_path / name, "--steps", "3", "--seed", seed).returncode == 0
    weights = (trained / "model.safetensors").read_bytes()
    assert (tmp_path / "again/model.safetensors").read_bytes() == weights
    assert (tmp_path / "again/vit.json").read_bytes() == (trained / "vit.json").read_bytes()
    assert (tmp_path / "other/model.safetensors").read_bytes() != weights


def test_a_complete_folder_is_left_alone_until_a_setting_changes(corpus: Path, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "vision"
    shutil.copytree(trained, out)
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    assert "up to date" in run(corpus, out, "--steps", "3").stdout
    assert (out / "model.safetensors").stat().st_mtime_ns == stamp
    done = run(corpus, out, "--steps", "2")
    assert done.returncode == 0, done.stderr
    assert read_json(out / "metrics.json")["settings"]["steps"] == 2
    assert (out / "model.safetensors").read_bytes() != (trained / "model.safetensors").read_bytes()


def test_a_folder_of_others_is_not_touched(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = run(corpus, tmp_path, "--steps", "1")
    assert done.returncode == 1
    assert "did not make" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("manifest", "no complete corpus"),
        ("picture", "no such picture"),
        ("colour", "another form"),
        ("test split", "0 other pictures"),
    ],
)
def test_a_wrong_corpus_is_told_in_a_line_and_leaves_nothing(
    corpus: Path, tmp_path: Path, damage: str, words: str
) -> None:
    copy, out = tmp_path / "corpus", tmp_path / "exp" / "vision"
    shutil.copytree(corpus, copy)
    rows = [json.loads(line) for line in (copy / "scenes.jsonl").read_text(encoding="utf-8").splitlines()]
    match damage:
        case "manifest":
            (copy / "manifest.json").unlink()
        case "picture":
            (copy / rows[3]["path"]).unlink()
        case "colour":
            rows[0]["objects"][0]["colour"] = "粉"
        case "test split":
            rows = [row for row in rows if row["split"] == "train"]
    (copy / "scenes.jsonl").write_bytes(plan.as_lines(rows))
    done = run(copy, out, "--steps", "1")
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not out.parent.exists() or list(out.parent.iterdir()) == []


def test_shuffled_cells_keep_pixels_and_labels_together(corpus: Path) -> None:
    rows = [json.loads(line) for line in (corpus / "scenes.jsonl").read_text(encoding="utf-8").splitlines()]
    pictures = train_vision.load_pictures(corpus, rows)
    shuffled = train_vision.shuffle_cells(pictures, torch.Generator().manual_seed(1))
    half = drawing.SIDE // 2

    def content(found: train_vision.Pictures, item: int) -> list[tuple[list[int], list[float]]]:
        cells = []
        for cell in range(4):
            top, left = half * (cell // 2), half * (cell % 2)
            pixels = found.x_BCHW[item, :, top : top + half, left : left + half]
            cells.append((found.labels_BK2[item, cell].tolist(), pixels.flatten().tolist()))
        return cells

    for item in range(len(rows)):
        assert sorted(content(pictures, item)) == sorted(content(shuffled, item))
    moved = sum(content(pictures, item) != content(shuffled, item) for item in range(len(rows)))
    assert moved > len(rows) // 2


def test_every_patch_of_a_cell_touches_its_object() -> None:
    """What makes the label of a cell right for each of its four patches."""
    for picture in tiny_pictures():
        for thing in picture.scene.record()["objects"]:  # type: ignore[attr-defined]
            left, top, right, bottom = thing["box"]
            for patch in range(16):
                x, y = patch % 4 * 16, patch // 4 * 16
                touches = left < x + 16 and right > x and top < y + 16 and bottom > y
                assert touches == (train_vision.CELL_OF_PATCH[patch] == thing["cell"])

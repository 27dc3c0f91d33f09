"""VisDial manifests: the real annotation file, corpora with speech, and every kind of broken item."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from xllm_speech.base.errors import DataError
from xllm_speech.base.files import read_jsonl
from xllm_speech.manifests.conversations import read_conversations
from xllm_speech.manifests.visdial import index_pictures, prepare_visdial

QUESTIONS = ["几个人", "什么颜色", "在哪里"]
ANSWERS = ["两个", "红色", "左边", "有"]


def picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def dialog(image_id: int) -> dict[str, Any]:
    rounds = [{"question": q, "answer": q, "answer_options": [3, q], "gt_index": 1} for q in range(3)]
    return {"image_id": image_id, "caption": f"第{image_id}张图", "dialog": rounds}


def write_split(corpus: Path, split: str, dialogs: list[Any], **pools: Any) -> None:
    data = {"questions": QUESTIONS, "answers": ANSWERS, "dialogs": dialogs, **pools}
    (corpus / f"visdial_1.0_{split}.json").write_text(json.dumps({"version": "1.0", "split": split, "data": data}))


def row(corpus: Path, name: str, split: str, image_id: int, number: int, **more: Any) -> dict[str, Any]:
    path = corpus / "speech" / split / f"{name}.flac"
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = 0.1 * np.random.default_rng(image_id).standard_normal(16000)
    soundfile.write(path, tone, 16000)
    return {
        "id": name,
        "split": split,
        "image_id": image_id,
        "round": number,
        "path": f"speech/{split}/{name}.flac",
        "text": QUESTIONS[number],
        "speaker": name[:2],
        "language": "zh",
        **more,
    }


Rows = list[dict[str, Any]]


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[Path, Rows]:
    top = tmp_path / "corpus"
    top.mkdir()
    for split, ids in (("train", range(1, 5)), ("val", (11,)), ("test", (21, 22))):
        write_split(top, split, [dialog(image_id) for image_id in ids])
        for image_id in ids:
            picture(top / "images" / split / f"{image_id}.png", image_id)
    rows = [row(top, f"s1-{image_id}", "train", image_id, image_id % 3, noise="pink") for image_id in (3, 1, 4, 2)]
    rows += [row(top, "s2-11", "val", 11, 0)]
    rows += [row(top, "s2-21", "test", 21, 0, sets=["mixed"]), row(top, "s2-22", "test", 22, 1, sets=["mixed", "clean"])]
    return top, rows


def write_rows(top: Path, rows: Rows) -> None:
    (top / "speech.jsonl").write_text("".join(json.dumps(value) + "\n" for value in rows))


def rejected(out: Path) -> dict[str, dict[str, Any]]:
    return {value["id"]: value for _, value in read_jsonl(out / "rejected.jsonl")}


def test_a_sound_corpus(corpus: tuple[Path, Rows], tmp_path: Path) -> None:
    from lhotse import CutSet

    top, rows = corpus
    write_rows(top, rows)
    counts = prepare_visdial(top, tmp_path / "out", max_rejected=0.0)
    assert counts == {
        "rejected": 0,
        "train.dialogs": 4, "train.cuts": 4, "train.conversations": 4 + 12 + 4,
        "dev.dialogs": 1, "dev.cuts": 1, "dev.conversations": 1 + 3 + 1,
        "test_mixed.dialogs": 2, "test_mixed.cuts": 2, "test_mixed.conversations": 2 + 6 + 2,
        "test_clean.dialogs": 1, "test_clean.cuts": 1, "test_clean.conversations": 1 + 3 + 1,
    }  # fmt: skip
    assert (tmp_path / "out/train/text").read_text() == "s1-1 什么颜色\ns1-2 在哪里\ns1-3 几个人\ns1-4 什么颜色\n"
    cuts = CutSet.from_jsonl_lazy(tmp_path / "out/train/cuts.jsonl.gz")
    cut = next(cut for cut in cuts if cut.id == "s1-4")
    assert (cut.duration, cut.sampling_rate) == (1.0, 16000)
    assert (cut.supervisions[0].text, cut.supervisions[0].speaker, cut.supervisions[0].language) == ("什么颜色", "s1", "zh")
    assert cut.custom["caption"] == "第4张图"
    assert (cut.custom["dialog_id"], cut.custom["round"], cut.custom["answer"]) == ("train-4", 1, "红色")
    assert cut.custom["noise"] == "pink"
    assert Path(cut.custom["image"]) == top / "images/train/4.png"
    np.testing.assert_allclose(cut.load_audio()[0], soundfile.read(top / "speech/train/s1-4.flac")[0], atol=1e-6)
    by_id = {item.id: item for item in read_conversations(tmp_path / "out/test_clean/conversations.jsonl.gz")}
    assert by_id.keys() == {"test-22-caption", "test-22-0", "test-22-1", "test-22-2", "s2-22-vsd"}
    spoken = by_id["s2-22-vsd"]
    assert (spoken.task, [item.type for item in spoken.messages[0].items]) == ("vsd", ["image", "speech"])
    assert spoken.messages[1].items[0].text == "红色"
    speech = spoken.messages[0].items[1]
    assert Path(str(speech.path)).is_file()
    assert speech.cut == "s2-22"  # under which a unit cache holds it
    typed = by_id["test-22-2"]
    assert (typed.task, typed.messages[0].items[1].text, typed.messages[1].items[0].text) == ("vl", "在哪里", "左边")
    assert by_id["test-22-caption"].messages[1].items[0].text == "第22张图"


def test_same_corpus_gives_same_bytes(corpus: tuple[Path, Rows], tmp_path: Path) -> None:
    top, rows = corpus
    write_rows(top, rows)
    made = []
    for name in ("one", "two"):
        prepare_visdial(top, tmp_path / name)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        made.append({str(path.relative_to(tmp_path / name)): path.read_bytes() for path in files})
    assert made[0] == made[1]


def test_paths_stay_relative_as_given(
    corpus: tuple[Path, Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top, rows = corpus
    write_rows(top, rows)
    monkeypatch.chdir(tmp_path)
    prepare_visdial(Path("corpus"), Path("out"))
    for name in ("cuts", "conversations"):
        for _, value in read_jsonl(tmp_path / "out" / "dev" / f"{name}.jsonl.gz"):
            assert str(tmp_path) not in json.dumps(value)
            assert "corpus/images/val/11.png" in json.dumps(value)


def break_flac(top: Path, *ids: int) -> None:
    for image_id in ids or (3,):
        path = top / f"speech/train/s1-{image_id}.flac"
        path.write_bytes(path.read_bytes()[:9000])


def break_png(top: Path, *ids: int) -> None:
    for image_id in ids or (3,):
        path = top / f"images/train/{image_id}.png"
        path.write_bytes(path.read_bytes()[:2000])


SPEECH_FAULTS: dict[str, tuple[Callable[[Path, Rows], object], str, str]] = {
    "truncated": (lambda top, rows: break_flac(top), "s1-3", "speech"),
    "missing": (lambda top, rows: (top / "speech/train/s1-3.flac").unlink(), "s1-3", "missing"),
    "text file": (lambda top, rows: (top / "speech/train/s1-3.flac").write_text("no sound"), "s1-3", "cannot be read"),
    "no samples": (lambda top, rows: soundfile.write(top / "speech/train/s1-3.flac", [], 16000), "s1-3", "speech"),
    "no transcript": (lambda top, rows: rows[0].update(text="  "), "s1-3", "empty transcript"),
    "no such picture": (lambda top, rows: rows[0].update(image_id=99), "s1-3", "image 99"),
    "no such round": (lambda top, rows: rows[0].update(round=3), "s1-3", "round 3"),
    "other split": (lambda top, rows: rows[0].update(split="val"), "s1-3", "split val"),
    "id with a space": (lambda top, rows: rows[0].update(id="s1 3"), "line-1", "without spaces"),
    "no path": (lambda top, rows: rows[0].pop("path"), "s1-3", "without path"),
    "used id": (lambda top, rows: rows[1].update(id="s1-3"), "s1-3", "used in line 1"),
}


@pytest.mark.parametrize("fault", SPEECH_FAULTS)
def test_broken_speech_costs_only_itself(corpus: tuple[Path, Rows], tmp_path: Path, fault: str) -> None:
    top, rows = corpus
    change, name, words = SPEECH_FAULTS[fault]
    change(top, rows)
    write_rows(top, rows)
    counts = prepare_visdial(top, tmp_path / "out", max_rejected=0.2)
    assert (counts["rejected"], counts["train.cuts"], counts["train.dialogs"]) == (1, 3, 4)
    assert rejected(tmp_path / "out").keys() == {name}
    assert words in rejected(tmp_path / "out")[name]["reason"]


def test_line_that_is_no_json_costs_only_itself(corpus: tuple[Path, Rows], tmp_path: Path) -> None:
    top, rows = corpus
    write_rows(top, rows)
    lines = (top / "speech.jsonl").read_text().splitlines()
    (top / "speech.jsonl").write_text("\n".join([lines[0], '{"id": "x", ', *lines[1:]]) + "\n")
    counts = prepare_visdial(top, tmp_path / "out", max_rejected=0.2)
    assert counts["train.cuts"] == 4
    assert rejected(tmp_path / "out")["line-2"]["path"] == f"{top / 'speech.jsonl'}:2"


def test_too_many_broken_items_stop_the_run(corpus: tuple[Path, Rows], tmp_path: Path) -> None:
    top, rows = corpus
    break_flac(top, 1, 2, 3, 4)
    write_rows(top, rows)
    with pytest.raises(DataError, match=r"4 rejected .* of 7 items.*--max-rejected"):
        prepare_visdial(top, tmp_path / "out", max_rejected=0.1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rejected.jsonl"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda top: (top / "images/train/3.png").unlink(), "no picture 3"),
        (break_png, "picture cannot be read"),
    ],
)
def test_broken_picture_costs_its_dialogue_and_its_speech(
    corpus: tuple[Path, Rows], tmp_path: Path, change: Callable[[Path], None], reason: str
) -> None:
    top, rows = corpus
    change(top)
    write_rows(top, rows)
    counts = prepare_visdial(top, tmp_path / "out", max_rejected=0.3)
    assert (counts["rejected"], counts["train.cuts"], counts["train.dialogs"]) == (2, 3, 3)
    faults = rejected(tmp_path / "out")
    assert reason in faults["train-3"]["reason"]
    assert "no usable dialogue about image 3" in faults["s1-3"]["reason"]
    assert "train-3" not in {item.custom.get("dialog_id") for item in read_conversations(
        tmp_path / "out/train/conversations.jsonl.gz"
    )}


@pytest.mark.parametrize("broken", ["picture", "speech"])
def test_one_kind_does_not_hide_behind_the_others(corpus: tuple[Path, Rows], tmp_path: Path, broken: str) -> None:
    """Four in seven of one kind are broken; over all 7 + 21 + 7 items the share would be below the limit of 0.2."""
    top, rows = corpus
    if broken == "picture":
        write_rows(top, rows[4:])
        break_png(top, 1, 2, 3, 4)
    else:
        break_flac(top, 1, 2, 3, 4)
        write_rows(top, rows)
    with pytest.raises(DataError, match=r"4 rejected .* of 7 items"):
        prepare_visdial(top, tmp_path / "out", max_rejected=0.2)


@pytest.mark.parametrize(
    "bad",
    [
        *({"question": 3}, {"question": -1}, {"question": "0"}, {"question": True}),
        *({"answer": 4}, {"gt_index": 0}, {"gt_index": 9}),
    ],
)
def test_bad_index_costs_only_its_round(corpus: tuple[Path, Rows], tmp_path: Path, bad: dict[str, Any]) -> None:
    top, _ = corpus
    dialogs = [dialog(image_id) for image_id in range(1, 5)]
    dialogs[2]["dialog"][1].update(bad)
    write_split(top, "train", dialogs)
    counts = prepare_visdial(top, tmp_path / "out", max_rejected=0.1)
    assert counts["train.conversations"] == 4 + 11
    (fault,) = rejected(tmp_path / "out").values()
    assert (fault["id"], fault["kind"]) == ("train-3-1", "round")
    assert fault["path"].endswith("visdial_1.0_train.json: dialogs[2].dialog[1]")


def test_doubled_and_shapeless_dialogues(corpus: tuple[Path, Rows], tmp_path: Path) -> None:
    top, _ = corpus
    write_split(top, "train", [dialog(1), dialog(1), {"image_id": "2"}, {"image_id": 2}, None, dialog(3)])
    counts = prepare_visdial(top, tmp_path / "out", max_rejected=0.9)
    assert (counts["train.dialogs"], counts["rejected"]) == (2, 4)
    assert [value["kind"] for _, value in read_jsonl(tmp_path / "out/rejected.jsonl")] == [
        "duplicate", "dialogue", "dialogue", "dialogue",
    ]  # fmt: skip


@pytest.mark.parametrize("content", ["{}", "[]", '{"data": {"questions": [], "answers": []}}', '{"data": '])
def test_other_json_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "visdial_1.0_val.json").write_text(content)
    with pytest.raises(DataError, match=r"visdial_1\.0_val\.json: not") as caught:
        prepare_visdial(tmp_path, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no visdial_1\.0_train\.json"):
        prepare_visdial(tmp_path, tmp_path / "out")


def test_truncated_jpeg_is_found(tmp_path: Path) -> None:
    write_split(tmp_path, "val", [dialog(5), dialog(6)])
    for image_id in (5, 6):
        picture(tmp_path / f"images/val2014/COCO_val2014_{image_id:012d}.jpg", image_id)
    broken = tmp_path / "images/val2014/COCO_val2014_000000000006.jpg"
    broken.write_bytes(broken.read_bytes()[:1500])
    counts = prepare_visdial(tmp_path, tmp_path / "out", max_rejected=0.5)
    assert (counts["dev.dialogs"], counts["rejected"]) == (1, 1)
    assert rejected(tmp_path / "out")["val-6"]["path"] == str(broken)


def test_answerless_last_round_as_in_the_test_split(tmp_path: Path) -> None:
    value = dialog(5)
    value["dialog"][2] = {"question": 2, "answer_options": [0, 1]}
    write_split(tmp_path, "test", [value])
    picture(tmp_path / "images/VisualDialog_test2018/VisualDialog_test2018_000000000005.jpg")
    counts = prepare_visdial(tmp_path, tmp_path / "out", max_rejected=0.0)
    assert counts == {"rejected": 0, "test.dialogs": 1, "test.conversations": 3}


def test_pictures_are_found_by_the_last_number_in_their_names(tmp_path: Path) -> None:
    for name in ("train2014/COCO_train2014_000000000007.jpg", "val2014/COCO_val2014_000000000008.jpg", "notes_9.txt"):
        picture(tmp_path / "images" / name) if name.endswith("jpg") else (tmp_path / "images" / name).write_text("")
    assert index_pictures(tmp_path, "train").keys() == {7}
    assert index_pictures(tmp_path, "test").keys() == {7, 8}


def test_real_annotations(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "annotation_samples" / "visdial_1.0_val_97dialogs.json"
    if not source.exists():
        pytest.skip(f"{source} is absent")
    corpus = tmp_path / "visdial"
    corpus.mkdir()
    (corpus / "visdial_1.0_val.json").symlink_to(source)
    tree = json.loads(source.read_text())["data"]
    for value in tree["dialogs"]:
        picture(corpus / "images" / "VisualDialog_val2018" / f"VisualDialog_val2018_{value['image_id']:012d}.jpg")
    counts = prepare_visdial(corpus, tmp_path / "out", max_rejected=0.0)
    assert counts == {"rejected": 0, "dev.dialogs": 97, "dev.conversations": 97 * 11}
    assert not (tmp_path / "out/dev/cuts.jsonl.gz").exists()
    first = tree["dialogs"][0]
    by_id = {item.id: item for item in read_conversations(tmp_path / "out/dev/conversations.jsonl.gz")}
    turn = by_id[f"val-{first['image_id']}-4"]
    assert turn.messages[0].items[1].text == tree["questions"][first["dialog"][4]["question"]]
    assert turn.messages[1].items[0].text == tree["answers"][first["dialog"][4]["answer"]]

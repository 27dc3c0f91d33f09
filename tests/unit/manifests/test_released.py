"""The authors' JSON files: every kind of entry, media found on another machine, units checked, broken entries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import corpora
from xllm_speech.base.errors import DataError
from xllm_speech.base.files import read_jsonl
from xllm_speech.datasets.units import ReleasedUnits
from xllm_speech.manifests.conversations import read_conversations
from xllm_speech.manifests.released import prepare_released
from xllm_speech.records.manifest import Conversation


def prepare(top: Path, files: list[Path], out: Path, **more: Any) -> dict[str, Conversation]:
    values: dict[str, Any] = {"images": [top / "images"], "videos": [top / "videos"], "units": top / "units"}
    prepare_released(files, out, questions=("描述图片",), **{"max_rejected": 0.0, **values, **more})
    return {item.id: item for file in sorted(out.glob("*/*.gz")) for item in read_conversations(file)}


def outline(conversation: Conversation) -> list[list[str]]:
    return [[item.text or item.cut or Path(str(item.path)).name for item in message.items] for message in conversation.messages]


def test_every_kind(tmp_path: Path) -> None:
    files = corpora.released(tmp_path)
    found = prepare(tmp_path, list(files.values()), tmp_path / "out")
    coco, visdial = "COCO_train2014_000000000009.jpg", "VisualDialog_test2018_000000000077.jpg"
    assert {key: (item.task, outline(item)) for key, item in found.items()} == {
        "caption-COCO_train2014_000000000009": ("caption", [[coco], ["一只狗。"]]),
        "vl-10": ("vl", [["10.jpg", "描述图片"], ["一群鸭子"]]),
        "video-v_aaaaaaaaaaa": ("video", [["v_aaaaaaaaaaa.mp4"], ["一个人在跑"]]),
        "asr-u1": ("asr", [["u1"], ["设定三十二度"]]),
        "masr-u2": ("masr", [[visdial, "u2"], ["天气如何"]]),
        "masr-u2-2": ("masr", [[coco, "u2"], ["天气如何"]]),
        "vsd-u3": ("vsd", [[coco, "有人吗"], ["有"], ["在哪里"], ["左边"], ["u3"], ["两个"]]),
        "question-0": ("vl", [["000000441147.jpg", "是什么？"]]),
    }
    # The units of a speech item are those that the reader of the released units has under its id.
    for kind, name in (("asr", "u1"), ("vsd", "u3")):
        assert ReleasedUnits(files[kind], tmp_path / "units").get(name).x_UD.shape == (4, 512)
        assert found[f"{kind}-{name}"].custom["units"] == str(tmp_path / "units" / f"{name}.npy")


def test_training_files_never_hold_the_llava_test_pictures(tmp_path: Path) -> None:
    name = f"/raid/coco/val2014/COCO_val2014_{corpora.LLAVA_TEST_ID:012d}.jpg"
    corpora.picture(tmp_path / "images" / "a.jpg")
    rows = [{"image": name, "caption": "行李"}, {"image": "a.jpg", "caption": "猫"}]
    path = corpora.write_json(tmp_path / "coco_zh.json", rows)
    assert list(prepare(tmp_path, [path], tmp_path / "out", videos=())) == ["caption-a"]
    statistics = json.loads((tmp_path / "out/coco_zh/statistics.json").read_text())["statistics"]
    assert statistics["left_out_kinds"] == {"llava-test-image": 1}


def test_units_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "units").mkdir()
    values = {
        "wide": np.ones((4, 256)), "flat": np.ones(512), "none": np.ones((0, 512)), "nan": np.full((2, 512), np.nan),
        "words": np.array([["a"] * 512]), "good": np.ones((3, 512), dtype=np.float16),
    }
    for name, value in values.items():
        np.save(tmp_path / "units" / f"{name}.npy", value)
    (tmp_path / "units" / "text.npy").write_text("no")
    np.save(tmp_path / "units" / "object.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    names = [*values, "text", "object", "missing"]
    path = corpora.write_json(tmp_path / "asr.json", [{"speech_feats_path": f"/r/{n}.npy", "target_text": "好"} for n in names])
    found = prepare(tmp_path, [path], tmp_path / "out", images=(), videos=(), max_rejected=1.0)
    assert list(found) == ["asr-good"]
    rows = {row["id"]: row for _, row in read_jsonl(tmp_path / "out/asr/rejected.jsonl")}
    assert {row["kind"] for row in rows.values()} == {"units-broken"}
    assert rows["asr-wide"]["path"] == f"{path}: entry[0]"
    assert "shape (4, 256), expected [L, 512]" in rows["asr-wide"]["reason"]


def test_broken_entries_are_named(tmp_path: Path) -> None:
    rows: list[Any] = [
        3, {}, {"caption": "x"}, {"image": "a.jpg", "caption": " "}, {"speech_feats_path": 5, "target_text": "x"},
        {"speech_feats_path": "u.npy"}, {"speech_feats_path": "u.npy", "answer_text": "x", "history_text": "有人吗"},
        {"speech_feats_path": "u.npy", "answer_text": "x", "history_text": "问题：有人吗"}, {"question_id": 1, "text": "x"},
    ]
    path = corpora.write_json(tmp_path / "odd.json", rows)
    with pytest.raises(DataError, match="nothing usable among 9"):
        prepare(tmp_path, [path], tmp_path / "out", open_media=False, max_rejected=1.0)
    found = [(row["kind"], row["path"]) for _, row in read_jsonl(tmp_path / "out/odd/rejected.jsonl")]
    kinds = ["bad-entry"] * 3 + ["empty-caption"] + ["bad-entry"] * 5
    assert found == [(kind, f"{path}: entry[{number}]") for number, kind in enumerate(kinds)]


@pytest.mark.parametrize(("value", "message"), [({"a": [1]}, "not a JSON array"), ([], "an empty array")])
def test_files_of_another_form(tmp_path: Path, value: Any, message: str) -> None:
    path = corpora.write_json(tmp_path / "x.json", value)
    with pytest.raises(DataError, match=message):
        prepare(tmp_path, [path], tmp_path / "out", open_media=False)
    with pytest.raises(DataError, match="files of one name"):
        prepare(tmp_path, [path, path], tmp_path / "out", open_media=False)


def test_the_real_questions(shared_data: Path, tmp_path: Path) -> None:
    for name in ("question90_zh.json", "question90_zh_check.json"):
        path = shared_data / "annotation_samples" / "xllm_eval_llava" / name
        if not path.is_file():
            pytest.skip(f"no {path}")
        found = prepare(tmp_path, [path], tmp_path / name, open_media=False)
        rows = json.loads(path.read_text())
        asked = [" ".join(str(row["text_zh"]).split()) for row in rows]
        assert len(found) == len(rows)
        for row, text in zip(rows, asked, strict=True):
            item = found[f"question-{row['question_id']}"]
            assert item.messages[0].items[0].path == str(tmp_path / "images" / row["image"])
            assert str(item.messages[0].items[1].text).replace(" ", "") == text.replace(" ", "")

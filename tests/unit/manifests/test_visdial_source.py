"""VisDial v1.0 as published: dialogues, texts once each, relevance; every kind of broken entry; the real file."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests import corpora
from xllm_speech.base.errors import DataError
from xllm_speech.base.files import read_jsonl
from xllm_speech.manifests.pieces import Fault
from xllm_speech.manifests.visdial_source import (
    SourceDialog,
    prepare_visdial_texts,
    question_key,
    read_dense,
    read_source,
)


def dialogs_of(path: Path) -> list[SourceDialog]:
    found = list(read_source(path))
    assert not any(isinstance(one, Fault) for one in found)
    return [one for one in found if isinstance(one, SourceDialog)]


def test_dialogues_stand_as_in_the_file(tmp_path: Path) -> None:
    first, second, _ = dialogs_of(corpora.visdial(tmp_path))
    assert (first.image_id, first.split, first.caption) == (9, "train", "picture 9")
    assert [(t.round, t.question, t.answer) for t in second.turns] == [
        (0, "how many people", "yes"), (1, "Is it sunny?", "2"), (2, "what color", "no"), (3, "is it sunny", "red"),
    ]  # fmt: skip
    assert second.where.endswith("visdial_1.0_train.json: dialogs[1]")
    test = dialogs_of(corpora.visdial(tmp_path, "test"))
    assert [turn.answer for turn in test[0].turns] == ["yes", "2", "no", None]


def test_dialogues_before_their_pools(tmp_path: Path) -> None:
    path = corpora.visdial(tmp_path)
    before = dialogs_of(path)
    value = json.loads(path.read_text())
    value["data"] = {key: value["data"][key] for key in ("dialogs", "answers", "questions")}
    corpora.write_json(path, {"data": value["data"], "split": value["split"]})
    assert dialogs_of(path) == before


def test_texts_once_each(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = corpora.visdial(tmp_path)
    with caplog.at_level(logging.WARNING):
        counts = prepare_visdial_texts([path], tmp_path / "out")
    assert counts == {
        "dialogs": 3, "rounds": 8, "left_out": 1, "different_questions": 4, "different_answers": 4, "different_captions": 2,
        "texts": 10, "rejected": 0,
    }  # fmt: skip
    rows = {row["text"]: row for _, row in read_jsonl(tmp_path / "out/texts.jsonl")}
    assert "never asked" not in rows
    assert f"picture {corpora.LLAVA_TEST_ID}" not in rows
    assert rows["is it sunny"] == {"text": "is it sunny", "roles": ["question"], "count": 2}
    assert rows["picture 9"]["roles"] == ["caption"]
    assert "3 dialogues, 123287 were published" in caplog.text


def test_broken_rounds_and_dialogues(tmp_path: Path) -> None:
    path = corpora.visdial(tmp_path, ids=(9, 25, 30))
    value = json.loads(path.read_text())
    data = value["data"]
    bad: list[Any] = [{"question": 99, "answer": 0}, {"question": 0, "answer": -1}, {"answer": 0}, 5]
    data["dialogs"][0]["dialog"] = [*bad, {"question": 0}]
    del data["dialogs"][1]["caption"]
    data["dialogs"][2]["image_id"] = "30"
    corpora.write_json(path, value)
    with pytest.raises(DataError, match="6 rejected"):
        prepare_visdial_texts([path], tmp_path / "out", max_rejected=0.0)
    rows = [(row["id"], row["kind"], row["path"].partition(": ")[2]) for _, row in read_jsonl(tmp_path / "out/rejected.jsonl")]
    assert rows == [
        *((f"train-9-{n}", "bad-round", f"dialogs[0].dialog[{n}]") for n in range(4)), ("train-25", "bad-entry", "dialogs[1]"),
        ("train-entry-2", "bad-entry", "dialogs[2]"),
    ]
    assert not (tmp_path / "out/texts.jsonl").exists()


@pytest.mark.parametrize("value", [[], {"data": {"questions": ["a"], "answers": ["b"]}}, {"dialogs": [1]}])
def test_files_of_another_form(tmp_path: Path, value: Any) -> None:
    path = corpora.write_json(tmp_path / "x.json", value)
    with pytest.raises(DataError, match=r"not VisDial v1\.0"):
        list(read_source(path))


def test_questions_that_are_one() -> None:
    assert question_key("Is it  sunny ?") == question_key("is it sunny") != question_key("is it raining")
    assert question_key("有几个人？") == question_key("有几个人")


def test_relevance(tmp_path: Path) -> None:
    rows = [{"image_id": 9, "round_id": 6, "gt_relevance": [0, 0.5]}, {"image_id": 9, "round_id": 2, "relevance": [1]}]
    assert read_dense(corpora.write_json(tmp_path / "d.json", rows)) == {(9, 6): [0.0, 0.5], (9, 2): [1.0]}
    with pytest.raises(DataError, match=r"d\.json: entry\[0\]: no `image_id`"):
        read_dense(corpora.write_json(tmp_path / "d.json", [{"image_id": 9}]))


def test_the_real_file(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "annotation_samples"
    path = folder / "visdial_1.0_val_97dialogs.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    data = json.loads(path.read_text())["data"]
    found = dialogs_of(path)
    assert len(found) == 97
    for dialog, value in zip(found, data["dialogs"], strict=True):
        assert (dialog.image_id, dialog.caption) == (value["image_id"], " ".join(value["caption"].split()))
        for turn, raw in zip(dialog.turns, value["dialog"], strict=True):
            assert turn.question == " ".join(data["questions"][raw["question"]].split())
            assert turn.answer == " ".join(data["answers"][raw["answer"]].split())
    counts = prepare_visdial_texts([path], tmp_path)
    asked = Counter(turn.question for dialog in found for turn in dialog.turns)
    assert (counts["rounds"], counts["different_questions"]) == (970, len(asked))
    dense = read_dense(folder / "visdial_1.0_val_dense_annotations_crowdsourced.json")
    assert {image for image, _ in dense} == {dialog.image_id for dialog in found}
    assert all(len(scores) == 100 for scores in dense.values())

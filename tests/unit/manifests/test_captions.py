"""Caption corpora: each in its exact form, what is always left out, oddities of real files."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import corpora
from xllm_speech.base.errors import DataError
from xllm_speech.base.files import read_jsonl
from xllm_speech.manifests.captions import CaptionSettings, prepare_captions
from xllm_speech.manifests.conversations import read_conversations
from xllm_speech.manifests.llava_test import LLAVA_TEST_COCO_IDS, is_llava_test_image
from xllm_speech.records.manifest import Conversation

QUESTIONS = ("描述图片", "图里有什么")


def prepare(corpus: str, annotations: Path, images: Path, out: Path, **more: Any) -> dict[str, Conversation]:
    """Prepare one file with pictures opened; its conversations by id."""
    keys = ("image_data", "min_region", "drop_repeats")
    settings = CaptionSettings(corpus, QUESTIONS, **{key: more.pop(key) for key in keys if key in more})
    counts = prepare_captions(settings, [annotations], [images], out, **{"max_rejected": 0.0, **more})
    (folder,) = out.iterdir()
    found = {item.id: item for item in read_conversations(folder / "conversations.jsonl.gz")}
    assert counts[f"{folder.name}.conversations"] == len(found)
    for item in found.values():
        assert more.get("open_media") is False or Path(str(item.messages[0].items[0].path)).is_file()
    return found


def answer(conversation: Conversation) -> str:
    return str(conversation.messages[1].items[0].text)


def rejected(out: Path) -> list[tuple[str, str, str]]:
    (path,) = out.rglob("rejected.jsonl")
    return [(row["id"], row["kind"], row["path"].rpartition("/")[2]) for _, row in read_jsonl(path)]


def test_coco_without_the_llava_test_picture(tmp_path: Path) -> None:
    found = prepare("coco", corpora.coco(tmp_path), tmp_path / "val2014", tmp_path / "out")
    assert found.keys() == {"coco-10", "coco-11", "coco-20", "coco-21"}
    assert {answer(found["coco-10"]), answer(found["coco-21"])} == {"Picture 1.", "A picture 2."}
    assert (found["coco-10"].task, len(found["coco-10"].messages[0].items)) == ("caption", 1)
    statistics = json.loads((tmp_path / "out/val/statistics.json").read_text())["statistics"]
    assert statistics["left_out_kinds"] == {"llava-test-image": 2}
    assert (statistics["images"], statistics["published"]) == (2, 202654)


@pytest.mark.parametrize("form", ["list", "2017 names", "folder above"])
def test_coco_in_other_forms(tmp_path: Path, form: str) -> None:
    path = corpora.coco(tmp_path)
    images = tmp_path / "val2014"
    if form == "list":
        corpora.write_json(path, json.loads(path.read_text())["annotations"])
    elif form == "2017 names":
        value = json.loads(path.read_text())
        for image in value["images"]:
            (images / image["file_name"]).rename(images / image["file_name"][-16:])
            image["file_name"] = image["file_name"][-16:]
        corpora.write_json(path, value)
    else:
        images = tmp_path
    assert prepare("coco", path, images, tmp_path / "out").keys() == {"coco-10", "coco-11", "coco-20", "coco-21"}


def test_the_thirty_pictures_are_those_of_the_questions(shared_data: Path) -> None:
    path = shared_data / "annotation_samples" / "xllm_eval_llava" / "question90.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path}")
    assert {int(row["image"][:12]) for _, row in read_jsonl(path)} == LLAVA_TEST_COCO_IDS


@pytest.mark.parametrize(
    ("image", "wanted"),
    [
        (441147, True), ("COCO_val2014_000000441147.jpg", True), ("/data/coco/000000441147.jpg", True), ("441147.jpg", False),
        ("VisualDialog_val2018_000000441147", True), (441148, False), ("1000000441147.jpg", False),
    ],
)
def test_llava_test_pictures_by_name(image: int | str, wanted: bool) -> None:
    assert is_llava_test_image(image) is wanted


def test_flickr30k(tmp_path: Path) -> None:
    path = corpora.flickr30k(tmp_path)
    found = prepare("flickr30k", path, tmp_path / "flickr30k-images", tmp_path / "out")
    assert len(found) == 10
    assert answer(found["flickr30k-1001-3"]) == "Two dogs , number 3 ."
    with open(path, "a") as stream:
        stream.write("no tab here\n1000.jpg#7\t \n\nmissing.jpg#0\tA ghost.\n")
    prepare("flickr30k", path, tmp_path / "flickr30k-images", tmp_path / "again", max_rejected=0.3)
    name = path.name
    assert rejected(tmp_path / "again") == [
        ("flickr30k-line-11", "bad-line", f"{name}:11"), ("flickr30k-1000-7", "empty-caption", f"{name}:12"),
        ("flickr30k-missing-0", "picture-missing", f"{name}:14"),
    ]


def test_ai_challenger(tmp_path: Path) -> None:
    path = corpora.aic(tmp_path)
    found = prepare("aic", path, tmp_path / "caption_train_images_20170902", tmp_path / "out")
    assert len(found) == 10
    assert sum(answer(item) == "海边有一个人" for item in found.values()) == 2


def test_visual_genome_regions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = corpora.visual_genome(tmp_path)
    found = prepare("visual-genome", path, tmp_path, tmp_path / "out", image_data=tmp_path / "image_data.json")
    assert found.keys() == {f"visual-genome-{number}" for number in (10, 11, 20, 21)}
    assert found["visual-genome-21"].custom == {"image_id": "2", "box": [5, 5, 4, 4]}
    large = prepare(
        "visual-genome", path, tmp_path, tmp_path / "large", image_data=tmp_path / "image_data.json", min_region=0.5
    )
    assert large.keys() == {"visual-genome-10", "visual-genome-20"}
    with caplog.at_level(logging.WARNING):
        assert len(prepare("visual-genome", path, tmp_path, tmp_path / "all")) == 6
    assert "without --image-data" in caplog.text


def test_minigpt4_brings_its_questions(tmp_path: Path) -> None:
    path = corpora.minigpt4(tmp_path, images=12)
    found = prepare("minigpt4", path, tmp_path / "image", tmp_path / "out")
    assert {item.task for item in found.values()} == {"vl"}
    assert {item.messages[0].items[1].text for item in found.values()} == set(QUESTIONS)
    assert answer(found["minigpt4-7-1"]) == "The image shows thing 7."


def break_truncate(folder: Path) -> None:
    corpora.truncate(folder / "COCO_val2014_000000000001.jpg")


def break_empty(folder: Path) -> None:
    (folder / "COCO_val2014_000000000001.jpg").write_bytes(b"")


def break_text(folder: Path) -> None:
    (folder / "COCO_val2014_000000000001.jpg").write_text("<html>404</html>")


def break_missing(folder: Path) -> None:
    (folder / "COCO_val2014_000000000001.jpg").unlink()


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (break_truncate, "picture-broken"), (break_empty, "picture-broken"), (break_text, "picture-broken"),
        (break_missing, "picture-missing"),
    ],
)
def test_a_broken_picture_costs_its_captions(tmp_path: Path, damage: Callable[[Path], None], kind: str) -> None:
    path = corpora.coco(tmp_path)
    damage(tmp_path / "val2014")
    with pytest.raises(DataError, match=f"2 rejected .{kind} 2. of 6 items"):
        prepare("coco", path, tmp_path / "val2014", tmp_path / "out")
    found = prepare("coco", path, tmp_path / "val2014", tmp_path / "out", max_rejected=0.5)
    assert found.keys() == {"coco-20", "coco-21"}
    assert rejected(tmp_path / "out") == [
        ("coco-10", kind, "captions_val2014.json: annotations[0]"), ("coco-11", kind, "captions_val2014.json: annotations[3]")
    ]


def test_oddities_of_records_are_named(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"captio": "x", "image_id": 1}, {"caption": "x", "image_i": 1}, {"caption": "", "image_id": 1}, 7,
        {"caption": "x", "image_id": ""}, {"caption": ["好", ""], "image_id": "a.jpg"}, {"caption": 3, "image_id": 1},
    ]
    path = corpora.write_json(tmp_path / "rows.json", rows)
    found = prepare("aic", path, tmp_path, tmp_path / "out", open_media=False, max_rejected=0.9)
    assert [answer(item) for item in found.values()] == ["好"]
    assert [(kind, where) for _, kind, where in rejected(tmp_path / "out")] == [
        ("bad-entry", "rows.json: entry[0]"), ("bad-entry", "rows.json: entry[1]"), ("empty-caption", "rows.json: entry[2]"),
        ("bad-entry", "rows.json: entry[3]"), ("bad-entry", "rows.json: entry[4]"), ("empty-caption", "rows.json: entry[5]"),
        ("bad-entry", "rows.json: entry[6]"),
    ]


def test_mistakes_in_the_call(tmp_path: Path) -> None:
    path = corpora.coco(tmp_path)
    with pytest.raises(DataError, match="corpus `koko` is not one of coco"):
        prepare_captions(CaptionSettings("koko"), [path], [tmp_path], tmp_path / "out")
    with pytest.raises(DataError, match="no such folder of pictures"):
        prepare_captions(CaptionSettings("coco"), [path], [tmp_path / "none"], tmp_path / "out")
    with pytest.raises(DataError, match="no questions"):
        prepare_captions(CaptionSettings("minigpt4"), [path], [tmp_path], tmp_path / "out")
    with pytest.raises(DataError, match="of one name"):
        prepare_captions(CaptionSettings("coco"), [path, path], [tmp_path], tmp_path / "out")
    other = corpora.write_json(tmp_path / "x.json", {"a": [1]})
    with pytest.raises(DataError, match="no list of captions"):
        prepare_captions(CaptionSettings("coco"), [other], [tmp_path], tmp_path / "o")


@pytest.mark.parametrize(
    ("corpus", "name", "count"),
    [("coco", "coco_data_sample.json", 500), ("minigpt4", "minigpt4_filter_cap_300.json", 300),
     ("aic", "aic_caption_eval/id_to_words.json", 15)],
)
def test_real_annotations_come_through_whole(
    shared_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, corpus: str, name: str, count: int
) -> None:
    path = shared_data / "annotation_samples" / name
    if not path.is_file():
        pytest.skip(f"no {path}")
    value = json.loads(path.read_text())
    rows = value if isinstance(value, list) else value["annotations"]
    with caplog.at_level(logging.WARNING):
        found = prepare(corpus, path, tmp_path, tmp_path / "out", open_media=False)
    assert len(found) == len(rows) == count
    join = "" if corpus == "aic" else " "
    assert [answer(item) for item in found.values()] == [join.join(row["caption"].split()) for row in rows]
    if corpus == "minigpt4":
        assert "240 entries repeat a text of their picture; kept" in caplog.text
        assert len(prepare(corpus, path, tmp_path, tmp_path / "less", open_media=False, drop_repeats=True)) == 60
    if corpus == "aic":
        assert found["aic-6"].messages[0].items[0].path == str(tmp_path / "2da70f0e6fe46642a18f35ed72c7c0b5f6fca09d.jpg")


@pytest.mark.parametrize(("name", "bad"), [("has_null_data", 2), ("key_error", 2), ("more_data_number", 0), ("wrong_name", 0)])
def test_real_oddities(shared_data: Path, tmp_path: Path, name: str, bad: int) -> None:
    path = shared_data / "annotation_samples" / "aic_caption_eval" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    found = prepare("aic", path, tmp_path, tmp_path / "out", open_media=False, max_rejected=0.9)
    assert (len(rejected(tmp_path / "out")), len(found)) == (bad, len(json.loads(path.read_text())) - bad)

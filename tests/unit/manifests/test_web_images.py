"""Pictures of the web: every form of list, names of downloads, filters, and rows that were never downloaded."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests import corpora
from xllm_speech.base.errors import DataError
from xllm_speech.base.files import read_jsonl
from xllm_speech.manifests.conversations import read_conversations
from xllm_speech.manifests.web_images import WebSettings, prepare_web_images, read_pairs


def prepare(settings: WebSettings, table: Path, images: Path, out: Path, **more: Any) -> dict[str, str]:
    """Caption by id of what one table gives."""
    prepare_web_images(settings, [table], [images], out, **{"max_rejected": 0.0, "max_missing": 0.0, **more})
    (folder,) = out.iterdir()
    found = {}
    for item in read_conversations(folder / "conversations.jsonl.gz"):
        assert item.task == "caption"
        assert Path(str(item.messages[0].items[0].path)).is_file()
        found[item.id] = str(item.messages[1].items[0].text)
    return found


@pytest.mark.parametrize("corpus", ["cc3m", "sbu", "wukong"])
@pytest.mark.parametrize("naming", ["md5", "sha256", "row"])
def test_every_list_with_every_naming(tmp_path: Path, corpus: str, naming: str, caplog: pytest.LogCaptureFixture) -> None:
    rows = corpora.web_rows()
    corpora.download(tmp_path / "images", [url for url, _ in rows], naming)
    table = {"cc3m": corpora.cc3m, "sbu": corpora.sbu, "wukong": corpora.wukong}[corpus](tmp_path / "lists", rows)
    with caplog.at_level(logging.WARNING):
        found = prepare(WebSettings(corpus, naming), table, tmp_path / "images", tmp_path / "out")
    stem = table.name.split(".")[0]
    assert found == {f"{corpus}-{stem}-{row:09d}": caption for row, (_, caption) in enumerate(rows)}
    assert "published" in caplog.text


def test_several_tables_with_rows_as_names(tmp_path: Path) -> None:
    rows = corpora.web_rows(3)
    tables = [corpora.wukong(tmp_path, rows, number) for number in range(2)]
    for table in tables:
        corpora.download(tmp_path / "images" / table.stem, [url for url, _ in rows], "row")
    counts = prepare_web_images(WebSettings("wukong", "row"), tables, [tmp_path / "images"], tmp_path / "out")
    assert (counts["wukong_100m_0.conversations"], counts["wukong_100m_1.conversations"]) == (3, 3)
    first = next(read_conversations(tmp_path / "out/wukong_100m_1/conversations.jsonl.gz"))
    assert first.messages[0].items[0].path == str(tmp_path / "images/wukong_100m_1/000000000.jpg")


FORMS = {
    "path.csv": "image_path,caption\na.jpg,一只猫\nsub/b.jpg,two dogs\n",
    "quoted.csv": 'caption,path\n"一只猫",a.jpg\n"two\ndogs",sub/b.jpg\n',
    "bare.tsv": "a.jpg\t一只猫\nsub/b.jpg\ttwo dogs\n",
    "reversed.tsv": "一只猫\ta.jpg\ntwo dogs\tsub/b.jpg\n",
    "marked.csv": "\ufefffile_name,TEXT\r\na.jpg,一只猫\r\nsub/b.jpg,two dogs\r\n",
    "more.csv": "id,image,url,title\n7,a.jpg,http://x/y,一只猫\n8,sub/b.jpg,http://x/z,two dogs\n",
    "objects.json": json.dumps([{"image": "a.jpg", "caption": "一只猫"}, {"image": "sub/b.jpg", "caption": "two dogs"}]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("zipped", [False, True])
def test_tables_of_paths(tmp_path: Path, form: str, zipped: bool) -> None:
    corpora.picture(tmp_path / "images" / "a.jpg")
    corpora.picture(tmp_path / "images" / "sub" / "b.jpg")
    table = tmp_path / (f"{form}.gz" if zipped else form)
    table.write_bytes(gzip.compress(FORMS[form].encode()) if zipped else FORMS[form].encode())
    found = prepare(WebSettings("cc3m"), table, tmp_path / "images", tmp_path / "out")
    assert list(found.values()) == ["一只猫", "two dogs"]


def test_sbu_as_one_json(tmp_path: Path) -> None:
    rows = corpora.web_rows()
    corpora.download(tmp_path / "images", [url for url, _ in rows])
    value = {"image_urls": [url for url, _ in rows], "captions": [f"{text}\n" for _, text in rows]}
    path = corpora.write_json(tmp_path / "sbu-captions-all.json", value)
    found = prepare(WebSettings("sbu"), path, tmp_path / "images", tmp_path / "out")
    assert list(found.values()) == [text for _, text in rows]


def test_pictures_too_small_or_too_long_are_left_out(tmp_path: Path) -> None:
    sizes = {"tiny": (20, 40), "small": (33, 33), "long": (200, 60), "tall": (60, 200), "good": (90, 60)}
    for name, (width, height) in sizes.items():
        corpora.picture(tmp_path / "images" / f"{name}.png", width, height)
    (tmp_path / "list.csv").write_text("path,caption\n" + "".join(f"{name}.png,{name}\n" for name in sizes))
    found = prepare(WebSettings("cc3m"), tmp_path / "list.csv", tmp_path / "images", tmp_path / "out")
    assert set(found.values()) == {"small", "good"}
    other = WebSettings("cc3m", min_side_px=60, max_aspect=4)
    found = prepare(other, tmp_path / "list.csv", tmp_path / "images", tmp_path / "other")
    assert set(found.values()) == {"long", "tall", "good"}


def test_never_downloaded_has_a_limit_of_its_own(tmp_path: Path) -> None:
    rows = corpora.web_rows(40)
    corpora.download(tmp_path / "images", [url for url, _ in rows[:22]])
    table = corpora.cc3m(tmp_path, rows)
    assert len(prepare(WebSettings("cc3m"), table, tmp_path / "images", tmp_path / "out", max_missing=0.5)) == 22
    kinds = {row["kind"] for _, row in read_jsonl(tmp_path / "out/Train_GCC-training/rejected.jsonl")}
    assert kinds == {"not-downloaded"}
    with pytest.raises(DataError, match=r"18 rejected \(not-downloaded 18\) of 40 items, .*raise --max-missing"):
        prepare(WebSettings("cc3m"), table, tmp_path / "images", tmp_path / "again", max_missing=0.4)


def test_bad_rows_are_named_by_line(tmp_path: Path) -> None:
    corpora.picture(tmp_path / "images" / "a.jpg")
    (tmp_path / "list.tsv").write_text("a.jpg\tgood\njust one\na.jpg\t \n\n\tno path\na.jpg\tgood too\n")
    found = prepare(WebSettings("cc3m"), tmp_path / "list.tsv", tmp_path / "images", tmp_path / "out", max_rejected=0.6)
    assert list(found.values()) == ["good", "good too"]
    rows = [(row["kind"], row["path"].rpartition("/")[2]) for _, row in read_jsonl(tmp_path / "out/list/rejected.jsonl")]
    assert rows == [("bad-line", "list.tsv:2"), ("empty-caption", "list.tsv:3"), ("bad-line", "list.tsv:5")]


def test_the_llava_test_pictures_of_coco(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,caption\nval2014/COCO_val2014_000000441147.jpg,luggage\na.jpg,cat\n")
    corpora.picture(tmp_path / "a.jpg")
    assert list(prepare(WebSettings("cc3m"), tmp_path / "list.csv", tmp_path, tmp_path / "out").values()) == ["cat"]


def test_similarity_filter(tmp_path: Path) -> None:
    rows = corpora.web_rows(5)
    corpora.download(tmp_path / "images", [url for url, _ in rows])
    table = corpora.wukong(tmp_path, rows)
    ids = [f"wukong-wukong_100m_0-{row:09d}" for row in range(5)]
    lines = [f"{name}\t{score}\n" for name, score in zip(reversed(ids[:4]), (0.9, 0.44, 0.46, 0.1), strict=True)]
    (tmp_path / "scores.tsv").write_text("".join(lines))
    settings = WebSettings("wukong", scores=str(tmp_path / "scores.tsv"), min_score=0.45)
    found = prepare(settings, table, tmp_path / "images", tmp_path / "out", max_rejected=0.5)
    assert found.keys() == {ids[3], ids[1]}
    statistics = json.loads((tmp_path / "out/wukong_100m_0/statistics.json").read_text())["statistics"]
    assert statistics["left_out_kinds"] == {"below-min-score": 2}
    assert statistics["rejected_kinds"] == {"no-score": 1}
    (tmp_path / "scores.tsv").write_text("a 0.5\n")
    with pytest.raises(DataError, match=r"scores\.tsv:1: not `id<TAB>score`"):
        prepare(settings, table, tmp_path / "images", tmp_path / "again")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "empty table"), ("a.csv", "x,y,z\n1,2,3\n", "no header with caption and url or path"),
        ("a.txt", "http://x\n", "expected a file `...urls.txt`"), ("urls.txt", "http://x\nhttp://y\n", "one has more lines"),
        ("a.json", '{"image_urls": ["x"], "captions": []}', "1 image_urls and 0 captions"),
    ],
)
def test_files_that_are_no_list(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    if name == "urls.txt":
        (tmp_path / "captions.txt").write_text("only one\n")
    with pytest.raises(DataError, match=message):
        list(read_pairs(WebSettings("cc3m"), tmp_path / name))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"corpus": "laion"}, "not one of cc3m, sbu, wukong"), ({"naming": "url"}, "not one of md5"),
        ({"min_side_px": 0}, "at least 1"), ({"scores": "x"}, "belong together"), ({"min_score": 0.4}, "belong together"),
    ],
)
def test_mistakes_in_the_settings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        WebSettings(**{"corpus": "cc3m", **values})

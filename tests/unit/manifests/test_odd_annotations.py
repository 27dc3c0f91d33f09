"""Annotation files as the world has them: each odd line is taken, or rejected by its place, and costs no other."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import corpora
import pytest

from xllm_speech.base.errors import DataError, UserError
from xllm_speech.base.files import read_jsonl
from xllm_speech.manifests.aishell import prepare_aishell2
from xllm_speech.manifests.captions import CaptionSettings, prepare_captions
from xllm_speech.manifests.released import prepare_released
from xllm_speech.manifests.videos import prepare_videos
from xllm_speech.manifests.visdial_source import prepare_visdial_texts, read_dense
from xllm_speech.manifests.web_images import WebSettings, prepare_web_images


def rejected(folder: Path) -> list[tuple[str, str]]:
    """(place without its folder, reason) of everything that was rejected."""
    return [(Path(row["path"]).name, row["reason"]) for _, row in read_jsonl(folder / "rejected.jsonl")]


def test_transcripts(tmp_path: Path) -> None:
    corpora.aishell2_set(tmp_path / "set", "IC0001", 4)
    names = [f"IC0001W{number:04d}" for number in range(4)]
    lines = [
        b"\xef\xbb\xbf" + f"{names[0]}\t  今天\u3000 天气  怎么样 \r\n".encode(), b"\r\n", f"{names[1]} 你好\r\n".encode(),
        f"{names[2]}\t".encode() + "你好".encode("gb18030") + b"\n", f"{names[1]}\t又一次\n".encode(),
        f"{names[3]}\n".encode(),
    ]
    (tmp_path / "set/trans.txt").write_bytes(b"".join(lines))
    counts = prepare_aishell2(tmp_path / "set", tmp_path / "out", 1, max_rejected=1)
    rows = [row for _, row in read_jsonl(tmp_path / "out/data/cuts.jsonl.gz")]
    assert [(row["id"], row["supervisions"][0]["text"]) for row in rows] == [(names[0], "今天天气怎么样"), (names[1], "你好")]
    assert rejected(tmp_path / "out/data") == [
        ("trans.txt:4", "not UTF-8 text"), ("trans.txt:5", f"id again; {tmp_path}/set/trans.txt:3 counts"),
        ("wav.scp:3", "a recording without a transcript"), ("trans.txt:6", "an empty transcript"),
    ]
    assert counts["data.rejected"] == 4
    (tmp_path / "set/trans.txt").write_bytes("".join(f"{name}\t你好\n" for name in names).encode("utf-16"))
    with pytest.raises(DataError, match=r"trans.txt: UTF-16 text; `iconv"):
        prepare_aishell2(tmp_path / "set", tmp_path / "again", 1)


def test_tables_of_the_web(tmp_path: Path) -> None:
    url = "http://pictures.example/{}.jpg"
    table = tmp_path / "wukong_100m_0.csv"
    lines = [
        "url,caption", f'{url.format(0)},"一只狗，""大""\n的"', f"{url.format(1)},猫,另一列", url.format(2),
        f'{url.format(3)},"没有结束', f"{url.format(4)},鸟", f'{url.format(5)},鱼"', "", f"{url.format(6)},马\0",
        f"{url.format(7)},", f'{url.format(8)},"{"长" * 140000}', f"{url.format(9)},牛",
    ]
    content = "\r\n".join([*lines, f"{url.format(10)},羊\n"]).encode()
    table.write_bytes(content.replace("马".encode(), b"\xe9\xa9 \xac"))
    prepare_web_images(WebSettings("wukong"), [table], [tmp_path], tmp_path / "out", 1, 1.0, open_media=False)
    rows = [row for _, row in read_jsonl(tmp_path / "out/wukong_100m_0/conversations.jsonl.gz")]
    assert [row["messages"][1]["content"] for row in rows] == ["一只狗，\"大\"的", "牛", "羊"]
    assert [row["custom"]["url"] for row in rows] == [url.format(0), url.format(9), url.format(10)]
    told = rejected(tmp_path / "out/wukong_100m_0")
    assert [place for place, _ in told] == [f"wukong_100m_0.csv:{n}" for n in (4, 5, 6, 10, 11, 12)]
    for (_, reason), words in zip(told, (
        "3 columns, expected 2", "1 columns, expected 2", "nothing closes has taken in other rows", "not UTF-8 text",
        "an empty caption", "field larger than field limit",
    ), strict=True):
        assert words in reason


def test_half_a_character(tmp_path: Path) -> None:
    half = "\\ud83d"
    coco = tmp_path / "captions_train2014.json"
    corpora.write_json(coco, [{"image_id": 1, "caption": "a dog"}, {"image_id": 2, "caption": "a HALF dog"}])
    coco.write_text(coco.read_text().replace("HALF", half))
    prepare_captions(CaptionSettings("coco"), [coco], [tmp_path], tmp_path / "coco", 1, open_media=False)
    [(place, reason)] = rejected(tmp_path / "coco/train")
    assert place == "captions_train2014.json: entry[1]"
    assert "half a character" in reason
    assert half in reason
    for name, corpus in (("filter_cap.json", "minigpt4"), ("x_zh.json", "released")):
        path, out = tmp_path / name, tmp_path / corpus
        corpora.write_json(path, [{"image_id": "HALF", "caption": "x"}, {"image_id": "1", "caption": "y"}])
        path.write_text(path.read_text().replace("HALF", half))
        if corpus == "minigpt4":
            prepare_captions(CaptionSettings(corpus, ("?",)), [path], [tmp_path], out, 1, open_media=False)
        else:
            prepare_released([path], out, [tmp_path], questions=["?"], jobs=1, open_media=False)
        assert len(rejected(next(out.iterdir()))) == 1
    source = json.loads(corpora.visdial(tmp_path).read_text())
    source["data"]["questions"][0] = "is it \ud83d"
    (tmp_path / "v.json").write_text(json.dumps(source))
    prepare_visdial_texts([tmp_path / "v.json"], tmp_path / "texts", 1)
    reason = "question 0 names no text among the 5 of the pool"
    assert rejected(tmp_path / "texts")[0] == ("v.json: dialogs[0].dialog[0]", reason)


def test_a_set_is_no_path(tmp_path: Path) -> None:
    path = corpora.msrvtt(tmp_path)
    path.write_text(path.read_text().replace('"train"', '"../../train"'))
    with pytest.raises(DataError, match=r"a set cannot be called '../../train'"):
        prepare_videos("msrvtt", [path], [tmp_path / "videos"], tmp_path / "a/b/out", 1)


JUNK = (b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n\n", b"\0", b"\\ud800", b"null", b"NaN", b"1e999", b'"', b"\xe6\x88", b",", b"\t")
VALUES = (b"null", b"[]", b'"x"', b"1.5", b"{}", b"true", b'"\\ud800"', b'""', b"[null]", b'"http://x/y.jpg"')


def mutate(content: bytes, draw: random.Random) -> bytes:
    """A few bytes go, come or are said twice, or a value of JSON becomes another."""
    text = bytearray(content)
    for _ in range(draw.choice((1, 1, 3))):
        at = draw.randrange(max(1, len(text)))
        end = at + draw.choice((1, 4, 30))
        values = list(re.finditer(rb'(?<=: )("[^"]*"|-?[0-9.]+|\[)', bytes(text)))
        if values and draw.random() < 0.4:
            found = draw.choice(values)
            text[found.start() : found.end()] = draw.choice(VALUES)
        else:
            text[at : draw.choice((at, end))] = draw.choice((b"", bytes(text[at:end]), draw.choice(JUNK)))
    return bytes(text)


def prepare(corpus: str, path: Path, out: Path) -> None:
    media = [path.parent]
    match corpus:
        case "msrvtt" | "activitynet" | "avsd":
            prepare_videos(corpus, [path], media, out, 1, 1.0, open_media=False)
        case "cc3m" | "wukong":
            prepare_web_images(WebSettings(corpus), [path], media, out, 1, 1.0, open_media=False)
        case "visdial":
            prepare_visdial_texts([path], out, 1.0)
        case "released":
            prepare_released([path], out, media, media, jobs=1, max_rejected=1.0, open_media=False)
        case "dense":
            read_dense(path)
        case _:
            prepare_captions(CaptionSettings(corpus, ("?",)), [path], media, out, 1, 1.0, open_media=False)


def rows_of_the_web(make: Callable[[Path, list[tuple[str, str]]], Path]) -> Callable[[Path], Path]:
    return lambda top: make(top, corpora.web_rows(6))


MAKERS: dict[str, Callable[[Path], Path]] = {
    "coco": corpora.coco, "flickr30k": corpora.flickr30k, "aic": corpora.aic, "visual-genome": corpora.visual_genome,
    "minigpt4": corpora.minigpt4, "msrvtt": corpora.msrvtt, "activitynet": corpora.activitynet, "avsd": corpora.avsd,
    "visdial": corpora.visdial, "cc3m": rows_of_the_web(corpora.cc3m), "wukong": rows_of_the_web(corpora.wukong),
    "released": lambda top: corpora.released(top)["vsd"],
    "dense": lambda top: corpora.write_json(top / "d.json", [{"image_id": 1, "round_id": 2, "gt_relevance": [0.5, 1]}]),
}


@pytest.mark.parametrize("corpus", MAKERS)
def test_damage_anywhere_is_taken_or_told_of(tmp_path: Path, corpus: str) -> None:
    path = MAKERS[corpus](tmp_path / "in")
    whole, draw = path.read_bytes(), random.Random(corpus)
    prepare(corpus, path, tmp_path / "out")
    told: list[str] = []
    for number in range(25):
        path.write_bytes(mutate(whole, draw))
        try:
            prepare(corpus, path, tmp_path / f"out{number}")
        except UserError as error:
            told.append(str(error))
    assert len(told) < 25
    assert all(path.name in words or "rejected.jsonl" in words for words in told), told

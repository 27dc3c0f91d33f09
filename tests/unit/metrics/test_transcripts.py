from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from xllm_speech.base.errors import DataError
from xllm_speech.metrics.transcripts import pair_transcripts, read_transcripts


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def test_three_forms_say_the_same(tmp_path: Path) -> None:
    kaldi = write(tmp_path / "text", "\ufeffa 今天 天气\r\n\nb\nc\thello world \n")
    rows = [{"id": "a", "text": "今天 天气", "speaker": "s1"}, {"id": "b", "text": ""}, {"id": "c", "text": "hello world"}]
    lines = write(tmp_path / "ref.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    spans = [[("今天", 0.0), ("天气", 1.0)], [], [("hello world", 0.0)]]
    cuts = tmp_path / "cuts.jsonl.gz"
    with gzip.open(cuts, "wt", encoding="utf-8") as stream:
        for row, parts in zip(rows, spans, strict=True):
            supervisions = [{"id": f"s{start}", "text": text, "start": start, "speaker": "s1"} for text, start in parts]
            cut = {"id": row["id"], "supervisions": supervisions[::-1], "custom": {"group": "g"}}
            stream.write(json.dumps(cut) + "\n")
    expected = [("a", "今天 天气"), ("b", ""), ("c", "hello world")]
    for path in (kaldi, lines, cuts):
        assert [(row.id, row.text) for row in read_transcripts(path)] == expected
    assert [row.line for row in read_transcripts(kaldi)] == [1, 3, 4]
    assert read_transcripts(lines)[0].fields == {"speaker": "s1"}
    first = read_transcripts(cuts)[0].fields
    assert (first["speaker"], first["group"]) == ("s1", "g")


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffa 今天\r\nb\r\n", "a\t今天 \t\rb\t\r", "\na\u3000今天\n \nb", "a 今天\n\ufeffb\n",
        '\ufeff{"id": "a", "text": "今天"}\r\n\r\n{"id": "b", "text": ""}',
        '[{"id": "a", "text": "今天"}, {"id": "b", "text": ""}]',
        '[\n{"id": "a", "text": "今天"},\n{"id": "b", "text": ""}]',
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_marks_and_white_space_of_other_programs_change_nothing(
    content: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    (tmp_path / "text").write_bytes(pack(content.encode()))
    assert [(row.id, row.text) for row in read_transcripts(tmp_path / "text")] == [("a", "今天"), ("b", "")]


def test_only_line_ends_part_lines(tmp_path: Path) -> None:
    odd = "a 今\u2028天\x85好\x0b的\x0c\x1c了\nb x\n"
    assert [row.id for row in read_transcripts(write(tmp_path / "text", odd))] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no transcript in it"),
        ('[{"id": "a", "text": "x"}, {"id": "a", "text": "x"}]', r":2: id a is doubled, first on line 1"),
        ('[{"id": "a", "text": "x"}, {"id": 7, "text": "x"}]', r'item 2: expected "id" to be a string, found 7'),
        ("\n \n", "no transcript in it"),
        ("a 今\nb 天\na 好\n", r":3: id a is doubled, first on line 1"),
        ("a 今\n 天\n", r":2: the line begins with a space"),
        ('{"id": "a", "text": "x"}\nb 天\n', r":2: not JSON"),
        ('{"id": "a", "text": "x"}\n[1]\n', r":2: expected a JSON object"),
        ('{"id": 3, "text": "x"}\n', r':1: expected "id" to be a string, found 3'),
        ('{"id": "a"}\n', r':1: id a: expected "text" to be a string, found None'),
        ('{"id": "a", "supervisions": [{"text": null}]}\n', ":1: cut a: a supervision without text"),
        ('{"id": "a", "supervisions": 3}\n', ":1: cut a: its supervisions"),
    ],
)
def test_what_cannot_be_read_is_named(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_transcripts(write(tmp_path / "file", content))


def test_not_utf8_and_absent(tmp_path: Path) -> None:
    (tmp_path / "gbk").write_bytes("a 今天\n".encode("gbk"))
    with pytest.raises(DataError, match=r"gbk:1: cannot be read as UTF-8"):
        read_transcripts(tmp_path / "gbk")
    with pytest.raises(DataError, match="absent: cannot be read"):
        read_transcripts(tmp_path / "absent")


def test_every_id_is_answered_once(tmp_path: Path) -> None:
    ref = write(tmp_path / "ref", "".join(f"u{i} 今\n" for i in range(8)))
    hyp = write(tmp_path / "hyp", "u7 今\nx 好\nu0 天\n")
    with pytest.raises(DataError) as caught:
        pair_transcripts(read_transcripts(ref), read_transcripts(hyp), "ref", "hyp")
    message = str(caught.value)
    assert "hyp lacks 6 of 8 ids: u1 (ref:2), u2 (ref:3), u3 (ref:4), u4 (ref:5), u5 (ref:6), ..." in message
    assert "hyp has 1 ids that the reference does not know: x (hyp:2)" in message
    shuffled = write(tmp_path / "hyp", "".join(f"u{i} 今\n" for i in reversed(range(8))))
    pairs = pair_transcripts(read_transcripts(ref), read_transcripts(shuffled), ref, shuffled)
    assert [(asked.id, answer.id) for asked, answer in pairs] == [(f"u{i}", f"u{i}") for i in range(8)]

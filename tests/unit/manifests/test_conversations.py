"""Conversation manifests: there and back again, and every bad line named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xllm_speech.base.errors import DataError
from xllm_speech.manifests.conversations import read_conversations, write_conversations
from xllm_speech.records.manifest import Conversation, ConversationItem, Message


def text(words: str) -> ConversationItem:
    return ConversationItem("text", text=words)


EXAMPLES = [
    Conversation(
        "a",
        "vl",
        (
            Message("system", (text("你是助手"),)),
            Message("user", (ConversationItem("image", path="images/1.png"), text("这是什么"))),
            Message("assistant", (text("旗子"),)),
            Message("user", (text("什么颜色"),)),
            Message("assistant", (text("红色"),)),
        ),
        {"dialog_id": "d1", "round": 2},
    ),
    Conversation(
        "b",
        "vsd",
        (
            Message(
                "user",
                (
                    ConversationItem("image", path="/far/2.png"),
                    ConversationItem("speech", path="long.flac", offset_sec=1.5, duration_sec=2.0),
                    ConversationItem("speech", cut="cut-7"),
                ),
            ),
            Message("assistant", (text("有"),)),
        ),
    ),
]

GOOD: dict[str, Any] = {
    "id": "a",
    "task": "text",
    "messages": [{"role": "user", "content": "好"}, {"role": "assistant", "content": "好"}],
}


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz"])
def test_written_and_read_again(tmp_path: Path, name: str) -> None:
    assert write_conversations(tmp_path / name, EXAMPLES) == 2
    assert list(read_conversations(tmp_path / name)) == EXAMPLES


def test_form_on_disk_is_that_of_chat_libraries(tmp_path: Path) -> None:
    write_conversations(tmp_path / "c.jsonl", EXAMPLES)
    first, second = ((json.loads(line)) for line in (tmp_path / "c.jsonl").read_text().splitlines())
    assert first["messages"][1]["content"] == [
        {"type": "image", "path": "images/1.png"},
        {"type": "text", "text": "这是什么"},
    ]
    assert first["messages"][2] == {"role": "assistant", "content": "旗子"}
    assert second["messages"][0]["content"][1] == {"type": "speech", "path": "long.flac", "offset": 1.5, "duration": 2.0}
    assert "custom" not in second


def test_relative_paths_follow_the_root(tmp_path: Path) -> None:
    write_conversations(tmp_path / "c.jsonl", EXAMPLES)
    first, second = read_conversations(tmp_path / "c.jsonl", root="/corpus")
    assert first.messages[1].items[0].path == "/corpus/images/1.png"
    assert [item.path for item in second.messages[0].items] == ["/far/2.png", "/corpus/long.flac", None]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": 3}, "`id` must be a string"),
        ({"task": "sing"}, "task `sing` is not one of asr"),
        ({"messages": "hello"}, "`messages` must be a list"),
        ({"messages": []}, "turns must alternate"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "turns must alternate"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role `robot`"),
        ({"messages": [{"role": "user"}]}, "`role` and `content`"),
        ({"messages": [{"role": "user", "content": [{"type": "smell", "path": "x"}]}]}, "item type `smell`"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "needs `path`"),
        ({"messages": [{"role": "user", "content": [{"type": "speech", "offset": 1}]}]}, "needs `path` or `cut`"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}, "unknown key `url`"),
        ({"messages": [{"role": "user", "content": [{"type": "speech", "cut": "b", "offset": -1}]}]}, "must be seconds"),
        ({"massages": []}, "unknown key `massages`"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (GOOD, {**GOOD, "id": "b", **change})) + "\n")
    stream = read_conversations(path)
    assert next(stream).id == "a"
    with pytest.raises(DataError) as caught:
        next(stream)
    assert f"{path}:2:" in str(caught.value)
    assert words in str(caught.value)


def test_doubled_id_names_both_lines(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD) + "\n")
    with pytest.raises(DataError, match=r"c\.jsonl:3: id `a` was used in line 1"):
        list(read_conversations(path))


def test_nothing_is_left_of_a_failed_write(tmp_path: Path) -> None:
    write_conversations(tmp_path / "c.jsonl.gz", EXAMPLES)
    before = (tmp_path / "c.jsonl.gz").read_bytes()

    def broken() -> Any:
        yield EXAMPLES[0]
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_conversations(tmp_path / "c.jsonl.gz", broken())
    assert [path.name for path in tmp_path.iterdir()] == ["c.jsonl.gz"]
    assert (tmp_path / "c.jsonl.gz").read_bytes() == before


def test_a_kind_of_ones_own_is_read_when_it_is_named(tmp_path):
    path = tmp_path / "own.jsonl"
    row = '{"id": "a", "task": "text", "messages": [{"role": "user", "content": [{"type": "sound", "path": "a.wav"}]}]}'
    path.write_text(row + "\n")
    (conversation,) = read_conversations(path, kinds=("text", "sound"))
    assert conversation.messages[0].items[0].type == "sound"
    with pytest.raises(DataError, match=r"own\.jsonl:1: item type `sound` is not one of text, image, video, speech"):
        list(read_conversations(path))

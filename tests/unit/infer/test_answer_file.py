"""`xllm-speech answer` and `transcribe --method llm`: whole files, references kept, baselines, descriptions beside them."""

from __future__ import annotations

import json

import pytest

from xllm_speech import XLLM
from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.bin.main import main
from xllm_speech.infer.answer_file import AnswerJob
from xllm_speech.manifests.conversations import write_conversations
from xllm_speech.models.checkpoints import WEIGHTS
from xllm_speech.records import Conversation, ConversationItem, Message


@pytest.fixture
def manifest(media, tmp_path):
    """Questions about the two pictures, a caption, a spoken question, and one about a picture that is not there."""
    def talk(name, task, items, answer=None):
        given = [ConversationItem(kind, **{"text" if kind == "text" else "path": value}) for kind, value in items]
        end = [] if answer is None else [Message("assistant", (ConversationItem("text", text=answer),))]
        return Conversation(name, task, (Message("user", tuple(given)), *end), {"category": task} if task == "vl" else {})

    red, green, long = (str(media / name) for name in ("red.png", "green.png", "long.wav"))
    path = tmp_path / "talks.jsonl.gz"
    write_conversations(path, [
        talk("q1", "vl", [("image", red), ("text", "什么颜色")], "红"),
        talk("c1", "caption", [("image", red)], "红色的圆形"),
        talk("q2", "vl", [("image", green), ("text", "什么颜色")], "绿"),
        talk("gone", "vl", [("image", str(media / "gone.png")), ("text", "什么颜色")], "蓝"),
        talk("s1", "vsd", [("image", red), ("speech", long)]),
    ])
    return path


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_answers_of_a_manifest(xllm_dir, manifest, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    words = ["answer", "--model", str(xllm_dir), "--conversations", str(manifest), "--max-tokens", "8", "--device", "cpu"]
    assert main([*words, "--out", str(out)]) == 0
    rows = {row["id"]: row for row in rows_of(out)}
    assert list(rows) == ["q1", "c1", "q2", "gone", "s1"]
    assert [row["task"] for row in rows.values()] == ["vl", "caption", "vl", "vl", "vsd"]
    assert [row["reference"] for row in rows.values()] == ["红", "红色的圆形", "绿", "蓝", None]
    assert rows["q1"]["custom"] == {"category": "vl"}
    assert rows["gone"]["text"] == ""
    assert "gone.png: no such picture" in rows["gone"]["error"]
    assert [name for name, row in rows.items() if "error" in row] == ["gone"]
    err = capsys.readouterr().err
    assert "answer: gone: " in err
    assert "4 of 5 conversations answered" in err
    assert "cut at the most tokens allowed" in err
    meta = json.loads((tmp_path / "answers.jsonl.meta.json").read_text())
    assert meta["checkpoint_sha256"] == XLLM.from_pretrained(xllm_dir).weights_sha256
    assert set(meta["frozen_sha256"]) == {"llm", "vision", "asr"}
    assert (meta["answered"], meta["failed"], meta["prompt"]["template"]) == (4, 1, "chinese")
    # blind: the two pictures make no difference any more, and the missing one is not missed
    assert main([*words, "--out", str(out), "--tasks", "vl", "--without", "image", "--limit", "3"]) == 0
    blind = rows_of(out)
    assert [row["id"] for row in blind] == ["q1", "q2", "gone"]
    assert len({row["text"] for row in blind}) == 1
    assert rows["q1"]["text"] != rows["q2"]["text"]
    # the same at any batch size, with a fixed wording
    assert main([*words, "--out", str(out), "--batch-size", "1", "--wording", "0"]) == 0
    assert [row["text"] for row in rows_of(out) if row["task"] == "vl"] == [
        row["text"] for row in rows.values() if row["task"] == "vl"
    ]


def test_paths_hold_from_the_manifest_too(media, tmp_path):
    (tmp_path / "data" / "test").mkdir(parents=True)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes((media / "red.png").read_bytes())
    path = tmp_path / "data" / "test" / "talks.jsonl"
    items = (ConversationItem("image", path="pictures/a.png"), ConversationItem("text", text="什么"))
    write_conversations(path, [Conversation("x", "vl", (Message("user", items),))])
    read = AnswerJob(path, tmp_path / "out").read()
    assert read[0].messages[0].items[0].path == str(tmp_path / "pictures" / "a.png")


def test_nothing_is_written_when_nothing_can_be_done(xllm_dir, manifest, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    words = ["answer", "--model", str(xllm_dir), "--conversations", str(manifest), "--out", str(out), "--device", "cpu"]
    for more, message in (
        (["--tasks", "asr"], "holds no conversation of the tasks asr"),
        (["--tasks", "smell"], "--tasks: `smell` is not one of"),
        (["--without", "smell"], "--without: `smell` is not one of"), (["--limit", "-1"], "--limit -1"),
        (["--max-tokens", "4000"], "no room for a question"), (["--conversations", "nowhere"], "nowhere: cannot be read"),
        (["--units", "nowhere"], "nowhere"), (["--model", "nowhere"], "nowhere: no such model"),
    ):
        assert main([*words, *more]) == 1
        assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("answers*"))
    with pytest.raises(ConfigError):
        AnswerJob(manifest, out, tasks=("smell",))
    with pytest.raises(DataError):
        AnswerJob(tmp_path / "nowhere", out).read()
    # nothing could be answered: the file says why, and so does the exit status
    assert main([*words, "--tasks", "vl", "--limit", "3", "--without", "image", "--max-tokens", "8"]) == 0
    write_conversations(manifest, [Conversation("x", "vl", (Message("user", (ConversationItem("image", path="gone.png"),)),))])
    assert main(words) == 1
    assert "no instructions" in rows_of(out)[0]["error"]


def test_transcribing_through_the_llm(xllm_dir, model_dir, media, tmp_path, capsys):
    out = tmp_path / "hyp.jsonl"
    words = ["transcribe", "--method", "llm", "--model", str(xllm_dir), "--device", "cpu", "--max-tokens", "8"]
    files = [str(media / name) for name in ("long.wav", "broken.wav", "short.wav")]
    assert main([*words, *files, "--out", str(out), "--wording", "1"]) == 0
    expected = XLLM.from_pretrained(xllm_dir).transcribe(files, wording=1, max_new_tokens=8)
    assert [row["text"] for row in rows_of(out)] == [h.text for h in expected]
    assert [row["id"] for row in rows_of(out)] == ["long", "broken", "short"]
    assert "unreadable audio" in rows_of(out)[1]["error"]
    err = capsys.readouterr().err
    assert "2 of 3 utterances recognised, 2.5 s of audio" in err
    assert "broken.wav" in err
    meta = json.loads((tmp_path / "hyp.jsonl.meta.json").read_text())
    assert meta["method"] == "llm"
    assert meta["prompt"]["instructions"]["asr"] == ["请将这段语音转化为文字"]
    assert meta["rtf"] == pytest.approx(meta["wall_sec"] / 2.5)
    assert len(meta["checkpoint_sha256"]) == 64
    assert main([*words, files[0], "--format", "text", "--wording", "1"]) == 0
    assert capsys.readouterr().out == f"long {' '.join(expected[0].text.split())}\n"
    for more, message in (
        (["--search", "fast"], "for --method cif"), (["--beam", "0"], "num_beams 0"), (["--wording", "7"], "wording 7"),
        (["--model", str(model_dir)], "expected `xllm-1`"), (["--image", "nowhere.png"], "no such file"),
        (["--method", "cif"], "--max-tokens is for --method llm"),
    ):
        assert main([*words, files[0], *more]) == 1
        assert message in capsys.readouterr().err
    assert (xllm_dir / WEIGHTS).is_file()

"""What a recogniser understands of synthetic speech is kept, in either form, and the rest is told."""

from __future__ import annotations

import json
from pathlib import Path

import corpora
import pytest

from xllm_speech.base.errors import DataError
from xllm_speech.base.files import read_jsonl, write_jsonl
from xllm_speech.bin.main import main
from xllm_speech.datasets.round_trip import is_understood, keep_understood

TEXTS = ("有几个人", "天气如何", "这是什么颜色", "T 恤")


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    folder = tmp_path / "all"
    for number in range(len(TEXTS)):
        corpora.wav(folder / f"wav/{number}.wav", 0.3)
    write_jsonl(folder / "speech.jsonl", (
        {"id": f"s{number}", "text": text, "path": f"wav/{number}.wav", "speaker": "a", "duration_sec": 0.3}
        for number, text in enumerate(TEXTS)
    ))
    return folder


def hear(tmp_path: Path, *texts: str) -> Path:
    write_jsonl(tmp_path / "heard.jsonl", ({"id": f"s{number}", "text": text} for number, text in enumerate(texts)))
    return tmp_path / "heard.jsonl"


def test_what_is_understood() -> None:
    pairs = [("有几个人？", "有几个人"), ("有几个人", "有几只人"), ("有几个人", "天晴"), ("", "啊"), ("T 恤", "t恤")]
    assert [is_understood(*pair, max_cer=0.3) for pair in pairs] == [True, True, False, False, True]
    assert [is_understood(*pair, max_cer=0.0) for pair in pairs] == [True, False, False, False, True]


def test_both_forms_keep_the_same(speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cuts = tmp_path / "cuts.jsonl.gz"
    assert main(["prepare", "speech-cuts", "--speech", str(speech), "--out", str(cuts)]) == 0
    rows = [row for _, row in read_jsonl(cuts)]
    assert [(row["id"], row["supervisions"][0]["text"]) for row in rows] == [(f"s{n}", text) for n, text in enumerate(TEXTS)]
    assert rows[0]["recording"]["sources"][0]["source"] == str(speech / "wav/0.wav")
    heard = str(hear(tmp_path, "有几个人", "完全不同", "这是什么颜", "t恤"))
    for option, place, out in (("--speech", speech, "kept/speech.jsonl"), ("--cuts", cuts, "kept_cuts/cuts.jsonl.gz")):
        folder = (tmp_path / out).parent
        words = [option, str(place), "--heard", heard, "--out", str(folder)]
        assert main(["prepare", "round-trip", *words]) == 0
        kept = [row for _, row in read_jsonl(tmp_path / out)]
        assert [row["id"] for row in kept] == ["s0", "s2", "s3"]
        assert [row["reason"] for _, row in read_jsonl(folder / "rejected.jsonl")] == ["`天气如何` was heard as `完全不同`"]
        assert json.loads((folder / "statistics.json").read_text())["statistics"] == {
            "kept": 3, "rejected": 1, "cer": 31.25, "rejected_kinds": {"not-understood": 1}
        }
    kept = [row for _, row in read_jsonl(tmp_path / "kept/speech.jsonl")]
    assert (tmp_path / "kept" / kept[0]["path"]).resolve() == (speech / "wav/0.wav").resolve()
    assert "kept 3, rejected 1, cer 31.25" in capsys.readouterr().out


def test_a_recogniser_that_understands_little_is_in_doubt(speech: Path, tmp_path: Path) -> None:
    out = tmp_path / "kept"
    with pytest.raises(DataError, match=r"3 of 4 recordings were not understood.*is the recogniser trained .*heard as `啊`"):
        keep_understood(out, hear(tmp_path, "啊", "啊", "啊", "t恤"), speech)
    assert [path.name for path in out.iterdir()] == ["rejected.jsonl"]
    assert keep_understood(out, hear(tmp_path, "啊", "啊", "啊", "t恤"), speech, max_dropped=0.75)["kept"] == 1
    with pytest.raises(DataError, match="nothing for s2; recognise all"):
        keep_understood(out, hear(tmp_path, "啊", "啊"), speech)
    write_jsonl(tmp_path / "failed.jsonl", ({"id": f"s{n}", "text": text, "error": "x"[:n]} for n, text in enumerate(TEXTS)))
    assert keep_understood(out, tmp_path / "failed.jsonl", speech, max_dropped=1)["kept"] == 1
    assert [row["kind"] for _, row in read_jsonl(out / "rejected.jsonl")] == ["not-recognised"] * 3

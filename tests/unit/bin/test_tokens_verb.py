from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.bin import tokens
from xllm_speech.text.tokens import TokenTable


def call(*words: object) -> int:
    parser = argparse.ArgumentParser()
    tokens.add_arguments(parser)
    return tokens.run(parser.parse_args([str(word) for word in words]))


def test_cuts_kaldi_and_plain_text_give_the_same_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["今天 天气", "", "hello 世界"]
    (tmp_path / "text").write_text("".join(f"u{i} {text}\n" for i, text in enumerate(texts)), encoding="utf-8")
    (tmp_path / "plain").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    cuts = [{"id": str(i), "supervisions": [{"text": text}]} for i, text in enumerate(texts)] + [{"supervisions": []}]
    (tmp_path / "cuts.jsonl").write_text("".join(json.dumps(cut) + "\n" for cut in cuts), encoding="utf-8")
    assert call("--cuts", tmp_path / "cuts.jsonl", "--out", tmp_path / "a") == 0
    assert "12 tokens (char) from 3 transcripts, 1 of them empty; 0 characters left unknown" in capsys.readouterr().out
    call("--text", tmp_path / "text", "--out", tmp_path / "b")
    call("--text", tmp_path / "plain", "--plain", "--out", tmp_path / "c")
    tables = [TokenTable.load(tmp_path / name).tokens for name in "abc"]
    assert tables[0] == tables[1] == tables[2]
    call("--text", tmp_path / "text", "--kind", "mixed", "--vocab-size", 40, "--out", tmp_path / "d")
    assert TokenTable.load(tmp_path / "d").kind == "mixed"


def test_mistakes_leave_no_table(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"id": "a", "text": "今"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"x\.jsonl:1: not a cut"):
        call("--cuts", tmp_path / "x.jsonl", "--out", tmp_path / "out")
    with pytest.raises(ConfigError, match="--plain goes with --text"):
        call("--cuts", tmp_path / "x.jsonl", "--plain", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()

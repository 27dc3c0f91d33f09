from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from xllm_speech.base.errors import DataError
from xllm_speech.bin import features, prepare


def call(verb: object, *argv: object) -> int:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)  # type: ignore[attr-defined]
    return verb.run(parser.parse_args([str(value) for value in argv]))  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    names = [f"u{number:02d}" for number in range(12)]
    for place, name in enumerate(names):
        soundfile.write(folder / f"{name}.flac", np.random.default_rng(place).uniform(-0.5, 0.5, 9000 + 99 * place), 16000)
    (folder / "wav.scp").write_text("".join(f"{name} {name}.flac\n" for name in names))
    (folder / "text").write_text("".join(f"{name} 第 {name} 句\n" for name in names))
    return folder


def test_kaldi_check_and_back(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(prepare, "kaldi", "--data-dir", data_dir, "--out", tmp_path / "cuts") == 0
    assert "cuts 12, rejected 0" in capsys.readouterr().out
    cuts = tmp_path / "cuts" / "cuts.jsonl.gz"
    assert call(prepare, "check", "--cuts", cuts) == 0
    assert "12 cuts checked, nothing rejected" in capsys.readouterr().out
    assert call(prepare, "export-kaldi", "--cuts", cuts, "--out", tmp_path / "again") == 0
    assert (tmp_path / "again" / "text").read_text() == (data_dir / "text").read_text()


def test_check_names_what_cannot_be_decoded(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(prepare, "kaldi", "--data-dir", data_dir, "--out", tmp_path / "cuts")
    for number in range(8):
        file = data_dir / f"u{number:02d}.flac"
        file.write_bytes(file.read_bytes()[:3000])  # the header still promises everything
    argv = ("check", "--cuts", tmp_path / "cuts" / "cuts.jsonl.gz", "--out", tmp_path / "bad.jsonl")
    with pytest.raises(DataError, match="8 rejected"):
        call(prepare, *argv)
    rows = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"u{number:02d}" for number in range(8)]
    assert {row["kind"] for row in rows} == {"unreadable-audio"}
    assert "u03.flac: u03" in capsys.readouterr().out
    assert call(prepare, *argv, "--max-rejected", 0.9) == 0


def test_features_and_statistics(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(prepare, "kaldi", "--data-dir", data_dir, "--out", tmp_path / "cuts")
    cuts = tmp_path / "cuts" / "cuts.jsonl.gz"
    argv = ("--cuts", cuts, "--out", tmp_path / "dump", "--speeds", 0.9, 1.0, "--cmvn", tmp_path / "cmvn.json")
    assert call(features, *argv) == 0
    assert "cuts 24, rejected 0" in capsys.readouterr().out
    assert json.loads((tmp_path / "cmvn.json").read_text())["frames"] > 12 * 56
    assert call(prepare, "check", "--cuts", tmp_path / "dump" / "cuts.jsonl.gz") == 0
    # The stored features come in again as a Kaldi data directory without audio.
    only_feats = tmp_path / "feats"
    only_feats.mkdir()
    (only_feats / "feats.scp").write_bytes((tmp_path / "dump" / "feats.scp").read_bytes())
    assert call(prepare, "kaldi", "--data-dir", only_feats, "--out", tmp_path / "from_feats", "--no-text") == 0
    assert "cuts 24" in capsys.readouterr().out


@pytest.mark.parametrize("more", [(), ("--cmvn", "c", "--channel", "left"), ("--out", "d", "--speeds", "7")])
def test_mistakes_in_the_command(tmp_path: Path, more: tuple[str, ...]) -> None:
    from xllm_speech.base.errors import ConfigError

    with pytest.raises(ConfigError):
        call(features, "--cuts", tmp_path / "cuts.jsonl", *more)

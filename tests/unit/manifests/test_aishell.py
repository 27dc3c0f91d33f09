"""AISHELL-1 and -2: trees in their exact form, lhotse's recipes beside ours, every kind of broken utterance, real speech."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse.recipes.aishell import prepare_aishell as lhotse_aishell

from tests import corpora
from xllm_speech.base.errors import DataError
from xllm_speech.base.files import read_jsonl
from xllm_speech.manifests.aishell import prepare_aishell1, prepare_aishell2
from xllm_speech.manifests.cuts import load_cuts


def rejected(folder: Path) -> dict[str, str]:
    return {row["id"]: row["kind"] for _, row in read_jsonl(folder / "rejected.jsonl")}


def test_aishell1_is_what_lhotse_reads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    corpora.aishell1(tmp_path / "corpus")
    with caplog.at_level(logging.WARNING):
        counts = prepare_aishell1(tmp_path / "corpus", tmp_path / "out", max_rejected=0.0)
    assert {key: counts[key] for key in ("train.cuts", "dev.cuts", "test.speakers", "test.rejected")} == {
        "train.cuts": 8, "dev.cuts": 8, "test.speakers": 2, "test.rejected": 0,
    }  # fmt: skip
    assert "train: 8 usable cuts, 120098 were published: 120090 fewer" in caplog.text
    theirs = lhotse_aishell(tmp_path / "corpus")
    for name in ("train", "dev", "test"):
        ours = {cut.id: cut for cut in load_cuts(tmp_path / "out" / name / "cuts.jsonl.gz")}
        other = {one.id: one for one in theirs[name]["supervisions"]}
        assert ours.keys() == other.keys()
        for key, cut in ours.items():
            words = cut.supervisions[0]
            assert (words.text.replace(" ", "").upper(), words.speaker) == (other[key].text, other[key].speaker)
            assert cut.duration == other[key].duration
    text = {cut.id: cut.supervisions[0].text for cut in load_cuts(tmp_path / "out/train/cuts.jsonl.gz")}
    assert text["BAC009S0001W0002"] == "听Yesterday Once More"
    assert text["BAC009S0001W0003"] == "T恤三十二度"


def test_aishell1_broken_utterances_are_named(tmp_path: Path) -> None:
    top = corpora.aishell1(tmp_path, speakers=2, utterances=12)
    train = top / "wav" / "train" / "S0001"
    names = [f"BAC009S0001W{number:04d}" for number in range(12)]
    corpora.truncate(train / f"{names[0]}.wav")
    (train / f"{names[1]}.wav").write_bytes(b"RIFF nonsense")
    (train / f"{names[2]}.wav").write_bytes(b"")
    (train / f"{names[3]}.wav").unlink()
    corpora.wav(train / f"{names[4]}.wav", rate_hz=8000)
    corpora.wav(train / "BAC009S0001W0099.wav")
    table = top / "transcript" / "aishell_transcript_v0.8.txt"
    lines = table.read_text().splitlines()
    lines[5] = names[5]
    table.write_text("\n".join([*lines, f"{names[6]} 又 一 次", "BAC009S0777W0001 不 在"]) + "\n")
    with pytest.raises(DataError, match="8 rejected"):
        prepare_aishell1(top, tmp_path / "out", max_rejected=0.0)
    counts = prepare_aishell1(top, tmp_path / "out", max_rejected=0.5)
    assert rejected(tmp_path / "out" / "train") == {
        names[0]: "truncated-audio", names[1]: "unreadable-audio", names[2]: "unreadable-audio",
        names[3]: "text-without-audio", names[4]: "wrong-rate", names[5]: "empty-transcript", names[6]: "duplicate-id",
        "BAC009S0001W0099": "no-transcript",
    }  # fmt: skip
    rows = {row["id"]: row for _, row in read_jsonl(tmp_path / "out/train/rejected.jsonl")}
    assert rows[names[5]]["path"] == f"{table}:6"
    assert rows[names[0]]["path"].endswith(f"{names[0]}.wav")
    assert counts["train.cuts"] == 24 - 6


def test_aishell1_still_packed_or_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not AISHELL-1"):
        prepare_aishell1(tmp_path, tmp_path / "out")
    top = corpora.aishell1(tmp_path, speakers=1, utterances=1)
    for name in ("train", "dev", "test"):
        shutil.rmtree(top / "wav" / name)
    (top / "wav" / "S0002.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"unpack S0002\.tar\.gz"):
        prepare_aishell1(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("below", [".", "AISHELL-2"])
def test_aishell2_sets_of_all_devices(tmp_path: Path, below: str) -> None:
    corpora.aishell2(tmp_path)
    counts = prepare_aishell2(tmp_path / below, tmp_path / "out", max_rejected=0.0)
    sets = ["train", *(f"{part}-{device}" for part in ("dev", "test") for device in ("ios", "android", "mic"))]
    assert [key for key in counts if key.endswith(".cuts")] == [f"{name}.cuts" for name in sets]
    assert (counts["train.cuts"], counts["test-mic.cuts"]) == (6, 3)
    cut = next(iter(load_cuts(tmp_path / "out/test-mic/cuts.jsonl.gz")))
    assert (cut.id, cut.supervisions[0].speaker) == ("MT0013W0000", "T0013")
    assert cut.supervisions[0].text == "而对楼市成交抑制作用最大的限购"
    audio = tmp_path / "AISHELL-2/AISHELL-DEV-TEST-SET/Mic/test/wav/T0013/MT0013W0000.wav"
    np.testing.assert_allclose(cut.load_audio()[0], soundfile.read(audio)[0], atol=1e-4)


def test_aishell2_tables_that_do_not_agree(tmp_path: Path) -> None:
    folder = corpora.aishell2_set(tmp_path / "iOS" / "data", "IC0001", 30)
    with open(folder / "wav.scp", "a") as stream:
        stream.write("IC0001W0777\twav/C0001/none.wav\nIC0001W0778\n")
    with open(folder / "trans.txt", "a") as stream:
        stream.write("IC0001W0999\t没有录音\n")
    prepare_aishell2(tmp_path, tmp_path / "out", max_rejected=0.2)
    assert rejected(tmp_path / "out" / "train") == {
        "IC0001W0777": "no-transcript", "IC0001W0778": "bad-line", "IC0001W0999": "text-without-audio",
    }  # fmt: skip
    (folder / "wav.scp").unlink()  # then the files themselves tell
    assert prepare_aishell2(tmp_path, tmp_path / "again", max_rejected=0.2)["train.cuts"] == 30
    with pytest.raises(DataError, match="not AISHELL-2"):
        prepare_aishell2(tmp_path / "iOS", tmp_path / "no")


def test_real_speech_in_aishell2s_layout(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "aishell1_sample_S0150"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    data = tmp_path / "iOS" / "data"
    data.mkdir(parents=True)
    for name in ("trans.txt", "wav.scp", "wav"):
        os.symlink(folder / name, data / name)
    counts = prepare_aishell2(tmp_path, tmp_path / "out", max_rejected=0.0)
    assert (counts["train.cuts"], counts["train.speakers"], counts["train.rejected"]) == (350, 1, 0)
    lines = [line.split("\t") for line in (folder / "manifest.tsv").read_text().splitlines()[1:]]
    wanted = {Path(path).stem: (float(seconds), text) for path, seconds, text, _ in lines}
    for cut in load_cuts(tmp_path / "out/train/cuts.jsonl.gz"):
        seconds, text = wanted.pop(cut.id)
        assert cut.supervisions[0].text == text
        assert cut.duration == pytest.approx(seconds, abs=1e-3)
    assert not wanted

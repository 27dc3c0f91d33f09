from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse.cut import Cut

from xllm_speech.base.errors import DataError
from xllm_speech.datasets.asr_data import AsrData
from xllm_speech.datasets.config import DataConfig
from xllm_speech.features.fbank import load_features
from xllm_speech.features.store import compute_features
from xllm_speech.manifests.cuts import load_cuts, save_cuts
from xllm_speech.records import AsrBatch

MakeCuts = Callable[[int], list[Cut]]


def config(train: Path, **changes: object) -> DataConfig:
    values = {"train": str(train), "num_workers": 0, "max_duration_sec": 10.0, "max_sec": 5.0, "max_rejected": 0.5}
    return DataConfig(**{**values, **changes})  # type: ignore[arg-type]


def digests(batches: Iterable[AsrBatch]) -> list[str]:
    found = []
    for batch in batches:
        digest = hashlib.sha256(repr((batch.ids, batch.texts, batch.captions)).encode())
        assert batch.tokens_BL is not None
        pixels = [batch.pixels.x_BCHW] if batch.pixels else []
        for tensor in (batch.fbank.x_BTF, batch.fbank.lens_B, batch.tokens_BL, *pixels):
            digest.update(tensor.numpy().tobytes())
        found.append(digest.hexdigest())
    return found


@pytest.fixture
def train(make_cuts: MakeCuts, tmp_path: Path) -> Path:
    save_cuts(make_cuts(40), tmp_path / "cuts.jsonl.gz")
    return tmp_path / "cuts.jsonl.gz"


def test_prepares_everything_a_run_needs(train: Path, tmp_path: Path) -> None:
    data = AsrData(config(train, dev_share=0.2), tmp_path / "exp")
    train_ids, dev_ids = {cut.id for cut in data.train_cuts}, {cut.id for cut in data.dev_cuts}
    assert (len(train_ids), len(dev_ids)) == (32, 8)
    assert not train_ids & dev_ids
    whole = torch.cat([load_features(cut) for cut in data.train_cuts])
    torch.testing.assert_close(data.cmvn.mean_F, whole.mean(0), rtol=1e-4, atol=1e-4)
    assert data.table.decode(data.table.encode("红色的棋子")) == "红色的棋子"
    names = {name for batch in data.train_loader(0) for name in batch.ids}
    assert names == train_ids
    assert [name for batch in data.dev_loader() for name in batch.ids] == [n for b in data.dev_loader() for n in b.ids]
    assert {name for batch in data.dev_loader() for name in batch.ids} == dev_ids
    assert sorted(path.name for path in (tmp_path / "exp" / "data").iterdir()) == [
        "cmvn.json", "data.json", "dev_cuts.jsonl.gz", "rejected.jsonl", "tokens", "train_cuts.jsonl.gz",
    ]


def test_resumed_batches_are_bit_identical(train: Path, tmp_path: Path) -> None:
    settings = {"speeds": [0.9, 1.0, 1.1], "image_size": 16, "image_share": 0.5, "caption_share": 0.5}
    whole = digests(AsrData(config(train, **settings), tmp_path / "exp").train_loader(1))
    assert len(whole) > 4
    again = AsrData(config(train, num_workers=2, **settings), tmp_path / "exp")
    assert digests(again.train_loader(1)) == whole
    assert digests(again.train_loader(1, skip_batches=3)) == whole[3:]
    assert digests(again.train_loader(0)) != whole
    assert digests(again.train_loader(1)) == whole  # after another epoch


def test_prepared_once_and_reused_unchanged(train: Path, tmp_path: Path) -> None:
    AsrData(config(train), tmp_path / "exp")
    before = {path: path.read_bytes() for path in (tmp_path / "exp" / "data").rglob("*") if path.is_file()}
    train.unlink()
    AsrData(config(train, max_duration_sec=20.0, speeds=[0.9]), tmp_path / "exp")  # these may change
    assert {path: path.read_bytes() for path in (tmp_path / "exp" / "data").rglob("*") if path.is_file()} == before
    with pytest.raises(DataError, match=r"min_sec was 0\.1, is 0\.5"):
        AsrData(config(train, min_sec=0.5), tmp_path / "exp")


def test_only_the_first_rank_prepares(train: Path, tmp_path: Path) -> None:
    passed = []

    def other_rank_waits() -> None:
        passed.append(sorted(os.listdir(tmp_path)))
        AsrData(config(train), tmp_path / "exp")

    data = AsrData(config(train), tmp_path / "exp", rank=1, barrier=other_rank_waits)
    assert "exp" not in passed[0]  # rank 1 came to the barrier without having written anything
    assert len(data.table.encode("旗")) == 1


def test_everything_wrong_is_reported_and_nothing_is_lost(
    make_cuts: MakeCuts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cuts = make_cuts(30)
    ids = {cut.id for cut in cuts}
    Path(cuts[0].recording.sources[0].source).unlink()
    Path(cuts[1].recording.sources[0].source).write_bytes(b"garbage")
    cuts[2].supervisions[0].text = "。。。"
    cuts[3].supervisions = []
    cuts[4] = cuts[4].truncate(duration=0.05).with_id("u004")
    cuts[5].supervisions = cuts[5].supervisions * 2
    Path(cuts[6].custom["image"]).unlink()
    save_cuts([*cuts, cuts[7]], tmp_path / "cuts.jsonl")
    with open(tmp_path / "cuts.jsonl", "a") as stream:
        stream.write("{broken\n")
    with caplog.at_level(logging.WARNING):
        data = AsrData(config(tmp_path / "cuts.jsonl", image_size=16), tmp_path / "exp")
    rows = [json.loads(line) for line in (tmp_path / "exp" / "data" / "rejected.jsonl").read_text().splitlines()]
    found = {(row["id"], row["kind"]) for row in rows}
    assert found >= {
        ("u000", "missing-audio"), ("u001", "unreadable-audio"), ("u002", "empty-transcript"), ("u003", "no-transcript"),
        ("u004", "too-short"), ("u005", "bad-cut"), ("u006", "picture-missing"), ("u007", "duplicate-id"),
        ("line 32", "bad-line"),
    }
    kept = {cut.id for cut in data.train_cuts} | {cut.id for cut in data.dev_cuts}
    left = {row["id"] for row in rows if row["kind"] not in ("picture-missing", "duplicate-id", "bad-line")}
    assert kept | left == ids
    assert not kept & left
    assert "rejected" in caplog.text
    with pytest.raises(DataError, match="max-rejected"):
        AsrData(config(tmp_path / "cuts.jsonl", max_rejected=0.0), tmp_path / "exp2")
    assert (tmp_path / "exp2" / "data" / "rejected.jsonl").is_file()
    assert not (tmp_path / "exp2" / "data" / "data.json").exists()


def test_kaldi_directory_of_real_recordings(shared_data: Path, tmp_path: Path) -> None:
    """Three rates, Latin and Chinese text, and the usual faults, with nothing but the data path set."""
    folder = tmp_path / "mine"
    folder.mkdir()
    wavs, texts = [], []
    for name in ("fsdd_3spk", "audio_cmn_1500words", "aishell1_sample_S0150/kaldi"):
        spoken = dict(line.split(maxsplit=1) for line in (shared_data / name / "text").read_text().splitlines())
        for line in (shared_data / name / "wav.scp").read_text().splitlines()[:15]:
            utterance_id, path = line.split(maxsplit=1)
            wavs.append(f"{utterance_id} {shared_data / path}")
            texts.append(f"{utterance_id} {spoken[utterance_id]}")
    (folder / "broken.wav").write_bytes(b"RIFF....WAVE nothing")
    wavs += [f"broken {folder / 'broken.wav'}", wavs[0].replace("george", "voiceless")]
    texts += ["broken 坏了", wavs[-1].split()[0]]
    segments = [f"{line.split()[0]}-part {line.split()[0]} 0 -1" for line in wavs]
    segments.append(f"{wavs[20].split()[0]}-past {wavs[20].split()[0]} 0.1 99")
    texts = [line.replace(" ", "-part ", 1) if " " in line else f"{line}-part" for line in texts]
    texts.append(f"{segments[-1].split()[0]} 过去")
    for name, lines in (("wav.scp", wavs), ("text", texts), ("segments", segments)):
        (folder / name).write_text("\n".join(lines) + "\n")
    data = AsrData(DataConfig(train=str(folder), num_workers=0), tmp_path / "exp")
    assert data.counts["broken"] == {"unreadable-audio": 1, "empty-transcript": 1, "segment-outside": 1}
    assert data.counts["train"] + data.counts["dev"] == 45
    assert set(data.counts["sample_rates_hz"]) == {"8000", "22050", "16000"}
    batches = list(data.train_loader(0))
    assert sum(len(batch.ids) for batch in batches) == data.counts["train"]
    assert not any(batch.skipped for batch in batches)
    texts_found = "".join(text for batch in batches for text in batch.texts)
    assert "zero" in texts_found
    assert any("\u4e00" <= character <= "\u9fff" for character in texts_found)


def test_stored_features_and_given_tokens_and_statistics(make_cuts: MakeCuts, tmp_path: Path) -> None:
    compute_features(make_cuts(12), tmp_path / "dump")
    first = AsrData(config(tmp_path / "dump"), tmp_path / "exp1")
    for cut in load_cuts(tmp_path / "dump" / "cuts.jsonl.gz"):
        Path(cut.recording.sources[0].source).unlink()  # not needed any more
    given = config(
        tmp_path / "dump", dev=str(tmp_path / "dump" / "cuts.jsonl.gz"), tokens=str(tmp_path / "exp1" / "data" / "tokens"),
        cmvn=str(tmp_path / "exp1" / "data" / "cmvn.json"), speeds=[0.9, 1.1],
    )
    second = AsrData(given, tmp_path / "exp2")
    assert second.counts["dev"] == second.counts["train"] == 12
    assert torch.equal(second.cmvn.mean_F, first.cmvn.mean_F)
    assert second.table.encode("红色") == first.table.encode("红色")
    assert sum(len(batch.ids) for batch in second.train_loader(0)) == 12  # stored features keep their speed


def test_multichannel_recordings(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = []
    for number in range(6):
        soundfile.write(tmp_path / f"m{number}.wav", rng.uniform(-0.5, 0.5, (16000, 2)), 16000, subtype="FLOAT")
        lines.append(f"m{number} m{number}.wav")
    (tmp_path / "wav.scp").write_text("\n".join(lines) + "\n")
    (tmp_path / "text").write_text("".join(f"m{number} 好\n" for number in range(6)))
    mixed = next(iter(AsrData(config(tmp_path), tmp_path / "exp1").dev_loader()))
    second = next(iter(AsrData(config(tmp_path, channel="1"), tmp_path / "exp2").dev_loader()))
    assert mixed.ids == second.ids
    assert not torch.equal(mixed.fbank.x_BTF, second.fbank.x_BTF)
    with pytest.raises(DataError, match=r"no speech|channels|nothing left"):
        AsrData(config(tmp_path, channel="5"), tmp_path / "exp3")


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.train is not set"):
        AsrData(DataConfig(), tmp_path / "exp")
    save_cuts([], tmp_path / "cuts.jsonl")
    with pytest.raises(DataError, match=r"no speech|nothing left"):
        AsrData(config(tmp_path / "cuts.jsonl"), tmp_path / "exp")


def test_augmenter_as_configured(train: Path, tmp_path: Path) -> None:
    data = AsrData(config(train), tmp_path / "exp")
    augmenter = data.make_augmenter()
    assert augmenter is not None
    assert (augmenter.feature_mask_size, augmenter.num_feature_masks) == (27, 2)
    assert (augmenter.frame_mask_size, augmenter.num_frame_masks) == (50, 2)
    data.config.spec_augment.enabled = False
    assert data.make_augmenter() is None

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
import torch
from lhotse import SupervisionSegment
from lhotse.cut import Cut

from xllm_speech.base.errors import DataError
from xllm_speech.features import store
from xllm_speech.features.audio import load_file
from xllm_speech.features.cmvn import CmvnStats
from xllm_speech.features.fbank import load_features, load_stored
from xllm_speech.features.store import compute_cmvn, compute_features
from xllm_speech.manifests.cuts import load_cuts, save_cuts, utterance_of


@pytest.fixture
def cuts(tmp_path: Path) -> list[Cut]:
    (tmp_path / "wav").mkdir()
    made = []
    for number in range(12):
        path = tmp_path / "wav" / f"句{number:02d}.wav"
        rate_hz = 16000 if number % 2 else 8000
        soundfile.write(path, np.random.default_rng(number).uniform(-0.5, 0.5, rate_hz // 2 + 640 * number), rate_hz)
        cut = load_file(path)
        text = SupervisionSegment(cut.id, cut.id, 0, cut.duration, text=f"第{number}句")
        cut.supervisions.append(text)
        made.append(cut)
    return made


def test_stored_features_equal_computed_ones(tmp_path: Path, cuts: list[Cut]) -> None:
    counts = compute_features(cuts, tmp_path / "dump")
    assert counts == {"cuts": 12, "rejected": 0}
    again = list(load_cuts(tmp_path / "dump" / "cuts.jsonl.gz"))
    assert [cut.id for cut in again] == [cut.id for cut in cuts]
    by_kaldi = kaldiio.load_scp(str(tmp_path / "dump" / "feats.scp"))
    for cut, stored in zip(cuts, again, strict=True):
        assert stored.has_features
        expected = load_features(cut)
        assert torch.equal(load_features(stored), expected)
        np.testing.assert_array_equal(by_kaldi[cut.id], expected.numpy())
        assert utterance_of(stored) == utterance_of(cut)
    part = again[3].truncate(offset=0.2, duration=0.25)
    np.testing.assert_array_equal(load_stored(part), load_stored(again[3])[20:45])


def test_speeds_processes_and_progress(tmp_path: Path, cuts: list[Cut], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SHARD_CUTS", 5)
    told: list[int] = []
    counts = compute_features(cuts, tmp_path / "dump", jobs=2, speeds=(0.9, 1.0, 1.1), on_progress=told.append)
    assert counts["cuts"] == 36
    assert sum(told) == 36
    stored = {cut.id: cut for cut in load_cuts(tmp_path / "dump" / "cuts.jsonl.gz")}
    assert set(stored) == {name for cut in cuts for name in (cut.id, f"sp0.9-{cut.id}", f"sp1.1-{cut.id}")}
    slow = stored[f"sp0.9-{cuts[11].id}"]
    assert slow.duration == pytest.approx(cuts[11].duration / 0.9, abs=1e-3)
    assert torch.equal(load_features(slow), load_features(cuts[11].perturb_speed(0.9)))
    assert len((tmp_path / "dump" / "feats.scp").read_text().splitlines()) == 36


def test_a_finished_shard_is_kept_and_a_changed_one_made_anew(
    tmp_path: Path, cuts: list[Cut], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SHARD_CUTS", 5)
    compute_features(cuts, tmp_path / "dump")
    computed: list[str] = []
    real = load_features
    monkeypatch.setattr(store, "load_features", lambda cut, channel: computed.append(cut.id) or real(cut, channel))
    compute_features(cuts, tmp_path / "dump")
    assert computed == []
    (tmp_path / "dump" / "ark" / "feats.1.json").unlink()
    compute_features(cuts, tmp_path / "dump")
    assert computed == [cut.id for cut in cuts[5:10]]
    computed.clear()
    compute_features(cuts[:6], tmp_path / "dump")
    assert computed == [cuts[5].id]
    assert not (tmp_path / "dump" / "ark" / "feats.2.ark").exists()
    assert len(list(load_cuts(tmp_path / "dump" / "cuts.jsonl.gz"))) == 6


def test_broken_audio_is_written_down(tmp_path: Path, cuts: list[Cut]) -> None:
    Path(cuts[4].recording.sources[0].source).write_bytes(b"no sound")
    counts = compute_features(cuts, tmp_path / "dump")
    assert counts == {"cuts": 11, "rejected": 1}
    assert cuts[4].id in (tmp_path / "dump" / "rejected.jsonl").read_text()
    for cut in cuts[:9]:
        Path(cut.recording.sources[0].source).unlink(missing_ok=True)
    with pytest.raises(DataError, match="9 rejected"):
        compute_features(cuts, tmp_path / "dump2")
    assert not (tmp_path / "dump2" / "cuts.jsonl.gz").exists()


def test_killed_and_started_again(tmp_path: Path, cuts: list[Cut]) -> None:
    """A process killed in the middle leaves only whole shards behind, and the second run gives the same bytes."""
    save_cuts(cuts, tmp_path / "cuts.jsonl.gz")
    script = (
        "import sys, time; from xllm_speech.features import store; from xllm_speech.manifests.cuts import load_cuts\n"
        "store.SHARD_CUTS = 3; real = store.load_features\n"
        "def slow(cut, channel):\n    time.sleep(0.1); return real(cut, channel)\n"
        "store.load_features = slow\n"
        "store.compute_features(load_cuts(sys.argv[1]), sys.argv[2])\n"
    )
    argv = [sys.executable, "-c", script, str(tmp_path / "cuts.jsonl.gz"), str(tmp_path / "dump")]
    process = subprocess.Popen(argv)
    first = tmp_path / "dump" / "ark" / "feats.0.json"
    deadline = time.monotonic() + 60
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.15)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert first.exists()
    assert not (tmp_path / "dump" / "cuts.jsonl.gz").exists()
    subprocess.run(argv, check=True)
    assert not [path for path in (tmp_path / "dump" / "ark").iterdir() if path.name.endswith(".part")]
    for cut, stored in zip(cuts, load_cuts(tmp_path / "dump" / "cuts.jsonl.gz"), strict=True):
        assert torch.equal(load_features(stored), load_features(cut))


def test_cmvn_of_stored_features(tmp_path: Path, cuts: list[Cut]) -> None:
    compute_features(cuts, tmp_path / "dump")
    stats = compute_cmvn(load_cuts(tmp_path / "dump" / "cuts.jsonl.gz"))
    whole = torch.cat([load_features(cut) for cut in cuts])
    assert stats.frames == len(whole)
    torch.testing.assert_close(stats.mean_F, whole.mean(0), rtol=1e-4, atol=1e-4)
    stats.save(tmp_path / "cmvn.json")
    assert CmvnStats.load(tmp_path / "cmvn.json").frames == len(whole)


def test_broken_archive(tmp_path: Path, cuts: list[Cut]) -> None:
    compute_features(cuts, tmp_path / "dump")
    ark = tmp_path / "dump" / "ark" / "feats.0.ark"
    ark.write_bytes(ark.read_bytes()[:-5000])
    stored = list(load_cuts(tmp_path / "dump" / "cuts.jsonl.gz"))
    load_features(stored[0])
    with pytest.raises(DataError, match=f"{stored[-1].id}: .*feats.0.ark"):
        load_features(stored[-1])

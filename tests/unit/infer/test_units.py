"""Filling a unit cache: equal to the model on the fly, resumable after a kill, refused when stale."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
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
import yaml
from lhotse.cut import Cut

from xllm_speech.base.errors import CheckpointError, ConfigError, DataError, UserError
from xllm_speech.base.files import read_json, read_jsonl
from xllm_speech.datasets.asr import AsrDataset, pad_features
from xllm_speech.datasets.sampling import perturb_cut
from xllm_speech.datasets.units import UnitCache
from xllm_speech.features.audio import load_file
from xllm_speech.features.augment import choose_speed
from xllm_speech.features.fbank import load_features
from xllm_speech.infer import units as module
from xllm_speech.infer.units import store_units, unit_key
from xllm_speech.manifests.cuts import load_cuts, save_cuts
from xllm_speech.models.checkpoints import load_asr


@pytest.fixture
def cuts(tmp_path: Path) -> list[Cut]:
    """Eleven utterances of 0.02 (less than half a unit) to 3.5 s at two sample rates; the last is part of a recording."""
    made = []
    for number in range(11):
        rate_hz = 8000 if number % 4 == 1 else 16000
        rng = np.random.default_rng(number)
        samples = rng.uniform(-0.5, 0.5, int(rate_hz * (0.02 + 0.35 * (number * 7 % 11))))
        soundfile.write(tmp_path / f"句{number:02d}.wav", samples, rate_hz)
        made.append(load_file(tmp_path / f"句{number:02d}.wav"))
    made[10] = made[10].truncate(offset=0.2, duration=0.9, preserve_id=True)
    return made


@pytest.fixture
def manifest(tmp_path: Path, cuts: list[Cut]) -> Path:
    save_cuts(cuts, tmp_path / "cuts.jsonl.gz")
    return tmp_path / "cuts.jsonl.gz"


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_CUTS", 4)


def on_the_fly(checkpoint, cut: Cut):
    """(units, start, fire, quantity) of one utterance alone, straight from the model."""
    with torch.no_grad():
        _, cif = checkpoint.model.find_units(pad_features([load_features(cut)]))
    return cif.units_BUD[0], cif.start_BU[0], cif.fire_BU[0], float(cif.quantity_B[0])


def assert_same(found, expected) -> None:
    assert found.x_UD.shape == expected[0].shape
    for value, wanted in zip((found.x_UD, found.start_U, found.fire_U), expected, strict=False):
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-5)
    assert found.quantity == pytest.approx(expected[3], abs=1e-4)


def archives(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "shards").glob("*.ark"))}


@pytest.mark.parametrize("batch_sec", [0.1, 4.0, 1000.0])
def test_cached_units_equal_those_on_the_fly(
    model_dir: Path, tmp_path: Path, cuts: list[Cut], manifest: Path, small_shards: None, batch_sec: float
) -> None:
    told: list[int] = []
    report = store_units(model_dir, [manifest], tmp_path / "units", batch_sec=batch_sec, on_progress=told.append)
    assert told == [4, 4, 3]
    checkpoint = load_asr(model_dir)
    cache = UnitCache.open(tmp_path / "units", unit_key(checkpoint), manifest)
    assert cache.ids == [cut.id for cut in cuts]
    counts = [cache.count(cut.id) for cut in cuts]
    assert counts[0] == 0  # a fiftieth of a second has no unit, and is stored all the same
    assert max(counts) > 5
    assert (report.utterances, report.units, report.rejected, report.computed) == (11, sum(counts), 0, 11)
    for cut in cuts:
        assert_same(cache.get(cut.id), on_the_fly(checkpoint, cut))
    by_kaldi = kaldiio.load_scp(str(tmp_path / "units" / "units.scp"))
    np.testing.assert_array_equal(by_kaldi[cuts[5].id], cache.get(cuts[5].id).x_UD.numpy())
    assert report.sample == 11
    assert report.compute_sec > 0
    assert report.read_sec > 0
    summary = read_json(tmp_path / "units" / "units.json")
    assert summary["width"] == 32
    assert summary["counts"] == {"utterances": 11, "units": sum(counts), "rejected": 0}


def test_units_at_other_speeds_are_those_that_training_would_draw(
    model_dir: Path, tmp_path: Path, cuts: list[Cut], manifest: Path, small_shards: None
) -> None:
    speeds = [1.0, 0.9, 1.1]
    report = store_units(model_dir, [manifest], tmp_path / "units", speeds)
    assert report.utterances == 33
    checkpoint = load_asr(model_dir)
    cache = UnitCache.open(tmp_path / "units", unit_key(checkpoint))
    assert {f"sp0.9-{cuts[1].id}", f"sp1.1-{cuts[1].id}", cuts[1].id} <= set(cache.ids)
    drawn = set()
    for epoch in range(4):
        for cut in cuts[1:]:
            drawn.add(choose_speed(5, epoch, cut.id, speeds))
            assert_same(cache.draw(cut.id, 5, epoch), on_the_fly(checkpoint, perturb_cut(cut, 5, epoch, speeds)))
    assert drawn == set(speeds)


def test_the_batches_of_training_see_the_same_units(model_dir: Path, tmp_path: Path, cuts: list[Cut], manifest: Path) -> None:
    store_units(model_dir, [manifest], tmp_path / "units")
    checkpoint = load_asr(model_dir)
    cache = UnitCache.open(tmp_path / "units", unit_key(checkpoint))
    batch = AsrDataset(None)[load_cuts(manifest)]
    with torch.no_grad():
        _, cif = checkpoint.model.find_units(batch.fbank)
    for row, name in enumerate(batch.ids):
        torch.testing.assert_close(cache.get(name).x_UD, cif.units_BUD[row, : cif.lens_B[row]], rtol=1e-5, atol=1e-5)


def test_several_processes_and_half_precision(
    model_dir: Path, tmp_path: Path, cuts: list[Cut], manifest: Path, small_shards: None
) -> None:
    store_units(model_dir, [manifest], tmp_path / "one", dtype="float16")
    store_units(model_dir, [manifest], tmp_path / "two", dtype="float16", jobs=2)
    checkpoint = load_asr(model_dir)
    one, two = (UnitCache.open(tmp_path / name, unit_key(checkpoint)) for name in ("one", "two"))
    assert one.ids == two.ids == [cut.id for cut in cuts]
    for cut in cuts:
        exact_UD = on_the_fly(checkpoint, cut)[0]
        for cache in (one, two):
            torch.testing.assert_close(cache.get(cut.id).x_UD, exact_UD, rtol=1e-3, atol=1e-3)


def test_a_process_that_dies_is_said_and_costs_one_shard(
    model_dir: Path, tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_CUTS", 1)

    def kill(_: int) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(UserError, match="one of 2 processes died"):
        store_units(model_dir, [manifest], tmp_path / "units", jobs=2, on_progress=kill)
    assert not (tmp_path / "units" / "units.json").exists()
    assert store_units(model_dir, [manifest], tmp_path / "units").computed < 11


def test_nothing_is_computed_twice(
    model_dir: Path, tmp_path: Path, cuts: list[Cut], manifest: Path, small_shards: None
) -> None:
    out = tmp_path / "units"
    store_units(model_dir, [manifest], out)
    before = archives(out)
    stamps = {path: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    assert store_units(model_dir, [manifest], out).computed == 0
    (out / "units.json").unlink()
    (out / "shards" / "units.1.json").unlink()  # as if killed in the second shard
    assert store_units(model_dir, [manifest], out).computed == 4
    (out / "shards" / "times.2.ark").write_bytes(b"damaged")
    assert store_units(model_dir, [manifest], out).computed == 3
    assert archives(out) == before
    assert [path.name for path, stamp in stamps.items() if path.stat().st_mtime_ns == stamp] == [
        path.name for path in stamps if ".0." in path.name
    ]
    save_cuts(cuts[:6], manifest)  # a changed manifest keeps the shards that are the same, and leaves no others behind
    report = store_units(model_dir, [manifest], out)
    assert (report.utterances, report.computed) == (6, 2)
    assert sorted(archives(out)) == ["times.0.ark", "times.1.ark", "units.0.ark", "units.1.ark"]
    report = store_units(model_dir, [manifest], out, dtype="float16")
    assert report.computed == 6


def test_broken_audio_costs_only_itself(model_dir: Path, tmp_path: Path, cuts: list[Cut], manifest: Path) -> None:
    (tmp_path / "句03.wav").write_bytes(b"no sound")
    (tmp_path / "句04.wav").unlink()
    save_cuts([*cuts, cuts[6]], manifest)
    report = store_units(model_dir, [manifest], tmp_path / "units")
    assert (report.utterances, report.rejected) == (9, 3)
    rows = {row["id"]: row["kind"] for _, row in read_jsonl(tmp_path / "units" / "rejected.jsonl")}
    assert rows == {"句03": "unreadable-audio", "句04": "unreadable-audio", "句06": "duplicate-id"}
    cache = UnitCache.open(tmp_path / "units", unit_key(load_asr(model_dir)))
    with pytest.raises(DataError, match="no units of `句03`"):
        cache.get("句03")
    assert_same(cache.get("句05"), on_the_fly(load_asr(model_dir), cuts[5]))


def test_too_much_broken_audio_leaves_no_cache(model_dir: Path, tmp_path: Path, cuts: list[Cut], manifest: Path) -> None:
    out = tmp_path / "units"
    store_units(model_dir, [manifest], out)
    save_cuts(cuts[::-1], manifest)
    for number in range(7):
        (tmp_path / f"句{number:02d}.wav").write_bytes(b"no sound")
    with pytest.raises(DataError, match=r"rejected.jsonl: 7 rejected \(unreadable-audio 7\) of 11 items"):
        store_units(model_dir, [manifest], out)
    with pytest.raises(CheckpointError, match="not finished"):
        UnitCache.open(out, unit_key(load_asr(model_dir)))
    manifest.unlink()
    save_cuts([], manifest)
    with pytest.raises(DataError, match="no utterance to store"):
        store_units(model_dir, [manifest], out)


def test_features_without_audio_cannot_change_speed(model_dir: Path, tmp_path: Path, cuts: list[Cut]) -> None:
    from xllm_speech.features.store import compute_features

    compute_features(cuts, tmp_path / "dump")
    stored = [cut.drop_recording() for cut in load_cuts(tmp_path / "dump" / "cuts.jsonl.gz")]
    save_cuts(stored, tmp_path / "features.jsonl.gz")
    report = store_units(model_dir, [tmp_path / "features.jsonl.gz"], tmp_path / "units")
    assert (report.utterances, report.rejected) == (11, 0)
    checkpoint = load_asr(model_dir)
    cache = UnitCache.open(tmp_path / "units", unit_key(checkpoint))
    assert_same(cache.get(cuts[8].id), on_the_fly(checkpoint, cuts[8]))
    with pytest.raises(DataError, match="stored features without a recording cannot change speed"):
        store_units(model_dir, [tmp_path / "features.jsonl.gz"], tmp_path / "units", [0.9], max_rejected=0.0)


def test_a_cache_of_another_model_is_refused_and_made_anew(
    model_dir: Path, tmp_path: Path, manifest: Path, cuts: list[Cut]
) -> None:
    from safetensors.torch import load_file, save_file

    out, other = tmp_path / "units", tmp_path / "other"
    store_units(model_dir, [manifest], out)
    shutil.copytree(model_dir, other)
    tensors = load_file(other / "model.safetensors")
    save_file({name: 1.01 * tensor for name, tensor in tensors.items()}, other / "model.safetensors")
    first, second = unit_key(load_asr(model_dir)), unit_key(load_asr(other))
    with pytest.raises(CheckpointError, match=f"{first.model_sha256[:12]}, this one is {second.model_sha256[:12]}"):
        UnitCache.open(out, second)
    assert store_units(other, [manifest], out).computed == 11
    assert_same(UnitCache.open(out, second).get(cuts[9].id), on_the_fly(load_asr(other), cuts[9]))
    with pytest.raises(CheckpointError, match="stale"):
        UnitCache.open(out, first.model_sha256)


def test_another_tail_threshold_or_channel_makes_it_stale(model_dir: Path, tmp_path: Path, manifest: Path) -> None:
    store_units(model_dir, [manifest], tmp_path / "units")
    other = tmp_path / "other"
    shutil.copytree(model_dir, other)
    described = yaml.safe_load((other / "model.yaml").read_text())
    described["model"]["cif"]["tail_threshold"] = 0.25
    (other / "model.yaml").write_text(yaml.safe_dump(described))
    with pytest.raises(CheckpointError, match=r"made with tail_threshold 0\.5, the model now has 0\.25"):
        UnitCache.open(tmp_path / "units", unit_key(load_asr(other)))
    described["model"]["cif"]["tail_threshold"] = 0.5
    described["model"]["encoder"]["dropout"] = 0.3  # acts in training only
    (other / "model.yaml").write_text(yaml.safe_dump(described))
    UnitCache.open(tmp_path / "units", unit_key(load_asr(other)))
    described["features"]["channel"] = "1"
    (other / "model.yaml").write_text(yaml.safe_dump(described))
    with pytest.raises(CheckpointError, match="made with channel mix"):
        UnitCache.open(tmp_path / "units", unit_key(load_asr(other)))


def test_units_that_are_not_numbers_are_rejected(
    model_dir: Path, tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = load_features

    def spoil(cut: Cut, channel: str) -> torch.Tensor:
        return real(cut, channel) * (float("inf") if cut.id == "句05" else 1)

    monkeypatch.setattr(module, "load_features", spoil)
    report = store_units(model_dir, [manifest], tmp_path / "units", batch_sec=0.1)
    assert (report.utterances, report.rejected) == (10, 1)
    assert [row["kind"] for _, row in read_jsonl(tmp_path / "units" / "rejected.jsonl")] == ["bad-units"]


def test_killed_and_started_again(model_dir: Path, tmp_path: Path, cuts: list[Cut], manifest: Path, small_shards: None) -> None:
    """A process killed in the middle leaves only whole shards behind; the second run computes the others alone."""
    script = (
        "import sys, time; from xllm_speech.infer import units\n"
        "units.SHARD_CUTS = 4; real = units.load_features\n"
        "def slow(cut, channel):\n    time.sleep(0.15); return real(cut, channel)\n"
        "units.load_features = slow\n"
        "units.store_units(sys.argv[1], [sys.argv[2]], sys.argv[3])\n"
    )
    out = tmp_path / "units"
    process = subprocess.Popen([sys.executable, "-c", script, str(model_dir), str(manifest), str(out)])
    first = out / "shards" / "units.0.json"
    deadline = time.monotonic() + 60
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert first.exists()
    assert not (out / "units.json").exists()
    checkpoint = load_asr(model_dir)
    with pytest.raises(CheckpointError, match="not finished"):
        UnitCache.open(out, unit_key(checkpoint))
    assert store_units(model_dir, [manifest], out).computed in (3, 7)
    assert not [path for path in out.rglob("*") if path.name.endswith(".part")]
    cache = UnitCache.open(out, unit_key(checkpoint))
    for cut in cuts:
        assert_same(cache.get(cut.id), on_the_fly(checkpoint, cut))


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xllm_speech.bin.main", "units", *map(str, arguments)], capture_output=True, text=True,
        timeout=120, check=False,
    )


def test_command_line_says_how_fast_it_is(model_dir: Path, tmp_path: Path, manifest: Path) -> None:
    """A folder with cuts.jsonl.gz is a manifest too; a second run has nothing to do."""
    arguments = ("--model", model_dir, "--cuts", tmp_path, "--out", tmp_path / "units", "--speeds", 1.0, 0.9)
    done = cli(*arguments)
    assert done.returncode == 0, done.stderr
    assert "units of 22 utterances, 0 rejected" in done.stdout
    assert "computed now: 22 utterances in" in done.stdout
    assert "times faster (measured on 11" in done.stdout
    assert "up to date: nothing to compute" in cli(*arguments).stdout
    summary = json.loads((tmp_path / "units" / "units.json").read_text())
    assert summary["model_sha256"] == unit_key(load_asr(model_dir)).model_sha256
    assert summary["speeds"] == [1.0, 0.9]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"cuts": ["absent.jsonl.gz"]}, DataError, "absent.jsonl.gz: no such manifest"),
        ({"model": "absent"}, CheckpointError, "absent: no such model directory"),
        ({"speeds": [1.0, 1.0]}, ConfigError, "each once"),
        ({"speeds": [3.0]}, ConfigError, "within 0.5 .. 2"),
        ({"jobs": 0}, ConfigError, "jobs 0"),
        ({"batch_sec": 0.0}, ConfigError, "batch_sec 0.0 must be positive"),
        ({"dtype": "int8"}, ConfigError, "not one of float32, float16"),
    ],
)
def test_mistakes(model_dir: Path, tmp_path: Path, manifest: Path, changes: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        store_units(**{"model": model_dir, "cuts": [manifest], "out_dir": tmp_path / "units", **changes})
    assert not (tmp_path / "units").exists()

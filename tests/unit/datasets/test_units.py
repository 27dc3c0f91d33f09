"""The unit cache without a model: what is written is read back, and whatever is stale, foreign or broken is refused."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from xllm_speech.base.errors import CheckpointError, DataError, SeamError
from xllm_speech.base.files import read_json, write_json, write_jsonl
from xllm_speech.datasets.units import (
    ReleasedUnits,
    UnitCache,
    UnitKey,
    Units,
    finish_cache,
    hash_manifest,
    pad_units,
    write_shard,
)
from xllm_speech.features.augment import choose_speed

WIDTH = 6
KEY = UnitKey("a" * 64, {"blocks": 3, "pool_after": [1, 2]}, 0.5, "mix")


def made_up(number: int, seed: int = 0) -> Units:
    """Units whose count is their number, none for 0."""
    generator = torch.Generator().manual_seed(100 * seed + number)
    fire_U = torch.rand(number, generator=generator).cumsum(0)
    x_UD = torch.randn(number, WIDTH, generator=generator)
    return Units(x_UD, torch.cat([torch.zeros(1), fire_U])[:number], fire_U, number + 0.25)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "cuts.jsonl", [{"id": f"句{number}"} for number in range(7)])
    return tmp_path / "cuts.jsonl"


def fill(out: Path, manifest: Path, dtype: str = "float32", key: UnitKey = KEY) -> dict[str, Units]:
    """A cache of two shards at speed 1 and one at 0.9; returns what is in it."""
    groups = {
        "0": {f"句{number}": made_up(number) for number in range(5)},
        "1": {f"句{number}": made_up(number) for number in (5, 6)},
        "sp0.9.0": {f"sp0.9-句{number}": made_up(number, 1) for number in range(7)},
    }
    (out / "shards").mkdir(parents=True)
    rows, sizes = [], {}
    for name, group in groups.items():
        more, sizes[name] = write_shard(out / "shards", name, group.items(), dtype)
        rows += more
    manifests = [(str(manifest), hash_manifest(manifest))]
    finish_cache(out, key, rows, sizes, WIDTH, dtype, [1.0, 0.9], manifests, {"rejected": 0}, {})
    return {name: units for group in groups.values() for name, units in group.items()}


def assert_equal(found: Units, expected: Units) -> None:
    assert found.start_U is not None
    assert found.fire_U is not None
    assert found.x_UD.dtype == torch.float32
    assert torch.equal(found.x_UD, expected.x_UD)
    assert torch.equal(found.start_U, expected.start_U)
    assert torch.equal(found.fire_U, expected.fire_U)
    assert found.quantity == expected.quantity


def test_what_was_written_is_read_back_in_order(tmp_path: Path, manifest: Path) -> None:
    expected = fill(tmp_path / "units", manifest)
    (tmp_path / "units").rename(tmp_path / "moved")  # a cache may move
    cache = UnitCache.open(tmp_path / "moved", KEY, manifest)
    assert cache.ids == list(expected)
    assert len(cache) == 14
    for (name, found), (wanted, units) in zip(cache, expected.items(), strict=True):
        assert name == wanted
        assert_equal(found, units)
        assert cache.count(name) == len(units.x_UD)
    assert_equal(cache.get("句3", speed=0.9), expected["sp0.9-句3"])
    assert "句3" in cache
    assert "句7" not in cache


def test_kaldi_lists_show_the_same_units(tmp_path: Path, manifest: Path) -> None:
    expected = fill(tmp_path / "units", manifest)
    by_kaldi = kaldiio.load_scp(str(tmp_path / "units" / "units.scp"))
    times = kaldiio.load_scp(str(tmp_path / "units" / "times.scp"))
    assert sorted(by_kaldi) == sorted(times) == sorted(expected)
    np.testing.assert_array_equal(by_kaldi["句6"], expected["句6"].x_UD.numpy())
    np.testing.assert_array_equal(times["句6"][:, 1], expected["句6"].fire_U.numpy())


def test_half_precision_takes_half_the_room_and_is_near(tmp_path: Path, manifest: Path) -> None:
    expected = fill(tmp_path / "half", manifest, "float16")
    cache = UnitCache.open(tmp_path / "half", KEY)
    for name, found in cache:
        assert found.x_UD.dtype == torch.float32
        torch.testing.assert_close(found.x_UD, expected[name].x_UD, rtol=1e-3, atol=1e-3)
    assert not torch.equal(cache.get("句6").x_UD, expected["句6"].x_UD)
    large = Units(torch.full((400, WIDTH), 3.0), torch.zeros(400), torch.zeros(400), 400.0)
    sizes = [write_shard(tmp_path, dtype, [("a", large)], dtype)[1]["units"] for dtype in ("float32", "float16")]
    assert sizes[1] < 0.55 * sizes[0]
    with pytest.raises(DataError, match="a: units up to 1e\\+05 do not fit into float16"):
        write_shard(tmp_path, "c", [("a", replace(large, x_UD=torch.full((400, WIDTH), 1e5)))], "float16")
    assert not (tmp_path / "units.c.ark").exists()


def test_drawn_speeds_are_those_of_training_on_audio(tmp_path: Path, manifest: Path) -> None:
    expected = fill(tmp_path / "units", manifest)
    cache = UnitCache.open(tmp_path / "units", KEY)
    drawn = set()
    for epoch in range(8):
        speed = choose_speed(3, epoch, "句4", [1.0, 0.9])
        drawn.add(speed)
        assert_equal(cache.draw("句4", 3, epoch), expected["句4" if speed == 1.0 else "sp0.9-句4"])
    assert drawn == {1.0, 0.9}


def test_loading_processes_read_it_too(tmp_path: Path, manifest: Path) -> None:
    expected = fill(tmp_path / "units", manifest)
    cache = pickle.loads(pickle.dumps(UnitCache.open(tmp_path / "units", KEY)))
    loader = DataLoader(cache.ids, batch_size=4, num_workers=2, collate_fn=lambda ids: pad_units([cache.get(i) for i in ids]))
    lens = [length for memory in loader for length in memory.lens_B.tolist()]
    assert lens == [len(units.x_UD) for units in expected.values()]


def test_padding_keeps_every_unit_and_adds_zeros() -> None:
    units = [made_up(number) for number in (2, 0, 5)]
    memory = pad_units(units)
    assert memory.lens_B.tolist() == [2, 0, 5]
    assert memory.x_BND.shape == (3, 5, WIDTH)
    for row, one in enumerate(units):
        assert torch.equal(memory.x_BND[row, : len(one.x_UD)], one.x_UD)
        assert not memory.x_BND[row, len(one.x_UD) :].any()


def test_times_for_another_number_of_units_break_the_contract() -> None:
    with pytest.raises(SeamError, match=r"fire \(3,\) for 2 units"):
        Units(torch.zeros(2, WIDTH), torch.zeros(2), torch.zeros(3))


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ("b" * 64, "stale: units of the model with sha256 aaaaaaaaaaaa, this one is bbbbbbbbbbbb"),
        (replace(KEY, model_sha256="c" * 64), "stale: .* this one is cccccccccccc"),
        (replace(KEY, tail_threshold=0.3), "made with tail_threshold 0.5, the model now has 0.3"),
        (replace(KEY, channel="1"), "made with channel mix, the model now has 1"),
        (replace(KEY, encoder={"blocks": 3, "pool_after": [1, 3]}), "made with encoder"),
    ],
)
def test_a_stale_cache_is_refused(tmp_path: Path, manifest: Path, expected: str | UnitKey, message: str) -> None:
    fill(tmp_path / "units", manifest)
    UnitCache.open(tmp_path / "units", KEY.model_sha256)
    with pytest.raises(CheckpointError, match=message):
        UnitCache.open(tmp_path / "units", expected)


def test_a_changed_manifest_makes_it_stale(tmp_path: Path, manifest: Path) -> None:
    fill(tmp_path / "units", manifest)
    write_jsonl(tmp_path / "same.jsonl.gz", [{"id": f"句{number}"} for number in range(7)])
    UnitCache.open(tmp_path / "units", KEY, tmp_path / "same.jsonl.gz")  # the content counts, not name or compression
    with open(manifest, "a", encoding="utf-8") as stream:
        stream.write('{"id": "more"}\n')
    with pytest.raises(CheckpointError, match=r"stale: not made of .*cuts.jsonl as it is now"):
        UnitCache.open(tmp_path / "units", KEY, manifest)


def break_summary(folder: Path, **changes: object) -> None:
    write_json(folder / "units.json", {**read_json(folder / "units.json"), **changes})


def drop_summary_entry(folder: Path) -> None:
    summary = read_json(folder / "units.json")
    del summary["width"]
    write_json(folder / "units.json", summary)


def shorten(path: Path, cut_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:-cut_bytes])


@pytest.mark.parametrize(
    ("breaking", "message"),
    [
        (lambda folder: (folder / "units.json").unlink(), "units.json: no such file: not a unit cache, or not finished"),
        (lambda folder: (folder / "units.json").write_text("{"), "units.json: not JSON"),
        (lambda folder: (folder / "units.json").write_text("[]"), "format `list`"),
        (lambda folder: break_summary(folder, format="other-1"), "format `other-1`, expected `xllm-units-1`"),
        (drop_summary_entry, "lacks `width`"),
        (lambda folder: shorten(folder / "shards" / "units.1.ark", 8), r"units.1.ark: \d+ bytes, written with \d+ bytes"),
        (lambda folder: (folder / "shards" / "times.0.ark").unlink(), "times.0.ark: missing"),
        (lambda folder: (folder / "index.jsonl.gz").unlink(), "index.jsonl.gz: cannot be read"),
        (lambda folder: shorten(folder / "index.jsonl.gz", 20), "index.jsonl.gz:"),
        (lambda folder: write_jsonl(folder / "index.jsonl.gz", [{"id": "a", "shard": "0"}]), "gz:1: not a line"),
        (lambda folder: write_jsonl(folder / "index.jsonl.gz", []), "0 utterances, units.json says 14"),
    ],
)
def test_a_broken_or_foreign_folder_is_refused(tmp_path: Path, manifest: Path, breaking, message: str) -> None:
    fill(tmp_path / "units", manifest)
    breaking(tmp_path / "units")
    with pytest.raises(CheckpointError, match=message):
        UnitCache.open(tmp_path / "units", KEY)


def test_damage_inside_an_archive_is_found_when_read(tmp_path: Path, manifest: Path) -> None:
    fill(tmp_path / "units", manifest)
    ark = tmp_path / "units" / "shards" / "units.1.ark"
    content = bytearray(ark.read_bytes())
    cache = UnitCache.open(tmp_path / "units", KEY)
    content[-4:] = np.float32(np.nan).tobytes()
    ark.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"units.1.ark:\d+: broken \(shape \(6, 6\).*all finite"):
        cache.get("句6")
    cache.get("句5")
    start = content.index("句6 ".encode()) + len("句6 ".encode())
    content[start : start + 3] = b"PKL"  # kaldiio would unpickle what follows
    ark.write_bytes(content)
    with pytest.raises(CheckpointError, match="no matrix at this place"):
        cache.get("句6")
    ark.write_bytes(content[: start + 4])
    with pytest.raises(CheckpointError, match="broken"):
        cache.get("句6")
    ark.unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        cache.get("句6")


def test_an_absent_utterance_is_the_datas_fault(tmp_path: Path, manifest: Path) -> None:
    fill(tmp_path / "units", manifest)
    cache = UnitCache.open(tmp_path / "units", KEY)
    with pytest.raises(DataError, match="no units of `other` among 14"):
        cache.get("other")
    with pytest.raises(DataError, match=r"no units of `sp1.1-句1` .*speeds \[1.0, 0.9\]"):
        cache.count("句1", speed=1.1)


def test_the_key_leaves_out_what_acts_in_training_only(tmp_path: Path) -> None:
    @dataclass
    class Encoder:
        blocks: int = 3
        dropout: float = 0.1
        attention_dropout: float = 0.0

    (tmp_path / "weights").write_bytes(b"1")
    key = UnitKey.of(tmp_path / "weights", Encoder(), 0.5, "mix")
    assert key == UnitKey.of(tmp_path / "weights", Encoder(dropout=0.5), 0.5, "mix")
    assert key != UnitKey.of(tmp_path / "weights", Encoder(blocks=4), 0.5, "mix")
    (tmp_path / "weights").write_bytes(b"2")
    assert key != UnitKey.of(tmp_path / "weights", Encoder(), 0.5, "mix")


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """Three released examples: with and without id, at absolute, relative and lost places."""
    (tmp_path / "feats").mkdir()
    for number, name in enumerate(("IT0001W0002", "7_0", "lost"), 1):
        np.save(tmp_path / "feats" / f"{name}.npy", np.random.default_rng(number).normal(size=(number, 512)))
    rows = [
        {"utterance_id": "IT0001W0002", "speech_feats_path": str(tmp_path / "feats" / "IT0001W0002.npy"), "length": "9",
         "target_text": "打开电视"},
        {"speech_feats_path": "feats/7_0.npy", "question_text": "是什么颜色", "image": "7.jpg"},
        {"speech_feats_path": "/nowhere/at/all/lost.npy", "answer_text": "红色"},
    ]
    path = tmp_path / "train.json"
    path.write_text(json.dumps(rows, ensure_ascii=False))
    return path


def test_released_units_are_read(released: Path) -> None:
    units = ReleasedUnits(released, folder=released.parent / "feats")
    assert [(entry.id, entry.text, entry.image) for entry in units] == [
        ("IT0001W0002", "打开电视", None), ("7_0", "是什么颜色", "7.jpg"), ("lost", "红色", None)
    ]
    for number, entry in enumerate(units, 1):
        found = units.get(entry.id)
        expected = np.random.default_rng(number).normal(size=(number, 512)).astype(np.float32)
        np.testing.assert_array_equal(found.x_UD.numpy(), expected)
        assert found.fire_U is None
    assert "lost" in units
    with pytest.raises(DataError, match=r"lost: /nowhere/at/all/lost.npy: unreadable units \(.*No such file"):
        ReleasedUnits(released).get("lost")
    with pytest.raises(DataError, match="no utterance `other` among 3"):
        units.get("other")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected a JSON array of objects, found dict"),
        ([{"target_text": "a"}], "entry 1: no `speech_feats_path`"),
        (["a"], "entry 1: no `speech_feats_path`"),
        ([{"speech_feats_path": "a.npy", "target_text": "a"}, {"speech_feats_path": "b.npy"}], "entry 2: none of target_text"),
        ([{"speech_feats_path": "a/x.npy", "target_text": "a"}, {"speech_feats_path": "b/x.npy", "target_text": "b"}],
         "entry 2: `x` names b/x.npy, before it a/x.npy"),
    ],
)
def test_released_lists_with_mistakes(tmp_path: Path, content: object, message: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        ReleasedUnits(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 80), np.float32), r"shape \(4, 80\), expected \[L, 512\]"),
        (np.zeros(512, np.float32), r"shape \(512,\)"),
        (np.zeros((0, 512), np.float32), r"shape \(0, 512\)"),
        (np.zeros((4, 512), np.int64), "int64 values"),
        (np.full((4, 512), np.nan, np.float32), "not all finite"),
        (np.array([[None] * 512]), "unreadable units .*allow_pickle"),
        (b"no array", "unreadable units"),
        (b"", "unreadable units"),
    ],
)
def test_released_files_with_mistakes(tmp_path: Path, array: np.ndarray | bytes, message: str) -> None:
    if isinstance(array, bytes):
        (tmp_path / "x.npy").write_bytes(array)
    else:
        np.save(tmp_path / "x.npy", array, allow_pickle=True)
    (tmp_path / "a.json").write_text(json.dumps([{"speech_feats_path": "x.npy", "target_text": "a"}]))
    with pytest.raises(DataError, match=f"x: .*x.npy: .*{message}"):
        ReleasedUnits(tmp_path / "a.json").get("x")

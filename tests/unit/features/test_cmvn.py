from __future__ import annotations

from pathlib import Path

import kaldiio
import numpy as np
import pytest
import torch

from xllm_speech.base.errors import DataError
from xllm_speech.features.cmvn import CmvnAccumulator, CmvnStats


def test_streamed_statistics_equal_those_of_all_frames() -> None:
    rng = np.random.default_rng(0)
    # A large mean with a small spread: sums of squares in float32 would lose it.
    blocks = [torch.from_numpy(1000 + 0.01 * rng.normal(size=(size, 80))).double() for size in (1, 500, 0, 37, 4000)]
    accumulator = CmvnAccumulator()
    for block in blocks:
        accumulator.add(block)
    stats = accumulator.result()
    whole = torch.cat(blocks)
    assert stats.frames == len(whole)
    torch.testing.assert_close(stats.mean_F, whole.mean(0).float())
    torch.testing.assert_close(stats.std_F, whole.std(0, unbiased=False).float(), rtol=1e-5, atol=0)


def test_json_round_trip(tmp_path: Path) -> None:
    stats = CmvnStats(torch.randn(80), torch.rand(80), 12)
    stats.save(tmp_path / "cmvn.json")
    again = CmvnStats.load(tmp_path / "cmvn.json")
    assert torch.equal(again.mean_F, stats.mean_F)
    assert torch.equal(again.std_F, stats.std_F)
    assert again.frames == 12


def test_kaldis_statistics(tmp_path: Path) -> None:
    feats = np.random.default_rng(1).normal(3, 2, (1000, 80))
    matrix = np.zeros((2, 81))
    matrix[0, :80], matrix[1, :80], matrix[0, 80] = feats.sum(0), (feats**2).sum(0), 1000
    kaldiio.save_mat(str(tmp_path / "cmvn"), matrix)
    stats = CmvnStats.load(tmp_path / "cmvn")
    np.testing.assert_allclose(stats.mean_F.numpy(), feats.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats.std_F.numpy(), feats.std(0), rtol=1e-5)
    assert stats.frames == 1000


@pytest.mark.parametrize("content", [
    b"", b"{", b'{"mean": [1]}', b'{"mean": [1], "std": [1, 2], "frames": 3}', b"\0BXX ", b"hello",
])
def test_what_is_no_statistics_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(DataError, match="bad"):
        CmvnStats.load(tmp_path / "bad")
    with pytest.raises(DataError, match="no such"):
        CmvnStats.load(tmp_path / "missing")


def test_no_speech_at_all() -> None:
    with pytest.raises(DataError, match="no speech"):
        CmvnAccumulator().result()

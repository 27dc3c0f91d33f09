from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from xllm_speech.base.units import frames_from_samples
from xllm_speech.features.audio import load_file, load_samples
from xllm_speech.features.fbank import compute_fbank


def slow_fbank(samples: np.ndarray) -> np.ndarray:
    """Kaldi's recipe written out: one frame and one filter at a time, in float64."""
    wave = samples.astype(np.float64) * 32768
    count = len(wave)
    window = np.array([(0.5 - 0.5 * math.cos(2 * math.pi * n / 399)) ** 0.85 for n in range(400)])

    def mel(hz: float) -> float:
        return 1127.0 * math.log(1.0 + hz / 700.0)

    edges = [mel(20) + (mel(8000) - mel(20)) / 81 * place for place in range(82)]
    rows = []
    for frame in range((count + 80) // 160):
        places = []
        for place in range(frame * 160 - 120, frame * 160 + 280):
            while place < 0 or place >= count:  # reflected at both ends, the end sample twice
                place = -place - 1 if place < 0 else 2 * count - 1 - place
            places.append(place)
        block = wave[places]
        block = block - block.mean()
        block = block - 0.97 * np.concatenate([block[:1], block[:-1]])
        power = np.abs(np.fft.rfft(block * window, 512)) ** 2
        row = []
        for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
            energy = 0.0
            for bin_number in range(256):
                position = mel(bin_number * 16000 / 512)
                if low < position < high:
                    slope = (position - low) / (middle - low) if position <= middle else (high - position) / (high - middle)
                    energy += slope * power[bin_number]
            row.append(math.log(max(energy, np.finfo(np.float32).eps)))
        rows.append(row)
    return np.array(rows).reshape(-1, 80)


def test_equals_kaldis_recipe_on_real_speech(shared_data: Path) -> None:
    path = sorted((shared_data / "aishell1_sample_S0150" / "wav").rglob("*.wav"))[0]
    samples = load_samples(load_file(path))[8000:14321]
    expected = slow_fbank(samples)
    feats = compute_fbank(samples).numpy()
    assert feats.shape == expected.shape
    np.testing.assert_allclose(feats, expected, atol=2e-3)


@pytest.mark.parametrize("count", [0, 1, 79, 80, 81, 119, 120, 160, 239, 240, 399, 400, 401, 559, 560, 1000])
def test_every_length_has_its_frames(count: int) -> None:
    samples = np.random.default_rng(count).uniform(-0.3, 0.3, count).astype(np.float32)
    feats = compute_fbank(samples)
    assert feats.shape == (frames_from_samples(count), 80)
    if len(feats):
        np.testing.assert_allclose(feats.numpy(), slow_fbank(samples), atol=2e-3)


def test_silence_is_finite() -> None:
    feats = compute_fbank(np.zeros(16000, np.float32))
    assert feats.shape == (100, 80)
    np.testing.assert_allclose(feats.numpy(), np.log(np.finfo(np.float32).eps), rtol=1e-6)

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from xllm_speech.features.augment import SpecAugmenter, choose_speed, hashed_fraction, keep_modality


def batch(lens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_BTF = torch.randn(len(lens), max(lens, default=0), 80, generator=generator) + 5
    lens_B = torch.tensor(lens)
    x_BTF[torch.arange(x_BTF.shape[1])[None] >= lens_B[:, None]] = 0
    return x_BTF, lens_B


def widths(mask_N: torch.Tensor) -> list[int]:
    edges = torch.diff(torch.nn.functional.pad(mask_N.int(), (1, 1)))
    return ((edges == -1).nonzero() - (edges == 1).nonzero()).flatten().tolist()


def test_masks_stay_within_their_sizes_and_the_utterance() -> None:
    x_BTF, lens_B = batch([300, 120, 40, 7, 1])
    fill_F = torch.full((80,), -99.0)
    augmenter = SpecAugmenter(2, 27, 2, 50, 0.2)
    most_bins = most_frames = 0
    for seed in range(200):
        masked_BTF = augmenter(x_BTF, lens_B, seed, fill_F) == -99.0
        for item, size in enumerate(lens_B.tolist()):
            assert not masked_BTF[item, size:].any()  # padding stays as it is
            bands = masked_BTF[item, :size].all(0)
            if bands.all():
                continue
            stretch = masked_BTF[item, :size].all(1)
            assert sum(widths(bands)) <= 54
            assert max(widths(stretch), default=0) <= 2 * min(50, int(size * 0.2))
            most_bins = max(most_bins, sum(widths(bands)))
            most_frames = max(most_frames, sum(widths(stretch)))
    assert most_bins > 40
    assert most_frames > 80


def test_a_function_of_its_arguments_that_leaves_the_generators_alone() -> None:
    x_BTF, lens_B = batch([200, 100])
    before = x_BTF.clone()
    torch.manual_seed(3)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    augmenter = SpecAugmenter()
    first = augmenter(x_BTF, lens_B, 7)
    torch.rand(5)
    assert torch.equal(first, augmenter(x_BTF, lens_B, 7))
    assert not torch.equal(first, augmenter(x_BTF, lens_B, 8))
    assert torch.equal(x_BTF, before)
    torch.set_rng_state(states[0])
    augmenter(x_BTF, lens_B, 9)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


def test_masked_places_hold_the_mean_of_their_bin() -> None:
    x_BTF, lens_B = batch([200, 50])
    x_BTF[:, :, 0] *= 100
    out_BTF = SpecAugmenter(4, 27, 4, 50)(x_BTF, lens_B, 1)
    changed = out_BTF != x_BTF
    assert changed.any()
    for item, size in enumerate([200, 50]):
        mean_F = x_BTF[item, :size].mean(0)
        places = changed[item].nonzero()
        torch.testing.assert_close(out_BTF[item][changed[item]], mean_F[places[:, 1]])


def test_nothing_to_mask() -> None:
    x_BTF, lens_B = batch([20, 10])
    assert torch.equal(SpecAugmenter(0, 27, 0, 50)(x_BTF, lens_B, 1), x_BTF)
    empty = torch.zeros(0, 0, 80)
    assert SpecAugmenter()(empty, torch.zeros(0, dtype=torch.int64), 1).shape == (0, 0, 80)


def test_choices_follow_the_key_and_are_even() -> None:
    ids = [f"utt-{number}" for number in range(3000)]
    speeds = [choose_speed(1, 0, name, (0.9, 1.0, 1.1)) for name in ids]
    assert [speeds.count(speed) for speed in (0.9, 1.0, 1.1)] == pytest.approx([1000] * 3, abs=120)
    assert speeds == [choose_speed(1, 0, name, (0.9, 1.0, 1.1)) for name in ids]
    assert speeds != [choose_speed(1, 1, name, (0.9, 1.0, 1.1)) for name in ids]
    kept = [keep_modality(1, 0, name, 0.3) for name in ids]
    assert sum(kept) == pytest.approx(900, abs=120)
    captions = [keep_modality(1, 0, name, 0.3, "caption") for name in ids]
    assert sum(a and b for a, b in zip(kept, captions, strict=True)) == pytest.approx(270, abs=80)  # independent
    assert not any(keep_modality(1, 0, name, 0.0) for name in ids)
    assert all(keep_modality(1, 0, name, 1.0) for name in ids)


def test_the_hash_is_the_same_everywhere() -> None:
    assert hashed_fraction("speed", 0, 0, "a") == pytest.approx(0.8470263013322079, abs=1e-15)
    assert 0 <= hashed_fraction("\udcff") < 1

from __future__ import annotations

from collections import Counter

import pytest
import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.cut import Cut
from torch.utils.data import Dataset

from xllm_speech.datasets.sampling import estimate_bins, make_loader, make_sampler


def made_cuts(number: int) -> CutSet:
    """Cuts that are never read, of 0.5 to 10 s."""
    cuts: list[Cut] = []
    for place in range(number):
        duration = 0.5 + (place * 37 % 96) / 10
        recording = Recording(f"u{place}", [AudioSource("file", [0], "none.wav")], 16000, round(duration * 16000), duration)
        supervision = SupervisionSegment(f"u{place}", f"u{place}", 0, duration, text="x")
        cuts.append(MonoCut(f"u{place}", 0, duration, 0, [supervision], recording=recording))
    return CutSet(cuts)


class Names(Dataset[list[tuple[str, float]]]):
    def __getitem__(self, cuts: CutSet) -> list[tuple[str, float]]:
        torch.rand(3)  # global random numbers must not matter
        return [(cut.id, cut.duration) for cut in cuts]


@pytest.mark.parametrize("number", [1, 2, 3, 7, 200])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_utterance_once_per_epoch_within_the_limits(number: int, shuffle: bool) -> None:
    cuts = made_cuts(number)
    for epoch in range(4):
        batches = [list(batch) for batch in make_sampler(cuts, 30.0, 12, 5, shuffle, epoch=epoch)]
        assert Counter(cut.id for batch in batches for cut in batch) == Counter(cut.id for cut in cuts)
        for batch in batches:
            assert len(batch) <= 12
            assert sum(cut.duration for cut in batch) <= 30.0


def test_batches_hold_like_durations() -> None:
    cuts = made_cuts(400)
    wasted = {}
    for buckets in (1, 8):
        batches = [[cut.duration for cut in batch] for batch in make_sampler(cuts, 60.0, num_buckets=buckets)]
        padded = sum(len(batch) * max(batch) for batch in batches)
        wasted[buckets] = 1 - sum(map(sum, batches)) / padded
    assert wasted[8] < 0.2 < wasted[1]


def drawn(workers: int = 0, skip: int = 0, seed: int = 1, epoch: int = 2, rank: int = 0, world: int = 1) -> list[object]:
    sampler = make_sampler(
        made_cuts(120), 40.0, num_buckets=4, speeds=(0.9, 1.0, 1.1), rank=rank, world_size=world, epoch=epoch, seed=seed
    )
    return list(make_loader(Names(), sampler, workers, skip))


def test_resuming_gives_the_rest_of_the_epoch_whatever_the_workers() -> None:
    whole = drawn()
    assert len(whole) > 8
    assert drawn(workers=2) == whole
    for skip in (1, 5, len(whole), len(whole) + 3):
        assert drawn(skip=skip) == whole[skip:]
    assert drawn(workers=2, skip=5) == whole[5:]
    assert drawn(epoch=3) != whole
    assert drawn(seed=2) != whole
    assert drawn(seed=2, epoch=1) != drawn(seed=1, epoch=2)  # seeds and epochs are not just added


def test_speeds_are_drawn_per_utterance_and_epoch_and_ids_stay() -> None:
    plain = {cut.id: cut.duration for cut in made_cuts(120)}
    factors = []
    for epoch in (0, 1):
        pairs = [pair for batch in drawn(epoch=epoch) for pair in batch]  # type: ignore[attr-defined]
        assert {name for name, _ in pairs} == set(plain)
        factors.append({name: round(plain[name] / duration, 2) for name, duration in pairs})
        assert set(factors[-1].values()) == {0.9, 1.0, 1.1}
    assert factors[0] != factors[1]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_draw_equally_many_batches_and_share_everything(world: int) -> None:
    ranks = [drawn(rank=rank, world=world) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    names = Counter(name for batches in ranks for batch in batches for name, _ in batch)  # type: ignore[attr-defined]
    originals = {name for name in names if "_dup" not in name}
    assert originals == {cut.id for cut in made_cuts(120)}
    assert max(names.values()) == 1
    for rank in range(world):
        assert drawn(rank=rank, world=world, skip=2) == ranks[rank][2:]


def test_fewer_utterances_than_ranks() -> None:
    cuts = made_cuts(2)
    ranks = [[list(batch) for batch in make_sampler(cuts, 40.0, rank=rank, world_size=3)] for rank in range(3)]
    assert [len(batches) for batches in ranks] == [1, 1, 1]
    assert all(len(batches[0]) == 1 for batches in ranks)


def test_bins_for_few_and_for_equal_utterances() -> None:
    assert estimate_bins(made_cuts(1), 10) == []
    assert len(estimate_bins(made_cuts(400), 10)) <= 10
    same = CutSet([cut.truncate(duration=0.5) for cut in made_cuts(50)])
    assert estimate_bins(same, 10) == [0.5]
    assert sum(len(batch) for batch in make_sampler(same, 5.0)) == 50

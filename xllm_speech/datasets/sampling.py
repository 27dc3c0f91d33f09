"""Which cuts make which batch: duration buckets, the same on every machine, resumable in the middle of an epoch.

The n-th batch of an epoch is a function of (manifest, limits, seed, epoch, rank, world size): the number of loading
processes does not enter, and skipping n batches gives what drawing and dropping them would.
"""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import TypeVar

from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset import DynamicBucketingSampler
from lhotse.dataset.sampling.dynamic_bucketing import estimate_duration_buckets
from torch.utils.data import DataLoader, Dataset, Sampler

from xllm_speech.features.augment import choose_speed

Drawn = TypeVar("Drawn")

# Stands in where there is one bucket only: lhotse wants at least one bound.
NO_BOUND_SEC = 1e9


def perturb_cut(cut: Cut, seed: int, epoch: int, speeds: Sequence[float]) -> Cut:
    """The cut at the speed drawn for it in this epoch, under its own id; stored features are never perturbed."""
    if cut.has_features or not cut.has_recording:
        return cut
    speed = choose_speed(seed, epoch, cut.id, speeds)
    return cut if speed == 1.0 else cut.perturb_speed(speed, affix_id=False)


def make_sampler(
    cuts: CutSet, max_duration_sec: float, max_cuts: int | None = None, num_buckets: int = 10, shuffle: bool = True,
    speeds: Sequence[float] = (1.0,), rank: int = 0, world_size: int = 1, epoch: int = 0, seed: int = 0,
    duration_bins: Sequence[float] | None = None,
) -> DynamicBucketingSampler:
    """A lhotse sampler of batches of like duration; every rank draws the same number of them.

    duration_bins: bounds between the buckets, from `estimate_bins`, where they are known already.

    Nothing is dropped: the last batches may be small, and where they do not reach all ranks lhotse shares the cuts out
    again (repeating some as `<id>_dup0` when there are fewer than ranks).
    """
    if any(speed != 1.0 for speed in speeds):
        cuts = CutSet(_Perturbed(cuts, seed, epoch, tuple(speeds)))
    bins = estimate_bins(cuts, num_buckets) if duration_bins is None else list(duration_bins)
    mixed = int.from_bytes(hashlib.blake2b(f"{seed}:{epoch}".encode(), digest_size=7).digest(), "big")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are using DynamicBucketingSampler with an eagerly read CutSet")
        return DynamicBucketingSampler(
            cuts, max_duration=max_duration_sec, max_cuts=max_cuts, shuffle=shuffle, drop_last=False,
            seed=mixed if shuffle else 0, rank=rank, world_size=world_size,
            duration_bins=bins or [NO_BOUND_SEC],
            # Like durations on all ranks. Also alone: without it lhotse 1.33 may choose an empty bucket near the end and
            # stop the epoch there, with utterances left over.
            sync_buckets=True,
        )


def estimate_bins(cuts: CutSet, num_buckets: int, sample: int = 10_000) -> list[float]:
    """Bounds in seconds between duration buckets, from the first `sample` cuts; fewer buckets for a handful of cuts."""
    first = list(itertools.islice(cuts, sample))
    num_buckets = min(num_buckets, len(first) // 2)
    bins = estimate_duration_buckets(first, num_buckets=num_buckets) if num_buckets > 1 else []
    return sorted({float(bound) for bound in bins})


class _Perturbed:
    """Cuts at the speeds drawn for them, lazily."""

    def __init__(self, cuts: CutSet, seed: int, epoch: int, speeds: tuple[float, ...]) -> None:
        self.cuts = cuts
        self.seed = seed
        self.epoch = epoch
        self.speeds = speeds

    def __iter__(self) -> Iterator[Cut]:
        for cut in self.cuts:
            yield perturb_cut(cut, self.seed, self.epoch, self.speeds)


class _Skipping(Sampler[CutSet]):
    """Batches of a lhotse sampler after the first `skip_batches`; only the manifest is read for those."""

    def __init__(self, sampler: DynamicBucketingSampler, skip_batches: int) -> None:
        self.sampler = sampler
        self.skip_batches = skip_batches

    def __iter__(self) -> Iterator[CutSet]:
        return itertools.islice(iter(self.sampler), self.skip_batches, None)


def make_loader(
    dataset: Dataset[Drawn], sampler: DynamicBucketingSampler, num_workers: int = 0, skip_batches: int = 0
) -> DataLoader[Drawn]:
    """Loads the sampler's batches through `dataset` (which takes a whole `CutSet`), in order, after `skip_batches`."""
    return DataLoader(
        dataset, sampler=_Skipping(sampler, skip_batches), batch_size=None, num_workers=num_workers,
        collate_fn=_as_is, pin_memory=False,
    )


def _as_is(batch: Drawn) -> Drawn:
    return batch

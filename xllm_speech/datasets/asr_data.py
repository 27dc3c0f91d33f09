"""The data of one ASR run: prepared once, then served as batches of any epoch from any position."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lhotse import CutSet
from torch.utils.data import DataLoader

from xllm_speech.base.files import read_json
from xllm_speech.datasets.asr import AsrDataset
from xllm_speech.datasets.config import DataConfig
from xllm_speech.datasets.preparation import CMVN_NAME, DEV_NAME, SUMMARY_NAME, TOKENS_NAME, TRAIN_NAME, prepare_data
from xllm_speech.datasets.sampling import estimate_bins, make_loader, make_sampler
from xllm_speech.features.augment import SpecAugmenter
from xllm_speech.features.cmvn import CmvnStats
from xllm_speech.manifests.cuts import load_cuts
from xllm_speech.records import AsrBatch
from xllm_speech.text.tokens import TokenTable

# Up to this many cuts are kept in memory; longer manifests are read anew in every epoch.
EAGER_CUTS = 20_000


class AsrData:
    """Prepares `out/data` (rank 0 only, the others wait at `barrier`) and serves batches.

    table: the token table. cmvn: the statistics for the model's first layer. counts: what was found, from data.json.
    Bad items that only loading discovers are left out of their batch and named in `AsrBatch.skipped`; a batch of only
    such items has no ids.

    Raises:
        DataError: see datasets.preparation.prepare_data.
    """

    def __init__(
        self, config: DataConfig, out: str | Path, rank: int = 0, barrier: Callable[[], Any] | None = None
    ) -> None:
        self.config = config
        self.folder = Path(out) / "data"
        if rank == 0:
            prepare_data(config, self.folder)
        if barrier is not None:
            barrier()
        self.table = TokenTable.load(self.folder / TOKENS_NAME)
        self.cmvn = CmvnStats.load(self.folder / CMVN_NAME)
        self.counts: dict[str, Any] = read_json(self.folder / SUMMARY_NAME)["counts"]

    def train_loader(
        self, epoch: int, skip_batches: int = 0, rank: int = 0, world_size: int = 1
    ) -> DataLoader[AsrBatch]:
        """Batches of an epoch, shuffled and perturbed by (seed, epoch), after the first `skip_batches` of this rank."""
        config = self.config
        sampler = make_sampler(
            self.train_cuts, config.max_duration_sec, config.max_cuts, shuffle=True, speeds=config.speeds, rank=rank,
            world_size=world_size, epoch=epoch, seed=config.seed, duration_bins=self._train_bins,
        )
        dataset = AsrDataset(
            self.table, config.channel, config.image_size, config.image_share, config.caption_share, config.seed, epoch
        )
        return make_loader(dataset, sampler, config.num_workers, skip_batches)

    def dev_loader(
        self, rank: int = 0, world_size: int = 1, with_images: bool = True, with_captions: bool | None = None
    ) -> DataLoader[AsrBatch]:
        """Batches of the dev set, in a fixed order, every utterance once (but see make_sampler for several ranks).

        with_images: pictures of all that have one (where image_size > 0). with_captions: captions of all that have one;
        by default only where the model sees captions in training.
        """
        config = self.config
        sampler = make_sampler(
            self.dev_cuts, config.max_duration_sec, config.max_cuts, shuffle=False, rank=rank, world_size=world_size,
            duration_bins=self._dev_bins,
        )
        captions = config.caption_share > 0 if with_captions is None else with_captions
        dataset = AsrDataset(
            self.table, config.channel, config.image_size if with_images else 0, image_share=1.0,
            caption_share=1.0 if captions else 0.0, seed=config.seed,
        )
        return make_loader(dataset, sampler, config.num_workers)

    def make_augmenter(self) -> SpecAugmenter | None:
        """SpecAugment as configured, for the training loop to apply on each batch; None when switched off."""
        settings = self.config.spec_augment
        if not settings.enabled:
            return None
        return SpecAugmenter(
            settings.num_feature_masks, settings.feature_mask_size, settings.num_frame_masks, settings.frame_mask_size,
            settings.max_frame_fraction,
        )

    @functools.cached_property
    def train_cuts(self) -> CutSet:
        """The cuts trained on, without speed perturbation."""
        return _open(self.folder / TRAIN_NAME, int(self.counts["train"]))

    @functools.cached_property
    def dev_cuts(self) -> CutSet:
        """The cuts evaluated on."""
        return _open(self.folder / DEV_NAME, int(self.counts["dev"]))

    @functools.cached_property
    def _train_bins(self) -> list[float]:
        return estimate_bins(self.train_cuts, self.config.num_buckets)

    @functools.cached_property
    def _dev_bins(self) -> list[float]:
        return estimate_bins(self.dev_cuts, self.config.num_buckets)


def _open(path: Path, count: int) -> CutSet:
    cuts = load_cuts(path)
    return CutSet(list(cuts)) if count <= EAGER_CUTS else cuts

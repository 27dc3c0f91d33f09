"""Augmentation as pure functions of a seed: SpecAugment on a batch, speed perturbation, modality dropout.

Nothing here reads or moves the global random states, so that a resumed run draws what the undisturbed one drew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch


def hashed_fraction(*key: object) -> float:
    """A number in [0, 1), uniform over keys and the same in every process and on every machine."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def choose_speed(seed: int, epoch: int, utterance_id: str, speeds: Sequence[float]) -> float:
    """The speed factor of an utterance in an epoch, uniform over `speeds`; apply it with `cut.perturb_speed`."""
    return speeds[int(hashed_fraction("speed", seed, epoch, utterance_id) * len(speeds))]


def keep_modality(seed: int, epoch: int, utterance_id: str, share: float, modality: str = "image") -> bool:
    """Whether an utterance keeps its picture (or caption) in an epoch; true for a share of the utterances."""
    return hashed_fraction(modality, seed, epoch, utterance_id) < share


class SpecAugmenter:
    """Masks bands of mel bins and stretches of frames (SpecAugment, Park et al. 2019, without time warping).

    Each width is drawn uniformly from 0 to its largest size; masks lie inside the utterance's own frames, never in the
    padding. lhotse's transform is not used: it masks by the padded length, fills with the padded mean and fails on
    utterances of a few frames.

    Args:
        num_feature_masks: bands of mel bins per utterance.
        feature_mask_size: widest band, in bins (F of the paper).
        num_frame_masks: stretches of frames per utterance.
        frame_mask_size: longest stretch, in frames (T of the paper).
        max_frame_fraction: no stretch is longer than this share of the utterance.
    """

    def __init__(
        self, num_feature_masks: int = 2, feature_mask_size: int = 27, num_frame_masks: int = 2,
        frame_mask_size: int = 50, max_frame_fraction: float = 0.2,
    ) -> None:
        self.num_feature_masks = num_feature_masks
        self.feature_mask_size = feature_mask_size
        self.num_frame_masks = num_frame_masks
        self.frame_mask_size = frame_mask_size
        self.max_frame_fraction = max_frame_fraction

    def __call__(
        self, x_BTF: torch.Tensor, lens_B: torch.Tensor, seed: int, fill_F: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Masked copy of x_BTF, a function of its arguments only.

        fill_F: what masked places hold, such as the CMVN mean (zero after normalisation); by default each utterance's
        own mean per bin.
        """
        batch, frames, bins = x_BTF.shape
        if batch == 0 or frames == 0:
            return x_BTF
        generator = torch.Generator().manual_seed(seed)
        lens = lens_B.cpu()
        bins_B = torch.full((batch,), bins)
        widest_B = torch.full((batch,), min(self.feature_mask_size, bins))
        longest_B = torch.minimum(
            (lens.double() * self.max_frame_fraction).long(), torch.full((batch,), self.frame_mask_size)
        )
        band_BF = _draw_masks(bins_B, widest_B, self.num_feature_masks, bins, generator).to(x_BTF.device)
        stretch_BT = _draw_masks(lens, longest_B, self.num_frame_masks, frames, generator).to(x_BTF.device)
        valid_BT = torch.arange(frames, device=x_BTF.device) < lens_B.to(x_BTF.device)[:, None]
        masked_BTF = (band_BF[:, None, :] | stretch_BT[:, :, None]) & valid_BT[:, :, None]
        if fill_F is None:
            count_B1 = lens_B.to(x_BTF.device).clamp(min=1)[:, None]
            fill_BF = (x_BTF * valid_BT[:, :, None]).sum(1) / count_B1
        else:
            fill_BF = fill_F.to(x_BTF)[None].expand(batch, bins)
        return torch.where(masked_BTF, fill_BF[:, None, :].to(x_BTF.dtype), x_BTF)


def _draw_masks(
    size_B: torch.Tensor, widest_B: torch.Tensor, count: int, positions: int, generator: torch.Generator
) -> torch.Tensor:
    """Union of `count` random intervals per item as bool [B, positions]; widths uniform in 0..widest inclusive."""
    batch = size_B.numel()
    width_BM = (torch.rand(batch, count, generator=generator) * (widest_B[:, None] + 1)).long()
    start_BM = (torch.rand(batch, count, generator=generator) * (size_B[:, None] - width_BM + 1)).long()
    place_P = torch.arange(positions)
    inside_BMP = (place_P >= start_BM[:, :, None]) & (place_P < (start_BM + width_BM)[:, :, None])
    return inside_BMP.any(1)

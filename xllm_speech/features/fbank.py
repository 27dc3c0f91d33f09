"""Kaldi-compatible log-mel filter banks (system.md section 1) and features stored in Kaldi archives."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import kaldiio
import numpy as np
import torch
from lhotse import Features
from lhotse.cut import Cut, MixedCut
from torchaudio.compliance import kaldi

from xllm_speech.base.errors import DataError
from xllm_speech.base.units import FRAME_LENGTH_MS, FRAME_SHIFT_MS, MEL_BINS, SAMPLE_RATE_HZ, frames_from_samples
from xllm_speech.features.audio import MIX, load_samples

# Kaldi reads 16-bit integers; our samples lie in [-1, 1].
INT16_SCALE = 32768.0
# Storage type of lhotse's for Kaldi archives; we read them with kaldiio.
KALDI_STORAGE = "kaldiio"


def compute_fbank(samples_N: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Log-mel energies float32 [T, 80] of 16 kHz samples in [-1, 1]; T == units.frames_from_samples(N), 0 below 80.

    As Kaldi's compute-fbank-feats with 80 bins, no dither, snip_edges=false, mel filters from 20 Hz to 8 kHz.
    """
    samples = torch.as_tensor(samples_N, dtype=torch.float32)
    frames = frames_from_samples(samples.numel())
    if frames == 0:
        return torch.zeros(0, MEL_BINS)
    window = SAMPLE_RATE_HZ * FRAME_LENGTH_MS // 1000
    if samples.numel() < window:
        # torchaudio refuses less than a window; Kaldi reflects at the ends as often as it takes.
        samples = torch.from_numpy(np.pad(samples.numpy(), (0, 2 * window - samples.numel()), mode="symmetric"))
    feats_TF = kaldi.fbank(
        samples[None] * INT16_SCALE, num_mel_bins=MEL_BINS, dither=0.0, snip_edges=False,
        sample_frequency=float(SAMPLE_RATE_HZ), frame_length=float(FRAME_LENGTH_MS), frame_shift=float(FRAME_SHIFT_MS),
    )
    return feats_TF[:frames]


def load_features(cut: Cut, channel: str | int = MIX) -> torch.Tensor:
    """Features [T, 80] of a cut: the stored ones where it has any, else computed from its audio.

    Raises:
        DataError: unreadable audio or archive, or stored features of another width; names the utterance and the file.
    """
    if cut.has_features and not isinstance(cut, MixedCut):  # a mixture is made of audio
        return torch.from_numpy(load_stored(cut))
    return compute_fbank(load_samples(cut, channel))


def load_stored(cut: Cut) -> np.ndarray:
    """Stored features float32 [T, 80] of a cut: Kaldi archives through kaldiio, other kinds through lhotse."""
    features: Features = cut.features
    where = f"{cut.id}: {features.storage_path}"
    try:
        matrix = read_ark(features) if features.storage_type == KALDI_STORAGE else features.load()
    except Exception as error:  # truncated archive, missing file, wrong offset: each has its own exception
        lines = str(error).splitlines()
        raise DataError(f"{where}: unreadable features ({lines[0] if lines else type(error).__name__})") from error
    if matrix.ndim != 2 or matrix.shape[1] != MEL_BINS:
        raise DataError(f"{where}: features of shape {matrix.shape}, the model takes {MEL_BINS} mel bins")
    first = max(0, round((cut.start - features.start) / features.frame_shift))
    # A cut over the whole matrix takes all of it: Kaldi's snip_edges leaves two frames fewer than the duration says.
    whole = first == 0 and cut.duration >= features.duration - features.frame_shift / 2
    last = len(matrix) if whole else first + round(cut.duration / features.frame_shift)
    part = np.array(matrix[first:last], dtype=np.float32)  # a copy: archives may hand out read-only memory
    if not np.isfinite(part).all():
        raise DataError(f"{where}: features that are not numbers (NaN or infinity)")
    return part


def read_ark(features: Features) -> np.ndarray:
    """The whole matrix behind a manifest of storage type `kaldiio`: `feats.ark:OFFSET`, or `feats.scp` and a key."""
    path = str(features.storage_path)
    if path.endswith(".scp"):
        return np.asarray(_open_scp(path)[features.storage_key])
    return np.asarray(kaldiio.load_mat(path))


@functools.lru_cache(maxsize=16)
def _open_scp(path: str) -> Mapping[str, np.ndarray]:
    return kaldiio.load_scp(path)

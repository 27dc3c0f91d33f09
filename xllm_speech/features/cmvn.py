"""Statistics for cepstral mean and variance normalisation; the layer that applies them stands in `nn`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import kaldiio
import numpy as np
import torch

from xllm_speech.base.errors import DataError
from xllm_speech.base.files import read_json, write_json


@dataclass(frozen=True)
class CmvnStats:
    """Mean and standard deviation per mel bin over `frames` frames: mean_F, std_F float32."""

    mean_F: torch.Tensor
    std_F: torch.Tensor
    frames: int

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, {"frames": self.frames, "mean": self.mean_F.tolist(), "std": self.std_F.tolist()})

    @classmethod
    def load(cls, path: str | Path) -> CmvnStats:
        """Read our JSON, or Kaldi's binary or text statistics matrix [2, F + 1] (sums and squares, count last).

        Raises:
            DataError: missing, neither of the two forms, or no frames.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"{path}: no such CMVN statistics")
        with open(path, "rb") as stream:
            start = stream.read(64).lstrip()
        return cls._from_json(path) if start.startswith(b"{") else cls._from_kaldi(path)

    @classmethod
    def _from_json(cls, path: Path) -> CmvnStats:
        value = read_json(path)
        try:
            mean_F, std_F = torch.tensor(value["mean"]).float(), torch.tensor(value["std"]).float()
            frames = int(value["frames"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: not CMVN statistics (wants frames, mean, std: {error!r})") from error
        if mean_F.shape != std_F.shape or mean_F.dim() != 1 or not torch.isfinite(torch.stack([mean_F, std_F])).all():
            raise DataError(f"{path}: mean {tuple(mean_F.shape)} and std {tuple(std_F.shape)} do not agree or not finite")
        return cls(mean_F, std_F, frames)

    @classmethod
    def _from_kaldi(cls, path: Path) -> CmvnStats:
        try:
            matrix = np.asarray(kaldiio.load_mat(str(path)), dtype=np.float64)
        except Exception as error:  # kaldiio raises whatever the bytes lead it to
            raise DataError(f"{path}: neither our JSON nor a Kaldi statistics matrix ({error})") from error
        if matrix.ndim != 2 or matrix.shape[0] != 2 or matrix[0, -1] <= 0:
            raise DataError(f"{path}: a Kaldi statistics matrix is [2, F + 1] with a count, found {matrix.shape}")
        count = matrix[0, -1]
        mean_F = matrix[0, :-1] / count
        variance_F = np.maximum(matrix[1, :-1] / count - mean_F**2, 0.0)
        return cls(torch.from_numpy(mean_F).float(), torch.from_numpy(np.sqrt(variance_F)).float(), round(float(count)))


class CmvnAccumulator:
    """Gathers statistics frame by frame, in float64 and merged pairwise, so that long sums lose nothing."""

    def __init__(self) -> None:
        self.frames = 0
        self._mean_F: torch.Tensor | None = None
        self._square_F: torch.Tensor | None = None  # sum of squared deviations from the mean

    def add(self, feats_TF: torch.Tensor) -> None:
        """Take features [T, F] of one utterance; nothing for T == 0."""
        count = feats_TF.shape[0]
        if count == 0:
            return
        block_TF = feats_TF.double()
        mean_F = block_TF.mean(0)
        square_F = ((block_TF - mean_F) ** 2).sum(0)
        if self._mean_F is None or self._square_F is None:
            self._mean_F, self._square_F, self.frames = mean_F, square_F, count
            return
        total = self.frames + count
        shift_F = mean_F - self._mean_F
        self._square_F = self._square_F + square_F + shift_F**2 * (self.frames * count / total)
        self._mean_F = self._mean_F + shift_F * (count / total)
        self.frames = total

    def result(self) -> CmvnStats:
        """Statistics so far; `DataError` when there was not one frame."""
        if self._mean_F is None or self._square_F is None:
            raise DataError("no speech to compute CMVN statistics from")
        std_F = (self._square_F / self.frames).sqrt()
        return CmvnStats(self._mean_F.float(), std_F.float(), self.frames)

"""Filter banks of a stream: the frames of `compute_fbank` over the whole recording, as soon as their samples are there."""

from __future__ import annotations

import numpy as np
import torch

from xllm_speech.base.units import FRAME_LENGTH_MS, FRAME_SHIFT_MS, MEL_BINS, SAMPLE_RATE_HZ, frames_from_samples
from xllm_speech.features.fbank import compute_fbank

SHIFT = SAMPLE_RATE_HZ * FRAME_SHIFT_MS // 1000
# A frame is centred on its shift (Kaldi's snip_edges=false): it ends this many samples behind its beginning.
REACH = (SHIFT + SAMPLE_RATE_HZ * FRAME_LENGTH_MS // 1000) // 2


class StreamingFbank:
    """Log-mel energies of one recording, piece by piece; holds less than a few frames of samples."""

    def __init__(self) -> None:
        self.samples_N = torch.zeros(0)
        self.done = 0  # frames given out
        self.first = 0  # frame at whose beginning `samples_N` begins

    def push(self, samples_N: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Take 16 kHz samples in [-1, 1]; the frames [T, 80] that no later sample changes."""
        self.samples_N = torch.cat([self.samples_N, torch.as_tensor(samples_N, dtype=torch.float32)])
        ready = self.first + max(0, (len(self.samples_N) - REACH) // SHIFT + 1)
        if ready <= self.done:
            return torch.zeros(0, MEL_BINS)
        frames_TF = compute_fbank(self.samples_N)[self.done - self.first : ready - self.first]
        # The next frames see a part of the one before them; from its beginning on no window reaches over the edge.
        self.samples_N = self.samples_N[(ready - 1 - self.first) * SHIFT :].clone()
        self.first, self.done = ready - 1, ready
        return frames_TF

    def finish(self) -> torch.Tensor:
        """The last frames, whose windows reach over the end."""
        frames_TF = compute_fbank(self.samples_N)[self.done - self.first :]
        self.done = self.first + frames_from_samples(len(self.samples_N))
        return frames_TF

"""The conformer encoder of a model with chunks, fed frame by frame: the same steps as over the whole utterance."""

from __future__ import annotations

import torch

from xllm_speech.base.config import require
from xllm_speech.base.units import FRAMES_PER_STEP
from xllm_speech.encoders.conformer import ConformerEncoder
from xllm_speech.nn.conformer import BlockState
from xllm_speech.nn.subsampling import max_pool_halves


class StreamingEncoder:
    """Encodes one utterance chunk by chunk.

    It holds less than a chunk of frames and, for every block, keys and values of the last `left_chunks` chunks.

    Args:
        encoder: in eval mode, with chunk_steps > 0; else `ConfigError`.
    """

    def __init__(self, encoder: ConformerEncoder) -> None:
        require(
            encoder.chunk_steps > 0,
            "this model hears whole utterances (encoder.chunk_steps 0) and cannot stream; train one with "
            "model.encoder.chunk_steps=8",
        )
        self.encoder = encoder
        self.chunk_frames = encoder.chunk_steps * FRAMES_PER_STEP
        self.frames_TF: torch.Tensor | None = None
        self.before_B1F: torch.Tensor | None = None
        self.states = [BlockState() for _ in encoder.blocks]

    @torch.no_grad()
    def push(self, x_TF: torch.Tensor) -> torch.Tensor:
        """Take normalised features; the steps [S, D] of the chunks that are full now, possibly none."""
        self.frames_TF = x_TF if self.frames_TF is None else torch.cat([self.frames_TF, x_TF])
        steps = [self._no_steps(x_TF)]
        while len(self.frames_TF) >= self.chunk_frames:
            steps.append(self._encode(self.frames_TF[: self.chunk_frames]))
            self.frames_TF = self.frames_TF[self.chunk_frames :]
        return torch.cat(steps)

    @torch.no_grad()
    def finish(self) -> torch.Tensor:
        """The steps of what is left, at the end of the utterance."""
        frames_TF, self.frames_TF = self.frames_TF, None
        if frames_TF is None or not len(frames_TF):
            return self._no_steps(self.encoder.frontend.linear.weight)
        return self._encode(frames_TF)

    def _no_steps(self, like: torch.Tensor) -> torch.Tensor:
        return like.new_zeros(0, self.encoder.frontend.linear.out_features)

    def _encode(self, x_TF: torch.Tensor) -> torch.Tensor:
        """One chunk, which only the last may not fill."""
        encoder = self.encoder
        x_BLD, self.before_B1F = encoder.frontend.stream(x_TF[None], self.before_B1F)
        chunk = encoder.chunk_steps << len(encoder.pool_after)
        for number, block in enumerate(encoder.blocks, 1):
            keep = encoder.left_chunks * chunk if encoder.left_chunks else None
            x_BLD, self.states[number - 1] = block.stream(x_BLD, self.states[number - 1], keep)  # type: ignore[operator]
            if number in encoder.pool_after:
                x_BLD, _ = max_pool_halves(x_BLD, torch.tensor([x_BLD.shape[1]], device=x_BLD.device))
                chunk //= 2
        return encoder.norm(x_BLD)[0]

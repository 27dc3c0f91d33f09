"""A further X, non-speech audio (paper section 6, future work): what any frozen audio encoder hears, through a Q-Former."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from xllm_speech.interfaces.base import Adapter, Interface
from xllm_speech.interfaces.qformer import QueryTransformer
from xllm_speech.records import Memory, SlotEmbeds
from xllm_speech.records.checks import ensure


class AudioInterface(Interface):
    """A2L: frame features of N recordings -> `queries` vectors for each window of frames, window after window.

    The last window of a recording holds what is left of it; sounds in two windows meet in the LLM only.

    Args:
        querying: the Q-Former; its position table, if any, has `window_frames` positions. window_frames: encoder frames per
            window. llm_width: H. activation: after the adapter, none | relu.
    """

    kind: ClassVar[str] = "audio"
    tag: ClassVar[str] = "Audio"

    def __init__(self, querying: QueryTransformer, window_frames: int, llm_width: int, activation: str = "none") -> None:
        super().__init__()
        self.querying, self.window_frames = querying, window_frames
        self.adapter = Adapter(querying.width, llm_width, activation)

    def forward(self, features: Memory) -> SlotEmbeds:
        """[N, T, D] -> SlotEmbeds [N, windows x queries, H]; `SeamError` for a recording without frames."""
        size, lens_N = self.window_frames, features.lens_B
        if not len(lens_N):
            return self.nothing(lens_N)
        ensure(int(lens_N.min()) >= 1, f"AudioInterface: recording {int(lens_N.argmin())} has no frames")
        windows_N = (lens_N + size - 1) // size
        most = int(windows_N.max())
        x_NTD = features.x_BND[:, : most * size]
        x_NWTD = pad(x_NTD, (0, 0, 0, most * size - x_NTD.shape[1])).unflatten(1, (most, size))
        left_NW = (lens_N[:, None] - size * torch.arange(most, device=lens_N.device)).clamp(0, size)
        real_NW = left_NW > 0
        x_WQH = self.adapter(self.querying(Memory(x_NWTD[real_NW], left_NW[real_NW])))
        items = [windows.flatten(0, 1) for windows in x_WQH.split(windows_N.tolist())]
        return SlotEmbeds(pad_sequence(items, batch_first=True), windows_N * x_WQH.shape[1], self.kind)

"""Image and video interfaces (system.md section 2): ln_vision + Q-Former + linear adapter."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.utils.rnn import pad_sequence

from xllm_speech.interfaces.base import Adapter, Interface
from xllm_speech.interfaces.qformer import QueryTransformer
from xllm_speech.records import Memory, SlotEmbeds
from xllm_speech.records.checks import ensure, ensure_lens


@dataclass(frozen=True)
class ClipFeatures:
    """Features of the frames of N clips, one row of `frames` per frame, clip after clip, in order of time.

    frames: Memory [all frames, tokens, D]. counts_N: int64 frames of each clip, at least 1; they sum to the rows.
    """

    frames: Memory
    counts_N: torch.Tensor

    def __post_init__(self) -> None:
        rows = len(self.frames.lens_B)
        ensure_lens("ClipFeatures", self.counts_N, self.counts_N.numel(), rows, exact=False, least=1)
        ensure(int(self.counts_N.sum()) == rows, f"ClipFeatures: {self.counts_N.tolist()} frames per clip, {rows} in all")

    def to(self, device: torch.device | str) -> ClipFeatures:
        """The same features on `device`."""
        return ClipFeatures(self.frames.to(device), self.counts_N.to(device))


class ImageInterface(Interface):
    """I2L: Memory of N pictures -> `queries` vectors each.

    Args:
        querying: the Q-Former. llm_width: H. activation: after the adapter, none | relu.
    """

    kind: ClassVar[str] = "image"
    tag: ClassVar[str] = "Image"

    def __init__(self, querying: QueryTransformer, llm_width: int, activation: str = "none") -> None:
        super().__init__()
        self.querying = querying
        self.adapter = Adapter(querying.width, llm_width, activation)

    def forward(self, features: Memory) -> SlotEmbeds:
        """[N, tokens, D] -> SlotEmbeds [N, queries, H]; `SeamError` for a picture without features."""
        if not len(features.lens_B):
            return self.nothing(features.lens_B)
        x_NQH = self.adapter(self.querying(features))
        return SlotEmbeds(x_NQH, torch.full_like(features.lens_B, x_NQH.shape[1]), self.kind)


class VideoInterface(Interface):
    """V2L: T frames -> T x `queries` vectors, frame by frame; a clip of fewer frames yields fewer vectors.

    Args:
        querying: the Q-Former. llm_width: H. activation: after the adapter. shared: `querying` belongs to the image
            interface and stays as that left it: it is neither among this module's parameters nor in its state dict, gets
            no gradient from here, and moves between devices and modes with its owner.
    """

    kind: ClassVar[str] = "video"
    tag: ClassVar[str] = "Video"

    def __init__(
        self, querying: QueryTransformer, llm_width: int, activation: str = "none", shared: bool = False
    ) -> None:
        super().__init__()
        self._lent: tuple[QueryTransformer, ...] = ()  # a tuple, so that it is not registered a second time
        if shared:
            self._lent = (querying,)
        else:
            self.querying = querying
        self.adapter = Adapter(querying.width, llm_width, activation)

    @classmethod
    def from_image(cls, image: ImageInterface, share: bool = False) -> VideoInterface:
        """Start from a trained image interface, bit for bit: own copies of all, or of the adapter only when `share`."""
        querying = image.querying if share else copy.deepcopy(image.querying)
        video = cls(querying, image.llm_width, image.adapter.activation, share)
        video.adapter = copy.deepcopy(image.adapter)
        return video.train(image.training)

    def start_from_image(self, image: ImageInterface) -> None:
        """Copy a trained image interface of the same sizes into this one; a shared Q-Former stays as it is."""
        if not self._lent:
            self.querying.load_state_dict(image.querying.state_dict())
        self.adapter.load_state_dict(image.adapter.state_dict())

    def forward(self, features: ClipFeatures) -> SlotEmbeds:
        """Clips of T_n frames -> SlotEmbeds [N, max(T_n) x queries, H] with lengths T_n x queries."""
        if not len(features.counts_N):
            return self.nothing(features.counts_N)
        if self._lent:
            with torch.no_grad():
                asked = self._lent[0](features.frames)
        else:
            asked = self.querying(features.frames)
        x_FQH = self.adapter(asked)
        clips = [frames.flatten(0, 1) for frames in x_FQH.split(features.counts_N.tolist())]
        return SlotEmbeds(pad_sequence(clips, batch_first=True), features.counts_N * x_FQH.shape[1], self.kind)

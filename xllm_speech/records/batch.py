"""Seam datasets -> models: the drawn batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from xllm_speech.records.audio import FbankBatch, PixelBatch
from xllm_speech.records.checks import ensure, ensure_lens


@dataclass(frozen=True)
class Memory:
    """What a decoder attends to beside the speech: visual or linguistic features (system.md section 1).

    x_BND: float, right-padded. lens_B: int64, valid positions per item, 0 where the modality is absent.
    """

    x_BND: torch.Tensor
    lens_B: torch.Tensor

    def __post_init__(self) -> None:
        ensure(self.x_BND.dim() == 3, f"Memory: expected [B, N, D], found {tuple(self.x_BND.shape)}")
        ensure_lens("Memory", self.lens_B, self.x_BND.shape[0], self.x_BND.shape[1], exact=False)

    def to(self, device: torch.device | str) -> Memory:
        """The same memory on `device`."""
        return Memory(self.x_BND.to(device, non_blocking=True), self.lens_B.to(device, non_blocking=True))


@dataclass(frozen=True)
class AsrBatch:
    """One batch for the CIF ASR model, as a dataset draws it.

    ids: utterance ids. fbank: features before CMVN. seconds: audio in the batch, padding not counted.
    tokens_BL int64 / token_lens_B int64: targets, right-padded with 0; None for decoding. texts: transcripts in normal form.
    pixels: pictures, or None when no item has one; captions: texts about the pictures, "" where an item has none (empty
    list: nobody has any). visual, linguistic: what frozen encoders made of them, filled in by the model's side.
    skipped: (id, reason) of items that were drawn but could not be used, or not with their picture; they are in no other
    field. A batch whose every item was bad has no ids and features [0, 0, F].
    """

    ids: list[str]
    fbank: FbankBatch
    seconds: float
    tokens_BL: torch.Tensor | None = None
    token_lens_B: torch.Tensor | None = None
    texts: list[str] = field(default_factory=list)
    visual: Memory | None = None
    linguistic: Memory | None = None
    pixels: PixelBatch | None = None
    captions: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        batch = len(self.ids)
        ensure(len(set(self.ids)) == batch, "AsrBatch: an utterance id occurs twice")
        ensure(self.fbank.lens_B.numel() == batch, f"AsrBatch: {batch} ids, {self.fbank.lens_B.numel()} utterances")
        ensure((self.tokens_BL is None) == (self.token_lens_B is None), "AsrBatch: tokens and their lengths go together")
        if self.tokens_BL is not None and self.token_lens_B is not None:
            ensure(self.tokens_BL.dim() == 2, f"AsrBatch: tokens must be [B, L], found {tuple(self.tokens_BL.shape)}")
            ensure_lens("AsrBatch tokens", self.token_lens_B, batch, self.tokens_BL.shape[1])
        for name, memory in (("visual", self.visual), ("linguistic", self.linguistic)):
            ensure(memory is None or memory.lens_B.numel() == batch, f"AsrBatch: {name} features for another batch size")
        ensure(len(self.captions) in (0, batch), f"AsrBatch: {len(self.captions)} captions for {batch} items")
        ensure(self.pixels is None or self.pixels.present_B.numel() == batch, "AsrBatch: pixels for another batch size")

    def to(self, device: torch.device | str) -> AsrBatch:
        """The same batch on `device`."""
        return AsrBatch(
            ids=self.ids,
            fbank=self.fbank.to(device),
            seconds=self.seconds,
            tokens_BL=None if self.tokens_BL is None else self.tokens_BL.to(device, non_blocking=True),
            token_lens_B=None if self.token_lens_B is None else self.token_lens_B.to(device, non_blocking=True),
            texts=self.texts,
            visual=None if self.visual is None else self.visual.to(device),
            linguistic=None if self.linguistic is None else self.linguistic.to(device),
            pixels=None if self.pixels is None else self.pixels.to(device),
            captions=self.captions,
            skipped=self.skipped,
        )

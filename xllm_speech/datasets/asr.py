"""Speech cuts -> `AsrBatch`: features, tokens, pictures and captions of one batch."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from lhotse import CutSet
from lhotse.cut import Cut
from torch.utils.data import Dataset

from xllm_speech.base.errors import DataError, SeamError
from xllm_speech.base.units import MEL_BINS
from xllm_speech.features.audio import MIX
from xllm_speech.features.augment import keep_modality
from xllm_speech.features.fbank import load_features
from xllm_speech.features.images import load_pixels
from xllm_speech.manifests.cuts import utterance_of
from xllm_speech.records import AsrBatch, FbankBatch, PixelBatch, Utterance
from xllm_speech.text.normalise import normalise
from xllm_speech.text.tokens import TokenTable

logger = logging.getLogger(__name__)


class AsrDataset(Dataset[AsrBatch]):
    """Turns a `CutSet` (one batch, drawn by a sampler) into an `AsrBatch`.

    A bad item is left out of the batch and named in `AsrBatch.skipped`; when every item is bad the batch has no ids.
    An item whose picture cannot be read stays, without it, and is named in `skipped` too. What comes out is a function
    of the cuts and the arguments here only.

    Args:
        table: turns transcripts into tokens; None when decoding (then texts are given where there are any).
        channel: "mix" or a channel number, for cuts of several channels.
        image_size: side of the pictures in pixels; 0: pictures are not loaded.
        image_share, caption_share: shares of utterances that keep their picture or caption.
        seed, epoch: what the shares are drawn by.
    """

    def __init__(
        self, table: TokenTable | None, channel: str | int = MIX, image_size: int = 0, image_share: float = 1.0,
        caption_share: float = 1.0, seed: int = 0, epoch: int = 0,
    ) -> None:
        self.table = table
        self.channel = channel
        self.image_size = image_size
        self.image_share = image_share
        self.caption_share = caption_share
        self.seed = seed
        self.epoch = epoch

    def __getitem__(self, cuts: CutSet) -> AsrBatch:
        """The batch of these cuts, in their order."""
        skipped: list[tuple[str, str]] = []
        kept: list[tuple[Utterance, torch.Tensor, list[int]]] = []
        for cut in cuts:
            try:
                kept.append(self._load(cut))
            except (DataError, SeamError) as error:
                skipped.append((cut.id, str(error)))
        utterances = [utterance for utterance, _, _ in kept]
        with_text = self.table is not None
        tokens = [tokens for _, _, tokens in kept]
        return AsrBatch(
            ids=[utterance.id for utterance in utterances],
            fbank=pad_features([feats_TF for _, feats_TF, _ in kept]),
            seconds=sum(utterance.duration_sec for utterance in utterances),
            tokens_BL=_pad_tokens(tokens) if with_text else None,
            token_lens_B=torch.tensor([len(row) for row in tokens], dtype=torch.int64) if with_text else None,
            texts=[normalise(utterance.text or "") for utterance in utterances],
            pixels=self._load_pictures(utterances, skipped),
            captions=self._captions(utterances),
            skipped=skipped,
        )

    def _load(self, cut: Cut) -> tuple[Utterance, torch.Tensor, list[int]]:
        utterance = utterance_of(cut)
        tokens: list[int] = []
        if self.table is not None:
            if utterance.text is None:
                raise DataError(f"{cut.id}: no transcript")
            tokens = self.table.encode(utterance.text)
            if not tokens:
                raise DataError(f"{cut.id}: the transcript `{utterance.text}` has no character to recognise")
        feats_TF = load_features(cut, self.channel)
        if not len(feats_TF):
            raise DataError(f"{cut.id}: {cut.duration:.4f} s is too short for a single frame")
        return utterance, feats_TF, tokens

    def _load_pictures(self, utterances: Sequence[Utterance], skipped: list[tuple[str, str]]) -> PixelBatch | None:
        if not self.image_size:
            return None
        found: dict[int, torch.Tensor] = {}
        for place, utterance in enumerate(utterances):
            if utterance.image is None or not self._keeps(utterance, self.image_share, "image"):
                continue
            try:
                found[place] = load_pixels(utterance.image, self.image_size)
            except DataError as error:
                skipped.append((utterance.id, f"used without its picture: {error}"))
        if not found:
            return None
        x_BCHW = torch.zeros(len(utterances), 3, self.image_size, self.image_size)
        for place, pixels in found.items():
            x_BCHW[place] = pixels
        return PixelBatch(x_BCHW, torch.tensor([place in found for place in range(len(utterances))]))

    def _captions(self, utterances: Sequence[Utterance]) -> list[str]:
        captions = [
            utterance.caption if utterance.caption and self._keeps(utterance, self.caption_share, "caption") else ""
            for utterance in utterances
        ]
        return captions if any(captions) else []

    def _keeps(self, utterance: Utterance, share: float, modality: str) -> bool:
        return share >= 1 or keep_modality(self.seed, self.epoch, utterance.id, share, modality)


def pad_features(feats: Sequence[torch.Tensor]) -> FbankBatch:
    """[T_i, F] features -> one right-padded batch; no items give [0, 0, 80]."""
    if not feats:
        return FbankBatch(torch.zeros(0, 0, MEL_BINS), torch.zeros(0, dtype=torch.int64))
    lens_B = torch.tensor([len(feats_TF) for feats_TF in feats])
    return FbankBatch(torch.nn.utils.rnn.pad_sequence(list(feats), batch_first=True), lens_B)


def _pad_tokens(tokens: Sequence[Sequence[int]]) -> torch.Tensor:
    if not tokens:
        return torch.zeros(0, 0, dtype=torch.int64)
    rows = [torch.tensor(row, dtype=torch.int64) for row in tokens]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

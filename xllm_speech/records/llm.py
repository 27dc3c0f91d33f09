"""Seams interfaces -> prompts -> llm (house.md; system.md sections 3 and 4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from xllm_speech.records.checks import ensure, ensure_lens
from xllm_speech.records.manifest import Conversation


@dataclass(frozen=True)
class SlotEmbeds:
    """What an interface made of N media items of one kind, in the order in which they occur in the batch.

    x_NQH: float, right-padded, width H of the LLM. lens_N: int64 vectors per item, at least 1. kind: the item type of
    the conversation, such as image, video, speech.
    """

    x_NQH: torch.Tensor
    lens_N: torch.Tensor
    kind: str

    def __post_init__(self) -> None:
        ensure(self.x_NQH.dim() == 3, f"SlotEmbeds {self.kind}: expected [N, Q, H], found {tuple(self.x_NQH.shape)}")
        items, longest = self.x_NQH.shape[:2]
        ensure_lens(f"SlotEmbeds {self.kind}", self.lens_N, items, longest, exact=False, least=1)

    def to(self, device: torch.device | str) -> SlotEmbeds:
        """The same vectors on `device`."""
        return SlotEmbeds(self.x_NQH.to(device), self.lens_N.to(device), self.kind)


@dataclass(frozen=True)
class LlmInput:
    """A batch of prompts for the LLM, media already in place.

    ids_BL: int64 token ids; positions of media hold the tokenizer's filler id, padding its pad id. embeds_BLH: input
    embeddings. mask_BL: bool, True where a position is real (left or right padding). labels_BL: int64, -100 where no
    loss is wanted (media, prompts, padding), or None for generation. slots_BL: bool, True at media positions.
    """

    ids_BL: torch.Tensor
    embeds_BLH: torch.Tensor
    mask_BL: torch.Tensor
    slots_BL: torch.Tensor
    labels_BL: torch.Tensor | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.ids_BL.shape)
        ensure(len(shape) == 2, f"LlmInput: ids must be [B, L], found {shape}")
        found = tuple(self.embeds_BLH.shape)
        ensure(found[:2] == shape, f"LlmInput: embeddings {found} for ids {shape}")
        for name, value in (("mask", self.mask_BL), ("slots", self.slots_BL), ("labels", self.labels_BL)):
            ensure(value is None or tuple(value.shape) == shape, f"LlmInput: {name} of another shape than ids {shape}")
        ensure(not bool((self.slots_BL & ~self.mask_BL).any()), "LlmInput: a media position is masked out")
        if self.labels_BL is not None:
            labelled = self.labels_BL != -100
            ensure(not bool((labelled & self.slots_BL).any()), "LlmInput: a label on a media position")
            ensure(not bool((labelled & ~self.mask_BL).any()), "LlmInput: a label on padding")


@dataclass(frozen=True)
class ConversationBatch:
    """Seam datasets -> models for phases 2 and 3: conversations, and what frozen encoders made of their media.

    media: kind -> all items of that kind as they were read, in the order of the conversations and of their messages
    (`PixelBatch`, `ClipBatch`, `FbankBatch`, units as `Memory` ...). features: kind -> what the frozen encoders made of
    them, as the kind's interface takes it (`Memory`, `CifOut`, frames of clips ...); filled in by the model's side.
    seconds: of audio. skipped: (id, reason) of conversations that could not be loaded and are in no other field.
    """

    conversations: list[Conversation]
    features: dict[str, Any] = field(default_factory=dict)
    media: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        ensure(len(set(self.ids)) == len(self.ids), "ConversationBatch: a conversation id occurs twice")

    @property
    def ids(self) -> list[str]:
        """Conversation ids."""
        return [conversation.id for conversation in self.conversations]

    def to(self, device: torch.device | str) -> ConversationBatch:
        """The same batch on `device`."""
        features = {kind: value.to(device) for kind, value in self.features.items()}
        media = {kind: value.to(device) for kind, value in self.media.items()}
        return ConversationBatch(self.conversations, features, media, self.seconds, self.skipped)


@dataclass(frozen=True)
class AnswerLosses:
    """Loss of a batch of conversations, summed; the training loop divides by `tokens`.

    total: with gradient. tokens: labelled answer tokens, or conversations where every answer weighs the same.
    correct: labelled tokens that teacher forcing got right. rejected: (id, reason) of conversations left out.
    """

    total: torch.Tensor
    parts: dict[str, torch.Tensor]
    tokens: int
    correct: int
    rejected: list[tuple[str, str]] = field(default_factory=list)

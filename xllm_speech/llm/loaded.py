"""A frozen LLM behind one contract: what the splice needs to know of it, its loss over answers, and its answers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LogitsProcessorList

from xllm_speech.llm.chatglm_model import IGNORED_LABEL, ChatGLMForConditionalGeneration
from xllm_speech.llm.chatglm_tokenizer import ChatGLMTokenizer
from xllm_speech.llm.framing import Framing
from xllm_speech.records import LlmInput

# (ids written so far [N, n], scores of the next [N, V]) -> scores [N, V], as transformers' logits processors.
Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class AnswerLoss(NamedTuple):
    """Per item, over its labelled positions: summed negative log-likelihood (float32 [B]), their number, and how many of
    them were most likely right (int64 [B])."""

    nll_B: torch.Tensor
    count_B: torch.Tensor
    correct_B: torch.Tensor

    def mean_over_tokens(self) -> torch.Tensor:
        """Every token weighs the same."""
        return self.nll_B.sum() / self.count_B.sum().clamp(min=1)

    def mean_over_items(self) -> torch.Tensor:
        """Every item weighs the same, however short its answer; items without a label weigh nothing."""
        return (self.nll_B / self.count_B.clamp(min=1)).sum() / (self.count_B > 0).sum().clamp(min=1)


def left_padded(prompt: LlmInput) -> LlmInput:
    """The same batch with all padding in front; labels move along."""
    if bool(prompt.mask_BL[:, -1].all()):
        return prompt
    order_BL = prompt.mask_BL.long().argsort(dim=1, stable=True)
    order_BLH = order_BL[..., None].expand_as(prompt.embeds_BLH)
    return LlmInput(
        prompt.ids_BL.gather(1, order_BL), prompt.embeds_BLH.gather(1, order_BLH), prompt.mask_BL.gather(1, order_BL),
        prompt.slots_BL.gather(1, order_BL), None if prompt.labels_BL is None else prompt.labels_BL.gather(1, order_BL),
    )


class LoadedLlm(nn.Module):
    """A causal LM, frozen for good: no parameter has a gradient and it stays in eval mode whatever `train()` says.

    Gradients do pass through it, to the embeddings it is given.

    Args:
        model: of `transformers`. tokenizer: its own. family: `model_type` of the model. framing: ids around turns.
        pad_id: fills padding. filler_id: stands in ids where media stand in embeddings. max_length: positions the model
            was made for.

    Attributes:
        width: H, of its embeddings.
    """

    def __init__(
        self, model: Any, tokenizer: Any, family: str, framing: Framing, pad_id: int, filler_id: int, max_length: int
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.family, self.framing = tokenizer, family, framing
        self.pad_id, self.filler_id, self.max_length = pad_id, filler_id, max_length
        self.width = int(model.get_input_embeddings().weight.shape[1])
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def train(self, mode: bool = True) -> LoadedLlm:
        """Set the mode of this wrapper only; the model inside stays in eval mode."""
        super().train(mode)
        self.model.eval()
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Of the embeddings, and so of what the model computes in."""
        return self.model.get_input_embeddings().weight.dtype

    @torch.no_grad()
    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 [...] -> embeddings [..., H]."""
        return self.model.get_input_embeddings()(ids)

    def encode(self, text: str) -> list[int]:
        """Ids of text alone; names of special tokens that occur in it are ordinary text."""
        if isinstance(self.tokenizer, ChatGLMTokenizer):
            return self.tokenizer.encode_plain(text)
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def decode(self, ids: list[int]) -> str:
        """Text of an answer, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _arguments(self, prompt: LlmInput) -> dict[str, Any]:
        embeds = prompt.embeds_BLH.to(self.dtype)
        if embeds.shape[-1] != self.width:
            raise ValueError(f"embeddings of width {embeds.shape[-1]} for a language model of width {self.width}")
        found: dict[str, Any] = {"inputs_embeds": embeds, "attention_mask": prompt.mask_BL.long()}
        if isinstance(self.model, ChatGLMForConditionalGeneration):
            # A filler is no control token by itself, but nothing keeps an interface from choosing a bad one.
            ids = prompt.ids_BL.masked_fill(prompt.slots_BL, self.filler_id)
            found["sop_index_B"], found["mask_index_B"] = self.model.find_prefix(ids, prompt.mask_BL)
        return found

    def _logits(self, prompt: LlmInput, **options: Any) -> torch.Tensor:
        arguments = self._arguments(prompt)
        if "sop_index_B" not in arguments:  # one-dimensional positions that padding on the left does not shift
            arguments["position_ids"] = (prompt.mask_BL.long().cumsum(1) - 1).clamp(min=0)
        return self.model(**arguments, use_cache=False, **options).logits

    def forward(self, prompt: LlmInput) -> torch.Tensor:
        """Logits [B, L, V] at every position.

        Raises:
            ValueError: embeddings of another width, or a ChatGLM prompt that does not end in `[gMASK]` `<sop>`.
        """
        return self._logits(prompt)

    def answer_loss(self, prompt: LlmInput) -> AnswerLoss:
        """Cross entropy in float32 of every labelled token given what stands before it; no weight gets a gradient.

        Raises:
            ValueError: no labels, or what `forward` raises.
        """
        if prompt.labels_BL is None:
            raise ValueError("answer_loss: the batch has no labels")
        wanted_BL = prompt.labels_BL[:, 1:] != IGNORED_LABEL
        targets_BL = prompt.labels_BL[:, 1:]
        if self._keeps_logits:  # the head is the widest layer: only where some item has a label
            places = wanted_BL.any(0).nonzero().flatten()
            if not len(places):
                places = places.new_zeros(1)
            logits = self._logits(prompt, logits_to_keep=places)
            wanted_BL, targets_BL = wanted_BL[:, places], targets_BL[:, places]
        else:
            logits = self._logits(prompt)[:, :-1]
        logits_NV, targets_N, rows = logits[wanted_BL], targets_BL[wanted_BL], wanted_BL.nonzero()[:, 0]
        nll = F.cross_entropy(logits_NV.float(), targets_N, reduction="none")
        right = (logits_NV.argmax(1) == targets_N).long()
        count_B = wanted_BL.sum(1)
        return AnswerLoss(
            nll.new_zeros(len(targets_BL)).index_add(0, rows, nll), count_B, torch.zeros_like(count_B).index_add(0, rows, right)
        )

    @torch.no_grad()
    def generate(
        self, prompt: LlmInput, max_new_tokens: int, num_beams: int = 1, do_sample: bool = False,
        bias: Processor | None = None, **options: Any,
    ) -> list[list[int]]:
        """Answers as ids, the token that ended them and padding left out; padding of the prompts may be on either side.

        Args:
            bias: a logits processor of transformers.
            options: for `generate` of transformers: temperature, top_p, num_return_sequences, streamer ...

        Raises:
            ValueError: what `forward` raises.
        """
        if bias is not None:
            options["logits_processor"] = LogitsProcessorList([bias])
        made = self.model.generate(
            **self._arguments(left_padded(prompt)), max_new_tokens=max_new_tokens, num_beams=num_beams,
            do_sample=do_sample, eos_token_id=list(self.framing.end_ids), pad_token_id=self.pad_id, **options,
        )
        ends = set(self.framing.end_ids)
        answers = []
        for row in made.tolist():
            stop = next((place for place, index in enumerate(row) if index in ends), len(row))
            answers.append([index for index in row[:stop] if index != self.pad_id])
        return answers

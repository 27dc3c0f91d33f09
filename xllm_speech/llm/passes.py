"""What the searches of a language model share: its settings, and forward passes of a batch whose rows may leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from xllm_speech.llm.loaded import LoadedLlm, Processor
from xllm_speech.records import LlmInput

# Scores of the two best that differ by less than this share of the best (of 1 where that is less) are a near tie: rounding
# differs with the shape of a pass, by some 1e-5 of a logit in float32.
NEAR_TIE = 1e-4


@dataclass(frozen=True)
class SearchSettings:
    """What the model's generation settings say of a search.

    processor: what they do to scores (penalties, suppressed tokens ...), None for nothing. length_penalty, early_stopping: of
    beams, as in `generate` of transformers.
    """

    processor: Processor | None
    length_penalty: float
    early_stopping: bool | str


def read_settings(llm: LoadedLlm, max_new_tokens: int) -> SearchSettings:
    """The settings that `LoadedLlm.generate` would work with, asked of transformers itself; prompts do not matter."""
    found: list[SearchSettings] = []

    def keep(model: Any, input_ids: Any, logits_processor: Any, generation_config: Any, **_: Any) -> torch.Tensor:
        settings = generation_config
        found.append(SearchSettings(logits_processor or None, settings.length_penalty, settings.early_stopping))
        return input_ids

    before, after = llm.framing.frame(("user",))
    ids = torch.tensor([[*before, *llm.encode("a"), *after]], device=llm.model.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    llm.model.generate(
        **llm._arguments(LlmInput(ids, llm.embed(ids), mask, ~mask)), max_new_tokens=max_new_tokens, num_beams=1,
        do_sample=False, eos_token_id=list(llm.framing.end_ids), pad_token_id=llm.pad_id, custom_generate=keep,
    )
    return found[0]


def takes_back(llm: LoadedLlm) -> bool:
    """Whether rows and tokens can be taken out of the model's cache: not of a state that sums up, as in linear attention."""
    layers = DynamicCache(config=llm.model.config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def single_row(prompt: LlmInput, row: int) -> LlmInput:
    """One prompt of a batch, without its padding."""
    real_L = prompt.mask_BL[row]
    return LlmInput(
        prompt.ids_BL[row, real_L][None], prompt.embeds_BLH[row, real_L][None], prompt.mask_BL[row, real_L][None],
        prompt.slots_BL[row, real_L][None],
    )


class CachedBatch:
    """What a language model has read of each row of a batch; more is read pass by pass.

    Args:
        llm: the model.

    Attributes:
        mask_BK: bool, the positions read so far that are real.
    """

    def __init__(self, llm: LoadedLlm) -> None:
        self.llm = llm
        # Without a configuration no layer forgets what lies behind its window, so that tokens can be taken back; the mask
        # still hides it.
        self.cache: Any = DynamicCache()
        self.mask_BK = torch.zeros(0, 0, dtype=torch.bool)
        self.prefix: dict[str, torch.Tensor] = {}

    def begin(self, prompt: LlmInput) -> torch.Tensor:
        """Embeddings of left-padded prompts, to be read by the first pass; `ValueError` as `LoadedLlm.forward`."""
        arguments = self.llm._arguments(prompt)
        embeds_BLH: torch.Tensor = arguments.pop("inputs_embeds")
        mask_BL: torch.Tensor = arguments.pop("attention_mask").bool()
        self.mask_BK, self.prefix = mask_BL[:, :0], arguments  # a ChatGLM's: `sop_index_B` and `mask_index_B`
        return embeds_BLH

    def read(self, embeds_BNH: torch.Tensor, real_BN: torch.Tensor, keep: int) -> torch.Tensor:
        """Read on; logits [B, keep, V] in float32 of the last positions."""
        self.mask_BK = torch.cat([self.mask_BK, real_BN], dim=1)
        arguments: dict[str, Any] = dict(self.prefix)
        if not self.prefix:
            places_BK = (self.mask_BK.long().cumsum(1) - 1).clamp(min=0)
            arguments["position_ids"] = places_BK[:, places_BK.shape[1] - embeds_BNH.shape[1] :]
        if self.llm._keeps_logits:
            arguments["logits_to_keep"] = keep
        out = self.llm.model(
            inputs_embeds=embeds_BNH, attention_mask=self.mask_BK.long(), past_key_values=self.cache, use_cache=True,
            return_dict=True, **arguments,
        )
        return out.logits[:, -keep:].float()

    def select(self, rows: list[int]) -> None:
        """Go on with these rows; one may come several times, and those left out are forgotten."""
        rows_B = torch.tensor(rows, device=self.mask_BK.device)
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[rows_B], layer.values[rows_B]
        self.mask_BK = self.mask_BK[rows_B]
        self.prefix = {name: index_B[rows_B] for name, index_B in self.prefix.items()}

    def compact(self) -> None:
        """Take masked positions out as far as all rows can; what is left is padded on the left again."""
        mask_BK = self.mask_BK
        order_BK = mask_BK.long().argsort(dim=1, stable=True)[:, mask_BK.shape[1] - int(mask_BK.sum(1).max()) :]
        place_BHKD = order_BK[:, None, :, None]
        for layer in self.cache.layers:
            layer.keys = layer.keys.take_along_dim(place_BHKD.to(layer.keys.device), dim=2)
            layer.values = layer.values.take_along_dim(place_BHKD.to(layer.values.device), dim=2)
        self.prefix = {name: (order_BK == index_B[:, None]).long().argmax(1) for name, index_B in self.prefix.items()}
        self.mask_BK = mask_BK.gather(1, order_BK)

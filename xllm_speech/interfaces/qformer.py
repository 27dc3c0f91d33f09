"""The Q-Former on transformers' Blip2QFormerModel: learnt queries ask a frozen encoder's features (BLIP-2, Li et al. 2023)."""

from __future__ import annotations

import copy

import torch
from torch import nn

from xllm_speech.base.errors import SeamError
from xllm_speech.nn.masks import valid_mask
from xllm_speech.records import Memory

NORM_EPS = 1e-5  # of ln_vision, as in BLIP-2; the Q-Former's own norms have BERT's 1e-12


class QueryTransformer(nn.Module):
    """ln_vision, learnt queries, and a BERT whose every second layer attends to the encoder's features.

    Weights go by the names of the Hugging Face BLIP-2: `qformer.*` is Blip2QFormerModel, `queries` its query_tokens without
    the leading 1, `ln_vision` the vision model's post_layernorm.

    Args:
        encoder_width: of the features. queries: vectors that come out per item. width, layers, heads, feedforward: of the
            Q-Former. cross_attention_every: layers 0, n, 2n ... attend to the features. positions: size of a learnt
            position table added to the features after ln_vision, for small encoders whose tokens hardly tell where
            they are; 0 for none. dropout: in the Q-Former. init_std: of all chance weights; BERT's 0.02 fits a width of
            768, narrow ones learn sooner from about 1 / sqrt(width). text: keep the text branch, for the first stage of
            BLIP-2.
    """

    def __init__(
        self, encoder_width: int = 1408, queries: int = 32, width: int = 768, layers: int = 12, heads: int = 12,
        feedforward: int = 3072, cross_attention_every: int = 2, positions: int = 0, dropout: float = 0.1,
        init_std: float = 0.02, text: bool = False,
    ) -> None:
        from transformers import Blip2QFormerConfig, Blip2QFormerModel

        super().__init__()
        self.width = width
        self.ln_vision = nn.LayerNorm(encoder_width, eps=NORM_EPS)
        self.positions = nn.Parameter(torch.empty(positions, encoder_width).normal_(std=init_std)) if positions else None
        self.queries = nn.Parameter(torch.empty(queries, width).normal_(std=init_std))
        config = Blip2QFormerConfig(
            hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=feedforward,
            cross_attention_frequency=cross_attention_every, encoder_hidden_size=encoder_width, hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout, use_qformer_text_input=text, initializer_range=init_std,
        )
        config._attn_implementation = "sdpa"  # our masks are bool; its eager attention would add them
        self.qformer = Blip2QFormerModel(config)

    def forward(self, memory: Memory) -> torch.Tensor:
        """Memory [N, tokens, encoder_width], N >= 1 -> [N, queries, width]; what lies after an item's length is not seen.

        Raises:
            SeamError: an item without tokens, or with more than the position table has.
        """
        seen_NTD, mask = self.prepare(memory)
        embeds = self.queries.expand(len(seen_NTD), -1, -1)
        return self.qformer(
            query_embeds=embeds, encoder_hidden_states=seen_NTD, encoder_attention_mask=mask
        ).last_hidden_state

    def without_text(self) -> QueryTransformer:
        """A copy with the queries' branch only, as phase 2 wants it after the first stage of BLIP-2."""
        plain = copy.deepcopy(self)
        if plain.qformer.config.use_qformer_text_input:
            plain.qformer.config.use_qformer_text_input = False
            for layer in plain.qformer.encoder.layer:
                del layer.intermediate, layer.output
        return plain

    def prepare(self, memory: Memory) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Features after ln_vision and positions, and the [N, 1, 1, tokens] mask, None where no item is padded."""
        lens = memory.lens_B
        least, longest = int(lens.min()), int(lens.max())
        if least < 1:
            raise SeamError(f"QueryTransformer: item {int(lens.argmin())} has no features; an absent item is not passed here")
        x_NTD = memory.x_BND[:, :longest].to(self.ln_vision.weight.dtype)
        padded = least < longest
        if padded:  # padding may hold anything, even NaN, which a mask alone would let through
            x_NTD = x_NTD.masked_fill(~valid_mask(lens, longest)[:, :, None], 0.0)
        x_NTD = self.ln_vision(x_NTD)
        if self.positions is not None:
            if longest > len(self.positions):
                raise SeamError(f"QueryTransformer: {longest} features of an item, but positions for {len(self.positions)}")
            x_NTD = x_NTD + self.positions[:longest]
        return x_NTD, valid_mask(lens, longest)[:, None, None, :] if padded else None

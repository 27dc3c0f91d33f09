"""ChatGLM-6B (v1) as a `transformers` model, by the official names of its weights (chatglm.md; Du et al. 2022, GLM)."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel, initialization
from transformers.generation import LogitsProcessorList, SuppressTokensLogitsProcessor
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from xllm_speech.llm.chatglm_config import ChatGLMConfig
from xllm_speech.llm.prefix import Prefix, find_prefix, padding_mask, prefix_mask, prefix_positions

ROTARY_BASE = 10_000.0
IGNORED_LABEL = -100
CACHE_NOTE = "chatglm_context"  # under which a cache carries (mask, prefix) of the positions in it


@functools.lru_cache(maxsize=16)
def _frequencies(width: int, device: torch.device, rounded: bool) -> torch.Tensor:
    # Made on the CPU whatever the device: one more rounding error there would change a float16 frequency.
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width
    frequencies = 1.0 / ROTARY_BASE**exponents
    return (frequencies.half().float() if rounded else frequencies).to(device)


def rotary_table(
    positions_BL: torch.Tensor, width: int, angles: str | None, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine [B, L, width] in `dtype` of position times frequency (chatglm.md 4).

    Args:
        positions_BL: int64. width: of a rotated half of a head. angles: `ChatGLMConfig.rotary_angles`.
    """
    frequencies = _frequencies(width, positions_BL.device, angles != "exact")
    if angles == "float16":
        angles_BLF = (positions_BL.half()[..., None] * frequencies.half()).float()
    else:
        angles_BLF = positions_BL.float()[..., None] * frequencies
    angles_BLF = torch.cat([angles_BLF, angles_BLF], dim=-1)
    return angles_BLF.cos().to(dtype), angles_BLF.sin().to(dtype)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class _BlockLinear(nn.Linear):
    """A linear layer with a bias that begins as DeepNorm asks (Wang et al. 2022, arXiv 2203.00555, section 3).

    With weights of 0.02, as usual elsewhere, a small model that learns from nothing stands still for hundreds of steps
    behind its large residual.
    """

    def __init__(self, inputs: int, outputs: int, gain: float = 1.0) -> None:
        super().__init__(inputs, outputs)
        self.gain = gain


class _Attention(nn.Module):
    """Multi-head attention whose heads are rotated by place in the context (first half) and in the answer (second)."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx, self.heads = layer_idx, config.num_attention_heads
        self.query_key_value = _BlockLinear(config.hidden_size, 3 * config.hidden_size)
        self.dense = _BlockLinear(config.hidden_size, config.hidden_size, config.deepnorm_gain)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        state_dict.pop(f"{prefix}rotary_emb.inv_freq", None)  # official checkpoints hold it; ours is computed
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(
        self, x_BLD: torch.Tensor, mask_B1LK: torch.Tensor, cos_2B1LF: torch.Tensor, sin_2B1LF: torch.Tensor,
        past_key_values: Cache | None,
    ) -> torch.Tensor:
        batch, length, width = x_BLD.shape
        mixed = self.query_key_value(x_BLD).view(batch, length, self.heads, -1).transpose(1, 2)
        query, key, value = mixed.chunk(3, dim=-1)  # interleaved per head
        query, key = (
            torch.cat([_rotate(half, cos_2B1LF[i], sin_2B1LF[i]) for i, half in enumerate(x.chunk(2, dim=-1))], dim=-1)
            for x in (query, key)
        )
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_B1LK)
        return self.dense(seen.transpose(1, 2).reshape(batch, length, width))


class _Mlp(nn.Module):
    """hidden -> inner -> hidden with GELU in its tanh form."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = _BlockLinear(config.hidden_size, config.inner_hidden_size, config.deepnorm_gain)
        self.dense_4h_to_h = _BlockLinear(config.inner_hidden_size, config.hidden_size, config.deepnorm_gain)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(x), approximate="tanh"))


class ChatGLMBlock(GradientCheckpointingLayer):
    """One layer; the residual is taken after the layer norm and scaled by sqrt(2 * deepnorm_depth) (chatglm.md 1, 2)."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.alpha = config.deepnorm_alpha
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = _Attention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = _Mlp(config)

    def forward(self, x_BLD: torch.Tensor, *attention: Any) -> torch.Tensor:
        """[B, L, D] -> the same; `attention` is handed to the attention."""
        x_BLD = self.input_layernorm(x_BLD)
        x_BLD = self.alpha * x_BLD + self.attention(x_BLD, *attention)
        x_BLD = self.post_attention_layernorm(x_BLD)
        return self.alpha * x_BLD + self.mlp(x_BLD)


class ChatGLMPreTrainedModel(PreTrainedModel):
    """What `transformers` needs to know of every ChatGLM class."""

    config: ChatGLMConfig
    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ChatGLMBlock"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq$"]  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, _BlockLinear):
            initialization.xavier_uniform_(module.weight, gain=module.gain)
            initialization.zeros_(module.bias)
        else:
            super()._init_weights(module)


class ChatGLMModel(ChatGLMPreTrainedModel):
    """Embeddings, blocks and the final layer norm."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([ChatGLMBlock(config, layer_idx) for layer_idx in range(config.num_layers)])
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of token ids."""
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding of token ids."""
        self.word_embeddings = value  # type: ignore[assignment]

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        prefix: Prefix,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        output_hidden_states: bool = False,
    ) -> BaseModelOutputWithPast:
        """inputs_embeds [B, L, D] -> last_hidden_state [B, L, D].

        Args:
            attention_mask: bool [B, P + L], True where real, P positions being in `past_key_values`. prefix: where the
                context ends, in the same P + L positions. position_ids: [B, 2, L] to override those derived from it.
        """
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is None:
            position_ids = prefix_positions(attention_mask, prefix)[:, :, past:]
        mask_B1LK = prefix_mask(attention_mask, prefix, past)
        half = self.config.hidden_size // self.config.num_attention_heads // 2
        rows_2BL = position_ids.transpose(0, 1)
        cos, sin = rotary_table(rows_2BL, half, self.config.rotary_angles, inputs_embeds.dtype)
        cos, sin = cos[:, :, None], sin[:, :, None]
        hidden: list[torch.Tensor] = []
        x_BLD = inputs_embeds
        for layer in self.layers:
            if output_hidden_states:
                hidden.append(x_BLD)
            x_BLD = layer(x_BLD, mask_B1LK, cos, sin, past_key_values)
        x_BLD = self.final_layernorm(x_BLD)
        return BaseModelOutputWithPast(
            last_hidden_state=x_BLD,
            past_key_values=past_key_values,
            hidden_states=(*hidden, x_BLD) if output_hidden_states else None,  # type: ignore[arg-type]
        )


class ChatGLMForConditionalGeneration(ChatGLMPreTrainedModel, GenerationMixin):
    """ChatGLM (v1) with its head: logits, loss and `generate`.

    A sequence is context, `[gMASK]` or `[MASK]` (the last of the context), `<sop>`, answer, `<eop>`. Everything before
    the first `<sop>` is visible in both directions; padding, on either side, is never visible and shifts no position.
    Media vectors are ordinary positions of the context, anywhere in it.
    """

    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head."""
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        sop_index_B: torch.Tensor | None = None,
        mask_index_B: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits [B, L, V] and, with labels, the loss.

        Args:
            input_ids: int64 [B, L]; beside `inputs_embeds` they only say where `<sop>` and the mask token stand.
            attention_mask: [B, P + L], 1 = real, P positions being in `past_key_values`. None: everything is real but
                leading and trailing `pad_token_id`.
            position_ids: int64 [B, 2, L], only to override what follows from the above.
            inputs_embeds: [B, L, H] in place of the ids' embeddings.
            labels: int64 [B, L], not shifted, -100 where no loss is wanted. The loss is the mean cross entropy in float32.
            sop_index_B, mask_index_B: int64 [B], index of `<sop>` and of the mask token among the P + L positions. None:
                read from the ids, from what made `past_key_values`, or where `inputs_embeds` equal these tokens' own.
            output_hidden_states: also the embeddings, every block's output but the last's, and that of the final norm.
            output_attentions: refused, for fused attention keeps no weights.
            logits_to_keep: only the last so many positions (0: all), or the positions of a 1-D index tensor.

        Raises:
            ValueError: neither ids nor embeddings, shapes that do not agree, or a row without `<sop>` or a mask token.
        """
        if output_attentions:
            raise ValueError("ChatGLM: output_attentions is not supported, fused attention keeps no weights")
        if input_ids is None and inputs_embeds is None:
            raise ValueError("ChatGLM: input_ids or inputs_embeds must be given")
        if inputs_embeds is None:
            inputs_embeds = self.transformer.word_embeddings(input_ids)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        length = inputs_embeds.shape[1] + (0 if past_key_values is None else past_key_values.get_seq_length())
        mask_BK = self._whole_mask(attention_mask, input_ids, inputs_embeds, length, past_key_values)
        prefix = self._whole_prefix(input_ids, inputs_embeds, mask_BK, sop_index_B, mask_index_B, past_key_values)
        if past_key_values is not None:
            vars(past_key_values)[CACHE_NOTE] = (mask_BK, prefix)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        out = self.transformer(
            inputs_embeds, mask_BK, prefix, position_ids, past_key_values, bool(output_hidden_states)
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(out.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            if logits.shape[:2] != labels.shape:
                raise ValueError(f"ChatGLM: labels {tuple(labels.shape)} for logits {tuple(logits.shape)}")
            loss = F.cross_entropy(
                logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED_LABEL
            )
        result = CausalLMOutputWithPast(
            loss=loss, logits=logits,  # type: ignore[arg-type]
            past_key_values=out.past_key_values, hidden_states=out.hidden_states,
        )
        if return_dict is None:
            return_dict = self.config.return_dict
        return result if return_dict else result.to_tuple()

    def _whole_mask(
        self, attention_mask: torch.Tensor | None, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor, length: int,
        past_key_values: Cache | None,
    ) -> torch.Tensor:
        batch = inputs_embeds.shape[0]
        if attention_mask is None:
            if input_ids is not None and input_ids.shape[1] == length:
                return padding_mask(input_ids, self.config.special_ids.pad)
            new_BL = torch.ones(inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device)
            noted = None if past_key_values is None else vars(past_key_values).get(CACHE_NOTE)
            attention_mask = new_BL if noted is None else torch.cat([noted[0], new_BL], dim=1)
        if attention_mask.shape != (batch, length):
            found = tuple(attention_mask.shape)
            raise ValueError(f"ChatGLM: attention_mask {found}, expected {(batch, length)} (1 = real, past included)")
        return attention_mask.bool()

    def _whole_prefix(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        mask_BK: torch.Tensor,
        sop_index_B: torch.Tensor | None,
        mask_index_B: torch.Tensor | None,
        past_key_values: Cache | None,
    ) -> Prefix:
        if sop_index_B is not None and mask_index_B is not None:
            return Prefix(sop_index_B.to(mask_BK.device), mask_index_B.to(mask_BK.device))
        if sop_index_B is not None or mask_index_B is not None:
            raise ValueError("ChatGLM: sop_index_B and mask_index_B go together")
        if input_ids is not None and input_ids.shape == mask_BK.shape:
            return self.find_prefix(input_ids, mask_BK)
        noted = None if past_key_values is None else vars(past_key_values).get(CACHE_NOTE)
        if noted is not None and len(noted[0]) == len(mask_BK):
            return noted[1]
        if inputs_embeds.shape[:2] == mask_BK.shape:
            return self.find_prefix(self._recognised(inputs_embeds), mask_BK)
        raise ValueError("ChatGLM: with this past_key_values, sop_index_B and mask_index_B must be given")

    def _recognised(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """Ids [B, L] of the control tokens whose embeddings stand there unchanged, -1 elsewhere."""
        found = torch.full(inputs_embeds.shape[:2], -1, dtype=torch.long, device=inputs_embeds.device)
        weight = self.transformer.word_embeddings.weight
        for index in (self.config.special_ids.mask, self.config.special_ids.gmask, self.config.special_ids.sop):
            found.masked_fill_((inputs_embeds == weight[index]).all(-1), index)
        return found

    def find_prefix(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Prefix:
        """Index of `<sop>` and of the mask token per row of int64 ids [B, L] (chatglm.md 7 and 8).

        Raises:
            ValueError: a row lacks one of them.
        """
        ids = self.config.special_ids
        return find_prefix(input_ids, attention_mask, ids.sop, ids.gmask, ids.mask)

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: torch.Tensor, inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None, is_first_iteration: bool | None = False, **kwargs: Any,
    ) -> dict[str, Any]:
        """As in `transformers`; the ids so far tell where the context ends, unless the caller does.

        Raises:
            ValueError: prompts padded on the right, positions given by the caller, or what `forward` raises.
        """
        if is_first_iteration and attention_mask is not None and not bool(attention_mask[:, -1].all()):
            raise ValueError("ChatGLM: generate needs prompts padded on the left, so that answers follow them")
        if kwargs.pop("position_ids", None) is not None:
            raise ValueError("ChatGLM: generate derives the positions itself; do not give position_ids")
        if kwargs.get("sop_index_B") is None:
            if inputs_embeds is not None and (attention_mask is None or attention_mask.shape != input_ids.shape):
                whole, mask = self._recognised(inputs_embeds), None  # the ids are those of the answer alone
            else:
                whole, mask = input_ids, attention_mask
            kwargs["sop_index_B"], kwargs["mask_index_B"] = self.find_prefix(whole, mask)
        return super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask,  # type: ignore[arg-type]
            is_first_iteration=is_first_iteration, **kwargs,
        )

    def _prepare_position_ids_for_generation(self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]) -> None:
        return None  # one-dimensional positions are wrong here; ours follow from the prefix at every step

    def _prepare_attention_mask_for_generation(  # type: ignore[override]
        self, inputs_tensor: torch.Tensor, generation_config: Any, model_kwargs: dict[str, Any]
    ) -> torch.Tensor:
        ids = model_kwargs.get("input_ids")
        ids = ids if ids is not None and ids.shape[1] > 0 else inputs_tensor
        if ids.is_floating_point():
            return torch.ones(ids.shape[:2], dtype=torch.long, device=ids.device)
        return padding_mask(ids, self.config.special_ids.pad).long()

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        processors = super()._get_logits_processor(*args, **kwargs)  # type: ignore[misc]
        if self.config.image_token_count:
            images = list(range(self.config.image_token_count))
            processors.insert(0, SuppressTokensLogitsProcessor(images, device=str(self.device)))
        return processors

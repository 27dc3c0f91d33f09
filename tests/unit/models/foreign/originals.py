"""Small networks of others by the names of their checkpoints, and what they compute, in plain functions of those weights."""

from __future__ import annotations

import torch
from torch.nn.functional import conv2d, gelu, layer_norm, linear

Weights = dict[str, torch.Tensor]
WIDTH, HEADS, INNER, LAYERS, QUERIES = 32, 4, 48, 3, 5  # of the Q-Former
EYE, EYE_HEADS, EYE_INNER, EYE_BLOCKS, PATCH, GRID = 48, 16, 56, 3, 4, 2  # of the vision encoder
LLM = 20


def chance(*shape: int, scale: float = 0.3) -> torch.Tensor:
    return torch.randn(shape) * scale


def linear_weights(name: str, outputs: int, inputs: int) -> Weights:
    return {f"{name}.weight": chance(outputs, inputs), f"{name}.bias": chance(outputs)}


def norm_weights(name: str, width: int) -> Weights:
    return {f"{name}.weight": 1 + chance(width), f"{name}.bias": chance(width)}


def bert_layer_weights(stem: str, width: int = WIDTH, inner: int = INNER, ends: tuple[str, str] = ("", "")) -> Weights:
    """Self-attention and a feed-forward branch whose two parts are called intermediate and output plus `ends`."""
    made: Weights = {}
    for part in ("query", "key", "value"):
        made |= linear_weights(f"{stem}attention.self.{part}", width, width)
    made |= linear_weights(f"{stem}attention.output.dense", width, width)
    made |= norm_weights(f"{stem}attention.output.LayerNorm", width)
    made |= linear_weights(f"{stem}intermediate{ends[0]}.dense", inner, width)
    made |= linear_weights(f"{stem}output{ends[1]}.dense", width, inner)
    return made | norm_weights(f"{stem}output{ends[1]}.LayerNorm", width)


def qformer_weights(text: bool = False) -> Weights:
    """Queries, ln_vision and Q-Former by the names of LAVIS; with the text branch of the first stage."""
    made = {"query_tokens": chance(1, QUERIES, WIDTH), **norm_weights("ln_vision", EYE)}
    made |= norm_weights("Qformer.bert.embeddings.LayerNorm", WIDTH)
    for number in range(LAYERS):
        stem = f"Qformer.bert.encoder.layer.{number}."
        made |= bert_layer_weights(stem, ends=("_query", "_query"))
        if text:
            branch = bert_layer_weights(stem)
            own = (f"{stem}intermediate.", f"{stem}output.")
            made |= {name: value for name, value in branch.items() if name.startswith(own)}
        if number % 2 == 0:
            for part, inputs in (("query", WIDTH), ("key", EYE), ("value", EYE)):
                made |= linear_weights(f"{stem}crossattention.self.{part}", WIDTH, inputs)
            made |= linear_weights(f"{stem}crossattention.output.dense", WIDTH, WIDTH)
            made |= norm_weights(f"{stem}crossattention.output.LayerNorm", WIDTH)
    return made


def eva_weights(prefix: str = "visual_encoder.", blocks: int = EYE_BLOCKS) -> Weights:
    made = {
        f"{prefix}cls_token": chance(1, 1, EYE), f"{prefix}pos_embed": chance(1, GRID**2 + 1, EYE),
        f"{prefix}patch_embed.proj.weight": chance(EYE, 3, PATCH, PATCH), f"{prefix}patch_embed.proj.bias": chance(EYE),
    }
    for number in range(blocks):
        stem = f"{prefix}blocks.{number}."
        made |= norm_weights(f"{stem}norm1", EYE) | norm_weights(f"{stem}norm2", EYE)
        made |= {f"{stem}attn.qkv.weight": chance(3 * EYE, EYE), f"{stem}attn.q_bias": chance(EYE)}
        made |= {f"{stem}attn.v_bias": chance(EYE), **linear_weights(f"{stem}attn.proj", EYE, EYE)}
        made |= linear_weights(f"{stem}mlp.fc1", EYE_INNER, EYE) | linear_weights(f"{stem}mlp.fc2", EYE, EYE_INNER)
    return made


def halved(weights: Weights) -> Weights:
    """Linear and convolution weights in float16, as LAVIS stores them."""
    return {
        name: value.half() if name.endswith(("weight", "bias", "q_bias", "v_bias")) and value.dim() > 1 else value
        for name, value in weights.items()
    }


def apply_linear(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return linear(x, weights[f"{name}.weight"].float(), weights[f"{name}.bias"].float())


def apply_norm(weights: Weights, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"].float(), weights[f"{name}.bias"].float(), eps)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, seen: torch.Tensor | None = None):
    """[L, D], [N, D], [N, D] -> [L, D], head after head."""
    out = []
    for q, k, v in zip(*(x.chunk(heads, -1) for x in (query, key, value)), strict=True):
        scores = q @ k.T / q.shape[-1] ** 0.5
        if seen is not None:
            scores = scores.masked_fill(~seen, float("-inf"))
        out.append(scores.softmax(-1) @ v)
    return torch.cat(out, -1)


def bert_attention(weights: Weights, stem: str, x: torch.Tensor, memory: torch.Tensor, heads: int, eps: float) -> torch.Tensor:
    query = apply_linear(weights, f"{stem}.self.query", x)
    key, value = (apply_linear(weights, f"{stem}.self.{part}", memory) for part in ("key", "value"))
    out = apply_linear(weights, f"{stem}.output.dense", attend(query, key, value, heads))
    return apply_norm(weights, f"{stem}.output.LayerNorm", out + x, eps)


def bert_feedforward(weights: Weights, stem: str, end: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    out = apply_linear(weights, f"{stem}output{end}.dense", gelu(apply_linear(weights, f"{stem}intermediate{end}.dense", x)))
    return apply_norm(weights, f"{stem}output{end}.LayerNorm", out + x, eps)


def ask(weights: Weights, features_ND: torch.Tensor, queries_QD: torch.Tensor | None = None, heads: int = HEADS):
    """What BLIP-2 gives for the features of one picture, before its projection: [Q, WIDTH]."""
    features_ND = apply_norm(weights, "ln_vision", features_ND, 1e-5)
    x = apply_norm(
        weights, "Qformer.bert.embeddings.LayerNorm",
        weights["query_tokens"][0].float() if queries_QD is None else queries_QD.float(), 1e-12,
    )
    for number in range(LAYERS):
        stem = f"Qformer.bert.encoder.layer.{number}."
        x = bert_attention(weights, f"{stem}attention", x, x, heads, 1e-12)
        if number % 2 == 0:
            x = bert_attention(weights, f"{stem}crossattention", x, features_ND, heads, 1e-12)
        x = bert_feedforward(weights, stem, "_query", x, 1e-12)
    return x


def see(weights: Weights, picture_CHW: torch.Tensor, prefix: str = "visual_encoder.", blocks: int = EYE_BLOCKS):
    """What EVA gives for one picture: [tokens, EYE], without a norm at the end."""
    patches = conv2d(
        picture_CHW[None], weights[f"{prefix}patch_embed.proj.weight"].float(),
        weights[f"{prefix}patch_embed.proj.bias"].float(), stride=PATCH,
    )[0].flatten(1).T
    x = torch.cat([weights[f"{prefix}cls_token"][0].float(), patches]) + weights[f"{prefix}pos_embed"][0].float()
    for number in range(blocks):
        stem = f"{prefix}blocks.{number}."
        normed = apply_norm(weights, f"{stem}norm1", x, 1e-6)
        biases = weights[f"{stem}attn.q_bias"], torch.zeros(EYE), weights[f"{stem}attn.v_bias"]
        qkv = linear(normed, weights[f"{stem}attn.qkv.weight"].float(), torch.cat(biases).float())
        x = x + apply_linear(weights, f"{stem}attn.proj", attend(*qkv.chunk(3, -1), EYE_HEADS))
        normed = apply_norm(weights, f"{stem}norm2", x, 1e-6)
        x = x + apply_linear(weights, f"{stem}mlp.fc2", gelu(apply_linear(weights, f"{stem}mlp.fc1", normed)))
    return x


def c_former_weights(stem: str = "speech_bert_adaptor.", units: int = 7, positions: int = 12, layers: int = 2) -> Weights:
    """The speech interface of the release, with the words and pooler that its BERT has beside it."""
    made = {
        f"{stem}embeddings.word_embeddings.weight": chance(9, WIDTH),
        f"{stem}embeddings.position_embeddings.weight": chance(positions, WIDTH),
        f"{stem}embeddings.token_type_embeddings.weight": chance(2, WIDTH),
        **norm_weights(f"{stem}embeddings.LayerNorm", WIDTH), **linear_weights(f"{stem}pooler.dense", WIDTH, WIDTH),
        **linear_weights("pre_bert_proj", WIDTH, units), **linear_weights("post_bert_proj", LLM, WIDTH),
    }
    for number in range(layers):
        made |= bert_layer_weights(f"{stem}encoder.layer.{number}.")
    return made


def hear(weights: Weights, units_UD: torch.Tensor, heads: int = HEADS, layers: int = 2) -> torch.Tensor:
    """What the release gives for the units of one utterance: [U, LLM]."""
    stem = "speech_bert_adaptor."
    x = apply_linear(weights, "pre_bert_proj", units_UD).relu()
    stem_of_tables = f"{stem}embeddings."
    x = x + weights[f"{stem_of_tables}position_embeddings.weight"][: len(x)]
    x = x + weights[f"{stem_of_tables}token_type_embeddings.weight"][0]
    x = apply_norm(weights, f"{stem_of_tables}LayerNorm", x, 1e-12)
    for number in range(layers):
        layer = f"{stem}encoder.layer.{number}."
        x = bert_attention(weights, f"{layer}attention", x, x, heads, 1e-12)
        x = bert_feedforward(weights, layer, "", x, 1e-12)
    return apply_linear(weights, "post_bert_proj", x).relu()

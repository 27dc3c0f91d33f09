"""Weights of our conformer blocks by the names of ESPnet2's ConformerEncoder, and back (interop page).

The two compute the same, given ESPnet's settings (`espnet_settings`): macaron style, `rel_pos_type: latest`, batch norm in the
convolution module; ours with `position: relative`, `conv_norm: batch`, `final_norm: true`. What remains different:

- ESPnet has no pooling between blocks. Compare, or move, a stack without pooling, or stack by stack.
- ESPnet multiplies its encoder's input by sqrt(width), ours does not; `scale_frontend` moves the factor into the front-end.
- ESPnet's convolution module lets padding in: the depth-wise kernel reads it, and batch norm in training counts it. Results
  agree for utterances alone, or of one length; in a padded batch ours give what they give alone, ESPnet's do not.
- ESPnet's layer norms add 1e-12 to the variance, ours 1e-5: a difference of about 1e-5 after a few blocks at initial weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from xllm_speech.base.errors import CheckpointError
from xllm_speech.models.asr_config import EncoderConfig
from xllm_speech.models.foreign.encoders import ENCODERS, ESPNET_BLOCK

BIASES = {"attention.content_bias_HE": "self_attn.pos_bias_u", "attention.position_bias_HE": "self_attn.pos_bias_v"}
FUSED = "attention.query_key_value"
POINTWISE = ("convolution.gate.weight", "convolution.out.weight")  # a convolution of kernel 1 at ESPnet


def espnet_settings(config: EncoderConfig) -> dict[str, Any]:
    """Keyword arguments of ESPnet's ConformerEncoder for an encoder of ours, its input being what our front-end gives."""
    return {
        "input_size": config.width, "output_size": config.width, "attention_heads": config.heads,
        "linear_units": config.feedforward, "num_blocks": config.blocks, "cnn_module_kernel": config.kernel,
        "dropout_rate": config.dropout, "positional_dropout_rate": 0.0, "attention_dropout_rate": config.attention_dropout,
        "input_layer": None, "macaron_style": True, "use_cnn_module": True, "rel_pos_type": "latest",
        "pos_enc_layer_type": "rel_pos", "selfattention_layer_type": "rel_selfattn", "activation_type": "swish",
    }


def to_espnet(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """State dict of ESPnet's ConformerEncoder from one of our `ConformerEncoder`; `frontend.*` is left out.

    Raises:
        CheckpointError: a tensor that ESPnet's encoder has no place for: rotary positions or layer norm in the convolution.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("frontend."):
            continue
        if name.startswith("norm."):
            found[f"after_{name}"] = tensor
            continue
        _, number, rest = name.split(".", 2)
        stem, (layer, _, leaf) = f"{ENCODERS}{number}.", rest.rpartition(".")
        if rest in BIASES:
            found[stem + BIASES[rest]] = tensor
        elif layer == FUSED:
            pieces = zip("qkv", tensor.chunk(3), strict=True)
            found |= {f"{stem}self_attn.linear_{part}.{leaf}": piece for part, piece in pieces}
        else:
            found[f"{stem}{ESPNET_BLOCK[layer]}.{leaf}"] = tensor[..., None] if rest in POINTWISE else tensor
    first = f"{ENCODERS}0."
    for needed, choice in (
        (f"{first}self_attn.linear_pos.weight", "position: relative"),
        (f"{first}conv_module.norm.running_mean", "conv_norm: batch"), ("after_norm.weight", "final_norm: true"),
    ):
        if needed not in found:
            raise CheckpointError(f"{needed} of ESPnet's encoder is missing here; only an encoder of `{choice}` can go there")
    return found


def from_espnet(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`blocks.*` and `norm.*` of our `ConformerEncoder` from a state dict of ESPnet's ConformerEncoder; `embed.*` is left out.

    For files, and for whole ASR models, there is `models.foreign` (layout `espnet`).

    Raises:
        CheckpointError: a tensor that has no place in ours, or one of query, key and value is absent; names it.
    """
    layers = {foreign: ours for ours, foreign in ESPNET_BLOCK.items() if ours != "convolution.norm"}
    biases = {foreign: ours for ours, foreign in BIASES.items()}
    found: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("embed."):
            continue
        if name.startswith("after_norm."):
            found[name.removeprefix("after_")] = tensor
            continue
        match = re.fullmatch(rf"{re.escape(ENCODERS)}(\d+)\.(.+)", name)
        rest = match[2] if match else ""
        layer, _, leaf = rest.rpartition(".")
        stem = f"blocks.{match[1]}." if match else ""
        if rest in biases:
            found[stem + biases[rest]] = tensor
        elif layer == "self_attn.linear_q":
            parts = [name.replace("linear_q", f"linear_{part}") for part in "qkv"]
            if lost := [part for part in parts if part not in state]:
                raise CheckpointError(f"{lost[0]} is missing beside {name}")
            found[f"{stem}{FUSED}.{leaf}"] = torch.cat([state[part] for part in parts])
        elif layer in layers:
            ours = f"{layers[layer]}.{leaf}"
            found[stem + ours] = tensor.squeeze(-1) if ours in POINTWISE else tensor
        elif layer not in ("self_attn.linear_k", "self_attn.linear_v"):
            raise CheckpointError(f"{name}: no place for it in our conformer; see `espnet_settings` for what agrees")
    return found


def scale_frontend(state: Mapping[str, torch.Tensor], width: int, to: str) -> dict[str, torch.Tensor]:
    """A copy of a state dict whose `frontend.linear.*` is fit for the other encoder: to `espnet`, which multiplies by
    sqrt(width) itself, or to `ours`, which does not."""
    factor = {"espnet": 1 / math.sqrt(width), "ours": math.sqrt(width)}[to]
    return {name: tensor * factor if name.startswith("frontend.linear.") else tensor for name, tensor in state.items()}

"""EVA ViT-g as BLIP-2 uses it (system.md section 2): 39 of its 40 blocks, all tokens, no norm at the end.

The network is timm's `Eva` (`eva_giant_patch14_224`), whose inner names are those of LAVIS too. Weights are read from LAVIS's
`eva_vit_g.pth`, from timm's, from a BLIP-2 of LAVIS that holds its `visual_encoder`, from a Hugging Face BLIP-2 folder, and
from what `xllm-speech convert` wrote.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xllm_speech.base.errors import CheckpointError, DataError, first_line
from xllm_speech.base.files import read_json
from xllm_speech.base.safe_load import read_tensors

BLOCKS = 39  # of the 40 that EVA ViT-g has
WIDTH, HEADS = 1408, 16  # of EVA ViT-g; no file of weights tells the number of heads
OURS = "vision."
HUGGING_FACE = "vision_model."
# Where the network stands in a checkpoint: ours, LAVIS, Hugging Face, OpenCLIP's two, and bare.
PREFIXES = (OURS, "visual_encoder.", HUGGING_FACE, "visual.trunk.", "visual.", "")
SIZES_FILE = "eva.json"
LEFT_OUT = {
    r"blocks\.(\d+)\..*": f"BLIP-2 uses the first {BLOCKS} blocks",
    r"(norm|fc_norm)\.(weight|bias)": "no norm at the end; ln_vision follows, in the interface",
    r"head\.(weight|bias)": "the classifier",
    r"(mask_token|lm_head\..*|.*relative_position_.*|.*attn\.k_bias|.*rope\..*)": "not used by the encoder",
}
FROM_HUGGING_FACE = (
    ("embeddings.class_embedding", "cls_token"), ("embeddings.position_embedding", "pos_embed"),
    ("embeddings.patch_embedding.", "patch_embed.proj."), ("encoder.layers.", "blocks."), (".layer_norm1.", ".norm1."),
    (".layer_norm2.", ".norm2."), (".self_attn.projection.", ".attn.proj."), (".self_attn.qkv.", ".attn.qkv."),
)


@dataclass
class EvaWeights:
    """Weights by timm's names, where each came from, and what was left aside and why, by the names in the file."""

    state: dict[str, torch.Tensor] = field(default_factory=dict)
    used: dict[str, list[str]] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaSizes:
    """What shapes tell: sides of picture and patch in pixels, width, depth, inner width of the feed-forward layers."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    feedforward: int


def find_prefix(names: Iterable[str]) -> str | None:
    """What stands in front of the network's names, or None where there is none of it."""
    names = set(names)
    for prefix in PREFIXES:
        first = "embeddings.class_embedding" if prefix == HUGGING_FACE else "cls_token"
        if f"{prefix}{first}" in names:
            return prefix
    return None


def pick_eva(tensors: Mapping[str, torch.Tensor]) -> EvaWeights:
    """The network's weights among `tensors`, in any of the layouts; other parts of the file are not accounted for."""
    found = EvaWeights()
    prefix = find_prefix(tensors)
    for foreign, tensor in tensors.items() if prefix is not None else ():
        assert prefix is not None
        if not foreign.startswith(prefix) or foreign.startswith(f"{HUGGING_FACE}post_layernorm."):
            continue
        name = foreign.removeprefix(prefix)
        if prefix == HUGGING_FACE:
            for theirs, ours in FROM_HUGGING_FACE:
                name = name.replace(theirs, ours)
        if reason := _left_out(name):
            found.ignored[foreign] = reason
        elif name.endswith(".attn.qkv.bias") and tensor.dim() == 1 and len(tensor) % 3 == 0:
            query, _, value = tensor.chunk(3)  # a bias on all keys alike changes no softmax; EVA has none
            stem = name.removesuffix("qkv.bias")
            found.state |= {f"{stem}q_bias": query, f"{stem}v_bias": value}
            found.used[foreign] = [f"{stem}q_bias", f"{stem}v_bias"]
        else:
            found.state[name] = tensor
            found.used[foreign] = [name]
    return found


def _left_out(name: str) -> str | None:
    for pattern, reason in LEFT_OUT.items():
        if (match := re.fullmatch(pattern, name)) and not (match[1].isdigit() and int(match[1]) < BLOCKS):
            return reason
    return None


def read_sizes(state: Mapping[str, torch.Tensor], where: str) -> EvaSizes:
    """The sizes that the weights themselves have.

    Raises:
        CheckpointError: a tensor that tells them is missing or of a shape that no such network has.
    """
    shapes = {name: list(tensor.shape) for name, tensor in state.items()}
    needed = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4, "blocks.0.mlp.fc1.weight": 2}
    for name, dimensions in needed.items():
        if len(shapes.get(name, ())) != dimensions:
            found = shapes.get(name, "none")
            raise CheckpointError(f"{where}: no EVA ViT: {name} must be a tensor of {dimensions} dimensions, found {found}")
    patch = shapes["patch_embed.proj.weight"][-1]
    grid = math.isqrt(max(0, shapes["pos_embed"][1] - 1))
    if grid * grid + 1 != shapes["pos_embed"][1]:
        raise CheckpointError(f"{where}: pos_embed has {shapes['pos_embed'][1]} positions, not a square and one")
    depth = 1 + max(int(match[1]) for name in shapes if (match := re.match(r"blocks\.(\d+)\.", name)))
    return EvaSizes(grid * patch, patch, shapes["cls_token"][-1], depth, shapes["blocks.0.mlp.fc1.weight"][0])


def build_eva(sizes: EvaSizes, heads: int = HEADS) -> nn.Module:
    """timm's network of these sizes without its last norm and its classifier; `forward_features` gives all tokens.

    Raises:
        CheckpointError: the heads do not divide the width.
    """
    from timm.models.eva import Eva

    if sizes.width % heads:
        raise CheckpointError(f"EVA ViT: a width of {sizes.width} cannot be shared by {heads} heads; correct {SIZES_FILE}")
    return Eva(
        img_size=sizes.image_size, patch_size=sizes.patch_size, embed_dim=sizes.width, depth=sizes.depth, num_heads=heads,
        mlp_ratio=(sizes.feedforward + 0.5) / sizes.width, num_classes=0, global_pool="", use_post_transformer_norm=False,
        use_fc_norm=False,
    )


def check_eva(weights: EvaWeights, where: str) -> EvaSizes:
    """Sizes of the weights, which must be whole.

    Raises:
        CheckpointError: a weight is missing, of another shape than the others ask for, or of no such network.
    """
    sizes = read_sizes(weights.state, where)
    try:
        with torch.device("meta"):
            expected = build_eva(sizes, heads=1).state_dict()  # which no shape depends on
    except Exception as error:  # sizes of zero fail in many ways
        raise CheckpointError(f"{where}: its sizes make no EVA ViT ({first_line(error)})") from error
    for what, names in (
        ("missing", expected.keys() - weights.state.keys()), ("unknown to EVA ViT", weights.state.keys() - expected.keys()),
    ):
        if names:
            raise CheckpointError(f"{where}: {len(names)} weights of the vision encoder are {what}, first {min(names)}")
    for name, tensor in weights.state.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(f"{where}: {name} is {list(tensor.shape)}, its network needs {list(expected[name].shape)}")
    return sizes


def read_heads(path: Path, width: int) -> int | None:
    """Number of heads: as eva.json beside the weights or the vision part of a Hugging Face config.json tells, or ViT-g's.

    None where nothing tells it. Raises `CheckpointError` for a description that cannot be read.
    """
    folder = path if path.is_dir() else path.parent
    for name in (SIZES_FILE, "config.json") if path.is_dir() else (SIZES_FILE,):
        if not (folder / name).is_file():
            continue
        try:
            described: Any = read_json(folder / name)
        except DataError as error:
            raise CheckpointError(str(error)) from error
        described = described if isinstance(described, dict) else {}
        part = described.get("vision_config", described) if name == "config.json" else described
        heads = part.get("num_attention_heads" if name == "config.json" else "heads") if isinstance(part, dict) else None
        if type(heads) is int and heads > 0:
            return heads
    return HEADS if width == WIDTH else None


def load_eva(path: str | Path) -> tuple[nn.Module, EvaSizes]:
    """The network of a file or folder in any of the layouts, in float32 and eval mode, and its sizes.

    Raises:
        CheckpointError: there is none, or not a whole one.
    """
    path = Path(path)
    weights = pick_eva(read_tensors(path))
    if not weights.state:
        raise CheckpointError(f"{path}: holds no EVA ViT (no cls_token, by itself or after {', '.join(PREFIXES[:-1])})")
    sizes = check_eva(weights, str(path))
    heads = read_heads(path, sizes.width)
    if heads is None:
        raise CheckpointError(
            f"{path}: a width of {sizes.width}, not ViT-g's {WIDTH}, and nothing tells the number of heads; write it as "
            f'{{"heads": n}} into {SIZES_FILE} beside the weights'
        )
    with torch.device("meta"):  # a thousand million chance values would take minutes
        network: Any = build_eva(sizes, heads)
    network.load_state_dict({name: tensor.float() for name, tensor in weights.state.items()}, assign=True)
    for block in network.blocks:
        block.attn.k_bias = torch.zeros(sizes.width)  # stored nowhere
    return network.requires_grad_(False).eval(), sizes

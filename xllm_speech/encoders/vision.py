"""Frozen picture encoders: CLIP's ViT from a local Hugging Face folder, or a small timm ViT that a recipe trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from xllm_speech.base.errors import CheckpointError, ConfigError
from xllm_speech.base.files import read_json, write_json
from xllm_speech.records import Memory, PixelBatch

VIT_CONFIG = "vit.json"
VIT_WEIGHTS = "model.safetensors"


class VisionEncoder(nn.Module):
    """PixelBatch -> Memory [B, N, width]; items without a picture have length 0.

    Args:
        network: pixels [B, 3, H, W] -> features [B, N, width]. width: of the features. image_size: H = W it expects.
    """

    def __init__(self, network: nn.Module, width: int, image_size: int) -> None:
        super().__init__()
        self.network, self.width, self.image_size = network, width, image_size

    def forward(self, pixels: PixelBatch) -> Memory:
        """Features of the pictures that are there; the network does not run on absent ones."""
        present_B = pixels.present_B
        seen = self.network(pixels.x_BCHW[present_B]) if bool(present_B.any()) else None
        positions = 1 if seen is None else seen.shape[1]
        x_BND = pixels.x_BCHW.new_zeros(len(present_B), positions, self.width)
        if seen is not None:
            x_BND[present_B] = seen.to(x_BND.dtype)
        return Memory(x_BND, present_B.long() * positions)


class _ClipTokens(nn.Module):
    """The last hidden states of CLIP's vision tower, class token first."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=x_BCHW).last_hidden_state


class _TimmTokens(nn.Module):
    """All tokens of a timm ViT after its final norm."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.model.forward_features(x_BCHW)  # type: ignore[operator]


def build_vit(image_size: int, patch_size: int, width: int, depth: int, heads: int) -> VisionEncoder:
    """A small ViT (timm) with a class token, without a classifier head."""
    from timm.models.vision_transformer import VisionTransformer

    network = VisionTransformer(
        img_size=image_size, patch_size=patch_size, embed_dim=width, depth=depth, num_heads=heads, num_classes=0
    )
    return VisionEncoder(_TimmTokens(network), width, image_size)


def save_vit(encoder: VisionEncoder, folder: Path, **arguments: int) -> None:
    """Write weights and the arguments of `build_vit` into `folder`."""
    from safetensors.torch import save_file

    save_file(encoder.network.model.state_dict(), folder / VIT_WEIGHTS)  # type: ignore[union-attr]
    write_json(folder / VIT_CONFIG, arguments)


def load_vision_encoder(kind: str, path: str) -> VisionEncoder:
    """Load a frozen encoder from a local folder.

    Args:
        kind: clip (a Hugging Face folder such as openai/clip-vit-base-patch16) | vit (`save_vit`).

    Raises:
        CheckpointError: the folder is absent or holds something else.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"visual.path {path}: no such folder; a model of kind `{kind}` is needed there")
    match kind:
        case "clip":
            return _load_clip(folder)
        case "vit":
            return _load_vit(folder)
    raise ConfigError(f"visual.kind: `{kind}` is not one of clip, vit")


def _load_clip(folder: Path) -> VisionEncoder:
    from transformers import CLIPVisionModel

    try:
        model: Any = CLIPVisionModel.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: not a CLIP folder ({str(error).splitlines()[0]})") from error
    return VisionEncoder(_ClipTokens(model), model.config.hidden_size, model.config.image_size)


def _load_vit(folder: Path) -> VisionEncoder:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / VIT_CONFIG).is_file():
        raise CheckpointError(f"{folder}: holds no {VIT_CONFIG}; it is not a ViT saved by this toolkit")
    arguments = read_json(folder / VIT_CONFIG)
    try:
        encoder = build_vit(**arguments)
        encoder.network.model.load_state_dict(load_file(folder / VIT_WEIGHTS))  # type: ignore[union-attr]
    except (TypeError, OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be loaded ({str(error).splitlines()[0]})") from error
    return encoder

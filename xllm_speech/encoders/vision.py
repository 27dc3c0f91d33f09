"""Frozen picture encoders: CLIP's ViT or EVA's from local weights, or a small timm ViT that a recipe trained."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from xllm_speech.base.config import require
from xllm_speech.base.errors import CheckpointError, ConfigError, DataError, first_line
from xllm_speech.base.files import atomic_write, read_json, write_json
from xllm_speech.encoders.eva import load_eva
from xllm_speech.encoders.pretrained import load_pretrained
from xllm_speech.records import Memory, PixelBatch

VIT_CONFIG = "vit.json"
VIT_WEIGHTS = "model.safetensors"
STEM_STRIDE = 8  # pixels per step of the conv stem: three convolutions of stride 2


class VisionEncoder(nn.Module):
    """PixelBatch -> Memory [B, N, width]; items without a picture have length 0.

    Args:
        network: pixels [B, 3, H, W] -> features [B, N, width]. width: of the features. image_size: H = W it expects.
    """

    def __init__(self, network: nn.Module, width: int, image_size: int) -> None:
        super().__init__()
        self.network, self.width, self.image_size = network, width, image_size

    def forward(self, pixels: PixelBatch) -> Memory:
        """Features of the pictures that are there; the network does not run on absent ones.

        Raises:
            ConfigError: the pictures are not of the encoder's size.
        """
        height, width = pixels.x_BCHW.shape[2:]
        if (height, width) != (self.image_size, self.image_size):
            raise ConfigError(
                f"pictures of {height} x {width} pixels, but the picture encoder is made for {self.image_size} x "
                f"{self.image_size}; set data.image_size={self.image_size}"
            )
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
    """All tokens of a timm ViT, after its final norm where it has one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.model.forward_features(x_BCHW)  # type: ignore[operator]


def build_vit(
    image_size: int, patch_size: int, width: int, depth: int, heads: int, stem: str = "patch"
) -> VisionEncoder:
    """A small ViT (timm) with a class token, without a classifier head.

    Args:
        image_size, patch_size: side of a picture and of a patch in pixels. stem: how a patch becomes a token: patch (one
            linear layer, the original ViT) | conv (three 3 x 3 convolutions of stride 2 before it; patch_size is a
            multiple of 8), which learns sooner (Xiao et al. 2021, arXiv 2106.14881).

    Raises:
        ConfigError: the sizes do not fit one another, or an unknown stem.
    """
    from timm.layers import HybridEmbed, PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    numbers = {"image_size": image_size, "patch_size": patch_size, "width": width, "depth": depth, "heads": heads}
    for name, number in numbers.items():
        require(isinstance(number, int) and number > 0, f"vit.{name}: {number!r} is not a positive whole number")
    require(image_size % patch_size == 0, f"vit.image_size {image_size} is not a multiple of patch_size {patch_size}")
    require(width % heads == 0, f"vit.width {width} is not a multiple of heads {heads}")
    embed_layer: Callable[..., nn.Module] = PatchEmbed
    stride = patch_size
    match stem:
        case "patch":
            pass
        case "conv":
            require(
                patch_size % STEM_STRIDE == 0 and width % 4 == 0,
                f"vit: a conv stem needs a patch_size in multiples of {STEM_STRIDE} and a width in multiples of 4, "
                f"not {patch_size} and {width}",
            )
            embed_layer, stride = functools.partial(HybridEmbed, _conv_stem(width)), patch_size // STEM_STRIDE
        case _:
            raise ConfigError(f"vit.stem: `{stem}` is not one of patch, conv")
    network = VisionTransformer(
        img_size=image_size, patch_size=stride, embed_dim=width, depth=depth, num_heads=heads, num_classes=0,
        embed_layer=embed_layer,
    )
    return VisionEncoder(_TimmTokens(network), width, image_size)


def _conv_stem(width: int) -> nn.Sequential:
    """Pixels [B, 3, H, W] -> [B, 3/4 width, H/8, W/8]."""
    layers: list[nn.Module] = []
    channels = 3
    for wider in (width // 4, width // 2, width * 3 // 4):
        layers += [nn.Conv2d(channels, wider, 3, stride=2, padding=1), nn.ReLU()]
        channels = wider
    return nn.Sequential(*layers)


def save_vit(encoder: VisionEncoder, folder: Path, **arguments: int | str) -> None:
    """Write weights and the arguments of `build_vit` that `encoder` was built with into `folder`."""
    from safetensors.torch import save

    content = save(encoder.network.model.state_dict())  # type: ignore[union-attr]
    with atomic_write(folder / VIT_WEIGHTS, "wb") as stream:  # save_file would let nobody else read it
        stream.write(content)
    write_json(folder / VIT_CONFIG, arguments)


def load_vision_encoder(kind: str, path: str) -> VisionEncoder:
    """Load a frozen encoder, in eval mode, from local weights.

    Args:
        kind: clip (a Hugging Face folder such as openai/clip-vit-base-patch16) | eva (a file or folder, see
            `encoders.eva`) | vit (`save_vit`).

    Raises:
        CheckpointError: the folder is absent or holds something else.
    """
    folder = Path(path)
    if kind == "eva":
        network, sizes = load_eva(folder)
        return VisionEncoder(_TimmTokens(network), sizes.width, sizes.image_size).eval()
    if not folder.is_dir():
        raise CheckpointError(f"visual.path {path}: no such folder; a model of kind `{kind}` is needed there")
    match kind:
        case "clip":
            return _load_clip(folder)
        case "vit":
            return _load_vit(folder)
    raise ConfigError(f"visual.kind: `{kind}` is not one of clip, eva, vit")


def _load_clip(folder: Path) -> VisionEncoder:
    from transformers import CLIPVisionModel

    model = load_pretrained(CLIPVisionModel, folder, "CLIP", ("clip", "clip_vision_model"))
    return VisionEncoder(_ClipTokens(model), model.config.hidden_size, model.config.image_size).eval()


def _load_vit(folder: Path) -> VisionEncoder:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / VIT_CONFIG).is_file():
        raise CheckpointError(f"{folder}: holds no {VIT_CONFIG}; it is not a ViT saved by this toolkit")
    if not (folder / VIT_WEIGHTS).is_file():
        raise CheckpointError(f"{folder}: holds no {VIT_WEIGHTS}; copy or train the ViT anew")
    try:
        encoder = build_vit(**read_json(folder / VIT_CONFIG))
        encoder.network.model.load_state_dict(load_file(folder / VIT_WEIGHTS))  # type: ignore[union-attr]
    except (TypeError, OSError, RuntimeError, SafetensorError, ConfigError, DataError) as error:
        raise CheckpointError(f"{folder}: cannot be loaded ({first_line(error)})") from error
    return encoder.eval()

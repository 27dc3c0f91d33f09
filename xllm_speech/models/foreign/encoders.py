"""Frozen encoders and starting values by others' names: EVA, CLIP, BERT, and the conformer of ESPnet2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from xllm_speech.base.errors import CheckpointError
from xllm_speech.base.safe_load import read_tensors
from xllm_speech.encoders.conformer import ConformerEncoder
from xllm_speech.encoders.eva import PREFIXES
from xllm_speech.encoders.pretrained import load_pretrained
from xllm_speech.interfaces.speech import SpeechInterface
from xllm_speech.models.foreign.blip2 import BERT_HEADS, take_vision
from xllm_speech.models.foreign.intake import Intake
from xllm_speech.models.foreign.report import ForeignReport

ENCODERS = "encoders."  # of ESPnet, its list of blocks
# Name in our `ConformerBlock` -> name in ESPnet's EncoderLayer.
ESPNET_BLOCK = {
    "norm_first": "norm_ff_macaron", "norm_attention": "norm_mha", "norm_convolution": "norm_conv", "norm_second": "norm_ff",
    "norm_out": "norm_final", "feedforward_first.inner": "feed_forward_macaron.w_1",
    "feedforward_first.out": "feed_forward_macaron.w_2", "feedforward_second.inner": "feed_forward.w_1",
    "feedforward_second.out": "feed_forward.w_2", "attention.out": "self_attn.linear_out",
    "attention.linear_position": "self_attn.linear_pos", "convolution.gate": "conv_module.pointwise_conv1",
    "convolution.depthwise": "conv_module.depthwise_conv", "convolution.norm.norm": "conv_module.norm",
    "convolution.norm": "conv_module.norm", "convolution.out": "conv_module.pointwise_conv2",
}


def read_eva(path: str | Path, report: ForeignReport) -> dict[str, torch.Tensor]:
    """`vision.*` of a file or folder in any layout that `encoders.eva` knows; other parts of it are left aside.

    Raises:
        CheckpointError: it holds no EVA, or not a whole one.
    """
    intake = Intake(str(path), read_tensors(path), report)
    take_vision(intake)
    if not intake.state:
        raise CheckpointError(f"{path}: no EVA ViT (cls_token is missing, by itself or after {', '.join(PREFIXES[:-1])})")
    intake.ignore("not of the vision encoder", ".*")
    return intake.finish()


def read_clip(path: str | Path, report: ForeignReport) -> dict[str, torch.Tensor]:
    """A check of a CLIP folder, and `vision.*` by the names of transformers' CLIPVisionModel.

    Raises:
        CheckpointError: it is no CLIP, or not a whole one.
    """
    from transformers import CLIPVisionModel

    folder = Path(path)
    intake = Intake(str(path), read_tensors(folder), report)
    model: Any = load_pretrained(CLIPVisionModel, folder, "CLIP", ("clip", "clip_vision_model"))
    for name in model.state_dict():
        names = (name, f"vision_model.{name}", name.removeprefix("vision_model."))
        intake.take(f"vision.{name}", next((foreign for foreign in names if foreign in intake), name))
    report.settings |= {"encoders.vision.kind": "clip", "encoders.vision.path": str(path)}
    report.notes.append("the folder is loaded as it stands (kind clip); it needs no conversion")
    intake.ignore("computed, not learnt", r".*position_ids")
    intake.ignore("text and projections; the picture encoder has none", ".*")
    return intake.finish()


def read_bert(path: str | Path, report: ForeignReport) -> dict[str, torch.Tensor]:
    """`speech.transformer.*`, the starting values of the C-Former, of a BERT folder.

    Raises:
        CheckpointError: a weight of BERT is missing or does not fit the others.
    """
    tensors = read_tensors(path)
    # Folders of 2018 call the parts of a norm gamma and beta; with heads, BERT's own names come after `bert.`.
    foreign = {_modern_bert(name): name for name in tensors}
    intake = Intake(str(path), tensors, report)

    def theirs(name: str) -> str:
        return foreign.get(name, name)

    layers = intake.count(r"(?:bert\.)?encoder\.layer\.(\d+)\.")
    positions, width = intake.shape(theirs("embeddings.position_embeddings.weight"), 2)
    feedforward = intake.shape(theirs("encoder.layer.0.intermediate.dense.weight"), 2)[0]
    module = intake.build(lambda: SpeechInterface(1, 1, width, layers, 1, feedforward, positions))
    intake.take_module("speech.transformer.", module.transformer, theirs)
    sizes = {"width": width, "layers": layers, "feedforward": feedforward, "positions": positions}
    if width in BERT_HEADS:
        sizes["heads"] = BERT_HEADS[width]
    report.settings |= {f"interfaces.speech.{name}": value for name, value in sizes.items()}
    reason = "BERT has none; it starts from chance values"
    report.missing |= dict.fromkeys(("speech.projection.*", "speech.adapter.*"), reason)
    intake.ignore("words, pooler and heads of BERT, which units do not need", ".*")
    return intake.finish()


def _modern_bert(name: str) -> str:
    plain = name.removeprefix("bert.")
    return plain.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def read_espnet(path: str | Path, report: ForeignReport) -> dict[str, torch.Tensor]:
    """`encoder.*` of our CIF ASR model, but for its front-end, of an ESPnet2 conformer (interop page).

    Raises:
        CheckpointError: a weight is missing, such as those of macaron style or of relative positions, or of another size.
    """
    if Path(path).is_dir():
        raise CheckpointError(f"{path}: a folder; name the .pth file of the model in it")
    intake = Intake(str(path), read_tensors(path), report)
    prefix = "encoder." if intake.has(f"encoder.{ENCODERS}") else ""
    block = f"{prefix}{ENCODERS}0."
    width, _, kernel = intake.shape(f"{block}conv_module.depthwise_conv.weight", 3)
    heads = intake.shape(f"{block}self_attn.pos_bias_u", 2)[0]
    feedforward = intake.shape(f"{block}feed_forward.w_1.weight", 2)[0]
    blocks = intake.count(block.replace("0.", r"(\d+)\.").replace("encoder.", r"encoder\."))
    batch_norm = f"{block}conv_module.norm.running_mean" in intake
    module = intake.build(lambda: ConformerEncoder(
        width=width, heads=heads, feedforward=feedforward, kernel=kernel, blocks=blocks, position="relative",
        conv_norm="batch" if batch_norm else "layer", final_norm=f"{prefix}after_norm.weight" in intake,
    ))

    def name_of(name: str) -> str | list[str]:
        if name.startswith("norm."):
            return f"{prefix}after_{name}"
        _, number, rest = name.split(".", 2)
        stem = f"{prefix}{ENCODERS}{number}."
        if rest in ("attention.content_bias_HE", "attention.position_bias_HE"):
            return f"{stem}self_attn.pos_bias_{'u' if 'content' in rest else 'v'}"
        layer, _, leaf = rest.rpartition(".")
        if layer == "attention.query_key_value":
            return [f"{stem}self_attn.linear_{part}.{leaf}" for part in "qkv"]
        return f"{stem}{ESPNET_BLOCK[layer]}.{leaf}"

    def squeeze(name: str) -> Any:
        pointwise = name.endswith(("convolution.gate.weight", "convolution.out.weight"))
        return (lambda tensor: tensor.squeeze(-1)) if pointwise else None

    intake.take_module("encoder.", module, name_of, skip=lambda name: name.startswith("frontend."), convert=squeeze)
    sizes = {"width": width, "heads": heads, "feedforward": feedforward, "kernel": kernel, "blocks": blocks}
    report.settings |= {f"encoder.{name}": value for name, value in sizes.items()}
    report.settings |= {
        "encoder.position": "relative", "encoder.conv_norm": "batch" if batch_norm else "layer",
        "encoder.final_norm": f"{prefix}after_norm.weight" in intake,
    }
    report.missing["encoder.frontend.*"] = "ours differs from ESPnet's; train it"
    report.notes += [
        f"ESPnet multiplies what its front-end gives by {width ** 0.5:.6g} (the root of the width); ours does not",
        "ESPnet's encoder has no pooling between its blocks; choose encoder.pool_after and train on",
        "weights do not tell rel_pos_type; they fit ours if it was `latest`, which is not the default of ESPnet",
    ]
    intake.ignore("ESPnet's front-end", rf"{prefix}embed\..*", r"(frontend|normalize|specaug|preencoder)\..*")
    intake.ignore("another part of the ASR model, which ours has not", r"(decoder|ctc|postencoder|joint_network)\..*")
    return intake.finish()

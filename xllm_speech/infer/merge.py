"""Interfaces that were trained apart as one X-LLM: phase 2 without phase 3 (system.md section 5: a new X joins so)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

from xllm_speech.base.config import require
from xllm_speech.llm.loading import load_llm
from xllm_speech.models.media import ENCODER_OF, build_encoders
from xllm_speech.models.xllm_checkpoints import (
    PREFIX,
    Parent,
    XllmCheckpoint,
    XllmDescription,
    adopt_interfaces,
    adopt_parents,
    build_xllm,
    fill_interfaces,
    frozen_paths,
    hash_parts,
    read_description,
)
from xllm_speech.models.xllm_checkpoints import find_xllm as find


def merge_interfaces(paths: Mapping[str, str | Path], device: str = "cpu") -> XllmCheckpoint:
    """One model with an interface of each kind, each from its own checkpoint of phase 2 or 3.

    The LLM, the prompts and everything else come from the first; all must have been trained with the same LLM, and those
    that share an encoder with the same one.

    Args:
        paths: kind -> model directory or training.

    Raises:
        ConfigError: no path. CheckpointError: a checkpoint lacks its kind, or stands on another LLM or encoder.
    """
    require(bool(paths), "merging needs at least one interface, as KIND=DIR")
    config = copy.deepcopy(read_description(find(next(iter(paths.values())))).model)
    for kind, path in paths.items():
        theirs, part = read_description(find(path)).model, ENCODER_OF.get(kind, "")
        if not frozen_paths(config).get(part, "?"):
            match part:
                case "vision":
                    config.encoders.vision = theirs.encoders.vision
                case "asr":
                    config.encoders.asr = theirs.encoders.asr
                case "audio":
                    config.encoders.audio = theirs.encoders.audio
                case "text":
                    config.encoders.text = theirs.encoders.text
    config.interfaces.kinds = list(paths)
    config.llm.lora.rank = 0
    frozen = hash_parts(config)
    adopted = adopt_parents(config, {kind: str(path) for kind, path in paths.items()}, frozen)
    adopt_interfaces(config.interfaces, adopted)
    model = build_xllm(config, load_llm(config.llm.path, config.llm.dtype, device, config.llm.quantization))
    for kind, read in adopted.items():
        tensors = {name: tensor for name, tensor in read.tensors.items() if name.startswith(f"{PREFIX}{kind}.")}
        fill_interfaces(model, tensors, read.folder, [kind])
    model.interfaces.to(device)
    channel = next((read.description.channel for kind, read in adopted.items() if kind == "speech"), "mix")
    description = XllmDescription(
        phase=2, kinds=list(paths), complete=True, model=config, channel=channel, frozen_sha256=frozen,
        parents={kind: Parent(str(read.folder), read.sha256) for kind, read in adopted.items()},
    )
    encoders = build_encoders(config.encoders, list(paths)).to(device)
    return XllmCheckpoint(model.eval(), encoders, description, next(iter(adopted.values())).folder)

"""Frozen encoders from a local Hugging Face folder: whole, of the right kind, in float32, and without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from xllm_speech.base.errors import CheckpointError, DataError, first_line
from xllm_speech.base.files import read_json
from xllm_speech.base.quiet import quiet_transformers


def describe_pretrained(folder: Path, name: str, kinds: tuple[str, ...]) -> dict[str, Any]:
    """config.json of a Hugging Face folder whose `model_type` is one of `kinds`; `CheckpointError` for anything else."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: not a {name} folder (holds no config.json)")
    try:
        described = read_json(folder / "config.json")
    except DataError as error:
        raise CheckpointError(f"{folder}: not a {name} folder ({first_line(error)})") from error
    kind = described.get("model_type") if isinstance(described, dict) else None
    if kind not in kinds:
        raise CheckpointError(f"{folder}: not a {name} folder (its config.json is of model_type `{kind}`, not {kinds[0]})")
    return described


def load_pretrained(model_class: Any, folder: Path, name: str, kinds: tuple[str, ...], **options: Any) -> Any:
    """`model_class.from_pretrained(folder)`, strictly: transformers itself fills what a folder lacks with chance values.

    Args:
        name: how an error calls the model. kinds: `model_type` of config.json that are right. options: for transformers.

    Raises:
        CheckpointError: the folder holds another model, is damaged, or lacks some of the weights.
    """
    describe_pretrained(folder, name, kinds)
    try:
        with quiet_transformers():
            model, found = model_class.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, output_loading_info=True,
                dtype=torch.float32, ignore_mismatched_sizes=True, **options,
            )
    except Exception as error:  # safetensors and pickle have errors of their own, wrong numbers give any
        raise CheckpointError(f"{folder}: cannot be loaded as {name} ({first_line(error)})") from error
    lost = sorted(found["missing_keys"])
    if lost:
        raise CheckpointError(f"{folder}: {len(lost)} weights of {name} are missing, among them {lost[0]}; get the folder anew")
    unfit = sorted(found["mismatched_keys"])
    if unfit:
        key, stored, wanted = unfit[0]
        raise CheckpointError(
            f"{folder}: {len(unfit)} weights do not fit its config.json, among them {key}: {list(stored)} stored, "
            f"{list(wanted)} described"
        )
    return model.eval()

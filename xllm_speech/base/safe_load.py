"""Reading weights that others wrote: safetensors and files of `torch.save`, in one piece or in shards, never running them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from xllm_speech.base.errors import CheckpointError, DataError, first_line
from xllm_speech.base.files import read_json
from xllm_speech.base.torch_zip import TensorPlan, TorchZip

# What a folder's weights may be called, the first that is there counts.
FOLDER_FILES = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
# Where a training puts the state dict among optimiser and the like.
SECTIONS = ("model", "state_dict", "module")
AGAIN = "load it where you trust it and save its state dict again, as safetensors"


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Name -> tensor of a file, or of a Hugging Face folder, on the CPU and in the type that they were stored in.

    Tensors are mapped from the file: they take memory when they are read. What a file of `torch.save` holds beside its
    state dict (under `model`, `state_dict` or `module`, or the whole file) is left alone, and so is every entry of it that is
    not a tensor.

    Raises:
        CheckpointError: nothing there, no weights in it, another format, a damaged file, or one that claims more than it has.
    """
    path = Path(path)
    if path.is_dir():
        path = find_weights(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file or folder; weights are needed there")
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    with open(path, "rb") as stream:
        head = stream.read(16)
    if head[:4] == b"PK\3\4":
        return _read_torch(path)
    if head[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
        return _read_safetensors(path)
    if head[:1] == b"\x80":
        raise CheckpointError(f"{path}: a bare pickle (PyTorch before 1.6), which cannot be read without running it; {AGAIN}")
    raise CheckpointError(f"{path}: neither safetensors nor a file of torch.save; old tar files are not read; {AGAIN}")


def find_weights(folder: Path) -> Path:
    """The file of a folder that holds, or lists, its weights; `CheckpointError` where there is none."""
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder}: holds no weights ({', '.join(FOLDER_FILES)})")


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)  # it compares sizes and places with the file's before it takes any memory
    except (OSError, SafetensorError, ValueError, MemoryError) as error:
        raise CheckpointError(f"{path}: damaged ({first_line(error)}); get the file anew") from error


def _read_torch(path: Path) -> dict[str, torch.Tensor]:
    archive = TorchZip(path)
    plans = _find_state(archive.content)
    if not plans:
        raise CheckpointError(f"{path}: holds no tensors by name, neither itself nor under {', '.join(SECTIONS)}")
    return {name: archive.tensor(name, plan) for name, plan in plans.items()}


def _find_state(content: Any) -> dict[str, TensorPlan]:
    if not isinstance(content, dict):
        return {}
    for part in (*(content.get(section) for section in SECTIONS), content):
        if isinstance(part, dict):
            found = {name: plan for name, plan in part.items() if isinstance(name, str) and isinstance(plan, TensorPlan)}
            if found:
                return found
    return {}


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    try:
        described = read_json(index)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    shards = described.get("weight_map") if isinstance(described, dict) else None
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise CheckpointError(f"{index}: holds no weight_map from names to files")
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(set(shards.values())):
        if Path(shard).name != shard:
            raise CheckpointError(f"{index}: names {shard!r}, which is not a file beside it; refused")
        if not (index.parent / shard).is_file():
            raise CheckpointError(f"{index}: {shard} is missing; get the folder anew")
        tensors.update(read_tensors(index.parent / shard))
    if lost := sorted(shards.keys() - tensors.keys()):
        raise CheckpointError(f"{index}: {len(lost)} tensors are not in their files, first {lost[0]} of {shards[lost[0]]}")
    return tensors

"""Weights and optimiser state in and out of a model, alike for one process, DDP and FSDP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from xllm_speech.base.errors import CheckpointError
from xllm_speech.base.files import atomic_write
from xllm_speech.train.saves import OPTIMIZER, WEIGHTS

PREFIX = "model."  # of the task's model inside `steps.LossModule`


def gather_model(module: nn.Module) -> dict[str, torch.Tensor]:
    """The task's model as a state dict, whole, on the CPU, without frozen parameters, which may be a large language model's;
    {} on ranks other than 0. `module`: the bare `LossModule`.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    state: dict[str, Any] = get_model_state_dict(module, options=options)
    return {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}


def gather_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimiser's state by parameter name, whole, on the CPU; {} on ranks other than 0."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_optimizer_state_dict(module, optimizer, options=options)


def save_weights(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Write tensors as safetensors, unrounded; tensors that share memory (tied weights) are written once for each name."""
    seen: set[int] = set()
    whole: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        whole[name] = tensor.clone() if tensor.untyped_storage().data_ptr() in seen else tensor
        seen.add(tensor.untyped_storage().data_ptr())
    with atomic_write(path, "wb") as stream:  # save_file would let nobody else read it
        stream.write(save(whole, metadata={"format": "pt"}))


def load_checkpoint(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load weights and optimiser state of a checkpoint into a bare `LossModule` and its optimiser.

    Tensors of frozen modules may be absent from the file. Both files are read before anything is changed.

    Raises:
        CheckpointError: a file cannot be read, or its tensors do not fit the model.
    """
    try:
        weights: dict[str, Any] = {PREFIX + name: tensor for name, tensor in load_file(str(folder / WEIGHTS)).items()}
        state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise CheckpointError(f"{folder}: cannot be loaded ({str(error).splitlines()[0]})") from error
    except Exception as error:  # pickle.UnpicklingError and zipfile.BadZipFile share no base
        raise CheckpointError(f"{folder}: {OPTIMIZER} cannot be loaded ({type(error).__name__})") from error
    _check_fit(folder, weights, module)
    options = StateDictOptions(full_state_dict=True, strict=False)
    set_model_state_dict(module, weights, options=options)
    # Rates, decay and the like are the configuration's, not the file's.
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    try:
        set_optimizer_state_dict(module, optimizer, state, options=options)
    except (KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{folder}: {OPTIMIZER} does not fit the model ({str(error).splitlines()[0]})") from error
    for group, own in zip(optimizer.param_groups, groups, strict=True):
        group.update(own)


def _check_fit(folder: Path, weights: dict[str, torch.Tensor], module: nn.Module) -> None:
    expected = module.state_dict()
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    shapes = [name for name in weights.keys() & expected.keys() if weights[name].shape != expected[name].shape]
    for what, names in (
        ("unknown", weights.keys() - expected.keys()), ("missing", trained - weights.keys()), ("of another shape", shapes),
    ):
        if names:
            first = min(names).removeprefix(PREFIX)
            raise CheckpointError(f"{folder}: {WEIGHTS} does not fit the model: {len(names)} tensors {what}, first {first}")

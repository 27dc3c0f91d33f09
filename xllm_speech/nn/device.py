"""Choosing where inference runs."""

from __future__ import annotations

import torch

from xllm_speech.base.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """`auto` (CUDA where there is one), or a device by PyTorch's name; `ConfigError` when it is absent or unknown."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device `{name}` is unknown; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(f"device `{name}`: this machine has {torch.cuda.device_count()} CUDA devices; use cpu")
    return device


def limit_threads(threads: int) -> None:
    """Use this many CPU threads; 0 leaves PyTorch's choice."""
    if threads < 0:
        raise ConfigError(f"threads {threads} must not be negative")
    if threads:
        torch.set_num_threads(threads)

"""Where a run computes: processes, devices, precision, threads and random seeds, through Lightning Fabric."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from xllm_speech.base.errors import ConfigError
from xllm_speech.train.config import TrainConfig


def launch_fabric(config: TrainConfig) -> Fabric:
    """A launched Fabric: this process, the processes torchrun or SLURM started, or `devices` processes started here.

    Raises:
        ConfigError: the device is absent, or fewer are there than asked for.
    """
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    devices, machines = config.devices, 1
    if torch.distributed.is_torchelastic_launched():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        machines = int(os.environ["WORLD_SIZE"]) // devices
    elif "SLURM_NTASKS" in os.environ and "SLURM_PROCID" in os.environ:
        machines = int(os.environ.get("SLURM_NNODES", "1"))
    if device == "cuda":
        found = torch.cuda.device_count()
        if found < devices:
            raise ConfigError(f"train.device cuda: {devices} wanted, torch sees {found}; use train.device=cpu or fewer devices")
    strategy: Strategy | str
    match config.strategy:
        case "auto" if devices * machines == 1:
            strategy = "auto"
        case "auto" | "ddp":
            strategy = DDPStrategy(find_unused_parameters=config.find_unused_parameters)
        case "fsdp":
            strategy = ModelParallelStrategy(_shard, data_parallel_size=devices * machines, tensor_parallel_size=1)
        case other:
            raise ConfigError(f"train.strategy: `{other}` is not one of auto, ddp, fsdp")
    fabric = Fabric(
        accelerator=device, devices=devices, num_nodes=machines, strategy=strategy,
        precision="bf16-mixed" if config.precision == "bf16-mixed" else "32-true",
    )
    fabric.launch()
    return fabric


def _shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard each block of every stack of blocks by itself, so that one at a time is whole, then what remains."""
    data_mesh = mesh["data_parallel"]
    for stack in [part for part in module.modules() if isinstance(part, nn.ModuleList)]:
        for block in stack:
            fully_shard(block, mesh=data_mesh)
    fully_shard(module, mesh=data_mesh)
    return module


@contextlib.contextmanager
def torch_settings(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Set torch's threads and deterministic kernels for the run, and put them back afterwards."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    try:
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        if config.deterministic and device.type == "cpu":
            torch.use_deterministic_algorithms(True, warn_only=True)
            memory.fill_uninitialized_memory = False
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        memory.fill_uninitialized_memory = fill


def derive_seed(*parts: Any) -> int:
    """A 32-bit seed that depends on all of `parts` (numbers and words) and on nothing else."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def reseed(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators, on the CPU and on every GPU in use."""
    random.seed(seed)
    numpy.random.seed(seed)
    # Not torch.manual_seed: without a GPU it formats three stack traces and takes a millisecond.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def leave_processes() -> None:
    """Close the group of processes after a run that ended well: left open, its threads may abort the interpreter's exit."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()

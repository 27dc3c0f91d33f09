"""Random seeds, precision, modes, and devices that are not there."""

from __future__ import annotations

import random
from pathlib import Path

import numpy
import pytest
import torch
from lightning.fabric import Fabric
from safetensors.torch import load_file
from torch import nn
from toy_task import ToyBatch, ToyModel, ToyTask, run_toy

from xllm_speech.base.errors import ConfigError
from xllm_speech.train.config import OptimConfig, TrainConfig
from xllm_speech.train.devices import derive_seed, launch_fabric, reseed
from xllm_speech.train.loop import train


def test_reseeding_covers_all_three_generators() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(numpy.random.rand()), float(torch.rand(()))

    reseed(5)
    first = draw()
    later = draw()
    reseed(5)
    assert draw() == first
    assert all(a != b for a, b in zip(first, later, strict=True))


def test_seeds_of_neighbouring_steps_positions_and_ranks_all_differ() -> None:
    seeds = {derive_seed(1, step, position, rank) for step in range(50) for position in range(4) for rank in range(8)}
    assert len(seeds) == 50 * 4 * 8
    assert derive_seed(1, 23, 0, 0) != derive_seed(12, 3, 0, 0)
    assert derive_seed(1, "init") == derive_seed(1, "init") < 2**32


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_an_absent_gpu_is_a_plain_error() -> None:
    with pytest.raises(ConfigError, match=r"1 wanted, torch sees 0; use train.device=cpu"):
        launch_fabric(TrainConfig(device="cuda"))


def test_mixed_precision_computes_in_bf16_and_keeps_float32_weights(tmp_path: Path) -> None:
    seen: set[torch.dtype] = set()

    class Watching(ToyTask):
        def __init__(self, fabric: Fabric) -> None:
            super().__init__()
            self.model.last.register_forward_hook(lambda module, args, output: seen.add(output.dtype))

    config = TrainConfig(
        device="cpu", num_threads=1, max_steps=30, max_epochs=0, save_every=30, precision="bf16-mixed", tensorboard=False
    )
    result = train(Watching, OptimConfig(lr=0.02, warmup_steps=3), config, tmp_path / "run")
    assert seen == {torch.bfloat16}
    assert {tensor.dtype for name, tensor in load_file(result.final / "model.safetensors").items() if "num" not in name} == {
        torch.float32
    }
    assert result.best is not None
    assert result.best < 60  # chance is 80


def test_modes_and_what_is_frozen(tmp_path: Path) -> None:
    class Watching(ToyTask):
        def __init__(self, fabric: Fabric) -> None:
            super().__init__()
            self.modes: list[tuple[str, bool, bool, bool]] = []
            self.frozen_before = {name: t.clone() for name, t in self.model.frozen.state_dict().items()}

        def prepare_batch(self, batch: ToyBatch, step_seed: int) -> ToyBatch:
            model = self.model
            self.modes.append(("train", model.dropout.training, model.frozen.module.training, torch.is_grad_enabled()))
            return super().prepare_batch(batch, step_seed)

        def evaluate(self, model: nn.Module) -> dict[str, float]:
            assert isinstance(model, ToyModel)
            self.modes.append(("eval", model.dropout.training, model.frozen.module.training, torch.is_grad_enabled()))
            return super().evaluate(model)

    tasks: list[Watching] = []

    def make_task(fabric: Fabric) -> Watching:
        tasks.append(Watching(fabric))
        return tasks[-1]

    config = TrainConfig(device="cpu", num_threads=1, max_steps=4, max_epochs=0, save_every=2, tensorboard=False)
    train(make_task, OptimConfig(lr=0.1, warmup_steps=0, weight_decay=0.5), config, tmp_path / "run")
    work, rest = ("train", True, False, True), ("eval", False, False, False)
    assert tasks[0].modes == [work, work, rest, work, work, rest]
    for name, before in tasks[0].frozen_before.items():
        assert torch.equal(tasks[0].model.frozen.state_dict()[name], before), name


def test_a_seed_decides_the_run(tmp_path: Path) -> None:
    ran = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        random.seed(name)  # what happened in the process before does not matter
        torch.manual_seed(len(ran))
        ran[name] = load_file(run_toy(tmp_path / name, max_steps=3, seed=seed).final / "model.safetensors")["last.weight"]
    assert torch.equal(ran["a"], ran["b"])
    assert not torch.equal(ran["a"], ran["c"])

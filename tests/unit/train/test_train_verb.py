"""`xllm-speech train`: what the verb hands to the loop and says at the end; the task itself is replaced by the toy."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric import Fabric
from toy_task import ToyTask

from xllm_speech.base.errors import ConfigError
from xllm_speech.bin import train as verb
from xllm_speech.train import asr
from xllm_speech.train.config import OptimConfig, TrainConfig


@dataclass
class ToyExperiment:
    size: int = 4
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def make_task(experiment: ToyExperiment, out: Path, fabric: Fabric) -> ToyTask:
        return ToyTask(size=experiment.size)

    monkeypatch.setattr(asr, "AsrExperiment", ToyExperiment)
    monkeypatch.setattr(asr, "AsrTask", make_task)
    config = tmp_path / "toy.yaml"
    config.write_text("size: 6\ntrain: {max_steps: 3, save_every: 2, num_threads: 1, tensorboard: false}\n")

    def call(*options: str) -> str:
        parser = argparse.ArgumentParser()
        verb.add_arguments(parser)
        args = parser.parse_args(["--config", str(config), "--out", str(tmp_path / "out"), "--device", "cpu", *options])
        assert verb.run(args) == 0
        return capsys.readouterr().out

    return call


def test_train_then_nothing_then_further_then_anew(call: Any, tmp_path: Path) -> None:
    assert "finished: 3 steps" in call("optim.lr=0.001")
    settings = json.loads((tmp_path / "out/final/state.json").read_text())["settings"]
    assert (settings["optim"]["lr"], settings["train"]["device"], settings["data"]["size"]) == (0.001, "cpu", 6)
    assert "up to date: 3 steps" in call("optim.lr=0.001")
    said = call("optim.lr=0.001", "train.max_steps=5")
    assert "resuming after step 3" in said
    assert "finished: 5 steps" in said
    with pytest.raises(ConfigError, match=r"optim\.lr: 0.001 -> 0.002"):
        call("optim.lr=0.002")
    said = call("--restart", "optim.lr=0.002")
    assert "out.old-1" in said
    assert "finished: 3 steps" in said
    assert (tmp_path / "out.old-1/final").is_dir()


def test_a_slip_in_an_override_is_named_before_anything_is_written(call: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.max_step`.*train\.max_steps"):
        call("train.max_step=5")
    assert not (tmp_path / "out").exists()

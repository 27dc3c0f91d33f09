"""Runs that are killed, resumed, spoiled, moved and repeated end with the weights of an undisturbed run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_task
from safetensors.torch import load_file
from toy_task import ToyModel, run_toy

from xllm_speech.base.errors import CheckpointError, ConfigError, DataError, UserError
from xllm_speech.base.files import read_jsonl
from xllm_speech.train import saves

# 7 batches an epoch by twos: each epoch ends with a step of one batch, and most checkpoints fall inside an epoch.
RUN: dict[str, Any] = {"max_steps": 14, "accumulate": 2, "save_every": 3}


def start(out: Path, *options: str, processes: int = 1, config: dict[str, Any] | None = None, task: Any = None) -> Any:
    """Run the toy program in its own process(es)."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [
        *launcher, toy_task.__file__, str(out), "--config", json.dumps(RUN | (config or {})), "--task", json.dumps(task or {}),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *options], capture_output=True, text=True, timeout=300, env=environment)


def assert_same_run(one: Path, other: Path) -> None:
    """Same weights, bit for bit; same optimiser state; same development results."""
    ours, theirs = load_file(one / "final/model.safetensors"), load_file(other / "final/model.safetensors")
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    last = f"checkpoints/step_{RUN['max_steps']:08d}/optimizer.pt"
    ours, theirs = (torch.load(run / last, weights_only=True) for run in (one, other))
    assert ours["state"].keys() == theirs["state"].keys()
    assert len(ours["state"]) > 5
    for name, state in ours["state"].items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs["state"][name][key])), (name, key)
    assert ours["param_groups"] == theirs["param_groups"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    run_toy(out, **RUN)
    return out


def test_the_weights_moved_and_randomness_matters(undisturbed: Path, tmp_path: Path) -> None:
    # Else the comparisons below could not fail.
    first, last = (load_file(undisturbed / f"checkpoints/step_{step:08d}/model.safetensors") for step in (3, 14))
    assert (first["first.weight"] - last["first.weight"]).abs().max() > 1e-2
    run_toy(tmp_path / "run", seed=2, **RUN)
    other = load_file(tmp_path / "run/final/model.safetensors")
    assert not torch.equal(other["last.bias"], last["last.bias"])


@pytest.mark.parametrize("kill_at", [2, 12, 19])
def test_killed_and_resumed(undisturbed: Path, tmp_path: Path, kill_at: int) -> None:
    killed = start(tmp_path / "run", "--kill-at", str(kill_at))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "run/final").exists()
    result = run_toy(tmp_path / "run", **RUN)
    assert result.resumed_step == {2: 0, 12: 6, 19: 9}[kill_at]
    assert_same_run(undisturbed, tmp_path / "run")
    rows, expected = (
        [row for _, row in read_jsonl(run / "train.log") if row["kind"] == "dev"] for run in (tmp_path / "run", undisturbed)
    )
    assert rows == expected


@pytest.mark.parametrize("kill_in_save", [1, 2, 4])
def test_killed_while_saving(undisturbed: Path, tmp_path: Path, kill_in_save: int) -> None:
    killed = start(tmp_path / "run", task={"kill_in_save": kill_in_save})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list((tmp_path / "run").rglob(".*.part")), "it was killed between two saves"
    run_toy(tmp_path / "run", **RUN)
    assert_same_run(undisturbed, tmp_path / "run")
    assert not list((tmp_path / "run").rglob(".*.part"))


def test_stopped_after_every_single_step(undisturbed: Path, tmp_path: Path) -> None:
    for step in range(1, 15):
        run_toy(tmp_path / "run", **(RUN | {"max_steps": step}))
    assert_same_run(undisturbed, tmp_path / "run")


def test_gradient_and_resume_are_alike_on_two_processes(tmp_path: Path) -> None:
    """One process, then the same in two: 5 steps with DDP, the rest with FSDP from DDP's checkpoint."""
    task = {"dropout": 0, "noise": 0, "norm": False, "size": 6, "poison": [5]}
    run_toy(tmp_path / "one", task, **RUN)
    for strategy, max_steps in (("ddp", 5), ("fsdp", 14)):
        done = start(
            tmp_path / "two", processes=2, task=task, config={"strategy": strategy, "max_steps": max_steps}
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming after step 5" in done.stdout
    ours, theirs = (load_file(tmp_path / run / "final/model.safetensors") for run in ("one", "two"))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6, msg=name)
    # The batch with a NaN is skipped by both processes alike and all of its half with the NaN is named.
    skipped = [row for _, row in read_jsonl(tmp_path / "two/train.log") if row["kind"] == "skipped"]
    assert [row["step"] for row in skipped] == [3, 7, 11]
    assert skipped[0]["ids"] == ["e0-b5-u0", "e0-b5-u2", "e0-b5-u4"]


def truncate(checkpoint: Path) -> None:
    with open(checkpoint / "optimizer.pt", "r+b") as stream:
        stream.truncate(1000)


def scramble(name: str) -> Any:
    def change(checkpoint: Path) -> None:
        with open(checkpoint / name, "r+b") as stream:
            stream.write(b"\xff" * 200)

    return change


def make_foreign(checkpoint: Path) -> None:
    (checkpoint / "state.json").write_text('{"epoch": 3}')


def shrink_model(checkpoint: Path) -> None:
    state = load_file(checkpoint / "model.safetensors")
    del state["last.bias"]
    from safetensors.torch import save_file

    save_file(state, checkpoint / "model.safetensors")
    record = json.loads((checkpoint / "state.json").read_text())
    record["files"]["model.safetensors"] = (checkpoint / "model.safetensors").stat().st_size
    (checkpoint / "state.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncate, "optimizer.pt is 1000 bytes"),
        (scramble("optimizer.pt"), "optimizer.pt cannot be loaded"),
        (scramble("model.safetensors"), "cannot be loaded"),
        (lambda path: (path / "state.json").unlink(), "no usable state.json"),
        (make_foreign, "format"),
        (shrink_model, "1 tensors missing, first last.bias"),
    ],
    ids=["truncated", "scrambled optimizer", "scrambled weights", "no state", "foreign", "a tensor less"],
)
def test_a_broken_checkpoint_is_named_and_passed_over(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, words: str
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/final")
    shutil.rmtree(tmp_path / "run/checkpoints/step_00000014")
    spoil(tmp_path / "run/checkpoints/step_00000012")
    result = run_toy(tmp_path / "run", **RUN)
    assert result.resumed_step == 9
    said = capsys.readouterr().out
    assert "passed over" in said
    assert "step_00000012" in said
    assert words in said
    assert_same_run(undisturbed, tmp_path / "run")


def test_no_usable_checkpoint_is_an_error_and_restart_keeps_the_old_run(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    for checkpoint in (tmp_path / "run/checkpoints").iterdir():
        truncate(checkpoint)
    with pytest.raises(CheckpointError, match=r"none of its 5 checkpoints.*--restart"):
        run_toy(tmp_path / "run", **RUN)
    run_toy(tmp_path / "run", restart=True, **RUN)
    assert_same_run(undisturbed, tmp_path / "run")
    assert len(list((tmp_path / "run.old-1/checkpoints").iterdir())) == 5


def test_other_settings_are_refused_by_name_and_harmless_ones_are_not(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"optim.lr: 0.01 -> 0.02; train.clip_norm: 5.0 -> 1.0"):
        run_toy(tmp_path / "run", optim={"lr": 0.02}, **(RUN | {"clip_norm": 1.0}))
    with pytest.raises(ConfigError, match=r"data\.size: 4 -> 6"):
        run_toy(tmp_path / "run", {"size": 6}, **RUN)
    result = run_toy(tmp_path / "run", **(RUN | {"max_steps": 15, "log_every": 1, "save_every": 50, "keep_last": 2}))
    assert result.step == 15
    assert result.resumed_step == 14


def test_a_finished_run_is_up_to_date(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != ".lock"}
    result = run_toy(tmp_path / "run", **RUN)
    assert result.up_to_date
    best = json.loads((undisturbed / "best/state.json").read_text())
    assert (result.step, result.best_step) == (14, best["progress"]["step"])
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != ".lock"}
    # Killed between the last checkpoint and `final`: made from the checkpoint, nothing is trained.
    shutil.rmtree(tmp_path / "run/final")
    again = run_toy(tmp_path / "run", **RUN)
    assert not again.up_to_date
    assert_same_run(undisturbed, tmp_path / "run")


def test_the_run_may_be_moved_and_its_model_directories_stand_alone(undisturbed: Path, tmp_path: Path) -> None:
    run_toy(tmp_path / "before", **(RUN | {"max_steps": 8}))
    shutil.move(tmp_path / "before", tmp_path / "after")
    run_toy(tmp_path / "after", **RUN)
    assert_same_run(undisturbed, tmp_path / "after")
    for name in ("best", "final"):
        folder = tmp_path / "after" / name
        assert not any(path.is_symlink() for path in folder.iterdir())
        assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.yaml", "state.json"}
        model = ToyModel(0.1, True)
        assert model.load_state_dict(load_file(folder / "model.safetensors"), strict=False).unexpected_keys == []


def test_epochs_end_a_run_and_the_last_checkpoint_tells_so(tmp_path: Path) -> None:
    config: dict[str, Any] = {"max_epochs": 2, "accumulate": 2, "save_every": 4}
    result = run_toy(tmp_path / "run", **config)
    assert (result.step, result.epoch) == (8, 2)
    assert run_toy(tmp_path / "run", **config).up_to_date
    longer = run_toy(tmp_path / "run", **(config | {"max_epochs": 3}))
    assert (longer.step, longer.resumed_step) == (12, 8)
    run_toy(tmp_path / "whole", **(config | {"max_epochs": 3}))
    ours, theirs = (load_file(tmp_path / run / "final/model.safetensors") for run in ("run", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_no_data_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="epoch 0 has no batch"):
        run_toy(tmp_path / "run", {"batches": 0}, **RUN)


def test_kept_checkpoints_are_the_last_and_the_best(tmp_path: Path) -> None:
    run_toy(tmp_path / "run", max_steps=20, save_every=1, keep_last=2, keep_best=3)
    checkpoints = saves.list_checkpoints(tmp_path / "run", lambda text: None)
    rows = [row for _, row in read_jsonl(tmp_path / "run/train.log") if row["kind"] == "dev"]
    assert len(rows) == 20
    best = sorted(rows, key=lambda row: (row["error"], -row["step"]))[:3]
    assert [c.progress.step for c in checkpoints] == sorted({19, 20, *(row["step"] for row in best)})
    assert {c.path.name for c in checkpoints} == {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    best_run = json.loads((tmp_path / "run/best/state.json").read_text())
    assert best_run["metrics"]["error"] == best[0]["error"]


def test_a_run_in_use_is_refused(tmp_path: Path) -> None:
    with saves.lock(tmp_path / "run"), pytest.raises(UserError, match="another training run"):
        run_toy(tmp_path / "run", **RUN)


def test_a_full_disk_leaves_the_checkpoint_before(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_weights = toy_task.save_weights
    full = False

    def fill(path: Path, state: dict[str, torch.Tensor]) -> None:
        save_weights(path, state)
        if full:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(toy_task, "save_weights", fill)
    run_toy(tmp_path / "run", **(RUN | {"max_steps": 6}))
    full = True
    with pytest.raises(UserError, match="No space left on device"):
        run_toy(tmp_path / "run", **RUN)
    assert not list((tmp_path / "run").rglob(".*.part"))
    full = False
    run_toy(tmp_path / "run", **RUN)
    assert_same_run(undisturbed, tmp_path / "run")


def test_torch_settings_are_put_back(tmp_path: Path) -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run_toy(tmp_path / "run", **(RUN | {"max_steps": 1}))
        assert torch.get_num_threads() == 2
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.set_num_threads(threads)


def test_curves_and_log_go_on_where_the_run_resumes(tmp_path: Path) -> None:
    config = RUN | {"log_every": 1, "tensorboard": True}
    run_toy(tmp_path / "run", **(config | {"max_steps": 5}))
    # What a killed process leaves: rows after its last checkpoint, and half a line.
    with open(tmp_path / "run/train.log", "a", encoding="utf-8") as stream:
        stream.write('{"kind": "train", "step": 6, "loss": 9.0}\n{"kind": "tr')
    run_toy(tmp_path / "run", **config)
    rows = [row for _, row in read_jsonl(tmp_path / "run/train.log") if row["kind"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, 15))
    assert {"loss", "ce", "size", "accuracy", "lr", "grad_norm", "audio_sec_per_sec"} <= rows[-1].keys()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 15))
    assert events.Scalars("train/loss")[-1].value == pytest.approx(rows[-1]["loss"], rel=1e-5)
    header = json.loads((tmp_path / "run/header.json").read_text())
    assert (header["seed"], header["resumed_step"], header["processes"]) == (1, 5, 1)

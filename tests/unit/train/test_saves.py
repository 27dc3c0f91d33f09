"""What killed processes leave behind, and names of runs set aside."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from xllm_speech.train.saves import clean_leftovers, flatten, move_aside
from xllm_speech.train.weights import save_weights


def test_leftovers_go_and_a_directory_half_replaced_comes_back(tmp_path: Path) -> None:
    # Killed between moving `best` aside and putting the new one in its place.
    (tmp_path / ".best.x1y2.old").mkdir()
    (tmp_path / ".best.x1y2.old/model.safetensors").write_text("old")
    (tmp_path / ".best.abcd.part").mkdir()
    (tmp_path / ".final.abcd.old").mkdir()  # made, nothing moved into it yet
    (tmp_path / "final").mkdir()
    (tmp_path / "checkpoints/.step_00000001.doomed").mkdir(parents=True)
    (tmp_path / ".train.log.q1.part").write_text("")
    clean_leftovers(tmp_path)
    assert (tmp_path / "best/model.safetensors").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "checkpoints", "final"]
    assert not list((tmp_path / "checkpoints").iterdir())


def test_runs_set_aside_never_overwrite_each_other(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        (tmp_path / "run").mkdir()
        (tmp_path / f"run/{number}").touch()
        assert move_aside(tmp_path / "run") == tmp_path / f"run.old-{number}"
    assert move_aside(tmp_path / "run") is None
    assert (tmp_path / "run.old-2/2").exists()


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}


def test_tied_weights_are_written_under_each_name(tmp_path: Path) -> None:
    weight = torch.randn(3, 4)
    save_weights(tmp_path / "w.safetensors", {"one": weight, "two": weight, "part": weight[:, 1:]})
    state = load_file(tmp_path / "w.safetensors")
    assert torch.equal(state["one"], weight)
    assert torch.equal(state["two"], weight)
    assert torch.equal(state["part"], weight[:, 1:])

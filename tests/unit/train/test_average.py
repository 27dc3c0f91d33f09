"""The average of checkpoints, against numpy in double precision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_task import ToyModel, run_toy

from xllm_speech.base.errors import CheckpointError, ConfigError
from xllm_speech.base.files import read_jsonl, sha256_file
from xllm_speech.bin import average as verb
from xllm_speech.train.average import average_checkpoints


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("average") / "run"
    run_toy(out, max_steps=10, save_every=2, eval_every=4)  # evaluated at 4, 8 and the end
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoints/step_{step:08d}/model.safetensors")


def test_last(run: Path) -> None:
    average = average_checkpoints(run, last=3)
    assert [c.progress.step for c in average.checkpoints] == [6, 8, 10]
    ours = load_file(run / "average/model.safetensors")
    states = [weights(run, step) for step in (6, 8, 10)]
    assert ours.keys() == states[0].keys()
    for name, tensor in ours.items():
        assert tensor.dtype == states[0][name].dtype
        if tensor.is_floating_point():
            mean = numpy.mean([state[name].double().numpy() for state in states], axis=0)
            numpy.testing.assert_array_equal(tensor.numpy(), mean.astype(numpy.float32), err_msg=name)
        else:
            assert int(tensor) == int(states[-1][name]) == 10, name
    record = json.loads((run / "average/averaged.json").read_text())
    assert [row["name"] for row in record["checkpoints"]] == ["step_00000006", "step_00000008", "step_00000010"]
    assert record["checkpoints"][0]["sha256"] == sha256_file(run / "checkpoints/step_00000006/model.safetensors")
    assert record["sha256"] == sha256_file(run / "average/model.safetensors")
    assert {path.name for path in (run / "average").iterdir()} == {"model.safetensors", "config.yaml", "averaged.json"}
    assert ToyModel(0.1, True).load_state_dict(ours, strict=False).unexpected_keys == []


def test_folders_inside_a_model_directory_come_along_whole(run: Path) -> None:
    inside = run / "checkpoints/step_00000010/visual"
    inside.mkdir()
    for name in ("model.safetensors", "state.json", "optimizer.pt"):  # names that are special one level up
        (inside / name).write_text(name)
    average_checkpoints(run, last=1)
    assert {path.name: path.read_text() for path in (run / "average/visual").iterdir()} == {
        name: name for name in ("model.safetensors", "state.json", "optimizer.pt")
    }


def test_best_ranks_by_the_dev_metric_and_leaves_out_what_was_not_evaluated(run: Path, tmp_path: Path) -> None:
    rows = [row for _, row in read_jsonl(run / "train.log") if row["kind"] == "dev"]
    assert [row["step"] for row in rows] == [4, 8, 10]
    expected = sorted(row["step"] for row in sorted(rows, key=lambda row: (row["error"], -row["step"]))[:2])
    average = average_checkpoints(run, best=2, out=tmp_path / "elsewhere")
    assert [c.progress.step for c in average.checkpoints] == expected
    assert (tmp_path / "elsewhere/model.safetensors").exists()
    assert not (run / "average").exists()


def test_more_than_there_are_uses_all_with_a_word(run: Path) -> None:
    words: list[str] = []
    assert len(average_checkpoints(run, last=50, say=words.append).checkpoints) == 5
    assert words == ["50 wanted, 5 checkpoints exist: averaging all of them"]
    words.clear()
    assert len(average_checkpoints(run, best=4, say=words.append).checkpoints) == 3
    assert words == ["4 wanted, 3 evaluated checkpoints exist: averaging all of them"]


def test_sums_are_kept_in_double_precision(run: Path) -> None:
    # In float32, 1e8 + 1 + 1 + ... would lose every 1; in half precision 60000 + 60000 would overflow.
    for step, value, half in ((6, 1e8, 60000.0), (8, 1.0, 60000.0), (10, 1.0, 60000.0)):
        state = {"x": torch.tensor([value]), "h": torch.tensor([half], dtype=torch.float16), "n": torch.tensor(step)}
        path = run / f"checkpoints/step_{step:08d}"
        save_file(state, path / "model.safetensors")
        record = json.loads((path / "state.json").read_text())
        record["files"]["model.safetensors"] = (path / "model.safetensors").stat().st_size
        (path / "state.json").write_text(json.dumps(record))
    average_checkpoints(run, last=3)
    ours = load_file(run / "average/model.safetensors")
    assert float(ours["x"]) == float(numpy.float32((1e8 + 2) / 3))
    assert (ours["h"].dtype, float(ours["h"]), int(ours["n"])) == (torch.float16, 60000.0, 10)
    with pytest.raises(CheckpointError, match="tensors differ in shape"):
        average_checkpoints(run, last=4)  # step 4 is still the toy


def test_errors_say_what_exists(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoints here"):
        average_checkpoints(tmp_path / "nowhere", last=2)
    with pytest.raises(ConfigError, match="K at least 1"):
        average_checkpoints(run, last=0)
    with pytest.raises(ConfigError, match="one of them"):
        average_checkpoints(run, last=2, best=2)
    for step in (4, 8, 10):
        shutil.rmtree(run / f"checkpoints/step_{step:08d}")
    with pytest.raises(CheckpointError, match=r"none .* evaluated \(step_00000002, step_00000006\)"):
        average_checkpoints(run, best=1)


def test_a_damaged_file_stops_it_and_leaves_the_earlier_average(run: Path) -> None:
    average_checkpoints(run, last=1)
    before = sha256_file(run / "average/model.safetensors")
    with open(run / "checkpoints/step_00000008/model.safetensors", "r+b") as stream:
        stream.write(b"\xff" * 100)
    with pytest.raises(CheckpointError, match="step_00000008"):
        average_checkpoints(run, last=3)
    assert sha256_file(run / "average/model.safetensors") == before
    assert sorted(path.name for path in run.iterdir() if path.name.startswith(".")) == [".lock"]


def test_verb(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    assert verb.run(parser.parse_args([str(run), "--last", "2"])) == 0
    said = capsys.readouterr().out
    assert "step_00000008  error" in said
    assert f"average of 2 -> {run / 'average'}" in said

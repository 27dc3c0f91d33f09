"""`xllm-speech convert`: what it writes, prints and refuses."""

from __future__ import annotations

import argparse
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from xllm_speech.base.errors import CheckpointError
from xllm_speech.bin import convert
from xllm_speech.encoders.eva import EvaSizes, build_eva
from xllm_speech.encoders.vision import load_vision_encoder
from xllm_speech.models.foreign import load
from xllm_speech.models.foreign.load import load_foreign

SIZES = EvaSizes(image_size=8, patch_size=4, width=32, depth=2, feedforward=24)


def call(*words: object) -> int:
    parser = argparse.ArgumentParser(prog="convert")
    convert.add_arguments(parser)
    return convert.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def eva(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    state = {name: torch.randn_like(value).half() for name, value in build_eva(SIZES).state_dict().items()}
    (tmp_path / "source").mkdir()
    file = tmp_path / "source" / "eva.pth"
    (tmp_path / "source" / "eva.json").write_text(json.dumps({"heads": 16}))
    torch.save(state | {"fc_norm.weight": torch.ones(32), "fc_norm.bias": torch.ones(32)}, file)
    return file


def test_writes_weights_and_report_that_load_again(eva: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert call("--from", "eva", eva, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "blocks.N.attn.qkv.weight x 2" in printed
    assert "vision.blocks.N.attn.qkv.weight" in printed
    assert "fc_norm.weight" in printed
    assert "no norm at the end" in printed
    assert "encoders.vision.kind=eva" in printed
    assert printed.endswith(f"30 tensors -> {out}\n")
    stored = load_file(out / "model.safetensors")
    state, report = load_foreign(eva, layout="eva")
    assert stored.keys() == state.keys()
    assert all(torch.equal(stored[name], state[name]) and stored[name].dtype == torch.float16 for name in state)
    written = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(report.to_dict()))
    assert written["layout"] == "eva"
    assert written["renamed"]["cls_token"] == ["vision.cls_token"]
    ours, theirs = (load_vision_encoder("eva", str(path)) for path in (out, eva))
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(ours.network(x), theirs.network(x))
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((out / "model.safetensors").stat().st_mode) == 0o666 & ~mask


def test_dry_run_writes_nothing_and_json_is_complete(eva: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert call("--from", "eva", eva, "--dry-run", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["used"]["blocks.1.norm1.bias"] == ["vision.blocks.1.norm1.bias"]
    assert set(printed["ignored"]) == {"fc_norm.weight", "fc_norm.bias"}
    assert call("--from", "eva", eva, "--dry-run") == 0
    assert "(nothing written)" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


def test_what_several_names_share_is_written_for_each(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    report = load.ForeignReport("lavis")
    load.save_converted(tmp_path / "out", {"a": shared, "b": shared, "c": shared[1:3], "d": shared.view(2, 2).T}, report)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(stored["a"], shared)
    assert torch.equal(stored["b"], shared)
    assert torch.equal(stored["c"], shared[1:3])
    assert torch.equal(stored["d"], shared.view(2, 2).T)


def test_an_earlier_conversion_is_replaced_and_nothing_else(eva: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call("--from", "eva", eva, "--out", out)
    (out / "extra").write_text("x")
    call("--from", "eva", eva, "--out", out)
    assert not (out / "extra").exists()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("x")
    with pytest.raises(CheckpointError, match=r"precious: exists and is no earlier conversion; name another --out"):
        call("--from", "eva", eva, "--out", precious)
    assert (precious / "thesis.tex").exists()
    with pytest.raises(CheckpointError, match=r"holds .*model\.safetensors, which is being converted"):
        call("--from", "eva", out / "model.safetensors", "--out", out)


def test_a_failure_leaves_nothing(eva: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(load, "write_json", fail)
    with pytest.raises(KeyboardInterrupt):
        call("--from", "eva", eva, "--out", tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == [eva.parent]


@pytest.mark.parametrize("words", [("--from", "eva"), ("--from", "eva", "x"), ("x", "--out", "y"),
                                   ("--from", "eva", "x", "--out", "y", "--dry-run")])  # fmt: skip
def test_wrong_command_lines(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit, match="2"):
        call(*words)

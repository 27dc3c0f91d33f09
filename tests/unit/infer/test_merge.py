"""Interfaces trained apart as one model, and the folder that `xllm-speech export` writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import World, make_llm, xllm_settings

from xllm_speech.base.config import config_from_dict
from xllm_speech.base.errors import CheckpointError
from xllm_speech.bin.main import main
from xllm_speech.infer.merge import merge_interfaces
from xllm_speech.infer.xllm import XLLM
from xllm_speech.llm.loading import load_llm
from xllm_speech.models.xllm_checkpoints import XllmDescription, build_xllm, hash_parts, save_xllm
from xllm_speech.models.xllm_config import XllmConfig


def align(world: World, folder: Path, kind: str, llm: Path | None = None) -> Path:
    """A phase 2 directory with weights by chance; its configuration names no encoder but its own."""
    torch.manual_seed(len(kind))
    value = xllm_settings(world)
    value["llm"] = {"path": str(llm or world.llm)}
    del value["encoders"]["vision" if kind == "speech" else "asr"]  # type: ignore[attr-defined]
    config = config_from_dict(value, XllmConfig)
    config.interfaces.kinds = [kind]
    model = build_xllm(config, load_llm(config.llm.path))
    plan = model.start_phase(2, [kind])
    folder.mkdir(parents=True)
    save_xllm(folder, model.state_dict(), XllmDescription(
        phase=2, kinds=[kind], parts=list(plan.parts), model=config, frozen_sha256=hash_parts(config)
    ))
    return folder


def test_interfaces_trained_apart_answer_as_one(world: World, tmp_path: Path) -> None:
    paths = {kind: align(world, tmp_path / kind, kind) for kind in ("image", "speech")}
    state = merge_interfaces(paths).model.state_dict()
    for kind, path in paths.items():
        for name, tensor in load_file(path / "model.safetensors").items():
            assert torch.equal(state[name], tensor), (kind, name)
    out = tmp_path / "joined"
    words = [word for kind, path in paths.items() for word in ("--interface", f"{kind}={path}")]
    assert main(["export", *words, "--out", str(out)]) == 0
    picture, wave = {"type": "image", "path": str(world.folder / "images/0.png")}, {
        "type": "speech", "path": str(world.folder / "speech/u0.wav")}
    ask = [{"role": "user", "content": [picture, wave]}]
    moved = out.rename(tmp_path / "elsewhere")
    text = XLLM.from_pretrained(moved).chat(ask, max_new_tokens=4)
    script = f"from xllm_speech import XLLM; print(repr(XLLM.from_pretrained({str(moved)!r}).chat({ask!r}, max_new_tokens=4)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd="/", timeout=120, check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert done.stdout.strip() == repr(text)


def test_interfaces_for_different_llms_are_not_joined(world: World, tmp_path: Path, capsys) -> None:
    image = align(world, tmp_path / "image", "image")
    speech = align(world, tmp_path / "speech", "speech", make_llm(tmp_path / "llm", seed=5))
    with pytest.raises(CheckpointError, match=r"parents.speech: \S*: was trained with another llm"):
        merge_interfaces({"image": image, "speech": speech})
    assert main(["export", "--interface", str(image), "--out", str(tmp_path / "x")]) == 1
    assert "expected KIND=DIR" in capsys.readouterr().err


def test_the_card_tells_what_is_inside(world: World, tmp_path: Path) -> None:
    image = align(world, tmp_path / "image", "image")
    scores = tmp_path / "metrics.json"
    scores.write_text(json.dumps({"image": {"question_accuracy": 65.25}, "minutes": {"0": 1.0}}))
    out = tmp_path / "out"
    words = ["export", "--model", str(image), "--out", str(out), "--scores", str(scores), "--data", "Drawn pictures."]
    assert main([*words, "--without-frozen"]) == 0
    card = (out / "README.md").read_text(encoding="utf-8")
    described = yaml.safe_load((out / "model.yaml").read_text())
    assert f"`{described['frozen_sha256']['llm'][:12]}`" in card
    assert "image / question_accuracy | 65.25" in card
    assert "Drawn pictures." in card
    assert "minutes" not in card
    assert described["complete"] is True

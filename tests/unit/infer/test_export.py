"""Frozen parts as they are copied: without leftovers of trainings or code, with what an ASR model names by path."""

from __future__ import annotations

import yaml

from xllm_speech.infer.export import _copy


def test_leftovers_and_code_stay_behind(xllm_parts, tmp_path):
    source = tmp_path / "llm"
    source.mkdir()
    for path in xllm_parts["llm"].iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    before = {path.name for path in source.iterdir()}
    for name in ("optimizer.pt", "state.json", "modeling_chatglm.py", ".lock"):
        (source / name).write_text("x")
    (tmp_path / "out").mkdir()
    assert _copy(source, tmp_path / "out" / "llm") == "llm"
    assert {path.name for path in (tmp_path / "out" / "llm").iterdir()} == before
    weights = tmp_path / "eva.pth"
    weights.write_bytes(b"weights")
    assert _copy(weights, tmp_path / "out" / "vision") == "vision/eva.pth"
    assert (tmp_path / "out" / "vision" / "eva.pth").read_bytes() == b"weights"


def test_encoders_that_an_asr_model_names_come_along(model_dir, tmp_path):
    source, clip = tmp_path / "asr", tmp_path / "clip"
    for folder in (source, clip):
        folder.mkdir()
    for path in model_dir.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    (clip / "model.safetensors").write_bytes(b"weights")
    described = yaml.safe_load((source / "model.yaml").read_text())
    described["model"]["visual"] |= {"kind": "clip", "path": str(clip)}
    (source / "model.yaml").write_text(yaml.safe_dump(described))
    (tmp_path / "out").mkdir()
    assert _copy(source, tmp_path / "out" / "asr") == "asr"
    copied = yaml.safe_load((tmp_path / "out" / "asr" / "model.yaml").read_text())
    assert copied["model"]["visual"]["path"] == "visual"
    assert (tmp_path / "out" / "asr" / "visual" / "model.safetensors").read_bytes() == b"weights"
    assert copied["model"]["linguistic"] == described["model"]["linguistic"]

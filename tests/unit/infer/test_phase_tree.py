"""What `phases` shows: models by phase with sizes, cost and hashes; parents that changed or are gone are marked."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from xllm_speech.base.errors import DataError
from xllm_speech.base.files import sha256_file, write_json, write_jsonl
from xllm_speech.bin.main import main
from xllm_speech.infer.phase_tree import PhaseReader, count_parameters, read_cost
from xllm_speech.models.checkpoints import WEIGHTS
from xllm_speech.models.xllm_checkpoints import Parent


def numbers(path):
    """Numbers in a weights file, counted by loading it."""
    return sum(tensor.numel() for tensor in load_file(path).values())


@pytest.fixture
def exp(tmp_path, xllm_parts, save_xllm_on):
    """An experiment folder with frozen parts, phases 1, 2 and 3; phase 3 holds adapters alone."""
    exp = tmp_path / "exp"
    parts = {}
    for name, place in (("llm", "lm/final"), ("vision", "vision"), ("asr", "asr/average")):
        shutil.copytree(xllm_parts[name], exp / place)
        parts[name] = exp / place
    write_json(exp / "asr" / "header.json", {"threads": 2, "processes": 3, "trained_parameters": 77})
    steps = [{"kind": "train", "step": 10, "step_sec": 2.0}, {"kind": "train", "step": 15, "step_sec": 4.0}]
    write_jsonl(exp / "asr" / "train.log", [steps[0], {"kind": "dev", "step": 10}, steps[1]])
    shutil.copytree(exp / "asr" / "average", exp / "asr" / "checkpoints" / "step_00000010")
    parents = {}
    for kind in ("image", "speech"):
        folder = save_xllm_on(exp / kind / "final", parts, [kind], phase=2)
        write_json(exp / kind / "header.json", {"threads": 1, "processes": 1})
        parents[kind] = Parent(str(folder), sha256_file(folder / WEIGHTS))
        # as a training leaves it, not as an export
        described = (folder / "model.yaml").read_text().replace("complete: true", "complete: false")
        (folder / "model.yaml").write_text(described)
    save_xllm_on(
        exp / "integrate" / "final", parts, ["image", "speech"], trained=["image.adapter", "speech.adapter"], parents=parents
    )
    return exp


def test_phases_with_sizes_cost_and_parents(exp):
    nodes = {node.path: node for node in PhaseReader(exp).read()}
    assert list(nodes) == ["lm/final", "vision", "asr/average", "image/final", "speech/final", "integrate/final"]
    assert [node.phase for node in nodes.values()] == [0, 0, 1, 2, 2, 3]
    assert not [node.error for node in nodes.values() if node.error]
    llm, vision = numbers(exp / "lm/final" / WEIGHTS), numbers(exp / "vision" / WEIGHTS)
    asr = nodes["asr/average"]
    assert (asr.trained, asr.steps, asr.wall_sec, asr.core_sec) == (77, 15, 40.0, 240.0)
    image, last = nodes["image/final"], nodes["integrate/final"]
    assert (nodes["lm/final"].frozen, nodes["vision"].frozen) == (llm, vision)
    assert image.trained == numbers(exp / "image/final" / WEIGHTS)
    assert image.frozen == llm + vision
    assert image.kinds == ["image"]
    whole = image.trained + nodes["speech/final"].trained
    assert last.trained == numbers(exp / "integrate/final" / WEIGHTS)
    assert last.frozen == llm + vision + numbers(exp / "asr/average" / WEIGHTS) + whole - last.trained
    links = {link.part: link for link in last.parents}
    assert set(links) == {"llm", "vision", "asr", "image interface", "speech interface"}
    assert {link.state for node in nodes.values() for link in node.parents} == {"same"}
    assert links["image interface"].path == "image/final"
    assert links["image interface"].sha256 == image.sha256
    assert links["asr"].sha256 == asr.sha256


def test_a_parent_that_changed_or_is_gone_is_marked(exp, capsys):
    weights = load_file(exp / "image/final" / WEIGHTS)
    save_file({name: tensor + 1 for name, tensor in weights.items()}, exp / "image/final" / WEIGHTS)
    shutil.rmtree(exp / "speech")
    (exp / "integrate" / "broken").mkdir()
    (exp / "integrate" / "broken" / "model.yaml").write_text("format: xllm-1\nphase: [\n")
    assert main(["phases", str(exp)]) == 0
    lines = capsys.readouterr().out.splitlines()
    changed = next(line for line in lines if "on image interface" in line)
    now = sha256_file(exp / "image/final" / WEIGHTS)
    assert changed.endswith(f"parent changed: is {now[:12]} now")
    assert next(line for line in lines if "on speech interface" in line).endswith("parent missing")
    assert not [line for line in lines if "on llm" in line and "parent" in line]
    assert any("broken" in line and "cannot be read" in line for line in lines)
    assert main(["phases", str(exp), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["models"]
    states = {link["part"]: link["state"] for model in told if model["phase"] == 3 for link in model["parents"]}
    assert states == {
        "llm": "same", "vision": "same", "asr": "same", "image interface": "changed", "speech interface": "missing"
    }
    last = next(model for model in told if model["phase"] == 3)
    assert last["frozen"] is None  # what stood in the lost parent cannot be counted
    assert len(last["sha256"]) == 64


def test_the_tree_is_readable_in_a_pipe(exp, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["phases", str(exp)]) == 0
    out = capsys.readouterr().out
    assert "asr/average  CIF ASR: speech  " in out
    assert "77 parameters trained, 0 frozen; 15 steps in 40 s, 4 min of cores" in out
    assert "\x1b" not in out
    assert [line for line in out.splitlines() if line.endswith(" phase 3, integrate")]
    assert max(map(len, (line.rstrip() for line in out.splitlines()))) < 200


def test_folders_without_a_model_are_refused(tmp_path, capsys):
    assert main(["phases", str(tmp_path / "nowhere")]) == 1
    assert "no such folder" in capsys.readouterr().err
    with pytest.raises(DataError, match="holds no model of any phase"):
        PhaseReader(tmp_path).read()


def test_counting_and_cost_where_files_are_odd(tmp_path):
    import torch

    assert count_parameters(tmp_path) is None
    (tmp_path / "pytorch_model.bin").write_bytes(b"nothing")
    assert count_parameters(tmp_path) is None
    torch.save({"a": torch.zeros(3, 4), "b": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    assert count_parameters(tmp_path) == 14
    assert read_cost(tmp_path) == (0, 0.0)

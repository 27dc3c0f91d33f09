"""Phases 2 and 3 in the real loop, on frozen parts by chance: what trains, what is kept, and that ranks stay in step."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny import World, make_llm, xllm_settings

from xllm_speech.base.config import load_config
from xllm_speech.base.errors import CheckpointError, ConfigError
from xllm_speech.bin.main import main
from xllm_speech.infer.xllm import XLLM
from xllm_speech.manifests.conversations import read_conversations
from xllm_speech.models.xllm_checkpoints import load_xllm
from xllm_speech.train.xllm import XllmExperiment

STEPS = {
    "max_steps": 4, "max_epochs": 0, "save_every": 2, "eval_every": 4, "num_threads": 1, "tensorboard": False, "log_every": 2,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settings(world: World, task: str, sources: Sequence[str], **more: Any) -> dict[str, Any]:
    """A configuration; sources: tasks of the data."""
    rows = [{"path": str(world.cuts if name in ("asr", "masr") else world.talks), "tasks": [name]} for name in sources]
    return {
        "task": task, "model": xllm_settings(world), "eval_items": 3, "eval_tokens": 6,
        "data": {"train": rows, "dev": rows, "batch_size": 3},
        "optim": {"lr": 1e-3, "schedule": "constant", "warmup_steps": 0, "init_lr": 0.0}, "train": dict(STEPS), **more,
    }


def run(folder: Path, value: dict[str, Any], *words: str, out: Path | None = None) -> Path:
    """`xllm-speech train` with this configuration; returns the run's folder."""
    out = folder / "out" if out is None else out
    config = folder / f"{out.name}.yaml"
    config.write_text(yaml.safe_dump(value))
    assert main(["train", "--config", str(config), "--out", str(out), *words]) == 0
    return out


@pytest.fixture(scope="module")
def exp(world: World, tmp_path_factory) -> Path:
    """exp/{image,speech,video}: phase 2 of each interface."""
    folder = tmp_path_factory.mktemp("exp")
    run(folder, settings(world, "align", ["caption", "vl"], kind="image"), out=folder / "image")
    run(folder, settings(world, "align", ["asr"], kind="speech"), out=folder / "speech")
    parents = {"image": str(folder / "image")}
    run(folder, settings(world, "align", ["video"], kind="video", parents=parents), out=folder / "video")
    return folder


MIXED = ("vsd", "video", "caption", "asr", "masr", "text")


def integrate(world: World, exp: Path, sources: tuple[str, ...] = MIXED, **more: Any):
    parents = {kind: str(exp / kind) for kind in ("image", "video", "speech")}
    return settings(world, "integrate", sources, parents=parents, **more)


def test_phase_2_trains_each_interface_by_itself(exp: Path) -> None:
    for kind in ("image", "speech", "video"):
        names = load_file(exp / kind / "final/model.safetensors")
        assert all(name.startswith(f"interfaces.{kind}.") for name in names)
        row = [json.loads(line) for line in (exp / kind / "train.log").read_text().splitlines()]
        assert [one["error"] for one in row if one["kind"] == "dev"]
    described = yaml.safe_load((exp / "video/final/model.yaml").read_text())
    assert described["parents"]["image"]["path"].endswith("image/final")


def test_video_starts_from_the_image_interface(world: World, exp: Path, tmp_path: Path) -> None:
    value = settings(world, "align", ["video"], kind="video", parents={"image": str(exp / "image")})
    value["optim"]["lr"] = 1e-12
    video = load_file(run(tmp_path, value) / "final/model.safetensors")
    image = load_file(exp / "image/final/model.safetensors")
    for name, tensor in video.items():
        torch.testing.assert_close(tensor, image[name.replace(".video.", ".image.")], rtol=0, atol=1e-9)


def test_phase_2_starts_from_weights_by_our_names(world: World, exp: Path, tmp_path: Path, capsys) -> None:
    """As `xllm-speech convert` leaves them; an adapter for another LLM is not used, anything else that is amiss refused."""
    trained = load_file(exp / "image/final/model.safetensors")
    ours = {name.removeprefix("interfaces."): tensor for name, tensor in trained.items()}
    ours["image.adapter.weight"] = torch.zeros(7, 16)
    save_file(ours, tmp_path / "model.safetensors")
    value = settings(world, "align", ["caption"], kind="image", start={"weights": str(tmp_path)})
    value["optim"]["lr"] = 1e-12
    state = load_file(run(tmp_path, value) / "final/model.safetensors")
    name = "interfaces.image.querying.queries"
    torch.testing.assert_close(state[name], trained[name], rtol=0, atol=1e-9)
    assert "interfaces.image.adapter.weight: not in" in capsys.readouterr().err
    assert float(state["interfaces.image.adapter.weight"].std()) > 0
    save_file({name: tensor for name, tensor in ours.items() if "queries" not in name}, tmp_path / "model.safetensors")
    config = tmp_path / "out.yaml"
    assert main(["train", "--config", str(config), "--out", str(tmp_path / "lacking")]) == 1
    assert "1 tensors missing, first interfaces.image.querying.queries" in capsys.readouterr().err
    value["kind"] = "speech"
    config.write_text(yaml.safe_dump(value))
    assert main(["train", "--config", str(config), "--out", str(tmp_path / "foreign")]) == 1
    assert "holds no weights of the speech interface" in capsys.readouterr().err


def test_phase_3_trains_the_adapters_and_leaves_the_rest_bit_for_bit(world: World, exp: Path, tmp_path: Path) -> None:
    out = run(tmp_path, integrate(world, exp))
    own = load_file(out / "final/model.safetensors")
    kinds = ("image", "video", "speech")
    assert set(own) == {f"interfaces.{kind}.adapter.{part}" for kind in kinds for part in ("weight", "bias")}
    state = load_xllm(out).model.state_dict()
    for kind in ("image", "video", "speech"):
        for name, tensor in load_file(exp / kind / "final/model.safetensors").items():
            same = torch.equal(state[name], tensor)
            assert same == (".adapter." not in name), name


def test_lora_trains_in_phase_3_where_it_is_asked_for(world: World, exp: Path, tmp_path: Path) -> None:
    value = integrate(world, exp, ("vsd", "caption"))
    value["model"]["llm"]["lora"] = {"rank": 2}
    value["optim"]["lr"] = 0.05
    out = run(tmp_path, value)
    own = load_file(out / "final/model.safetensors")
    adapters = {name: tensor for name, tensor in own.items() if name.startswith("llm.")}
    assert len(adapters) == 2 * 2  # A and B of two layers
    model = load_xllm(out).model
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in adapters.items())
    assert any(float(tensor.abs().max()) > 0 for name, tensor in adapters.items() if "lora_B" in name)
    base = load_file(world.llm / "model.safetensors")
    for name, tensor in base.items():
        ours = state.get(f"llm.model.{name}", state.get(f"llm.model.{name}".replace("_value.", "_value.base_layer.")))
        assert ours is not None, name
        assert torch.equal(ours, tensor), name
    assert not any(parameter.requires_grad for parameter in model.parameters())
    value["task"], value["kind"], value["parents"] = "align", "speech", {}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(value))
    with pytest.raises(ConfigError, match="LoRA is for phase 3"):
        load_config(tmp_path / "two.yaml", XllmExperiment)


def test_a_run_that_stopped_goes_on_to_the_same_weights(world: World, exp: Path, tmp_path: Path) -> None:
    value = integrate(world, exp)
    whole = run(tmp_path, value, out=tmp_path / "whole")
    run(tmp_path, value, "train.max_steps=2", out=tmp_path / "parts")
    parts = run(tmp_path, value, out=tmp_path / "parts")
    ours, theirs = (load_file(folder / "final/model.safetensors") for folder in (whole, parts))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_parent_that_changed_stops_the_run_it_stands_under(world: World, exp: Path, tmp_path: Path, capsys) -> None:
    """Neither a new run on a parent with another LLM, nor a resumed one on a parent that was trained anew."""
    value = integrate(world, exp)
    value["model"]["llm"] = {"path": str(make_llm(tmp_path / "llm", seed=4))}
    config = tmp_path / "a.yaml"
    config.write_text(yaml.safe_dump(value))
    assert main(["train", "--config", str(config), "--out", str(tmp_path / "a")]) == 1
    assert "was trained with another llm: sha256" in capsys.readouterr().err
    copy = tmp_path / "exp"
    for kind in ("image", "video", "speech"):
        (copy / kind).mkdir(parents=True)
        for name in ("model.yaml", "model.safetensors"):
            (copy / kind / name).write_bytes((exp / kind / "final" / name).read_bytes())
    value = integrate(world, copy)
    out = run(tmp_path, value, "train.max_steps=2", out=tmp_path / "b")
    weights = copy / "speech/model.safetensors"
    save_file({name: tensor + 0.1 for name, tensor in load_file(weights).items()}, weights)
    assert main(["train", "--config", str(tmp_path / "b.yaml"), "--out", str(out)]) == 1
    assert "parents_sha256.speech" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="was trained on the speech interface with sha256"):
        load_xllm(out)


RANKS = """
import sys, torch
from pathlib import Path
from xllm_speech.base.config import load_config
from xllm_speech.train.devices import leave_processes
from xllm_speech.train.loop import train
from xllm_speech.train.xllm import XllmExperiment, XllmTask

experiment = load_config(sys.argv[1], XllmExperiment)
out, kept = Path(sys.argv[2]), []
def make(fabric):
    kept.append(XllmTask(experiment, out, fabric))
    return kept[0]
result = train(make, experiment.optim, experiment.train, out)
state = {name: value for name, value in kept[0].model.state_dict().items() if ".adapter." in name}
torch.save(state, f"{out}.{result.process}.pt")
leave_processes()
"""


def test_ranks_whose_batches_lack_a_medium_neither_hang_nor_drift(world: World, exp: Path, tmp_path: Path) -> None:
    """One conversation a batch, so that ranks lack most kinds in every step; beside one process with two batches a step."""
    value = integrate(world, exp, ("video", "caption", "asr", "text"))
    value["data"]["batch_size"] = 1
    value["data"]["dev"] = []
    value["train"]["max_steps"] = 6
    (tmp_path / "ranks.py").write_text(RANKS)
    for name, processes, accumulate in (("two", 2, 1), ("one", 1, 2)):
        value["train"]["accumulate"] = accumulate
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(value))
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
            str(tmp_path / "ranks.py"), str(tmp_path / f"{name}.yaml"), str(tmp_path / name),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    first, second, alone = (torch.load(tmp_path / name, weights_only=True) for name in ("two.0.pt", "two.1.pt", "one.0.pt"))
    start = load_xllm(exp / "image").model.state_dict()["interfaces.image.adapter.weight"]
    assert not torch.equal(first["interfaces.image.adapter.weight"], start)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
        torch.testing.assert_close(tensor, alone[name], rtol=1e-4, atol=1e-6)


def test_what_cannot_be_loaded_is_left_out_and_too_much_of_it_stops_the_run(world: World, tmp_path: Path, capsys) -> None:
    talks = [json.loads(line) for line in gzip.decompress(world.talks.read_bytes()).decode().splitlines()]
    captions = [row for row in talks if row["task"] == "caption"]
    captions[3]["messages"][0]["content"][0]["path"] = "gone.png"
    (tmp_path / "talks.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in captions))
    value = settings(world, "align", ["caption"], kind="image")
    value["data"]["train"][0]["path"] = str(tmp_path / "talks.jsonl")
    out = run(tmp_path, value, out=tmp_path / "some")
    assert "gone.png" in (out / "skipped.jsonl").read_text()
    for row in captions[:11]:
        row["messages"][0]["content"][0]["path"] = "gone.png"
    (tmp_path / "talks.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in captions))
    config = tmp_path / "some.yaml"
    assert main(["train", "--config", str(config), "--out", str(tmp_path / "none")]) == 1
    assert "gone.png" in capsys.readouterr().err


def test_speech_of_another_channel_than_the_asr_model_knows_is_refused(world: World, tmp_path: Path, capsys) -> None:
    value = settings(world, "align", ["asr"], kind="speech")
    value["data"]["channel"] = "1"
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(value))
    assert main(["train", "--config", str(tmp_path / "x.yaml"), "--out", str(tmp_path / "x")]) == 1
    assert "data.channel 1: the ASR model was trained on channel mix" in capsys.readouterr().err


@pytest.mark.parametrize(("changes", "message"), [
    ({"task": "align", "kind": "smell"}, "kind: `smell` is not one of image, video"),
    ({"task": "align", "kind": "speech", "parents": {"image": "x"}}, "phase 2 of speech takes none"),
    ({"task": "integrate"}, "phase 3 needs the trained interface of every kind"),
    ({"task": "integrate", "kind": "image", "parents": {"image": "x"}}, "leave `kind` away"),
    ({"task": "integrate", "start": {"bert": "x"}, "parents": {"image": "x"}}, "leave `start` away"),
    ({"task": "align", "kind": "image", "start": {"bert": "x", "weights": "y"}}, "either bert or weights"),
    ({"task": "align", "kind": "image", "start": {"layout": "lavis"}}, "name those too"),
])
def test_configurations_that_make_no_sense(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(changes))
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "x.yaml", XllmExperiment)


def make_ast(folder: Path) -> Path:
    """An untrained audio spectrogram transformer that reads 1.28 s at once."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "max_length": 128}
    ASTModel(ASTConfig(**sizes)).save_pretrained(folder)
    ASTFeatureExtractor(max_length=128).save_pretrained(folder)
    return folder


def make_bert(folder: Path) -> Path:
    """An untrained BERT of one layer that knows a few characters."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"电量：80；蓝牙开关"]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = BertConfig(vocab_size=20, max_position_embeddings=64, **sizes)
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["audio", "terminal"])
def test_a_further_kind_joins_without_the_others(world: World, tmp_path: Path, kind: str) -> None:
    """Non-speech sound and the state of a terminal: their encoder, their interface, their tag; then an answer."""
    media = {"audio": {"path": str(world.folder / "speech/u0.wav")}, "terminal": {"text": "电量：80；蓝牙：开"}}[kind]
    rows = [
        {"id": f"{kind}{number}", "task": "text", "messages": [
            {"role": "user", "content": [{"type": kind, **media}, {"type": "text", "text": "有没有"}]},
            {"role": "assistant", "content": "没有"}]}
        for number in range(4)
    ]
    manifest = tmp_path / "talks.jsonl"
    manifest.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    value = settings(world, "align", ["text"], kind=kind)
    value["data"]["train"][0]["path"] = str(manifest)
    encoder = {"audio": make_ast, "terminal": make_bert}[kind](tmp_path / "encoder")
    value["model"]["encoders"] = {{"audio": "audio", "terminal": "text"}[kind]: str(encoder)}
    qformer = {"encoder_width": 16, "queries": 2, "width": 16, "layers": 1, "heads": 2, "feedforward": 24, "positions": 0}
    value["model"]["interfaces"] = {"audio": {"qformer": qformer, "window_frames": 4}, "terminal": {"encoder_width": 16}}
    out = run(tmp_path, value)
    model = XLLM.from_pretrained(out)
    talks = list(read_conversations(manifest, kinds=("text", kind)))
    answers = list(model.answer(talks[:2], max_new_tokens=4))
    assert [answer.error for answer in answers] == [None, None]
    assert model.kinds == (kind,)

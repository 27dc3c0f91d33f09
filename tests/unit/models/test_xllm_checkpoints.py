"""X-LLM directories: what is in them, and that nothing but what a training stood on is accepted when they are loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import World, make_asr, make_llm, xllm_settings

from xllm_speech.base.config import config_from_dict
from xllm_speech.base.errors import CheckpointError, ConfigError
from xllm_speech.llm.loading import load_llm
from xllm_speech.models.xllm import XllmModel
from xllm_speech.models.xllm_checkpoints import (
    Parent,
    XllmDescription,
    adopt_parents,
    build_xllm,
    fill_interfaces,
    hash_parts,
    load_xllm,
    read_interfaces,
    save_xllm,
)
from xllm_speech.models.xllm_config import XllmConfig


def configure(world: World, kinds: list[str]) -> XllmConfig:
    config = config_from_dict(xllm_settings(world), XllmConfig)
    config.interfaces.kinds = kinds
    return config


def save(folder: Path, model: XllmModel, config: XllmConfig, phase: int, parents: dict[str, Parent] | None = None) -> Path:
    """A directory as a training leaves it."""
    folder.mkdir(parents=True)
    plan = model.start_phase(phase, None if phase == 3 else config.interfaces.kinds)
    save_xllm(folder, model.state_dict(), XllmDescription(
        phase=phase, kinds=config.interfaces.kinds, parts=list(plan.parts), model=config, frozen_sha256=hash_parts(config),
        parents=parents or {},
    ))
    return folder


def align(world: World, folder: Path, kind: str, seed: int = 0) -> Path:
    """A phase 2 directory with weights by chance."""
    torch.manual_seed(seed)
    config = configure(world, [kind])
    return save(folder, build_xllm(config, load_llm(world.llm)), config, 2)


@pytest.fixture
def tree(world: World, tmp_path: Path) -> Path:
    """exp/{image,speech,both}: phase 3 on two of phase 2, its adapters changed."""
    exp = tmp_path / "exp"
    parents = {kind: align(world, exp / kind, kind, seed) for seed, kind in enumerate(("image", "speech"))}
    config = configure(world, list(parents))
    model = build_xllm(config, load_llm(world.llm))
    refs = {}
    for kind, read in adopt_parents(config, {k: str(p) for k, p in parents.items()}, hash_parts(config)).items():
        fill_interfaces(model, read.tensors, kind, [kind])
        refs[kind] = Parent(str(read.folder), read.sha256)
    with torch.no_grad():
        for interface in model.interfaces.values():
            interface.adapter.weight.add_(1.0)
    save(exp / "both", model, config, 3, refs)
    return exp


def test_each_phase_writes_what_it_trained_and_nothing_else(tree: Path) -> None:
    image, both = load_file(tree / "image/model.safetensors"), load_file(tree / "both/model.safetensors")
    assert all(name.startswith("interfaces.image.") for name in image)
    assert "interfaces.image.querying.queries" in image
    assert set(both) == {f"interfaces.{kind}.adapter.{part}" for kind in ("image", "speech") for part in ("weight", "bias")}


def test_phase_3_is_its_adapters_on_its_parents(tree: Path) -> None:
    checkpoint = load_xllm(tree / "both")
    state = checkpoint.model.state_dict()
    image = load_file(tree / "image/model.safetensors")
    torch.testing.assert_close(
        state["interfaces.image.querying.queries"], image["interfaces.image.querying.queries"], rtol=0, atol=0
    )
    name = "interfaces.image.adapter.weight"
    torch.testing.assert_close(state[name], image[name] + 1.0, rtol=0, atol=0)
    assert checkpoint.encoders.image_size == 16
    assert not any(parameter.requires_grad for parameter in checkpoint.model.parameters())


def test_a_tree_that_was_moved_is_found(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "recipe"
    place.mkdir()
    for name in ("llm", "vision", "asr"):
        shutil.copytree(world.folder / name, place / name)
    monkeypatch.chdir(place)
    here = World(Path(), Path("llm"), Path("vision"), Path("asr"), Path(), Path())
    align(here, Path("exp/image"), "image")
    monkeypatch.chdir(tmp_path)
    moved = place.rename(tmp_path / "elsewhere")
    assert load_xllm(moved / "exp/image").description.model.llm.path == str(moved / "llm")


def test_weights_in_shards_are_the_same(world: World, tmp_path: Path) -> None:
    folder = align(world, tmp_path / "image", "image")
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(whole)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: whole[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    state = load_xllm(folder).model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in whole.items())


def test_another_llm_or_encoder_is_refused(world: World, tmp_path: Path) -> None:
    folder = align(world, tmp_path / "speech", "speech")
    other = make_llm(tmp_path / "other_llm", seed=1)
    text = (folder / "model.yaml").read_text()
    (folder / "model.yaml").write_text(text.replace(str(world.llm), str(other)))
    with pytest.raises(CheckpointError, match=r"trained with another llm: sha256 \w{12}, \S*other_llm is \w{12}"):
        load_xllm(folder)
    other = make_asr(tmp_path / "other_asr", seed=1)
    (folder / "model.yaml").write_text(text.replace(str(world.asr), str(other)))
    with pytest.raises(CheckpointError, match="trained with another asr"):
        load_xllm(folder)
    (folder / "model.yaml").write_text(text.replace(str(world.asr), str(tmp_path / "none")))
    with pytest.raises(CheckpointError, match="none: no such"):
        load_xllm(folder)


def test_a_parent_that_changed_or_went_is_refused(tree: Path) -> None:
    weights = tree / "image/model.safetensors"
    state = load_file(weights)
    save_file({name: tensor + 1 for name, tensor in state.items()}, weights)
    said = r"image interface with sha256 \w{12}, \S*image now is \w{12}.*train phase 3 again"
    with pytest.raises(CheckpointError, match=said):
        load_xllm(tree / "both")
    shutil.rmtree(tree / "image")
    with pytest.raises(CheckpointError, match="which is not there"):
        load_xllm(tree / "both")


def test_a_parent_of_another_kind_or_llm_is_refused(world: World, tree: Path, tmp_path: Path) -> None:
    config = configure(world, ["image"])
    with pytest.raises(CheckpointError, match="holds interfaces for speech, not for image"):
        adopt_parents(config, {"image": str(tree / "speech")}, hash_parts(config))
    config.llm.path = str(make_llm(tmp_path / "llm", seed=3))
    with pytest.raises(CheckpointError, match=r"parents.image: \S*: was trained with another llm"):
        adopt_parents(config, {"image": str(tree / "image")}, hash_parts(config))


def test_foreign_and_broken_directories_are_named(world: World, tree: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="format `xllm-cif-asr-1`, expected `xllm-1`"):
        read_interfaces(world.asr)
    with pytest.raises(CheckpointError, match="no such model directory"):
        read_interfaces(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"holds no model\.yaml, nor does final or best"):
        read_interfaces(tmp_path)
    weights = tree / "speech/model.safetensors"
    state = load_file(weights)
    name = "interfaces.speech.adapter.bias"
    save_file({key: value for key, value in state.items() if key != name}, weights)
    with pytest.raises(CheckpointError, match=f"1 tensors missing, first {name}"):
        load_xllm(tree / "speech")
    save_file({**state, name: state[name][:3]}, weights)
    with pytest.raises(CheckpointError, match=r"is \(3,\), the configuration says \(32,\)"):
        load_xllm(tree / "speech")
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_xllm(tree / "speech")


def test_a_kind_without_its_encoder_is_refused(world: World) -> None:
    config = configure(world, ["speech"])
    config.encoders.asr = ""
    with pytest.raises(ConfigError, match=r"speech: model.encoders.asr is needed"):
        hash_parts(config)

"""Weights in every form that is read, and refusals in one line for the others."""

from __future__ import annotations

import json
import pickle
import struct
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from xllm_speech.base.errors import CheckpointError
from xllm_speech.base.safe_load import read_tensors

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_single_files_by_content_not_by_name(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "flat.pth")
    torch.save({"state_dict": STATE, "epoch": 1, "loss": torch.ones(1)}, tmp_path / "training.ckpt")
    torch.save({"model": STATE, "optimizer": {"state": {0: torch.ones(9)}}}, tmp_path / "model.safetensors")
    save_file(STATE, tmp_path / "odd.bin")
    for name in ("flat.pth", "training.ckpt", "model.safetensors", "odd.bin"):
        assert same(read_tensors(tmp_path / name)), name


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_folders_whole_and_in_shards(kind: str, tmp_path: Path) -> None:
    stem = "model" if kind == "safetensors" else "pytorch_model"
    write = save_file if kind == "safetensors" else torch.save
    write(STATE, tmp_path / f"{stem}.{kind}")
    assert same(read_tensors(tmp_path))
    (tmp_path / f"{stem}.{kind}").unlink()
    for number, name in enumerate(STATE):
        write({name: STATE[name]}, tmp_path / f"part{number}.{kind}")
    index = tmp_path / f"{stem}.{kind}.index.json"
    shards = {name: f"part{number}.{kind}" for number, name in enumerate(STATE)}
    index.write_text(json.dumps({"weight_map": shards}))
    assert same(read_tensors(tmp_path))
    assert same(read_tensors(index))
    index.write_text(json.dumps({"weight_map": {**shards, "c": f"part0.{kind}"}}))
    with pytest.raises(CheckpointError, match=rf"1 tensors are not in their files, first c of part0\.{kind}"):
        read_tensors(tmp_path)
    index.write_text(json.dumps({"weight_map": {**shards, "c": f"part7.{kind}"}}))
    with pytest.raises(CheckpointError, match=rf"part7\.{kind} is missing"):
        read_tensors(tmp_path)
    for path in ("../secret.bin", "/etc/passwd", ".."):
        index.write_text(json.dumps({"weight_map": {"a": path}}))
        with pytest.raises(CheckpointError, match=r"not a file beside it; refused|is missing"):
            read_tensors(tmp_path)
    for text in ("{", "[]", '{"weight_map": {"a": 3}}'):
        index.write_text(text)
        with pytest.raises(CheckpointError, match=r"weight_map|not JSON"):
            read_tensors(tmp_path)


def header(described: object, body: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(described).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


@pytest.mark.parametrize("content", [
    header({"a": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}, bytes(8)),
    header({"a": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 8]}}, bytes(8)),
    header({"a": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 8]}}, bytes(8)),
    header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, bytes(8)),
    header({}, length=1 << 42),
    header([]),
    header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(4)),
])  # fmt: skip
def test_crafted_headers_of_safetensors_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: (damaged|neither)") as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


class Trap:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_bare_pickles_old_files_and_others_are_refused_unread(tmp_path: Path) -> None:
    proof, path = tmp_path / "proof", tmp_path / "x.pth"
    path.write_bytes(pickle.dumps({"model": Trap(proof)}))
    with pytest.raises(CheckpointError, match=r"a bare pickle .*save its state dict again, as safetensors"):
        read_tensors(path)
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="a bare pickle"):
        read_tensors(path)
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "pickle")
    with pytest.raises(CheckpointError, match="neither safetensors nor a file of torch"):
        read_tensors(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="neither safetensors nor"):
        read_tensors(path)
    torch.save({"model": Trap(proof), "a": [1]}, path)
    with pytest.raises(CheckpointError, match=r"holds no tensors by name, neither itself nor under model"):
        read_tensors(path)
    torch.save({"model": {"w": torch.ones(2)}, "config": Trap(proof)}, path)
    assert list(read_tensors(path)) == ["w"]
    assert not proof.exists()


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such file or folder"):
        read_tensors(tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"holds no weights \(model\.safetensors\.index\.json"):
        read_tensors(tmp_path)

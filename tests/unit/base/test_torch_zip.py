"""Files of torch.save: what torch itself reads of them, and crafted ones that must neither run nor allocate."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pickle
import resource
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from xllm_speech.base.errors import CheckpointError
from xllm_speech.base.torch_zip import TensorPlan, TorchZip, Unknown, describe_pickle


class Own:
    """An object of a class that a reader need not have."""

    def __init__(self) -> None:
        self.parent, self.items = self, {"a": {1, 2}, "b": frozenset((3,))}


class Command:
    """Unpickling this runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8,
             torch.uint8, torch.bool)
    made = {str(kind): (torch.randn(3, 5) * 9).to(kind) for kind in kinds}
    return made | {
        "transposed": base.T, "slice": base[2:4, 1:3], "again": base, "scalar": torch.tensor(0.07), "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_reads_what_torch_reads(protocol: int, tmp_path: Path) -> None:
    expected = tensors()
    torch.save(expected, tmp_path / "a.pth", pickle_protocol=protocol)
    if protocol == 2:  # torch's own careful reader knows no other
        expected = torch.load(tmp_path / "a.pth", weights_only=True)
    archive = TorchZip(tmp_path / "a.pth")
    assert archive.content.keys() == expected.keys()
    for name, plan in archive.content.items():
        found = archive.tensor(name, plan)
        assert found.dtype == expected[name].dtype, name
        assert torch.equal(found, expected[name]), name


def test_writing_into_a_tensor_does_not_reach_the_file(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pth")
    before = (tmp_path / "a.pth").read_bytes()
    archive = TorchZip(tmp_path / "a.pth")
    archive.tensor("a", archive.content["a"]).zero_()
    assert (tmp_path / "a.pth").read_bytes() == before


def test_objects_beside_the_weights_become_placeholders(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    saved = {
        "model": torch.nn.Linear(2, 2).state_dict(), "config": OmegaConf.create({"run": {"lr": 1e-5, "names": ["a"]}}),
        "arguments": argparse.Namespace(rate=3, path=Path("x")), "own": Own(), "counts": collections.Counter("ab"),
        "default": collections.defaultdict(list, {"k": [1]}), "epoch": 3, "device": torch.device("cpu"),
        "size": torch.Size([2]), "ordered": collections.OrderedDict([("k", 1)]), "kind": torch.float16, "large": 1 << 70,
        "text": "语", "none": None,
    }
    torch.save(saved, tmp_path / "a.pth")
    content = TorchZip(tmp_path / "a.pth").content
    assert content.keys() == saved.keys()
    assert isinstance(content["model"]["weight"], TensorPlan)
    assert isinstance(content["config"], Unknown)
    assert isinstance(content["arguments"], Unknown)
    assert isinstance(content["own"], Unknown)
    assert content["ordered"] == {"k": 1}
    assert content["size"] == (2,)
    assert (content["epoch"], content["large"], content["text"], content["none"]) == (3, 1 << 70, "语", None)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_command_in_the_pickle_is_not_run(protocol: int, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    pickled = pickle.dumps({"model": Command(f"touch {proof}"), "state": [1]}, protocol)
    rebuild(tmp_path / "a.pth", pickled)
    content = TorchZip(tmp_path / "a.pth").content
    assert isinstance(content["model"], Unknown)
    assert content["state"] == [1]
    assert not proof.exists()
    pickle.loads(pickled)  # it would have been
    assert proof.exists()


def rebuild(path: Path, pickled: bytes, records: dict[str, bytes] | None = None, compress: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/version", "3\n")
        for name, content in (records or {}).items():
            archive.writestr(f"a/data/{name}", content)


class Pickler(pickle.Pickler):
    """Writes `TensorPlan`s as torch.save writes tensors."""

    def persistent_id(self, item: Any) -> Any:
        return item[1:] if isinstance(item, tuple) and item and item[0] == "persistent" else None


class Claim:
    """Pickled as a tensor of any claimed sizes on a record of any claimed length."""

    def __init__(self, count: int, offset: Any, sizes: Any, strides: Any) -> None:
        self.claim = (("persistent", "storage", torch.FloatStorage, "0", "cpu", count), offset, sizes, strides, False, {})

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, self.claim


TERA = 1 << 40


@pytest.mark.parametrize(("count", "offset", "sizes", "strides"), [
    (TERA, 0, (TERA,), (1,)),  # longer than its record
    (4, 0, (TERA,), (0,)),  # one number many times over
    (4, 2, (3,), (1,)),  # past the end
    (4, 0, (2, 2), (3, 1)),
    (4, 0, (-1,), (1,)),
    (4, 3, (2,), (-1,)),
    (4, 0, (2, 2), (1,)),
    (4, 0, ("4",), (1,)),
    (4, True, (2,), (1,)),
    (2, 0, (5,), (1,)),
    (5, 0, (2,), (1,)),
])  # fmt: skip
def test_claims_beyond_the_record_are_refused_before_memory_is_taken(count, offset, sizes, strides, tmp_path: Path) -> None:
    stream = io.BytesIO()
    Pickler(stream, 2).dump({"a": Claim(count, offset, sizes, strides)})
    rebuild(tmp_path / "a.pth", stream.getvalue(), {"0": bytes(16)})
    archive = TorchZip(tmp_path / "a.pth")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=r"a claims sizes .* but its record 0 has 16 bytes; refused"):
        archive.tensor("a", archive.content["a"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_record_that_starts_anywhere_is_read(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Pickler(stream, 2).dump({"a": Claim(4, 1, (3,), (1,))})
    values = torch.arange(4.0)
    for pad in range(4):
        rebuild(tmp_path / "a.pth", stream.getvalue(), {"pad" + "x" * pad: b"", "0": values.numpy().tobytes()})
        archive = TorchZip(tmp_path / "a.pth")
        assert torch.equal(archive.tensor("a", archive.content["a"]), values[1:])


def test_damaged_compressed_and_other_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"a": torch.ones(1000)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"damaged \(.*; get the file anew"):
        TorchZip(path)
    rebuild(path, pickle.dumps({}, 2), compress=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match=r"record a/data\.pkl is compressed"):
        TorchZip(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(CheckpointError, match=r"not one of torch\.save"):
        TorchZip(path)
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(CheckpointError, match="a TorchScript program, which is never run"):
        TorchZip(path)
    rebuild(path, b"\x80\x02]q\xff")
    with pytest.raises(CheckpointError, match=r"its data\.pkl is not what torch\.save writes") as caught:
        TorchZip(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pickled", [
    b"",
    b"\x80\x02.",  # nothing to end with
    b"\x80\x02K\x01",  # no end
    b"\x80\x02t.",  # no mark
    b"\x80\x02h\x07.",  # not remembered
    b"\x80\x02(ios\nsystem\n.",  # an instance of protocol 0
    b"\x80\x02\x82\x05.",  # an extension
    b"\x80\x05\x96\x00\x00\x00\x00\x00\x01\x00\x00.",  # a byte array of a terabyte
    b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a text of exabytes
    b"\x80\x02(K\x01d.",  # a key without a value
])  # fmt: skip
def test_broken_programs_end_in_an_error(pickled: bytes, tmp_path: Path) -> None:
    rebuild(tmp_path / "a.pth", pickled)
    with pytest.raises(CheckpointError, match=r"a\.pth: its data\.pkl is not what torch\.save writes \(.+\)$"):
        TorchZip(tmp_path / "a.pth")


def test_numbers_far_up_in_the_memory_of_a_program_take_no_memory() -> None:
    assert describe_pickle(b"\x80\x02K\x01r\xff\xff\xff\x7f.") == 1


def test_keys_that_take_for_ever_to_hash_are_left_out() -> None:
    nested = b"".join([b"\x80\x02}K\x01", *(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(200)), b"K\x02s."])
    assert describe_pickle(nested) == {}

"""Tensors of a file that `torch.save` wrote, without running anything that the file says.

Such a file is a zip archive: one record per storage, and `data.pkl`, a pickle, that tells which tensors lie on them. A pickle
is a program for a small stack machine, and what makes it dangerous is that it may import and call anything. Here its
instructions are followed without importing or calling: containers, numbers, texts and tensors are understood, every other
object, such as the configuration beside the weights of a released checkpoint, becomes a mere placeholder.

Nothing is allocated on the word of the file: storages are mapped from it, after a comparison with the sizes of its records.
"""

from __future__ import annotations

import math
import pickletools
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xllm_speech.base.errors import CheckpointError, first_line

STORAGE_DTYPES = {
    "torch.FloatStorage": torch.float32, "torch.HalfStorage": torch.float16, "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64, "torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16, "torch.CharStorage": torch.int8, "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
SCALARS = (str, int, float, bytes, bool, type(None))
# Instructions that do no more than put their own argument on the stack.
PLAIN = frozenset((
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
))
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, and the lengths of name and extra field in front of a record


@dataclass(frozen=True)
class Unknown:
    """In place of an object that is neither a container nor a tensor."""

    name: str


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    record: str
    count: int


@dataclass(frozen=True)
class TensorPlan:
    """A tensor as its pickle describes it; nothing of it has been checked or read."""

    storage: _Storage
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


class _Unreadable(Exception):
    """A pickle that no `torch.save` writes."""


def describe_pickle(pickled: bytes) -> Any:
    """What a pickle describes, of dicts, lists, tuples, scalars, `TensorPlan` and `Unknown`; nothing is imported or called.

    Raises:
        Exception: of many kinds, for bytes that are not such a pickle.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        nonlocal stack
        items, stack = stack, outer.pop()
        return items

    argument: Any
    for opcode, argument, _ in pickletools.genops(pickled):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                outer.append(stack)
                stack = []
            case "POP":
                stack.pop()
            case "POP_MARK":
                since_mark()
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_SET":
                stack.append(Unknown("set"))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                items = tuple(since_mark())
                stack.append(items)
            case "LIST":
                found = since_mark()
                stack.append(found)
            case "FROZENSET":
                since_mark()
                stack.append(Unknown("frozenset"))
            case "DICT" | "SETITEMS":
                found = since_mark()
                if opcode.name == "DICT":
                    stack.append({})
                _set_items(stack[-1], found)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set_items(stack[-1], [key, value])
            case "APPEND" | "APPENDS" | "ADDITEMS":
                found = [stack.pop()] if opcode.name == "APPEND" else since_mark()
                if isinstance(stack[-1], list):
                    stack[-1].extend(found)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[int(argument)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[int(argument)])
            case "GLOBAL":
                stack.append(_Global(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_Global(f"{module}.{name}"))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call(function, arguments))
            case "NEWOBJ" | "NEWOBJ_EX":
                for _ in range(1 if opcode.name == "NEWOBJ" else 2):
                    stack.pop()
                stack.append(_placeholder(stack.pop()))
            case "BUILD":  # attributes of the object below, such as the version notes of a state dict
                stack.pop()
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case name if name in PLAIN:
                stack.append(argument)
            case name:
                raise _Unreadable(f"instruction {name}")
    raise _Unreadable("no end")


def _set_items(target: Any, flat: list[Any]) -> None:
    if isinstance(target, dict):
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            if isinstance(key, SCALARS):  # of other keys, crafted ones may take for ever to hash
                target[key] = value


def _placeholder(what: Any) -> Unknown:
    return Unknown(what.name if isinstance(what, _Global | Unknown) else type(what).__name__)


def _call(function: Any, arguments: Any) -> Any:
    """What the few functions give that state dicts are made with; any other call gives a placeholder."""
    match function, arguments:
        case _Global("torch._utils._rebuild_tensor_v2"), (_Storage() as storage, int(offset), tuple(sizes), tuple(strides), *_):
            return TensorPlan(storage, offset, sizes, strides)
        case _Global("torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state"), (plan, *_):
            return plan
        case _Global("collections.OrderedDict"), ():
            return {}
        case _Global("collections.OrderedDict"), (list(pairs),):
            made: dict[Any, Any] = {}
            for pair in pairs:
                _set_items(made, list(pair))
            return made
        case _Global("collections.defaultdict"), _:
            return {}
        case _Global("torch.Size"), (tuple(sizes),):
            return sizes
    return _placeholder(function)


def _storage(identity: Any) -> Any:
    match identity:
        case ("storage", _Global(kind), str(record), _, int(count)) if kind in STORAGE_DTYPES:
            return _Storage(STORAGE_DTYPES[kind], record, count)
    return Unknown("storage")


class TorchZip:
    """An open archive of `torch.save`: `content` describes it, `tensor` maps one of its tensors.

    Raises:
        CheckpointError: it is no such archive, is damaged, or its records do not lie in the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.total = path.stat().st_size
        try:
            with zipfile.ZipFile(path) as archive, open(path, "rb") as stream:
                described = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
                if len(described) != 1 or described[0].filename.count("/") != 1:
                    raise CheckpointError(f"{path}: a zip archive, but not one of torch.save (holds no data.pkl)")
                root = described[0].filename.removesuffix("data.pkl")
                if f"{root}constants.pkl" in archive.namelist():
                    raise CheckpointError(f"{path}: a TorchScript program, which is never run; a state dict is needed")
                self._records = {
                    info.filename.removeprefix(root): (self._start(stream, info), info.file_size)
                    for info in archive.infolist() if not info.is_dir()
                }
                order = self._bytes(stream, "byteorder") if "byteorder" in self._records else b"little"
                pickled = self._bytes(stream, "data.pkl")
        except CheckpointError:
            raise
        except Exception as error:  # damage makes zipfile itself stumble, in many ways
            raise CheckpointError(f"{path}: damaged ({first_line(error)}); get the file anew") from error
        if order.strip() != b"little":
            raise CheckpointError(f"{path}: written on a big-endian machine; save it again on a common one")
        try:
            self.content = describe_pickle(pickled)
        except Exception as error:  # a crafted pickle can make the interpreter stumble in any way
            raise CheckpointError(f"{path}: its data.pkl is not what torch.save writes ({first_line(error)})") from error
        self._whole = torch.from_file(str(path), shared=False, size=self.total, dtype=torch.uint8)

    def _start(self, stream: Any, info: zipfile.ZipInfo) -> int:
        """Where a record's bytes begin; they must be stored as they are, inside the file."""
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
            raise CheckpointError(f"{self.path}: record {info.filename} is compressed, as torch.save never does; refused")
        stream.seek(info.header_offset)
        signature, name, extra = LOCAL_HEADER.unpack(stream.read(LOCAL_HEADER.size))
        start = info.header_offset + LOCAL_HEADER.size + name + extra
        if signature != b"PK\3\4" or start + info.file_size > self.total:
            raise CheckpointError(
                f"{self.path}: record {info.filename} of {info.file_size} bytes does not lie in the file of {self.total}; "
                "get the file anew"
            )
        return start

    def _bytes(self, stream: Any, record: str) -> bytes:
        start, size = self._records[record]
        stream.seek(start)
        return stream.read(size)

    def tensor(self, name: str, plan: TensorPlan) -> torch.Tensor:
        """The tensor of a plan, mapped privately: what is written into it does not reach the file.

        Raises:
            CheckpointError: the plan names more than the file holds.
        """
        storage = plan.storage
        start, size = self._records.get(f"data/{storage.record}", (0, -1))
        numbers = (plan.offset, *plan.sizes, *plan.strides)
        whole = all(type(number) is int and number >= 0 for number in numbers) and len(plan.sizes) == len(plan.strides)
        count = math.prod(plan.sizes) if whole else 0
        reach = sum((n - 1) * step for n, step in zip(plan.sizes, plan.strides, strict=True)) + 1 if count else 0
        width = storage.dtype.itemsize
        if not whole or max(count, plan.offset + reach, storage.count) * width > size:
            raise CheckpointError(
                f"{self.path}: {name} claims sizes {list(plan.sizes)}, but its record {storage.record} has {max(size, 0)} "
                "bytes; refused"
            )
        held = self._whole[start : start + size // width * width]
        held = (held.clone() if start % width else held).view(storage.dtype)
        return held.as_strided(plan.sizes, plan.strides, held.storage_offset() + plan.offset)

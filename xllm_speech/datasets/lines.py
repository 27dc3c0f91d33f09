"""Manifests of millions of lines in modest memory: the lines packed, each unpacked when it is wanted."""

from __future__ import annotations

import hashlib
import json
import zlib
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from lhotse.cut import Cut

from xllm_speech.base.errors import DataError
from xllm_speech.base.files import numbered_lines
from xllm_speech.manifests.cuts import CUTS_NAME, PathFinder, locate_files, parse_cut

BLOCK_LINES = 32  # unpacked together: more of them take less memory and more time


class PackedLines:
    """Lines of a text file, gzip or plain, by number from 0; about a fifth of their size in memory.

    All of it stands in three buffers, so that loading processes share one copy.

    Args:
        path: the file. keep: (line number from 1, line) -> whether to keep it; empty lines never are.

    Raises:
        DataError: the file is missing or not UTF-8.
    """

    def __init__(self, path: str | Path, keep: Callable[[int, str], bool]) -> None:
        self.path = Path(path)
        data, ends, numbers = bytearray(), array("q", [0]), array("q")
        block: list[str] = []

        def pack() -> None:
            data.extend(zlib.compress("\n".join(block).encode(), 1))
            ends.append(len(data))
            block.clear()

        for number, line in numbered_lines(path):
            if not line.strip() or not keep(number, line):
                continue
            numbers.append(number)
            block.append(line)
            if len(block) == BLOCK_LINES:
                pack()
        if block:
            pack()
        self._data, self._ends, self._numbers = bytes(data), np.array(ends), np.array(numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: int) -> tuple[int, str]:
        """(line number in the file from 1, line)."""
        block, inside = divmod(place, BLOCK_LINES)
        packed = self._data[self._ends[block] : self._ends[block + 1]]
        return int(self._numbers[place]), zlib.decompress(packed).decode().split("\n")[inside]

    def where(self, place: int) -> str:
        """`file:line`, for messages."""
        return f"{self.path}:{self._numbers[place]}"


class IdIndex:
    """Where an id stands in a list of ids, in 16 bytes an id. ids may repeat."""

    def __init__(self, hashes: Sequence[int]) -> None:
        hashes_N = np.array(hashes, dtype=np.int64)
        self._places = np.argsort(hashes_N, kind="stable")
        self._hashes = hashes_N[self._places]

    @staticmethod
    def hash(name: str) -> int:
        """64 bits of an id, the same in every process."""
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "big", signed=True)

    def find(self, name: str) -> int | None:
        """First place of an id, or None."""
        wanted = self.hash(name)
        at = int(np.searchsorted(self._hashes, wanted))
        return int(self._places[at]) if at < len(self._hashes) and self._hashes[at] == wanted else None

    def first_repeat(self) -> tuple[int, int] | None:
        """(place, later place) of an id that occurs twice, or None."""
        twice = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
        return (int(self._places[twice[0]]), int(self._places[twice[0] + 1])) if len(twice) else None


class CutTable:
    """Cuts of manifests by id. Where several manifests hold an id, the first decides.

    Args:
        paths: cuts manifests, or folders that hold cuts.jsonl.gz.

    Raises:
        DataError: one is missing, or a line of it is no JSON object with an `id`; names file and line.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self._tables: list[tuple[PackedLines, IdIndex, PathFinder]] = []
        for given in paths:
            path, hashes = find_cuts_file(given), array("q")

            def keep(number: int, line: str, path: Path = path, hashes: array[int] = hashes) -> bool:
                hashes.append(IdIndex.hash(read_id(f"{path}:{number}", line)))
                return True

            lines = PackedLines(path, keep)
            self._tables.append((lines, IdIndex(hashes), PathFinder(path.parent)))

    def __len__(self) -> int:
        return sum(len(lines) for lines, _, _ in self._tables)

    def __contains__(self, cut_id: object) -> bool:
        return isinstance(cut_id, str) and any(index.find(cut_id) is not None for _, index, _ in self._tables)

    def find(self, cut_id: str) -> Cut:
        """The cut with this id; `DataError` where there is none, or its line is no cut."""
        for lines, index, finder in self._tables:
            place = index.find(cut_id)
            if place is not None:
                return cut_at(lines, place, finder)
        raise DataError(f"no cut `{cut_id}` among {len(self)}")


def cut_at(lines: PackedLines, place: int, finder: PathFinder) -> Cut:
    """The cut of a line, its files as `finder` finds them; `DataError` names file and line."""
    try:
        return locate_files(parse_cut(lines[place][1]), finder)
    except DataError as error:
        raise DataError(f"{lines.where(place)}: {error}") from error


def find_cuts_file(path: str | Path) -> Path:
    """The cuts manifest itself, or the one that a folder holds; `DataError` where there is neither."""
    path = Path(path)
    if path.is_file():
        return path
    for name in (CUTS_NAME, "cuts.jsonl"):
        if (path / name).is_file():
            return path / name
    what = "holds no cuts.jsonl.gz; `xllm-speech prepare` makes one" if path.is_dir() else "no such file or folder"
    raise DataError(f"{path}: {what}")


def read_id(where: str, line: str) -> str:
    """The `id` of a JSON line; `DataError` begins with `where`."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
    found = value.get("id") if isinstance(value, dict) else None
    if not isinstance(found, str) or not found:
        raise DataError(f"{where}: no JSON object with an `id`")
    return found

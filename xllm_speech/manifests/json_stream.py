"""Large JSON documents one entry at a time: annotation files of hundreds of megabytes in a few megabytes of memory."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from xllm_speech.base.errors import DataError
from xllm_speech.base.files import open_text

CHUNK_CHARS = 1 << 18
_BLANK = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class JsonEntry:
    """One entry of a document: `key` of the object it is in ("" in a top-level list), its place in a list, its value."""

    key: str
    index: int | None
    value: Any

    def where(self, path: str | Path) -> str:
        """`file: key[index]`, for messages."""
        name = self.key or "entry"
        return f"{path}: {name}" + ("" if self.index is None else f"[{self.index}]")


def stream_json(path: str | Path, into: Collection[str] = ()) -> Iterator[JsonEntry]:
    """The entries of a JSON document, in order, gzip or plain.

    A list gives its elements. An object gives its values, but the elements of those values that are lists; objects under
    the keys in `into` are gone through in the same way (VisDial keeps its pools under `data`).

    Raises:
        DataError: absent, not UTF-8, or not JSON; names the file and the line.
    """
    with open_text(path) as stream:
        reader = _Reader(Path(path), stream)
        match reader.peek():
            case "[":
                yield from reader.elements("")
            case "{":
                yield from reader.members(into)
            case _:
                reader.fail("expected a list or an object")
        if reader.peek():
            reader.fail("something follows the end of the document")


class _Reader:
    """A window on the text that moves forward; what was passed is forgotten."""

    def __init__(self, path: Path, stream: IO[str]) -> None:
        self.path = path
        self.stream = stream
        self.text = ""
        self.at = 0
        self.line = 1
        self.ended = False
        self._more(CHUNK_CHARS)
        if self.text.startswith("\ufeff"):
            self.at = 1

    def fail(self, reason: str) -> None:
        line = self.line + self.text.count("\n", 0, self.at)
        raise DataError(f"{self.path}:{line}: not JSON that can be read ({reason})")

    def _more(self, size: int) -> None:
        self.line += self.text.count("\n", 0, self.at)
        try:
            chunk = self.stream.read(size)
        except (UnicodeDecodeError, EOFError, OSError) as error:
            raise DataError(f"{self.path}: after line {self.line}: cannot be read as UTF-8 text ({error})") from error
        self.text, self.at, self.ended = self.text[self.at :] + chunk, 0, not chunk

    def peek(self) -> str:
        """The next character that is not blank, "" at the end."""
        while True:
            match = _BLANK.match(self.text, self.at)
            assert match is not None
            self.at = match.end()
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._more(CHUNK_CHARS)

    def take(self, expected: str) -> None:
        if self.peek() != expected:
            self.fail(f"expected `{expected}`, found {self.text[self.at : self.at + 12]!r}")
        self.at += 1

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        size = CHUNK_CHARS
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if self.ended:
                    self.at = min(error.pos, len(self.text))
                    self.fail(error.msg)
            except RecursionError:
                self.fail("nested too deeply")
            else:
                # A number close to the end of the window may go on behind it: `1` of `1e+5`.
                if end + 3 <= len(self.text) or self.ended:
                    self.at = end
                    return value
            self._more(size)
            size *= 2

    def elements(self, key: str) -> Iterator[JsonEntry]:
        self.take("[")
        if self.peek() == "]":
            self.at += 1
            return
        index = 0
        while True:
            yield JsonEntry(key, index, self.value())
            index += 1
            if self.peek() != ",":
                break
            self.at += 1
        self.take("]")

    def members(self, into: Collection[str]) -> Iterator[JsonEntry]:
        self.take("{")
        if self.peek() == "}":
            self.at += 1
            return
        while True:
            if self.peek() != '"':
                self.fail(f"expected a key, found {self.text[self.at : self.at + 12]!r}")
            key = self.value()
            self.take(":")
            opening = self.peek()
            if opening == "[":
                yield from self.elements(key)
            elif opening == "{" and key in into:
                yield from self.members(into)
            else:
                yield JsonEntry(key, None, self.value())
            if self.peek() != ",":
                break
            self.at += 1
        self.take("}")

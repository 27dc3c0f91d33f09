"""Lines of annotation files as other people's programs leave them: one that cannot be read costs no other."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from xllm_speech.base.errors import DataError

NOT_UTF8 = "not UTF-8 text"
_GZIP, _UTF16 = b"\x1f\x8b", (b"\xff\xfe", b"\xfe\xff")


def readable_lines(path: str | Path) -> Iterator[tuple[int, str | None]]:
    """(number from 1, line) of a file, gzip or plain; None for a line that is not UTF-8. Marks of byte order are taken off.

    Raises:
        DataError: absent, cut off, or UTF-16 as a whole.
    """
    path = Path(path)
    number = 0
    try:
        with _open(path) as stream:
            for number, line in enumerate(stream, 1):
                if number == 1:
                    if line.startswith(_UTF16):
                        raise DataError(f"{path}: UTF-16 text; `iconv -f utf-16 -t utf-8` makes it what is read here")
                    line = line.removeprefix(b"\xef\xbb\xbf")
                try:
                    yield number, line.rstrip(b"\r\n").decode()
                except UnicodeDecodeError:
                    yield number, None
    except (OSError, EOFError) as error:
        where = f"{path}:{number + 1}" if number else str(path)
        raise DataError(f"{where}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _open(path: Path) -> IO[bytes]:
    with open(path, "rb") as probe:
        zipped = probe.read(2) == _GZIP
    return cast(IO[bytes], gzip.open(path, "rb") if zipped else open(path, "rb"))

"""Files: atomic writing, hashing, JSON and JSON lines. Nothing in the package leaves a half-written file behind."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from xllm_speech.base.errors import DataError


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a part file beside `path` and rename it over `path` on success; on an error nothing remains.

    `mode` is "w" or "wb". A name that ends in `.gz` is compressed, without a time stamp, so that equal content gives
    equal bytes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with contextlib.ExitStack() as stack:
            raw: IO[Any] = stack.enter_context(os.fdopen(handle, "wb"))
            stream: IO[Any] = raw
            if path.suffix == ".gz":
                stream = cast(IO[Any], gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0))
                stack.callback(stream.close)
            if "b" not in mode:
                text = io.TextIOWrapper(stream, encoding="utf-8", newline="\n", write_through=True)
                yield text
                text.flush()
                text.detach()
            else:
                yield stream
            if stream is not raw:
                stream.close()
            raw.flush()
            os.fsync(raw.fileno())
        os.chmod(part, 0o666 & ~_umask())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise


@contextlib.contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Yield a part directory beside `path` that becomes `path` on success, replacing an older one; else it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    os.chmod(part, 0o777 & ~_umask())
    try:
        yield part
        for name in part.rglob("*"):
            if name.is_file():
                with open(name, "rb") as stream:
                    os.fsync(stream.fileno())
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
            os.replace(path, old)
            os.replace(part, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(part, path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def open_text(path: str | Path) -> IO[str]:
    """Open a UTF-8 text file for reading, gzip or plain (by the file's first bytes), a byte order mark passed over.

    Raises:
        DataError: it is absent.
    """
    path = Path(path)
    try:
        with open(path, "rb") as probe:
            zipped = probe.read(2) == b"\x1f\x8b"
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if zipped:
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return open(path, encoding="utf-8-sig")


def numbered_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its newline) of a text file; `DataError` names file and line where it is not UTF-8."""
    number = 0
    with open_text(path) as stream:
        try:
            for number, line in enumerate(stream, 1):
                yield number, line.rstrip("\r\n").removeprefix("\ufeff")  # files that were joined bring theirs along
        except (UnicodeDecodeError, EOFError, OSError) as error:
            raise DataError(f"{path}:{number + 1}: cannot be read as UTF-8 text ({error})") from error


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSON-lines file, gzip or plain; a bad line is a `DataError` with file and line."""
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON ({error.msg} at column {error.colno})") from error
        if not isinstance(value, dict):
            raise DataError(f"{path}:{number}: expected a JSON object, found {type(value).__name__}")
        yield number, value


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows as JSON lines (UTF-8, Chinese kept readable), atomically; returns their number."""
    count = 0
    with atomic_write(path) as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def write_json(path: str | Path, value: Any) -> None:
    """Write one JSON document, indented, atomically."""
    with atomic_write(path) as stream:
        stream.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    """Read one JSON document; `DataError` names the file and the place where it is broken."""
    with open_text(path) as stream:
        try:
            return json.load(stream)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not JSON ({error})") from error


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

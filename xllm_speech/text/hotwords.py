"""Lists of hotwords as files."""

from __future__ import annotations

from pathlib import Path

from xllm_speech.base.files import numbered_lines


def read_hotwords(path: str | Path) -> list[tuple[str, str]]:
    """(where, phrase) of each line of a list of hotwords; `DataError` where it is absent or not UTF-8.

    Empty lines and lines that begin with `#` do not count.
    """
    rows = [(f"{path}:{number}", line.strip()) for number, line in numbered_lines(path)]
    return [(where, phrase) for where, phrase in rows if phrase and not phrase.startswith("#")]

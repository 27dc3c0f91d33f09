"""Updates of a stream as lines, or on a terminal as a line that grows."""

from __future__ import annotations

import json
import unicodedata
from types import TracebackType
from typing import IO

from xllm_speech.infer.formats import json_line, text_line
from xllm_speech.infer.streaming import StreamUpdate


class StreamPrinter:
    """Writes updates; empty final texts are passed over.

    Args:
        stream: a terminal shows the growing text in one line, anything else gets lines. format: text | json.
        partial: whether partial results are lines too.
    """

    def __init__(self, stream: IO[str], format: str = "text", partial: bool = False) -> None:
        self.stream, self.format, self.partial = stream, format, partial
        self.grows = stream.isatty() and format == "text" and not partial
        self.shown = 0  # columns of the line that is growing

    def __enter__(self) -> StreamPrinter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.shown:
            self.stream.write("\n")
            self.stream.flush()

    def show(self, update: StreamUpdate) -> None:
        """Write one update."""
        if self.grows:
            text = update.hypothesis.text
            self.stream.write("\r" + text + " " * max(0, self.shown - _columns(text)))
            self.shown = _columns(text)
            if update.final and text:
                self.stream.write("\n")
                self.shown = 0
        elif (update.final and update.hypothesis.text) or (self.partial and not update.final):
            self.stream.write(self._line(update) + "\n")
        self.stream.flush()

    def _line(self, update: StreamUpdate) -> str:
        if self.format == "json":
            row = json.loads(json_line(update.hypothesis))
            return json.dumps(row | {"final": update.final, "heard": round(update.heard_sec, 3)}, ensure_ascii=False)
        line = text_line(update.hypothesis)
        return f"{line} ..." if not update.final else line


def _columns(text: str) -> int:
    """Columns on a terminal: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)

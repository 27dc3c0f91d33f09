"""What became of every tensor of a foreign checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

Setting = str | int | float | bool


@dataclass
class ForeignReport:
    """The account of one conversion; every tensor of the files is in `used` or in `ignored`.

    Attributes:
        layout: as it was asked for. sources: the files or folders. used: foreign name -> our names made of it (a fused
            tensor gives several, several may give one). ignored: foreign name -> why. missing: our name -> why the files do
            not hold it and where it comes from. settings: configuration keys that the weights ask for, by the names of
            `models.xllm_config` (or of `models.asr_config`), `llm_width`, heads and picture size of a vision encoder, and
            arguments of `QFormerPretraining`. notes: what else to know.
    """

    layout: str
    sources: list[str] = field(default_factory=list)
    used: dict[str, list[str]] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Setting] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def renamed(self) -> dict[str, list[str]]:
        """The part of `used` whose names changed."""
        return {foreign: ours for foreign, ours in self.used.items() if ours != [foreign]}

    def to_dict(self) -> dict[str, Any]:
        """For report.json."""
        return {**asdict(self), "renamed": self.renamed}

    def table(self) -> str:
        """For people: names that differ in numbers only share a line, with how many they are."""
        lines = [f"layout {self.layout}: {', '.join(self.sources)}"]
        rows = [(foreign, " + ".join(ours)) for foreign, ours in self.used.items()]
        lines += [f"used: {len(self.used)} tensors, {len(self.renamed)} by another name", *_columns(rows)]
        for title, part in (("ignored", self.ignored), ("missing", self.missing)):
            if part:
                lines += [f"{title}: {len(part)} names", *_columns(part.items())]
        if self.settings:
            lines.append("settings:")
            lines += [f"  {name}={str(value).lower() if isinstance(value, bool) else value}"
                      for name, value in self.settings.items()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _numbered(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "N", name)


def _columns(rows: Iterable[tuple[str, str]]) -> list[str]:
    alike: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for row in rows:
        alike.setdefault((_numbered(row[0]), _numbered(row[1])), []).append(row)
    shown = [(f"{name} x {len(same)}", text) if len(same) > 1 else same[0] for (name, text), same in alike.items()]
    width = min(72, max((len(name) for name, _ in shown), default=0))
    return [f"  {name:<{width}}  {text}" for name, text in shown]

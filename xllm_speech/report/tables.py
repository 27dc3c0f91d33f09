"""Tables as plain data, for the page and for Markdown alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

DASH = "–"


@dataclass(frozen=True)
class Cell:
    """text, with a smaller line below it (an interval), and whether it matters most in its row or warns."""

    text: str
    small: str = ""
    mark: str = ""  # "", best, bad or muted


@dataclass
class Row:
    """Cells; group: a heading across the table instead, its text in the first cell."""

    cells: list[Cell]
    group: bool = False


@dataclass
class Table:
    """columns: headings, those after the first are numbers unless named in `words`. note: a sentence below the table."""

    title: str
    columns: list[str]
    rows: list[Row] = field(default_factory=list)
    note: str = ""
    words: tuple[int, ...] = (0,)
    markdown: bool = True

    def add(self, *cells: str | Cell) -> None:
        """Append a row."""
        self.rows.append(Row([cell if isinstance(cell, Cell) else Cell(cell) for cell in cells]))

    def add_group(self, text: str) -> None:
        """Append a heading across the table."""
        self.rows.append(Row([Cell(text)], group=True))


def percent(value: float | None, digits: int = 2) -> str:
    """A number with so many digits, a dash where there is none."""
    return DASH if value is None else f"{value:.{digits}f}"


def span(interval: tuple[float, float] | None, digits: int = 2) -> str:
    """An interval in words, "" where there is none."""
    return "" if interval is None else f"{interval[0]:.{digits}f} to\u00a0{interval[1]:.{digits}f}"


def count(value: int | None) -> str:
    """A whole number with its thousands apart."""
    return DASH if value is None else f"{value:,}"


def as_markdown(tables: Iterable[Table], heading: str) -> str:
    """A Markdown document of the tables, such as RESULTS.md takes."""
    parts = [f"# {heading}\n"]
    for table in tables:
        if not table.markdown:
            continue
        parts.append(f"## {table.title}\n")
        rule = ["---" if place in table.words else "---:" for place in range(len(table.columns))]
        lines = [_line(table.columns), _line(rule)]
        for row in table.rows:
            cells = [f"*{row.cells[0].text}*"] if row.group else [_cell(cell) for cell in row.cells]
            lines.append(_line(cells + [""] * (len(table.columns) - len(cells))))
        parts.append("\n".join(lines) + "\n")
        if table.note:
            parts.append(f"{table.note}\n")
    return "\n".join(parts)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ").replace("\u00a0", " ") for cell in cells) + " |"


def _cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.mark == "best" else cell.text
    return f"{text} ({cell.small})" if cell.small else text

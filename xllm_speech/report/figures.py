"""Figures as SVG that stands in a page: colours by the page's theme, Chinese glyphs as outlines where a font here has them."""

from __future__ import annotations

import contextlib
import html
import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xllm_speech.base.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

# Families with Chinese glyphs, simplified forms first; of a collection of several, old matplotlib knows the first alone.
FAMILIES = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "PingFang SC", "Hiragino Sans GB",
    "Heiti SC", "Microsoft YaHei", "SimHei", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback",
    "Noto Sans CJK JP", "Noto Serif CJK SC", "Noto Serif CJK JP", "AR PL UMing CN", "AR PL UKai CN",
)
# matplotlib knows no variables: these stand for the page's, and are put in their place in the SVG.
INK, GRID = "#010203", "#010204"
SERIES = tuple(f"#0103{number:02x}" for number in range(1, 9))
_VARIABLES = {INK: "currentColor", GRID: "var(--grid)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)
}
_STYLE: Any = {
    "svg.hashsalt": "xllm-speech", "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": GRID,
    "grid.color": GRID, "axes.grid": True, "grid.linewidth": 0.6, "axes.axisbelow": True, "font.size": 10.0,
    "legend.frameon": False, "legend.fontsize": 9.0, "axes.spines.top": False,
    "axes.spines.right": False, "axes.unicode_minus": False, "text.parse_math": False,
}


class Glyphs:
    """The font for Chinese text in figures.

    Args:
        font: a font file; None looks among the fonts of this machine.

    Attributes: family: its name, None where there is none. characters: the code points it has.

    Raises:
        ConfigError: `font` is absent, or no font.
    """

    def __init__(self, font: Path | None = None) -> None:
        from matplotlib import font_manager

        if font is not None:
            if not font.is_file():
                raise ConfigError(f"--font {font}: no such file")
            try:
                font_manager.fontManager.addfont(font)
            except Exception as error:  # FreeType has its own
                raise ConfigError(f"--font {font}: not a font that FreeType reads ({error})") from error
            names = {Path(entry.fname).resolve(): entry.name for entry in reversed(font_manager.fontManager.ttflist)}
            self.family: str | None = names[font.resolve()]
        else:
            self.family = _installed()
        self.characters: frozenset[int] = frozenset()
        if self.family is not None:
            path = font_manager.findfont(font_manager.FontProperties(family=self.family), fallback_to_default=False)
            self.characters = frozenset(font_manager.get_font(path).get_charmap())

    def cover(self, text: str) -> bool:
        """Whether every Chinese character (and what else is beyond Latin) of `text` can be drawn."""
        return all(ord(letter) < 0x250 or letter.isspace() or ord(letter) in self.characters for letter in text)


def _installed() -> str | None:
    """The first of `FAMILIES` on this machine, also where it was installed after matplotlib last looked."""
    from matplotlib import font_manager

    manager = font_manager.fontManager
    known = {entry.name for entry in manager.ttflist}
    if not known & set(FAMILIES):
        seen = {entry.fname for entry in manager.ttflist}
        for path in font_manager.findSystemFonts():
            if path not in seen:
                with contextlib.suppress(Exception):  # a broken font of the system is no matter of the report
                    manager.addfont(path)
        known = {entry.name for entry in manager.ttflist}
    return next((family for family in FAMILIES if family in known), None)


class Drawing:
    """Makes figures in the report's style and turns them into SVG text.

    A figure whose text the font cannot draw keeps it as text, for the fonts of whoever reads the page. `left_as_text` is
    then True.
    """

    def __init__(self, glyphs: Glyphs) -> None:
        self.glyphs = glyphs
        self.left_as_text = False
        self._count = 0

    @contextlib.contextmanager
    def style(self, text: str = "") -> Iterator[None]:
        """Within it figures are drawn; text: all Chinese that they will hold."""
        import matplotlib

        outlines = self.glyphs.cover(text)
        if not outlines:
            self.left_as_text = True
        families = ["DejaVu Sans", *([self.glyphs.family] if self.glyphs.family and outlines else [])]
        if not outlines:
            families.append("sans-serif")
        quiet = logging.getLogger("matplotlib")
        level = quiet.level
        quiet.setLevel(logging.ERROR)
        try:
            more: Any = {"svg.fonttype": "path" if outlines else "none", "font.family": families}
            with matplotlib.rc_context(_STYLE | more):
                yield
        finally:
            quiet.setLevel(level)

    def figure(self, width_in: float, height_in: float, **more: Any) -> Figure:
        """An empty figure; without pyplot, so that nothing of it stays behind."""
        from matplotlib.figure import Figure

        return Figure(figsize=(width_in, height_in), layout="constrained", **more)

    def svg(self, figure: Figure, label: str) -> str:
        """The figure as an `<svg>` element with ids of its own; label: what it shows, for who cannot see it."""
        stream = io.StringIO()
        import warnings

        with warnings.catch_warnings():  # where text stays text, matplotlib warns of every glyph it would miss
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure.savefig(stream, format="svg", dpi=150, metadata={"Date": None, "Creator": None})
        self._count += 1
        return tidy(stream.getvalue(), f"f{self._count}-", label)


def tidy(svg: str, prefix: str, label: str) -> str:
    """An SVG document -> an element for a page: ids prefixed, colours by variables, size left to the page."""
    svg = svg[svg.index("<svg"):]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}\1"', svg)
    svg = re.sub(r'(xlink:href|href)="#([^"]+)"', rf'\1="#{prefix}\2"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}\1)", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", svg)
    head, rest = svg.split(">", 1)
    width = re.search(r'\bwidth="([\d.]+)pt"', head)
    head = re.sub(r'\s(width|height|version|xmlns)="[^"]*"', "", head)
    points = float(width[1]) if width else 0.0
    return f'{head} role="img" aria-label="{html.escape(label, quote=True)}" data-points="{points:.0f}">{rest}'.strip()

"""Figures: Chinese as outlines where a font has it, as text where none has; ids and colours fit for a page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from xllm_speech.base.errors import ConfigError
from xllm_speech.base.units import STEP_SEC
from xllm_speech.report.alignment import Alignment
from xllm_speech.report.figures import Drawing, Glyphs, tidy
from xllm_speech.report.gather import gather
from xllm_speech.report.plots import plot_alignment, plot_scores, plot_training, running_sum


def latin_font():
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def made_up(pieces):
    alpha = np.full(4 * len(pieces), 0.25)
    ends = [STEP_SEC * 4 * (place + 1) for place in range(len(pieces))]
    fbank = np.random.default_rng(0).normal(size=(32 * len(pieces), 80))
    return Alignment("u1", "one", None, None, "", "".join(pieces), pieces, [0.0, *ends[:-1]], ends, alpha, fbank)


def test_chinese_is_drawn_as_outlines():
    glyphs = Glyphs()
    if glyphs.family is None:
        pytest.skip("no font with Chinese glyphs on this machine; fonts-noto-cjk has them")
    drawing = Drawing(glyphs)
    one, other = (plot_alignment(made_up(pieces), drawing) for pieces in (["旗", "子"], ["棋", "子"]))
    assert not drawing.left_as_text
    assert "<text" not in one

    def outlines(svg):
        """Outlines of the glyphs by the name that matplotlib gives them, less the prefix of the figure."""
        return dict(re.findall(r'<path id="f\d+-([^"]*CJK[^"]*|[^"]*-[0-9a-f]{4,})" d="([^"]+)"', svg))

    drawn, others = set(outlines(one).values()), set(outlines(other).values())
    assert len(drawn & others) >= 1  # 子
    assert len(drawn - others) == len(others - drawn) == 1  # 旗 and 棋
    assert min(map(len, drawn)) > 200  # no boxes, which stand for what a font lacks


def test_without_a_font_chinese_stays_text(caplog):
    drawing = Drawing(Glyphs(latin_font()))
    svg = plot_alignment(made_up(["旗", "子"]), drawing)
    assert drawing.left_as_text
    assert re.search(r"<text[^>]*>旗</text>", svg)
    assert not caplog.records


def test_a_font_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match=r"--font .*absent: no such file"):
        Glyphs(tmp_path / "absent")
    (tmp_path / "song.ttf").write_text("la")
    with pytest.raises(ConfigError, match=r"song.ttf: not a font that FreeType reads"):
        Glyphs(tmp_path / "song.ttf")


def test_figures_share_a_page(exp):
    drawing, experiment = Drawing(Glyphs(latin_font())), gather(exp)
    figures = [plot_scores(experiment, drawing), *(plot_training(experiment.trainings[0], drawing) for _ in range(2))]
    ids = [name for svg in figures for name in re.findall(r'\bid="([^"]+)"', svg)]
    assert len(ids) == len(set(ids))
    for svg in figures:
        assert svg.startswith("<svg")
        assert "currentColor" in svg
        assert "var(--series-1)" in svg
        assert not re.search(r"#0103\d\d|#01020[34]", svg)
        assert not re.search(r'https?://(?!www\.w3\.org/)', svg)
        own = set(re.findall(r'\bid="([^"]+)"', svg))
        assert set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg)) <= own


def test_what_a_figure_shows_is_escaped():
    svg = tidy('<?xml version="1.0"?><svg width="72pt" viewBox="0 0 1 1"></svg>', "f1-", 'a "b" <c>')
    assert 'aria-label="a &quot;b&quot; &lt;c&gt;"' in svg
    drawing = Drawing(Glyphs(latin_font()))
    svg = plot_alignment(made_up(["<script>", "$x", "-->"]), drawing)
    assert "<script>" not in svg
    assert svg.count("-->") == svg.count("<!--")


def test_the_running_sum_fires_at_one():
    item = made_up(["a", "b"])
    times, sums = running_sum(item)
    assert max(sums) == pytest.approx(1.0)
    assert sums[times.index(item.fire_sec[0])] == pytest.approx(1.0)
    assert sums.count(0.0) == 3  # at the start and after each fire
    assert times == sorted(times)

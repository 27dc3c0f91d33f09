"""The page as a whole: what stands in it, what is said to be absent, nothing half-written, and how it looks in a browser."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from xllm_speech.base.errors import ConfigError
from xllm_speech.base.files import write_json, write_jsonl
from xllm_speech.bin.main import main
from xllm_speech.report.page import ReportJob, write_report

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]


@pytest.fixture(scope="module")
def page(finished, tmp_path_factory):
    """The report of the tiny experiment, with the Chinese of its alignments; (page, Markdown)."""
    folder = tmp_path_factory.mktemp("page")
    write_report(ReportJob(finished / "exp", folder / "index.html", folder / "RESULTS.md", samples=2))
    return folder / "index.html", folder / "RESULTS.md"


def test_everything_stands_in_one_file(page):
    text, markdown = (path.read_text(encoding="utf-8") for path in page)
    for words in (
        "tiny_recipe", "Recognition: character error rate", "the paper, Table 4", "4.7 / 4.3", "Does the image help?",
        "Typed questions about an image", "Spoken questions about an image", "Descriptions of clips", "Cost by phase",
        "not run", "What stands on what", "Environment", "without image", "请详细描述这张图片。", "xllm-speech judge run",
    ):
        assert words in text, words
    assert "Files with faults" not in text
    assert not re.search(r'(?:src|href|action)="(?!data:|#)', text)
    assert not re.search(r"url\((?!#)", text)
    assert len(re.findall(r"<audio[^>]* src=\"data:audio/", text)) == 4  # two alignments, two spoken questions
    assert len(re.findall(r'<img[^>]* src="data:image/', text)) == 2 * 5  # alignments and four tasks
    assert text.count("<svg") == 2 + 2
    assert "## Recognition: character error rate, %" in markdown
    assert "data:" not in markdown


def test_what_is_absent_is_said_with_what_makes_it(exp, capsys):
    for name in ("score", "answers", "report", "decode"):
        shutil.rmtree(exp / name)
    (exp / "asr" / "train.log").unlink()
    assert main(["report", str(exp)]) == 0
    text = (exp / "report" / "index.html").read_text(encoding="utf-8")
    for words in (
        "No score of the CIF model yet: <code>xllm-speech transcribe</code>",
        "No score of the X-LLM yet: <code>xllm-speech transcribe --method llm</code>",
        "(stages 10-19 of a recipe)", "No scores of answers yet", "No training yet: <code>xllm-speech train</code>",
        "No answers yet",
        "No alignments: they need a CIF ASR model", "No judged answers (LLaVA-test)",
    ):
        assert words in text, words
    assert "index.html: " in capsys.readouterr().out


def test_the_model_can_be_left_out(exp, monkeypatch):
    monkeypatch.setattr("xllm_speech.report.page.align_some", None)
    write_report(ReportJob(exp, use_model=False))
    assert "Left out, as was asked for: the model was not run." in (exp / "report" / "index.html").read_text(encoding="utf-8")


def test_text_of_others_is_text(exp):
    rows = [json.loads(line) for line in (exp / "answers" / "all.jsonl").read_text().splitlines()]
    write_jsonl(exp / "answers" / "all.jsonl", [row | {"text": "<script>alert(1)</script>&amp;"} for row in rows])
    path = exp / "score" / "test_one" / "S.json"
    score = json.loads(path.read_text())
    for row in score["per_utterance"]:
        row["hypothesis"] = "<b>"
        row["operations"] = "SSS"
    write_json(path, score | {"set": "<img src=x> S"})
    write_report(ReportJob(exp, samples=2))
    text = (exp / "report" / "index.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<img src=x>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;amp;" in text


def test_files_with_faults_are_told(exp, capsys):
    (exp / "score" / "test_one" / "llm_S.json").write_text("{")
    (exp / "judge").mkdir()
    (exp / "judge" / "mine.jsonl").write_text('{"question_id": null, "category": "conv", "content": "8 9"}\n')
    assert main(["report", str(exp), "--samples", "0"]) == 0
    error = capsys.readouterr().err
    assert "score/test_one/llm_S.json: not JSON" in error
    assert 'judge/mine.jsonl: line 1: expected "question_id"' in error
    text = (exp / "report" / "index.html").read_text(encoding="utf-8")
    assert "Files with faults" in text
    assert "Left out, as was asked for." in text


def test_nothing_half_written(exp, monkeypatch, capsys):
    out = exp / "report" / "index.html"
    out.write_text("before")
    assert main(["report", str(exp), "--font", str(exp / "absent.ttf")]) == 1
    assert "--font" in capsys.readouterr().err
    monkeypatch.setattr("xllm_speech.report.page.render", lambda *_: 3)
    with pytest.raises(TypeError):
        write_report(ReportJob(exp, use_model=False, samples=0))
    assert out.read_text() == "before"
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []


def test_refusals(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert "holds no training, score or model" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "absent")]) == 1
    assert "no such folder" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--samples -1 must not be negative"):
        ReportJob(tmp_path, samples=-1)


SEEN = """() => ({
  width: document.documentElement.scrollWidth,
  beyond: [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, svg, nav'))
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80)),
  broken: [...document.images].filter(e => !e.complete || !e.naturalWidth).map(e => e.alt),
  images: document.images.length,
  empty: [...document.querySelectorAll('svg')].filter(e => e.getBoundingClientRect().height < 100).length,
  glyphs: [...document.querySelectorAll('article svg defs path')].filter(e => e.getBBox().width > 0).length,
  missing: [...document.querySelectorAll('svg use')].filter(e => !document.querySelector(e.getAttribute('xlink:href'))).length,
  ids: [...document.querySelectorAll('[id]')].length - new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size,
  paper: getComputedStyle(document.body).backgroundColor,
})"""
HEARD = """async () => (await Promise.all([...document.querySelectorAll('audio')].map(e => new Promise(done => {
  if (e.readyState) done(e.duration);
  e.onloadedmetadata = () => done(e.duration); e.onerror = () => done(-1); e.load(); }))))"""


def test_in_a_browser(page, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; pip install playwright")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine; apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=FLAGS)
        papers = set()
        for width, scheme in ((1280, "light"), (375, "dark")):
            view = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            fetched, said = [], []
            view.on("request", lambda request, fetched=fetched: fetched.append(request.url))
            view.on("console", lambda message, said=said: said.append(message.text))
            view.goto(f"file://{page[0]}")
            seen = view.evaluate(SEEN)
            assert seen["width"] == width
            assert seen["beyond"] == seen["broken"] == []
            assert seen["images"] == 10
            assert (seen["empty"], seen["missing"], seen["ids"]) == (0, 0, 0)
            assert seen["glyphs"] > 10
            assert [url for url in fetched if not url.startswith(("data:", "file://"))] == []
            assert len([url for url in fetched if url.startswith("file://")]) == 1
            assert said == []
            papers.add(seen["paper"])
            if width == 1280:
                lengths = view.evaluate(HEARD)
                assert len(lengths) == 4
                assert all(0.4 < length < 1.2 for length in lengths)
                view.pdf(path=str(tmp_path / "page.pdf"), format="A4")
            view.screenshot(path=str(tmp_path / f"{width}.png"), full_page=True)
        browser.close()
    assert len(papers) == 2  # light and dark differ
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "375.png").stat().st_size > 20_000

"""The page in a real browser: headless Chromium does what a visitor would."""

from __future__ import annotations

import shutil
import time

import httpx
import pytest
from serving import running

from xllm_speech.serve import phrases
from xllm_speech.serve.examples import load_examples
from xllm_speech.serve.refusal import bad_request

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Without these a browser in a closed network tries to call home, and as root it needs no sandbox of its own.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
]


@pytest.fixture(scope="module")
def site(model):
    pytest.importorskip("gradio", reason="the page needs gradio; pip install 'xllm-speech[demo]'")
    with running(model, demo=True, limits={"media_mib": 1, "answer_tokens": 24}) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium here to look at the page with; apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as engine:
        found = engine.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield found
        found.close()


class Visitor:
    """A page that is open, with what it asked of other hosts."""

    def __init__(self, browser, url, locale):
        context = browser.new_context(locale=locale, viewport={"width": 1100, "height": 1000}, permissions=["microphone"])
        self.page, self.strangers = context.new_page(), []
        self.page.on("request", lambda one: None if "127.0.0.1" in one.url else self.strangers.append(one.url))
        self.page.goto(url)
        self.page.wait_for_selector("#box textarea")

    @property
    def said(self):
        return self.page.locator("#conversation").inner_text()

    def ask(self, text=None, files=()):
        """Send, and wait until the answer has ended; returns what stands last."""
        if files:
            self.page.locator("#box input[type=file]").set_input_files([str(path) for path in files])
            self.page.wait_for_function("n => document.querySelectorAll('#box .thumbnail-item').length >= n", arg=len(files))
        if text:
            self.page.locator("#box textarea").fill(text)
        before = self.answers.count()
        end = time.monotonic() + 20
        while self.answers.count() <= before:  # while a file is on its way the button does nothing
            assert time.monotonic() < end, "no answer"
            if (button := self.page.locator("#box .submit-button")).is_visible():
                button.click()
            self.page.wait_for_timeout(300)
        self.page.locator("#box .submit-button").wait_for()
        self.page.wait_for_timeout(150)
        return self.answers.last.inner_text()

    @property
    def answers(self):
        return self.page.locator("#conversation .bot.message")


@pytest.fixture(scope="module")
def visitor(browser, site):
    found = Visitor(browser, f"{site.url}/", "en-US")
    yield found
    assert found.strangers == []


def test_a_chat_over_any_mix_of_media(visitor, world, model):
    image, wave, video = (str(world.folder / name) for name in ("images/1.png", "speech/u2.wav", "clips/3.mp4"))
    rounds = [
        ({"type": "image", "path": image}, "是什么颜色"), ({"type": "speech", "path": wave}, None),
        ({"type": "video", "path": video}, None),
    ]
    messages = []
    for medium, text in rounds:
        messages.append({"role": "user", "content": [medium, *([{"type": "text", "text": text}] if text else [])]})
        alone = model.chat(messages, max_new_tokens=24)
        shown = visitor.ask(text, [medium["path"]])
        assert alone.strip() in shown
        messages.append({"role": "assistant", "content": alone})
    assert "是什么颜色" in visitor.said


def test_a_question_can_be_spoken_into_the_microphone(visitor):
    page = visitor.page
    page.locator("#new").click()
    page.locator("#box [data-testid=microphone-button]").click()
    page.locator("#box .record-button").click()
    page.wait_for_timeout(1000)  # Chromium's own microphone beeps
    page.locator("#box .stop-button").click()
    page.locator("#box .confirm-button").click()
    page.locator("#box .thumbnail-item").first.wait_for()
    answer = visitor.ask()
    assert answer
    assert "⚠" not in answer


def test_wrong_files_are_told_and_the_page_stays_up(visitor, world, tmp_path):
    visitor.page.locator("#new").click()
    (tmp_path / "words.png").write_text("these are words")
    whole = (world.folder / "clips/3.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with open(tmp_path / "huge.mp4", "wb") as stream:
        stream.truncate(1 << 30)
    assert "words.png: not a picture, clip or recording" in visitor.ask("是什么颜色", [tmp_path / "words.png"])
    assert "video-1: cannot be read" in visitor.ask(None, [tmp_path / "cut.mp4"])
    visitor.page.locator("#box input[type=file]").set_input_files(str(tmp_path / "huge.mp4"))
    visitor.page.get_by_text("exceed the maximum allowed size").first.wait_for(timeout=10_000)
    visitor.page.reload()
    visitor.page.wait_for_selector("#box textarea")
    assert visitor.ask("在哪里")


def test_an_answer_can_be_stopped(visitor, site):
    llm = site.application.service.model.checkpoint.model.llm
    slow = llm.model.register_forward_pre_hook(lambda *_: time.sleep(0.15))
    try:
        visitor.page.locator("#box textarea").fill("红绿蓝")
        visitor.page.locator("#box .submit-button").click()
        visitor.page.locator("#box .stop-button").click()
        visitor.page.get_by_text("(stopped)").wait_for(timeout=5_000)
    finally:
        slow.remove()
    end = time.monotonic() + 3
    while not site.application.worker.idle:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_speech_recognition_with_times_and_an_alignment(visitor, world, tmp_path):
    from xllm_speech import CifAsr

    page, wave = visitor.page, world.folder / "speech/u3.wav"
    page.get_by_role("tab", name="Speech recognition").click()
    page.locator("#recording input[type=file]").set_input_files(str(wave))
    page.locator("#recording audio").first.wait_for(state="attached")
    page.locator("#recognise").click()
    page.locator("#alignment img").wait_for(timeout=15_000)
    heard = CifAsr.from_pretrained(world.asr).transcribe(wave)[0]
    assert page.locator("#cif_text textarea").input_value() == heard.text
    table = page.locator("#times").inner_text()
    assert str(heard.tokens[1].end_sec) in table
    assert page.locator("#alignment img").evaluate("image => image.naturalWidth") > 300
    (tmp_path / "words.png").write_text("these are words")
    page.locator("#picture input[type=file]").set_input_files(str(tmp_path / "words.png"))
    page.locator("#picture img").wait_for(state="attached")
    page.locator("#recognise").click()
    page.wait_for_function("document.querySelector('#llm_text textarea').value.startsWith('⚠')")
    assert page.locator("#llm_text textarea").input_value().startswith("⚠ picture: not a picture that is known here: PNG")


def test_the_page_speaks_chinese_to_who_reads_it(browser, site, tmp_path):
    visitor = Visitor(browser, f"{site.url}/demo/", "zh-CN")
    visitor.page.get_by_role("heading", name=phrases.CHINESE["title"].removeprefix("# ")).wait_for()
    assert visitor.page.get_by_role("tab", name="语音识别").count() == 1
    (tmp_path / "words.png").write_text("these are words")
    assert "文件无法读取" in visitor.ask("是什么颜色", [tmp_path / "words.png"])
    assert visitor.strangers == []
    visitor.page.context.close()


def test_the_page_asks_for_the_key_and_fetches_nothing(model):
    pytest.importorskip("gradio")
    with running(model, demo=True, api_key="open sesame") as server, httpx.Client(base_url=server.url) as client:
        assert client.get("/demo/config").status_code == 401
        assert client.post("/demo/login", data={"username": "x", "password": "wrong"}).status_code == 400
        assert client.post("/demo/login", data={"username": "x", "password": "open sesame"}).status_code == 200
        assert client.get("/demo/config").status_code == 200
        value = {"text": "", "files": [{"path": "http://169.254.169.254/x.png", "meta": {"_type": "gradio.FileData"}}]}
        answer = client.post("/demo/gradio_api/queue/join", json={"data": [value], "fn_index": 0, "session_hash": "x"})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == "files are uploaded, not named by a URL"


def test_words_exist_in_both_languages():
    assert set(phrases.ENGLISH) == set(phrases.CHINESE)
    refusal = bad_request("image-1: more than 4 MiB", code="media_too_large")
    assert phrases.explain(refusal, True) == "⚠ 文件过大或过长：image-1: more than 4 MiB"
    assert phrases.explain(refusal, False) == "⚠ image-1: more than 4 MiB"


def test_examples_of_a_manifest(world, tmp_path):
    found = load_examples(str(world.talks), tmp_path, ("image", "video", "speech"))
    assert [len(one["files"]) for one in found] == [1, 1, 2, 1, 0]
    assert found[1]["text"]
    drawn = load_examples("", tmp_path, ("image",))
    assert drawn[0]["files"] == [str(tmp_path / "example.png")]
    assert load_examples("", tmp_path, ("speech",))[0]["files"] == []

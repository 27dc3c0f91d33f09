"""The web page: a chat over any mix of media, and speech recognition with times. It stands on the same queue as the API."""

from __future__ import annotations

import contextlib
import hmac
import os
import tempfile
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from xllm_speech.features.audio import load_file, load_samples
from xllm_speech.infer.asr import CifAsr
from xllm_speech.serve import phrases
from xllm_speech.serve.alignment import draw_alignment
from xllm_speech.serve.api import Service
from xllm_speech.serve.config import MIB
from xllm_speech.serve.examples import load_examples
from xllm_speech.serve.guard import DEMO
from xllm_speech.serve.intake import Question
from xllm_speech.serve.jobs import ChatJob, Done, Piece, SpeechJob, Transcribed
from xllm_speech.serve.media import Sent, kind_of, store
from xllm_speech.serve.refusal import Refusal, bad_request
from xllm_speech.serve.transcripts import whole_text

# Before Gradio is imported: it must neither call home nor keep uploads where others look.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
import gradio as gr

KEEP_SEC = 1800  # uploads of a page: its earlier rounds need them
SWEEP_SEC = 300
FONT = ["system-ui", "Noto Sans CJK SC", "sans-serif"]
CSS = (
    "footer {display: none !important} #conversation {flex-grow: 1}"
    # Sharing would send media to another host.
    " button:is([title=Share], [title=分享], [aria-label=Share]) {display: none !important}"
)


@dataclass
class Turn:
    """One round of a page's chat. files: (kind, path) in Gradio's folder. answer: empty where there is none."""

    text: str
    files: list[tuple[str, str]] = field(default_factory=list)
    answer: str = ""


class Page:
    """What the page does. Args: service: that answers."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.asked: dict[str, ChatJob] = {}  # by the browser's session, to be stopped

    async def respond(
        self, value: dict[str, Any] | None, shown: list[dict[str, Any]], turns: list[Turn], most_tokens: float,
        temperature: float, top_p: float, request: gr.Request,
    ) -> AsyncGenerator[Any, None]:
        """Answer what stands in the box: (conversation, box, rounds) again and again while the answer comes."""
        chinese = _chinese(request)
        text, files = ((value or {}).get("text") or "").strip(), list((value or {}).get("files") or ())
        busy = gr.MultimodalTextbox(value=None, interactive=False, submit_btn=False, stop_btn=True)
        ready = gr.MultimodalTextbox(interactive=True, submit_btn=True, stop_btn=False)
        if not text and not files:
            gr.Info(phrases.say("nothing", chinese))
            yield shown, ready, turns
            return
        shown = [*shown, *({"role": "user", "content": {"path": path}} for path in files)]
        shown += [{"role": "user", "content": text}] if text else []
        shown += [{"role": "assistant", "content": "…"}]
        yield shown, busy, turns
        answer, finish = "", ""
        session = str(request.session_hash)
        try:
            turn = Turn(text, [await self.service.apart(_kind_of_file, path) for path in files])
            question = await self.service.apart(self._question, [*turns, turn], int(most_tokens), temperature, top_p)
            job = self.service.submit(question, self.service.config.timeout_sec)
            self.asked[session] = job
            async with contextlib.aclosing(job.events()) as events:
                async for event in events:
                    match event:
                        case Piece(text=piece):
                            answer += piece
                            yield [*shown[:-1], {"role": "assistant", "content": answer}], busy, turns
                        case Done():
                            self.service.count(event)
                            finish = phrases.say("cut", chinese) if event.finish == "length" else ""
                        case Refusal():
                            raise event
        except Refusal as refusal:
            stopped = refusal.code == "stopped"
            finish = phrases.say("stopped", chinese) if stopped else phrases.explain(refusal, chinese)
        finally:
            self.asked.pop(session, None)
        if answer.strip():
            turns = [*turns, Turn(turn.text, turn.files, answer)]
        yield [*shown[:-1], {"role": "assistant", "content": f"{answer} {finish}".strip() or "…"}], ready, turns

    def _question(self, turns: list[Turn], most_tokens: int, temperature: float, top_p: float) -> Question:
        messages: list[dict[str, Any]] = []
        sent: dict[str, Sent] = {}
        for turn in turns:
            items = []
            for kind, path in turn.files:
                label = f"{kind}-{1 + sum(one.kind == kind for one in sent.values())}"
                self.service.intake.require_kind(kind, label)
                sent[label] = Sent(kind, label, _content(path, self.service.config.limits.media_mib))
                items.append({"type": kind, "path": label})
            items += [{"type": "text", "text": turn.text}] if turn.text else []
            messages.append({"role": "user", "content": items})
            if turn.answer:
                messages.append({"role": "assistant", "content": turn.answer})
        limits = self.service.config.limits
        if len(sent) > limits.media or sum(len(turn.text + turn.answer) for turn in turns) > limits.text_chars:
            raise bad_request("the conversation grew too long; begin a new one", code="too_long")
        options = self.service.intake.options(most_tokens, temperature, top_p if temperature else None)
        return self.service.intake.ask(messages, sent, options)

    async def stop(self, request: gr.Request) -> None:
        """End the answer that comes; what came stays."""
        if (job := self.asked.get(str(request.session_hash))) is not None:
            job.cancelled.set()
            job.put(Refusal(499, "stopped", code="stopped"))

    async def recognise(self, audio: str | None, image: str | None, request: gr.Request) -> tuple[Any, ...]:
        """(transcript by the X-LLM, by the CIF model, rows of times, picture) of a recording."""
        chinese = _chinese(request)
        if not audio:
            return phrases.say("no_recording", chinese), "", [], None
        try:
            return await self._recognise(audio, image, chinese)
        except Refusal as refusal:
            return phrases.explain(refusal, chinese), "", [], None

    async def _recognise(self, audio: str, image: str | None, chinese: bool) -> tuple[Any, ...]:
        service = self.service
        ears = service.ears
        assert ears is not None  # else there is no such tab
        limits = service.config.limits
        speech = Sent("speech", "recording", await service.apart(_content, audio, limits.media_mib))
        picture = None if image is None else Sent("image", "picture", await service.apart(_content, image, limits.media_mib))
        if picture is not None and "image" not in service.model.kinds:
            service.intake.require_kind("image", "picture")
        with tempfile.TemporaryDirectory(dir=service.folder) as folder:
            path = await service.apart(store, speech, Path(folder), limits)
            seen = None if picture is None else await service.apart(store, picture, Path(folder), limits)
            asked, heard = (
                SpeechJob(path, method, shown, method == "cif", timeout_sec=service.config.timeout_sec)
                for method, shown in (("llm", seen), ("cif", seen if ears.sees_images else None))
            )
            service.worker.submit(asked)
            service.worker.submit(heard)
            written, found = await asked.result(), await heard.result()
            assert isinstance(written, Transcribed)
            assert isinstance(found, Transcribed)
            drawing = await service.apart(_draw, ears, path, found)
        rows = [
            [token.text, token.start_sec, token.end_sec, token.confidence] for one in found.hypotheses for token in one.tokens
        ]
        nothing = phrases.say("silence", chinese)
        text = whole_text(found.hypotheses) or nothing
        headers = phrases.HEADERS["zh" if chinese else "en"]
        return whole_text(written.hypotheses) or nothing, text, gr.Dataframe(value=rows, headers=headers), drawing


def _draw(ears: CifAsr, path: Path, found: Transcribed) -> np.ndarray:
    """The alignment of a recording."""
    samples_N = load_samples(load_file(path), ears.checkpoint.description.features.channel)
    alpha_S = np.zeros(0, dtype=np.float32) if found.alpha_S is None else found.alpha_S
    return draw_alignment(samples_N, alpha_S, [token for one in found.hypotheses for token in one.tokens])


def _chinese(request: gr.Request) -> bool:
    return phrases.is_chinese(str(request.headers.get("accept-language", "")))


def _content(path: str, most_mib: int) -> bytes:
    """A file that Gradio took in."""
    with open(path, "rb") as stream:
        content = stream.read(most_mib * MIB + 1)
    if len(content) > most_mib * MIB:
        raise bad_request(f"{Path(path).name}: more than {most_mib} MiB", code="media_too_large")
    return content


def _path_of(payload: Any) -> str | None:
    return None if payload is None else payload.path


def _kind_of_file(path: str) -> tuple[str, str]:
    kind = kind_of(Path(path))
    if kind is None:
        raise bad_request(f"{Path(path).name}: not a picture, clip or recording that is known here", code="invalid_media")
    return kind, path


def build_page(service: Service) -> tuple[gr.Blocks, gr.I18n]:
    """The page and its words."""
    config = service.config
    words = gr.I18n(en=phrases.ENGLISH, zh=phrases.CHINESE, **{"zh-CN": phrases.CHINESE})
    page = Page(service)
    room = service.model.answerer.room(service.intake.options(None))
    kinds = service.model.kinds
    drawings = Path(tempfile.mkdtemp(prefix="examples-", dir=service.folder))
    examples = load_examples(config.examples, drawings, kinds)
    with gr.Blocks(title="X-LLM", analytics_enabled=False, delete_cache=(SWEEP_SEC, KEEP_SEC), fill_height=True) as blocks:
        gr.Markdown(words("title"), elem_id="title")
        with gr.Tab(words("chat")):
            shown = gr.Chatbot(
                label=words("conversation"), elem_id="conversation", height="55vh", render_markdown=False, buttons=["copy"],
                feedback_options=None,
            )
            box = gr.MultimodalTextbox(
                placeholder=words("ask"),  # type: ignore[arg-type]  # translated in the browser like every other word
                show_label=False, file_count="multiple", elem_id="box", autofocus=True,
                file_types=["audio" if kind == "speech" else kind for kind in kinds if kind in ("image", "video", "speech")],
                sources=["upload", "microphone"] if "speech" in kinds else ["upload"],
            )
            with gr.Accordion(words("settings"), open=False):
                most = gr.Slider(1, 2 * room, value=room, step=1, label=words("most_tokens"))
                temperature = gr.Slider(0, 2, value=0, step=0.05, label=words("temperature"))
                top_p = gr.Slider(0.05, 1, value=1, step=0.05, label=words("top_p"))
            new = gr.Button(words("new"), size="sm", elem_id="new")
            gr.Examples([[example] for example in examples], box, label=words("examples"), cache_examples=False)
            turns = gr.State([], time_to_live=KEEP_SEC)
            box.submit(
                page.respond, [box, shown, turns, most, temperature, top_p], [shown, box, turns], api_visibility="private",
                concurrency_limit=config.max_requests, show_progress="hidden",
            )
            box.stop(page.stop, api_visibility="private", queue=False)
            new.click(lambda: ([], []), None, [shown, turns], api_visibility="private", queue=False)
            shown.clear(lambda: [], None, turns, api_visibility="private", queue=False)
        if service.ears is not None:
            with gr.Tab(words("asr")):
                with gr.Row():
                    audio = gr.Audio(
                        label=words("recording"), sources=["upload", "microphone"], type="filepath", elem_id="recording",
                        buttons=["download"],
                    )
                    image = gr.Image(
                        label=words("picture"), sources=["upload", "clipboard"], type="filepath", elem_id="picture",
                        visible="image" in kinds, buttons=["fullscreen"],
                    )
                # Gradio would open it before it was looked at. (A subclass would write a stub file beside this module.)
                image.preprocess = _path_of  # type: ignore[method-assign]
                go = gr.Button(words("recognise"), variant="primary", elem_id="recognise")
                llm_text = gr.Textbox(label=words("llm_text"), elem_id="llm_text", interactive=False)
                cif_text = gr.Textbox(label=words("cif_text"), elem_id="cif_text", interactive=False)
                picture = gr.Image(
                    label=words("alignment"), elem_id="alignment", interactive=False, format="png", buttons=["download"]
                )
                times = gr.Dataframe(
                    headers=phrases.HEADERS["en"], label=words("times"), interactive=False, elem_id="times"
                )
                go.click(
                    page.recognise, [audio, image], [llm_text, cif_text, times, picture], api_visibility="private",
                    concurrency_limit=config.max_requests,
                )
        gr.Markdown(words("privacy"))
    blocks.queue(max_size=config.max_requests)
    return blocks, words


def mount_demo(app: FastAPI, service: Service) -> None:
    """Put the page at /demo. With an API key the browser asks for it, as the password of any user."""
    config = service.config
    os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="page-", dir=service.folder)
    blocks, words = build_page(service)

    def known(_: str, password: str) -> bool:
        return hmac.compare_digest(password.encode(), config.api_key.encode())

    @app.get("/", include_in_schema=False)
    async def page() -> RedirectResponse:
        return RedirectResponse(f"{DEMO}/")

    gr.mount_gradio_app(
        app, blocks, DEMO, auth=known if config.api_key else None, auth_message="The password is the server's API key.",
        max_file_size=config.limits.media_mib * MIB, show_error=True, ssr_mode=False, i18n=words, footer_links=[],
        theme=gr.themes.Default(font=FONT, font_mono=["monospace"]), css=CSS, enable_monitoring=False, pwa=False,
    )


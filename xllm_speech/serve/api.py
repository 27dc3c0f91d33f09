"""The routes of OpenAI's API: chat completions, transcriptions, models; and health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import soundfile
from anyio.to_thread import run_sync
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from xllm_speech.infer.asr import CifAsr
from xllm_speech.infer.xllm import XLLM
from xllm_speech.records import Hypothesis
from xllm_speech.serve.config import MIB, ServeConfig
from xllm_speech.serve.intake import Intake, Question
from xllm_speech.serve.jobs import ChatJob, Done, Event, Job, Piece, SpeechJob, Transcribed
from xllm_speech.serve.media import Sent, from_url, store
from xllm_speech.serve.metrics import Metrics
from xllm_speech.serve.refusal import Refusal, bad_request
from xllm_speech.serve.schema import ChatRequest, TranscriptionFields, parse_chat, parse_fields
from xllm_speech.serve.transcripts import MEDIA_TYPES, TIMED, subtitles, verbose, whole_text
from xllm_speech.serve.worker import Worker

Result = TypeVar("Result")
READERS = 4  # requests whose media are read at once


class Service:
    """What the routes and the page stand on.

    Args:
        model: the X-LLM. ears: the CIF ASR model of its speech interface, None without one. folder: for files of requests.
    """

    def __init__(
        self, model: XLLM, ears: CifAsr | None, worker: Worker, config: ServeConfig, folder: Path, metrics: Metrics
    ) -> None:
        self.model, self.ears, self.worker, self.config = model, ears, worker, config
        self.folder, self.metrics = folder, metrics
        self.intake = Intake(model, config, folder)
        self.limiter = anyio.CapacityLimiter(READERS)
        self.created = int(time.time())

    @property
    def models(self) -> list[str]:
        """Names that clients may ask for."""
        return [self.config.name, *([f"{self.config.name}-cif"] if self.ears else [])]

    async def apart(self, work: Callable[..., Result], *args: Any) -> Result:
        """Do slow work in a thread."""
        return await run_sync(work, *args, limiter=self.limiter)

    def submit(self, question: Question, timeout_sec: float) -> ChatJob:
        """Ask."""
        job = ChatJob(
            question.conversation, question.samples, question.options, question.stop, question.seed, timeout_sec=timeout_sec
        )
        self.worker.submit(job)
        return job

    def count(self, done: Done) -> None:
        """For the metrics."""
        self.metrics.add("xllm_tokens_total", done.prompt_tokens, kind="prompt")
        self.metrics.add("xllm_tokens_total", done.tokens, kind="answer")

    def require_model(self, name: str) -> None:
        """`Refusal` for a name that is not served."""
        if name not in self.models:
            raise Refusal(404, f"there is no such model here; there are {', '.join(self.models)}", "model", "model_not_found")


def build_api(service: Service) -> FastAPI:
    """The application with its routes."""
    app = FastAPI(title="xllm-speech", docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> Response:
        return JSONResponse(refusal.body, refusal.status, refusal.headers)

    @app.exception_handler(HTTPException)
    async def mistaken(_: Request, error: HTTPException) -> Response:
        refusal = Refusal(error.status_code, str(error.detail), code="http_error")
        return JSONResponse(refusal.body, refusal.status, dict(error.headers or {}))

    @app.get("/health")
    async def health() -> Response:
        alive = service.worker.alive
        return JSONResponse({"status": "ok" if alive else "shutting down"}, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [_model(service, name) for name in service.models]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        service.require_model(name)
        return JSONResponse(_model(service, name))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _chat(service, request)

    @app.post("/v1/audio/transcriptions")
    async def transcribe(request: Request) -> Response:
        return await _transcribe(service, request)

    return app


def _model(service: Service, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": service.created, "owned_by": "xllm-speech"}


async def _chat(service: Service, request: Request) -> Response:
    end = time.monotonic() + service.config.timeout_sec
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "expected a body of type application/json", code="unsupported_media_type")
    asked, question = await service.apart(_prepare, service, await request.body())
    job = service.submit(question, end - time.monotonic())
    head = {"id": f"chatcmpl-{job.name}", "created": int(time.time()), "model": asked.model}
    if asked.stream:
        usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
        events = job.events()
        first = await _unless_gone(request, job, anext(events))
        if isinstance(first, Refusal):
            raise first
        return EventStream(_chunks(service, head | {"object": "chat.completion.chunk"}, first, events, usage), job)
    done = await _unless_gone(request, job, job.result())
    assert isinstance(done, Done)
    service.count(done)
    message = {"role": "assistant", "content": done.text, "refusal": None}
    answer = head | {
        "object": "chat.completion", "usage": _usage(done),
        "choices": [{"index": 0, "message": message, "finish_reason": done.finish, "logprobs": None}],
    }
    return JSONResponse(answer | ({"note": done.note} if done.note else {}))


def _prepare(service: Service, body: bytes) -> tuple[ChatRequest, Question]:
    asked = parse_chat(body)
    service.require_model(asked.model)
    if asked.model != service.config.name:
        raise bad_request(f"{asked.model} only transcribes; ask {service.config.name}", "model", "unsupported")
    question = service.intake.chat(asked)
    asked.messages = []  # media are large, and the answer may take a while
    return asked, question


def _usage(done: Done) -> dict[str, int]:
    total = done.prompt_tokens + done.tokens
    return {"prompt_tokens": done.prompt_tokens, "completion_tokens": done.tokens, "total_tokens": total}


async def _chunks(
    service: Service, head: dict[str, Any], first: Event, events: AsyncGenerator[Event, None], usage: bool
) -> AsyncGenerator[dict[str, Any], None]:
    """Chunks of a streamed answer."""

    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        found = head | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]}
        return found | ({"usage": None} if usage else {})

    yield chunk({"role": "assistant", "content": ""})
    event = first
    while True:
        match event:
            case Piece(text=text):
                yield chunk({"content": text})
            case Done():
                service.count(event)
                yield chunk({}, event.finish) | ({"note": event.note} if event.note else {})
                if usage:
                    yield head | {"choices": [], "usage": _usage(event)}
                return
            case Refusal():
                yield event.body
                return
        event = await anext(events)


async def _unless_gone(request: Request, job: Job, waiting: Any) -> Any:
    """What is waited for, unless the client leaves: then its job is cancelled."""
    result = asyncio.ensure_future(waiting)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({result, gone}, return_when=asyncio.FIRST_COMPLETED)
        if result.done():
            return result.result()
        raise Refusal(499, "the client left", code="client_left")
    finally:
        gone.cancel()
        if not result.done():
            job.cancelled.set()
            result.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events of JSON objects, `[DONE]` behind them. A client that leaves cancels the job."""

    def __init__(self, chunks: AsyncGenerator[dict[str, Any], None], job: Job) -> None:
        super().__init__(media_type="text/event-stream")
        del self.headers["content-length"]
        self.headers["x-accel-buffering"] = "no"
        self.chunks, self.job = chunks, job

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send."""

        async def left() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.job.cancelled.set()
            sending.cancel()

        async def stream() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with contextlib.aclosing(self.chunks) as chunks:
                async for chunk in chunks:
                    line = f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode("utf-8", "replace")
                    await send({"type": "http.response.body", "body": line, "more_body": True})
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

        sending = asyncio.ensure_future(stream())
        watching = asyncio.ensure_future(left())
        try:
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await sending
        finally:
            watching.cancel()
            sending.cancel()
            self.job.cancelled.set()


async def _transcribe(service: Service, request: Request) -> Response:
    end = time.monotonic() + service.config.timeout_sec
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Refusal(415, "expected a form of type multipart/form-data", code="unsupported_media_type")
    if service.ears is None:
        raise bad_request("this model has no interface for speech", "model", "unsupported")
    most = service.config.limits.media_mib * MIB
    async with request.form(max_files=2, max_fields=16, max_part_size=2 * most) as form:
        fields = _fields(form)
        service.require_model(fields.model)
        if fields.temperature:
            raise bad_request("transcripts are not drawn; leave `temperature` away", "temperature", "unsupported")
        if fields.stream:
            raise bad_request("transcripts are not streamed; leave `stream` away", "stream", "unsupported")
        speech = Sent("speech", "file", await _upload(form.get("file"), most, "file"), "file")
        picture = form.get("image")
        image = None
        if isinstance(picture, str):
            hosts, limits = service.config.allow_hosts, service.config.limits
            content = await service.apart(from_url, picture, hosts, limits, "image", "image")
            image = Sent("image", "image", content, "image")
        elif picture is not None:
            image = Sent("image", "image", await _upload(picture, most, "image"), "image")
    with tempfile.TemporaryDirectory(dir=service.folder) as folder:
        cif = fields.model != service.config.name
        found, duration_sec = await _hear(service, request, Path(folder), speech, image, fields, cif, end)
    match fields.response_format:
        case "json":
            return JSONResponse({"text": whole_text(found)})
        case "verbose_json":
            language = fields.language or "zh"
            return JSONResponse(verbose(found, duration_sec, language, list(fields.timestamp_granularities)))
        case "text":
            text = whole_text(found) + "\n"
        case form_:
            text = subtitles(found, form_)
    return PlainTextResponse(text, media_type=MEDIA_TYPES[fields.response_format])


async def _hear(
    service: Service, request: Request, folder: Path, speech: Sent, image: Sent | None, fields: TranscriptionFields,
    cif: bool, end: float,
) -> tuple[list[Hypothesis], float]:
    """What was said, and how long the recording is."""
    assert service.ears is not None
    limits = service.config.limits
    most_sec = limits.transcribe_sec if cif else limits.audio_sec
    path = await service.apart(store, speech, folder, limits, most_sec)
    duration_sec = float(soundfile.info(str(path)).duration)
    if image is not None and not (service.ears.sees_images if cif else "image" in service.model.kinds):
        raise bad_request(f"{fields.model} takes no pictures; leave `image` away", "image", "unsupported")
    picture = None if image is None else await service.apart(store, image, folder, limits)
    job = SpeechJob(path, "cif" if cif else "llm", picture, timeout_sec=end - time.monotonic())
    service.worker.submit(job)
    found = await _unless_gone(request, job, job.result())
    assert isinstance(found, Transcribed)
    return found.hypotheses, duration_sec


def _fields(form: FormData) -> TranscriptionFields:
    plain = {name: value for name, value in form.items() if isinstance(value, str) and name not in ("image", "file")}
    several = [*form.getlist("timestamp_granularities[]"), *form.getlist("timestamp_granularities")]
    fields = parse_fields(TranscriptionFields, plain | {"timestamp_granularities": several})
    if fields.timestamp_granularities and fields.response_format not in TIMED:
        raise bad_request(
            "timestamp_granularities needs response_format=verbose_json", "timestamp_granularities", "invalid_value"
        )
    return fields


async def _upload(part: Any, most: int, name: str) -> bytes:
    if not isinstance(part, UploadFile):
        raise bad_request(f"{name}: expected a file of the form", name, "missing")
    content = await part.read(most + 1)
    if len(content) > most:
        raise bad_request(f"{name}: more than {most // MIB} MiB", name, "media_too_large")
    return content

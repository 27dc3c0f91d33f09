"""Running a server: load, listen, and end in good order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from xllm_speech.base.errors import ConfigError
from xllm_speech.infer.asr import CifAsr
from xllm_speech.infer.xllm import XLLM
from xllm_speech.serve.api import Service, build_api
from xllm_speech.serve.config import ServeConfig
from xllm_speech.serve.engine import AnswerMaker, Engine
from xllm_speech.serve.guard import Guard
from xllm_speech.serve.hearing import Ears
from xllm_speech.serve.metrics import Metrics
from xllm_speech.serve.worker import Worker

logger = logging.getLogger(__name__)

BACKLOG = 1024  # connections that wait to be taken


@dataclass(frozen=True)
class Application:
    """All of a server but its socket. guard: the ASGI application."""

    guard: Guard
    service: Service
    worker: Worker


@contextlib.contextmanager
def open_application(
    model: XLLM, config: ServeConfig, maker: AnswerMaker | None = None, threads: int = 0
) -> Iterator[Application]:
    """An application whose worker runs and whose files go when it ends; what runs then is finished within `drain_sec`.

    maker: of answers, None: the model itself.
    """
    config.require_key()
    metrics = Metrics()
    ears = None
    if "speech" in model.kinds:
        ears = CifAsr.from_pretrained(model.checkpoint.description.model.encoders.asr, model.answerer.device)
    with tempfile.TemporaryDirectory(prefix="xllm-serve-") as folder:
        engine = Engine(model, None if ears is None else Ears(model, ears), maker)
        worker = Worker(engine, config.max_requests, config.batch_size, metrics, threads)
        try:
            service = Service(model, ears, worker, config, Path(folder), metrics)
            app = build_api(service)
            if config.demo:
                from xllm_speech.serve.demo import mount_demo

                mount_demo(app, service)
            yield Application(Guard(app, config, worker, metrics), service, worker)
        finally:
            if not worker.close(config.drain_sec):
                logger.warning("some answers were not finished within %g s", config.drain_sec)


class _Server(uvicorn.Server):
    """Told to stop, it finishes what the API runs, and does not wait for pages that only keep a connection open."""

    application: Application

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """As uvicorn's own, which raises a signal once more behind it: the process would end before its files are removed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {one: signal.signal(one, self.handle_exit) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        async def finish() -> None:
            logger.info("finishing what runs, at most %g s", self.application.service.config.drain_sec)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.application.service.config.drain_sec):
                    while self.application.guard.running or not self.application.worker.idle:
                        await asyncio.sleep(0.02)
            await asyncio.sleep(0.1)  # for the last bytes
            # Pages that keep a connection open are cut off now; uvicorn would print a traceback for each.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
            self.force_exit = True

        finishing = asyncio.create_task(finish())
        try:
            await super().shutdown(sockets)
        finally:
            finishing.cancel()


def make_server(application: Application) -> uvicorn.Server:
    """A server for an application, not yet started."""
    config = application.service.config
    server = _Server(uvicorn.Config(
        application.guard, config.host.strip("[]"), config.port, log_config=None, access_log=False, lifespan="on",
        server_header=False, timeout_keep_alive=10, h11_max_incomplete_event_size=1 << 16,
    ))
    server.application = application
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    return server


def serve(
    model: XLLM, config: ServeConfig, maker: AnswerMaker | None = None, threads: int = 0,
    on_listening: Callable[[str], None] = print,
) -> None:
    """Listen until told to stop (SIGINT, SIGTERM). on_listening: told where.

    Raises:
        ConfigError: the address cannot be had.
    """
    with open_application(model, config, maker, threads) as application:
        listening = _bind(config)
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        on_listening(f"http://{shown}:{port}" + ("/demo" if config.demo else "/v1"))
        with listening:
            make_server(application).run(sockets=[listening])


def _bind(config: ServeConfig) -> socket.socket:
    host = config.host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, config.port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(BACKLOG)  # from now on nobody is turned away, only waits
    except OSError as error:
        raise ConfigError(
            f"{config.host}:{config.port}: cannot listen there ({os.strerror(error.errno) if error.errno else error}); "
            "choose another --port or --host"
        ) from error
    return found

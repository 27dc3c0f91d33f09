"""The one thread that uses the model: a bounded queue in front of it, and batches of what waits in it."""

from __future__ import annotations

import logging
import math
import threading
import time
import traceback
from collections import deque
from typing import Protocol

import torch

from xllm_speech.serve.jobs import Job, too_late
from xllm_speech.serve.metrics import Metrics
from xllm_speech.serve.refusal import Refusal, internal

logger = logging.getLogger(__name__)


class Runner(Protocol):
    """What runs batches; `Engine` is one."""

    def run(self, jobs: list[Job]) -> None:
        """Give every job its end."""


class Worker:
    """Jobs wait here and go through the model in batches of one key, the oldest first.

    Args:
        engine: runs them. size: most jobs that wait. batch_size: most that go together. threads: of PyTorch; 0 for its choice.
    """

    def __init__(self, engine: Runner, size: int, batch_size: int, metrics: Metrics, threads: int = 0) -> None:
        self.engine, self.size, self.batch_size, self.metrics, self.threads = engine, size, batch_size, metrics, threads
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._running: list[Job] = []
        self._closing = False
        self._batch_sec = 1.0  # a running mean, for Retry-After
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Takes jobs."""
        return self._thread.is_alive() and not self._closing

    @property
    def idle(self) -> bool:
        """Nothing waits or runs."""
        with self._changed:
            return not self._waiting and not self._running

    def submit(self, job: Job) -> None:
        """Put a job into the queue; `Refusal` where it is full, or the server about to end."""
        with self._changed:
            if self._closing or not self._thread.is_alive():
                raise Refusal(503, "the server is shutting down; try again later", code="shutting_down", retry_after_sec=10)
            if len(self._waiting) >= self.size:
                raise self.busy(len(self._waiting))
            self._waiting.append(job)
            self.metrics.set("xllm_waiting", len(self._waiting))
            self._changed.notify()

    def busy(self, ahead: int) -> Refusal:
        """Too many requests; after this time about `ahead` of them will be gone."""
        wait_sec = max(1, min(60, math.ceil(self._batch_sec * ahead / self.batch_size)))
        self.metrics.add("xllm_refused_total", reason="busy")
        return Refusal(
            429, f"the server is busy; try again in {wait_sec} s", code="busy", retry_after_sec=wait_sec
        )

    def close(self, drain_sec: float) -> bool:
        """Take nothing new, finish what is there within `drain_sec`, and end; False where that was not enough."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(drain_sec)
        with self._changed:
            left = [*self._waiting, *self._running]
        for job in left:
            job.cancelled.set()
        return not left

    def _work(self) -> None:
        if self.threads:
            torch.set_num_threads(self.threads)  # a thread's own setting
        while (batch := self._next_batch()) is not None:
            if not batch:
                continue
            began = time.perf_counter()
            try:
                self.engine.run(batch)
            except Exception as error:
                # What the error says may quote a client; where it happened does not.
                logger.error("%s while answering:\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
                for job in batch:
                    job.put(internal())
            with self._changed:
                self._running = []
            self._batch_sec += 0.2 * (time.perf_counter() - began - self._batch_sec)
            self.metrics.add("xllm_batches_total")
            self.metrics.add("xllm_batched_requests_total", len(batch))
            self.metrics.set("xllm_running", 0)

    def _next_batch(self) -> list[Job] | None:
        """Jobs of the oldest one's key; empty when all that waited are past help; None at the end."""
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            if not self._waiting:
                return None
            waiting: list[Job] = []
            for job in self._waiting:
                if job.expired and not job.cancelled.is_set():
                    job.put(too_late())
                    self.metrics.add("xllm_refused_total", reason="timeout")
                elif not job.cancelled.is_set():
                    waiting.append(job)
            batch = [job for job in waiting if job is waiting[0] or (job.key is not None and job.key == waiting[0].key)]
            self._running = batch[: self.batch_size]
            taken = {job.name for job in self._running}
            self._waiting = deque(job for job in waiting if job.name not in taken)
            self.metrics.set("xllm_waiting", len(self._waiting))
            self.metrics.set("xllm_running", len(self._running))
            return self._running

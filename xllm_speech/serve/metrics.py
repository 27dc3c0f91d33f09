"""Counters of a server in Prometheus' text form; labels are ours, never a client's words."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator

_Key = tuple[str, tuple[tuple[str, str], ...]]
BOUNDS_SEC = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
HELP = {
    "xllm_requests_total": ("counter", "Requests by route and status."),
    "xllm_request_seconds": ("histogram", "From a request to the end of its answer."),
    "xllm_tokens_total": ("counter", "Tokens of prompts and answers."),
    "xllm_batches_total": ("counter", "Batches that went through the model."),
    "xllm_batched_requests_total": ("counter", "Requests in those batches."),
    "xllm_refused_total": ("counter", "Requests refused, by reason."),
    "xllm_waiting": ("gauge", "Requests that wait for the model."),
    "xllm_running": ("gauge", "Requests in the model."),
}


class Metrics:
    """Numbers that any thread may add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[_Key, float] = defaultdict(float)

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Count."""
        with self._lock:
            self._values[name, tuple(sorted(labels.items()))] += amount

    def set(self, name: str, value: float) -> None:
        """Of a gauge."""
        with self._lock:
            self._values[name, ()] = value

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Of a histogram."""
        for bound in (*BOUNDS_SEC, float("inf")):
            if seconds <= bound:
                self.add(f"{name}_bucket", 1, le="+Inf" if bound == float("inf") else f"{bound:g}", **labels)
        self.add(f"{name}_sum", seconds, **labels)
        self.add(f"{name}_count", 1, **labels)

    def text(self) -> str:
        """The whole page."""
        with self._lock:
            values = dict(self._values)
        return "".join(line + "\n" for line in self._lines(values))

    @staticmethod
    def _lines(values: dict[_Key, float]) -> Iterator[str]:
        for name, (kind, help) in HELP.items():
            yield f"# HELP {name} {help}"
            yield f"# TYPE {name} {kind}"
            parts = (f"{name}_bucket", f"{name}_sum", f"{name}_count") if kind == "histogram" else (name,)
            for part in parts:
                for (found, labels), value in values.items():
                    if found == part:
                        shown = ",".join(f'{key}="{text}"' for key, text in labels)
                        yield f"{part}{{{shown}}} {value:.15g}" if shown else f"{part} {value:.15g}"

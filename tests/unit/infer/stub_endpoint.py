"""A chat endpoint on a local port that answers by script, for tests over real HTTP."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """status, body and headers of one answer; wait_sec: before it begins; trickle: bytes come one by one, 50 ms apart; cut: the
    connection ends before the body does."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    wait_sec: float = 0.0
    trickle: bool = False
    cut: bool = False


def chat(text: str | None, **more: Any) -> Reply:
    """A good chat completion."""
    body = {"id": "1", "model": "judge-2", "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}
    return Reply(json.dumps(body).encode(), **more)


class Stub:
    """Serves until closed. `script(request, number)` gives the reply; `requests` and `times` are what came."""

    def __init__(self, script: Callable[[dict[str, Any], int], Reply]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.requests.append({"path": self.path, **body})
                stub.headers.append({name.lower(): value for name, value in self.headers.items()})
                stub.times.append(time.monotonic())
                reply = script(body, len(stub.requests))
                time.sleep(reply.wait_sec)
                try:
                    self.send_response(reply.status)
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(reply.body) + 10 * reply.cut))
                    self.end_headers()
                    for at in range(len(reply.body)) if reply.trickle else ():
                        self.wfile.write(reply.body[at : at + 1])
                        self.wfile.flush()
                        time.sleep(0.05)
                    if not reply.trickle:
                        self.wfile.write(reply.body)
                except OSError:
                    pass  # the client went away, as it should

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

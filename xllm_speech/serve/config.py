"""How an X-LLM is served."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from xllm_speech.base.config import require

MIB = 1 << 20
LEAST_KEY = 8  # characters


@dataclass
class Limits:
    """What one request may bring; it is looked at before anything is decoded.

    body_mib: of a whole request. media_mib: of one medium. media: items of a chat. pixels: of a picture, and of all frames of
    a clip together `clip_pixels`. audio_sec, video_sec: of one recording or clip in a chat; transcribe_sec: of one that is to
    be transcribed by the CIF ASR model. text_chars: of all texts of a chat. messages: of a chat. answer_tokens: of an answer;
    0 for what the model takes. fetch_sec: for bringing a medium from an allowed host.
    """

    body_mib: int = 64
    media_mib: int = 32
    media: int = 16
    pixels: int = 50_000_000
    clip_pixels: int = 4_000_000_000
    audio_sec: float = 60.0
    video_sec: float = 120.0
    transcribe_sec: float = 600.0
    text_chars: int = 32_000
    messages: int = 128
    answer_tokens: int = 0
    fetch_sec: float = 10.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name == "answer_tokens" else 1
            require(value >= least, f"limits.{name} {value} must be at least {least}")


@dataclass
class ServeConfig:
    """A server.

    host, port: where it listens. name: of the model to clients. api_key: what clients must
    show; empty for none, which only the loopback interface may have. allow_hosts: `host` or `host:port` that media may be
    fetched from. demo: with the web page. max_requests: that wait or run at once, more are refused. max_pending_mib: bytes of
    their bodies together. batch_size: requests answered together. timeout_sec: from the request to the end of its answer.
    drain_sec: given to running requests when the server is told to stop. examples: a conversation manifest whose first
    questions the page offers; empty for built-in ones. backend: URL of a vLLM server that makes the answers, of the LLM that it
    calls backend_model; backend_key: what it asks for.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str = "xllm"
    api_key: str = ""
    allow_hosts: list[str] = field(default_factory=list)
    demo: bool = False
    max_requests: int = 128
    max_pending_mib: int = 512
    batch_size: int = 16
    timeout_sec: float = 120.0
    drain_sec: float = 60.0
    examples: str = ""
    backend: str = ""
    backend_model: str = ""
    backend_key: str = ""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        require(0 <= self.port <= 65535, f"port {self.port} must lie in 0..65535")
        for name in ("max_requests", "max_pending_mib", "batch_size", "timeout_sec", "drain_sec"):
            require(vars(self)[name] > 0, f"{name} {vars(self)[name]} must be positive")
        require(
            not self.api_key or (len(self.api_key) >= LEAST_KEY and self.api_key.isascii() and self.api_key.isprintable()),
            f"api_key: at least {LEAST_KEY} printable ASCII characters",
        )
        require(
            self.limits.body_mib <= self.max_pending_mib,
            f"limits.body_mib {self.limits.body_mib} exceeds max_pending_mib {self.max_pending_mib}: none so large could come",
        )

    def require_key(self) -> None:
        """`ConfigError` where others could come in without a key."""
        require(
            bool(self.api_key) or is_loopback(self.host),
            f"host {self.host}: others can reach it, so an API key is needed; give --api-key KEY or set XLLM_API_KEY, or "
            "listen on 127.0.0.1",
        )


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False

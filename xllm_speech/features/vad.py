"""Voice activity: where speech lies in a recording of any length, and how to cut it into pieces that a model takes.

The probabilities are those of Silero VAD (the package `silero-vad`, which brings its weights). Its network is rebuilt here
from the package's safetensors file, so that no foreign code runs and a minute costs one pass; the recurrent state goes
from block to block, so that the result does not depend on how the recording was cut into blocks.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from torch import nn

from xllm_speech.base.config import require
from xllm_speech.base.errors import CheckpointError, MissingDependency
from xllm_speech.base.units import SAMPLE_RATE_HZ

WINDOW = 512  # samples, 32 ms: one probability
WINDOW_SEC = WINDOW / SAMPLE_RATE_HZ
CONTEXT = 64  # samples before each window that the network sees too
WEIGHTS = "silero_vad_16k.safetensors"


@dataclass
class VadConfig:
    """How probabilities become segments; seconds.

    threshold: above it speech begins; it ends below threshold - 0.15. least_speech_sec: shorter speech is noise.
    least_pause_sec: shorter pauses are part of the speech. pad_sec: kept on both sides. longest_sec: of a segment; longer
    speech is cut at its weakest window in the last half. overlap_sec: by which two pieces of one stretch of speech overlap,
    so that a token at the cut is whole in one of them.
    """

    threshold: float = 0.5
    least_speech_sec: float = 0.25
    least_pause_sec: float = 0.3
    pad_sec: float = 0.2
    longest_sec: float = 20.0
    overlap_sec: float = 1.0

    def __post_init__(self) -> None:
        require(0.15 < self.threshold < 1, f"vad.threshold {self.threshold} must lie in (0.15, 1)")
        for name, value in (
            ("least_speech_sec", self.least_speech_sec), ("least_pause_sec", self.least_pause_sec), ("pad_sec", self.pad_sec),
            ("overlap_sec", self.overlap_sec),
        ):
            require(value >= 0, f"vad.{name} {value} must not be negative")
        require(
            self.pad_sec <= self.least_pause_sec,
            f"vad.pad_sec {self.pad_sec} must not exceed least_pause_sec {self.least_pause_sec}: segments would overlap",
        )
        least = 4 * self.overlap_sec + 2 * self.pad_sec + 1
        require(self.longest_sec >= least, f"vad.longest_sec {self.longest_sec} must be at least {least:g}: overlaps need room")


@dataclass(frozen=True)
class Segment:
    """A piece of a recording, in seconds. joined: it goes on with the speech of the segment before, which it overlaps."""

    start_sec: float
    end_sec: float
    joined: bool = False

    @property
    def duration_sec(self) -> float:
        """Its length."""
        return self.end_sec - self.start_sec


class SileroVad(nn.Module):
    """Silero VAD for 16 kHz: a short-time spectrum as a convolution, four convolutions, an LSTM, a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm = nn.LSTM(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    @torch.inference_mode()
    def forward(
        self, windows_NW: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Probabilities [N] of consecutive windows [N, context + window], and the state behind the last."""
        x_NCW = functional.pad(windows_NW[:, None], (0, 64), mode="reflect")
        x_NCW = self.stft_conv(x_NCW)
        x_NCW = (x_NCW[:, :129] ** 2 + x_NCW[:, 129:] ** 2).sqrt()
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4):
            x_NCW = convolution(x_NCW).relu()
        hidden_N1C, state = self.lstm(x_NCW.permute(0, 2, 1), state)
        return self.final_conv(hidden_N1C.relu().permute(0, 2, 1)).sigmoid().flatten(), state


def load_vad() -> SileroVad:
    """The network with the weights of the installed package `silero-vad`.

    Raises:
        MissingDependency: the package is not installed. CheckpointError: its weights are of another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    found = importlib.util.find_spec("silero_vad")
    if found is None or not found.submodule_search_locations:
        raise MissingDependency(
            "voice activity: the package silero-vad is not installed; `.venv/bin/python -m pip install 'silero-vad>=6.2'`"
        )
    path = Path(next(iter(found.submodule_search_locations))) / "data" / WEIGHTS
    model = SileroVad()
    try:
        model.load_state_dict({_our_name(name): tensor for name, tensor in load_file(path).items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not the weights of silero-vad 6.2 ({str(error).splitlines()[0]})") from error
    return model.eval()


def _our_name(name: str) -> str:
    return name.replace("lstm_cell.", "lstm.") + ("_l0" if name.startswith("lstm_cell.") else "")


class SpeechDetector:
    """Probabilities of speech, block by block.

    Args:
        model: from `load_vad`.
    """

    def __init__(self, model: SileroVad) -> None:
        self.model = model
        self.state: tuple[torch.Tensor, torch.Tensor] | None = None
        self.left_N = torch.zeros(CONTEXT)  # context, then samples that do not fill a window yet

    def push(self, samples_N: np.ndarray | torch.Tensor) -> list[float]:
        """Take 16 kHz samples in [-1, 1]; the probabilities of the windows that are full now."""
        x_N = torch.cat([self.left_N, torch.as_tensor(samples_N, dtype=torch.float32)])
        windows_NW = x_N.unfold(0, CONTEXT + WINDOW, WINDOW) if len(x_N) >= CONTEXT + WINDOW else x_N.new_zeros(0, 1)
        self.left_N = x_N[len(windows_NW) * WINDOW :].clone()
        if not len(windows_NW):
            return []
        probabilities_N, self.state = self.model(windows_NW, self.state)
        return probabilities_N.tolist()

    def finish(self) -> list[float]:
        """The probability of the last window, filled up with silence, where there is one."""
        rest = len(self.left_N) - CONTEXT
        return self.push(torch.zeros(WINDOW - rest)) if rest else []


def find_segments(probabilities: Iterable[float], duration_sec: float, config: VadConfig | None = None) -> Iterator[Segment]:
    """Segments of speech, each as soon as it is known.

    Args:
        probabilities: one per window, from the start of the recording. duration_sec: of the recording, where segments end.
    """
    config = config or VadConfig()
    end_sec = 0.0  # of the segment before, with its padding
    for first, last, weights in _stretches(probabilities, config):
        start_sec = max(first * WINDOW_SEC - config.pad_sec, end_sec)
        stop_sec = min(last * WINDOW_SEC + config.pad_sec, duration_sec)
        for segment in _cut(start_sec, stop_sec, first, weights, config):
            yield segment
            end_sec = segment.end_sec


def _stretches(probabilities: Iterable[float], config: VadConfig) -> Iterator[tuple[int, int, list[float]]]:
    """(first window, window behind the last, probabilities) of each stretch of speech, short pauses included."""
    pause = max(1, round(config.least_pause_sec / WINDOW_SEC))
    least = config.least_speech_sec / WINDOW_SEC
    first, silent = -1, 0
    weights: list[float] = []
    index = -1
    for index, probability in enumerate(probabilities):
        if first < 0:
            if probability >= config.threshold:
                first, silent, weights = index, 0, [probability]
            continue
        weights.append(probability)
        silent = silent + 1 if probability < config.threshold - 0.15 else 0
        if silent >= pause:
            if len(weights) - silent >= least:
                yield first, index + 1 - silent, weights[: len(weights) - silent]
            first = -1
    if first >= 0 and len(weights) - silent >= least:
        yield first, index + 1 - silent, weights[: len(weights) - silent]


def _cut(start_sec: float, stop_sec: float, first: int, weights: list[float], config: VadConfig) -> Iterator[Segment]:
    """One stretch of speech in pieces of at most `longest_sec`, which overlap around the weakest window of their last half."""
    joined, overlap_sec = False, config.overlap_sec / 2
    while stop_sec - start_sec > config.longest_sec:
        low = int((start_sec + config.longest_sec / 2) / WINDOW_SEC) - first
        high = int((start_sec + config.longest_sec - overlap_sec) / WINDOW_SEC) - first
        candidates = weights[max(low, 0) : max(high, 1)]
        place = first + max(low, 0) + int(np.argmin(candidates))
        cut_sec = (place + 0.5) * WINDOW_SEC
        yield Segment(start_sec, cut_sec + overlap_sec, joined)
        start_sec, joined = cut_sec - overlap_sec, True
    yield Segment(start_sec, stop_sec, joined)

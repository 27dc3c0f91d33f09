"""Where a stream's samples come from: a microphone, raw samples on standard input, a file; and how Ctrl-C ends it."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO

import numpy as np
from lhotse.utils import fastcopy

from xllm_speech.base.errors import DataError, MissingDependency, first_line
from xllm_speech.base.units import SAMPLE_RATE_HZ
from xllm_speech.features.audio import load_file, load_samples

logger = logging.getLogger(__name__)

BLOCK_SEC = 0.1  # taken from a source at once
INT16 = 32768.0


def read_pcm(stream: IO[bytes]) -> Iterator[np.ndarray]:
    """Blocks of raw 16-bit little-endian mono samples at 16 kHz, as they arrive; a last odd byte is refused.

    Raises:
        DataError: no samples at all, half a sample at the end, or a WAV header where raw samples should be.
    """
    rest, first = b"", True
    size = 2 * round(BLOCK_SEC * SAMPLE_RATE_HZ)
    while block := (stream.read1(size) if hasattr(stream, "read1") else stream.read(size)):
        block = rest + block
        if first and block[:4] in (b"RIFF", b"fLaC", b"OggS"):
            raise DataError("standard input: a file with a header; raw samples are wanted (s16le, 16 kHz, mono), or its name")
        even = len(block) - len(block) % 2
        rest, first = block[even:], first and even == 0
        yield np.frombuffer(block[:even], dtype="<i2").astype(np.float32) / INT16
    if rest or first:
        raise DataError("standard input: " + ("ends in half a sample" if rest else "no audio arrived"))


def read_recording(path: str | Path, channel: str = "mix") -> Iterator[np.ndarray]:
    """Blocks of a file at 16 kHz. One at another rate is resampled as a whole, as a recognition of files would do it."""
    cut = load_file(path)
    if cut.sampling_rate != SAMPLE_RATE_HZ:
        samples_N = load_samples(cut, channel)
        yield from np.split(samples_N, range(0, len(samples_N), round(BLOCK_SEC * SAMPLE_RATE_HZ))[1:])
        return
    block_sec = 10.0
    for number in range(math.ceil(cut.duration / block_sec)):
        start_sec = number * block_sec
        piece = cut.truncate(offset=start_sec, duration=min(block_sec, cut.duration - start_sec))
        samples_N = load_samples(fastcopy(piece, id=cut.id), channel)
        yield from np.split(samples_N, range(0, len(samples_N), round(BLOCK_SEC * SAMPLE_RATE_HZ))[1:])


def read_microphone(device: str | None = None) -> Iterator[np.ndarray]:
    """Blocks from a microphone, for ever; samples that it lost, because nobody took them in time, are told once.

    device: a part of its name, or its number; None: the system's own.

    Raises:
        MissingDependency: the package sounddevice or the PortAudio library is not installed. DataError: no microphone can be
            opened, or it went away.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: the package is there, the PortAudio library is not
        raise MissingDependency(
            "a microphone needs the package sounddevice and PortAudio: `.venv/bin/python -m pip install sounddevice` and "
            "`apt-get install libportaudio2`; or pipe samples in: "
            "arecord -f S16_LE -r 16000 -c 1 -t raw | xllm-speech stream ... -"
        ) from error
    size, told = round(BLOCK_SEC * SAMPLE_RATE_HZ), False
    chosen = int(device) if device is not None and device.isdigit() else device
    try:
        with sounddevice.InputStream(SAMPLE_RATE_HZ, size, chosen, 1, "float32") as source:
            while True:
                samples_NC, lost = source.read(size)
                if lost and not told:
                    logger.warning("microphone: samples were lost, because recognition is slower than speech here")
                    told = True
                yield samples_NC[:, 0].copy()
    except (sounddevice.PortAudioError, ValueError) as error:  # ValueError: no device of that name
        raise DataError(
            f"microphone {device or '(default)'}: {first_line(error)}; `python -m sounddevice` lists those that are there"
        ) from error


@contextlib.contextmanager
def until_interrupted() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed inside; pressed once more it interrupts as ever."""
    pressed = False
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)

"""Speaks standard input with eSpeak NG of the wheel `espeakng-loader`; 16-bit samples at 22 050 Hz on standard output.

    python -m xllm_speech.datasets.espeak VOICE SPEED PITCH < text

A process per text: the engine keeps state from one text to the next, and so equal text and voice give equal samples,
however many are spoken at a time.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

ENGINE_HZ = 22050
_SYNCHRONOUS, _DONT_EXIT = 2, 0x8000
_UTF8, _CHARACTERS = 1, 1
_RATE, _PITCH = 1, 3
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


def main(voice: str, speed: int, pitch: int, text: str) -> bytes:
    """The samples of one text; a `SystemExit` with the reason where the engine does not do it."""
    try:
        import espeakng_loader
    except ImportError:
        raise SystemExit("the wheel espeakng-loader is not installed") from None
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    folder = str(Path(espeakng_loader.get_data_path()).parent)
    if library.espeak_Initialize(_SYNCHRONOUS, 0, folder.encode(), _DONT_EXIT) != ENGINE_HZ:
        raise SystemExit("eSpeak NG did not start")
    chunks: list[bytes] = []

    @_CALLBACK
    def collect(samples: int | None, count: int, _events: int | None) -> int:
        if samples and count:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    library.espeak_SetSynthCallback(collect)
    if library.espeak_SetVoiceByName(voice.encode()):
        raise SystemExit(f"eSpeak NG has no voice {voice}")
    library.espeak_SetParameter(_RATE, speed, 0)
    library.espeak_SetParameter(_PITCH, pitch, 0)
    letters = text.encode()
    status = library.espeak_Synth(letters, len(letters) + 1, 0, _CHARACTERS, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    if status or not chunks:
        raise SystemExit(f"eSpeak NG could not speak it (status {status})")
    return b"".join(chunks)


if __name__ == "__main__":
    sys.stdout.buffer.write(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.stdin.buffer.read().decode("utf-8")))

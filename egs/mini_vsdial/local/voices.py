"""Speech by eSpeak NG: from the wheel `espeakng-loader` in this process, else from the program `espeak-ng`.

The engine keeps state from one text to the next (random breath, phase of the oscillators), so the same text would give
other samples after another one. Here every text starts from a freshly loaded library and a fixed random seed: equal
text and voice give equal bytes, in any order and in any process.
"""

from __future__ import annotations

import _ctypes
import ctypes
import functools
import io
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

from xllm_speech.base.errors import DataError, MissingDependency

# Plain `cmn` of eSpeak NG 1.51 (Debian 12) spells Hanzi as English letters; the pinyin voice reads them.
VOICE = "cmn-latn-pinyin"
VARIANTS = ("m1", "m3", "m7", "f1", "f2", "f3", "f5")
ENGINE_HZ = 22050
SAMPLE_HZ = 16000
# eSpeak NG reads 旗子 with a neutral tone and 棋子 with a third one. In the world of this corpus the two are spoken
# alike, so both are handed over in the first spelling; 钟 and 盅 are read alike as they are.
READING = {"棋子": "旗子"}

_SYNCHRONOUS, _UTF8, _CHARACTERS = 2, 1, 1
_RATE, _PITCH = 1, 3
_DONT_EXIT = 0x8000
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)

MISSING = (
    "eSpeak NG is missing: `pip install espeakng-loader` (pinned in requirements.txt), or as root "
    "`apt-get install --no-install-recommends espeak-ng`"
)


def _unload(library: ctypes.CDLL) -> None:
    # ctypes never closes a library by itself, and an open one would keep its state for the next text.
    _ctypes.dlclose(library._handle)


@functools.cache
def _wheel() -> tuple[str, str] | None:
    """(library file, folder that holds espeak-ng-data) of the wheel, or None where it is absent or does not load."""
    try:
        import espeakng_loader

        library, data = espeakng_loader.get_library_path(), espeakng_loader.get_data_path()
        _unload(ctypes.CDLL(library))
    except (ImportError, OSError):
        return None
    return library, str(Path(data).parent)


class _Engine:
    """A freshly loaded library, for one text; its static state goes with it."""

    def __init__(self, wheel: tuple[str, str]) -> None:
        self.library = ctypes.CDLL(wheel[0])
        rate = self.library.espeak_Initialize(_SYNCHRONOUS, 0, wheel[1].encode(), _DONT_EXIT)
        if rate != ENGINE_HZ:
            self.close()
            raise DataError(f"{wheel[0]}: eSpeak NG did not start (status {rate}, expected {ENGINE_HZ}); {MISSING}")
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(1))

    def __enter__(self) -> _Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.library.espeak_Terminate()
        _unload(self.library)

    def choose_voice(self, voice: str) -> None:
        if status := self.library.espeak_SetVoiceByName(voice.encode()):
            raise DataError(f"eSpeak NG has no voice `{voice}` (status {status})")

    def speak(self, text: str, voice: str, speed: int, pitch: int) -> bytes:
        chunks: list[bytes] = []

        @_CALLBACK
        def collect(samples: int | None, count: int, _events: int | None) -> int:
            if samples and count:
                chunks.append(ctypes.string_at(samples, 2 * count))
            return 0

        self.library.espeak_SetSynthCallback(collect)
        self.choose_voice(voice)
        self.library.espeak_SetParameter(_RATE, speed, 0)
        self.library.espeak_SetParameter(_PITCH, pitch, 0)
        letters = text.encode()
        status = self.library.espeak_Synth(letters, len(letters) + 1, 0, _CHARACTERS, 0, _UTF8, None, None)
        self.library.espeak_Synchronize()
        if status or not chunks:
            raise DataError(f"eSpeak NG could not speak {text!r} (status {status})")
        return b"".join(chunks)


def engine_name() -> str:
    """Which eSpeak NG will speak, with its version.

    Raises:
        MissingDependency: neither the wheel nor the program is there; the text names both install commands.
    """
    if wheel := _wheel():
        with _Engine(wheel) as engine:
            engine.library.espeak_Info.restype = ctypes.c_char_p
            return f"eSpeak NG {engine.library.espeak_Info(None).decode()} (espeakng-loader)"
    if program := shutil.which("espeak-ng"):
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
        version = re.search(r"\d+\.\d+(\.\d+)?", answer)
        return f"eSpeak NG {version.group() if version else '?'} (program espeak-ng)"
    raise MissingDependency(MISSING)


def phonemes(text: str, voice: str = VOICE) -> str:
    """The wheel's phonemes of a text, tones as digits; empty where only the program is there."""
    wheel = _wheel()
    if wheel is None:
        return ""
    with _Engine(wheel) as engine:
        engine.choose_voice(voice)
        engine.library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        letters = ctypes.create_string_buffer(_reading(text).encode())
        rest = ctypes.c_void_p(ctypes.addressof(letters))
        clauses = []
        while rest.value:
            clauses.append(engine.library.espeak_TextToPhonemes(ctypes.byref(rest), _UTF8, 0).decode())
        return " ".join(clauses)


def _reading(text: str) -> str:
    for written, read in READING.items():
        text = text.replace(written, read)
    return text


def _speak_by_program(text: str, voice: str, speed: int, pitch: int) -> np.ndarray:
    program = shutil.which("espeak-ng")
    if program is None:
        raise MissingDependency(MISSING)
    command = [program, "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode or not done.stdout:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise DataError(f"espeak-ng could not speak {text!r}: {reason[-1] if reason else f'status {done.returncode}'}")
    samples, rate = soundfile.read(io.BytesIO(done.stdout), dtype="int16")
    if rate != ENGINE_HZ:
        raise DataError(f"espeak-ng spoke at {rate} Hz, expected {ENGINE_HZ} Hz")
    return samples


def speak(text: str, variant: str, speed: int, pitch: int) -> np.ndarray:
    """Speak a Chinese text.

    Args:
        text: what to say, in Hanzi.
        variant: one of `VARIANTS`, a male or female timbre.
        speed: words a minute, 170 to 240 here.
        pitch: 0 to 99, 25 to 75 here.

    Returns:
        samples [T] float64 in [-1, 1] at 16 kHz, silence trimmed at both ends.

    Raises:
        MissingDependency: no eSpeak NG. DataError: it could not speak the text, or said nothing.
    """
    voice = f"{VOICE}+{variant}"
    if wheel := _wheel():
        with _Engine(wheel) as engine:
            samples = np.frombuffer(engine.speak(_reading(text), voice, speed, pitch), dtype=np.int16)
    else:
        samples = _speak_by_program(_reading(text), voice, speed, pitch)
    speech = resample_poly(samples.astype(np.float64) / 32768, 320, 441)
    loud = np.flatnonzero(np.abs(speech) > 0.004)
    if not loud.size:
        raise DataError(f"eSpeak NG said nothing for {text!r} with voice {voice}")
    return speech[loud[0] : loud[-1] + 1]

"""Speech for texts through one interface, each text once, by several speakers, resumable (data.md, Corpora; paper, A.1).

    command    any program: a line with {text}, {out} and, where there are several speakers, {speaker}
    espnet2    a local folder of a trained TTS model
    eSpeak NG  for smoke tests

    OUT/speech.jsonl         one row per text: id, text, path (from OUT), speaker, duration in seconds, provenance (the voice)
                             and, where it is told, licence; written last
    OUT/wav/ab/<id>.flac     16 kHz, mono; each written whole or not at all
    OUT/rejected.jsonl       texts that could not be spoken

The name of a recording is a hash of voice, speaker and text: a rerun speaks only what is not there. `datasets.round_trip`
drops those that a recogniser does not understand.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile

from xllm_speech.base.config import require_choice
from xllm_speech.base.errors import CheckpointError, ConfigError, DataError, MissingDependency, UserError, first_line
from xllm_speech.base.files import atomic_write, read_jsonl, write_jsonl
from xllm_speech.base.rejects import DEFAULT_MAX_SHARE, Rejects
from xllm_speech.base.units import SAMPLE_RATE_HZ
from xllm_speech.datasets.espeak import ENGINE_HZ
from xllm_speech.manifests.pictures import clean_text, is_whole
from xllm_speech.manifests.visdial_source import question_key
from xllm_speech.manifests.vsdial_cn import SPEECH_NAME

log = logging.getLogger(__name__)

ESPEAK_VOICE = "cmn-latn-pinyin"  # plain `cmn` of some versions spells Hanzi out
ESPEAK_SPEAKERS = ("m1", "m3", "m7", "f1", "f2", "f3", "f5")
# The engine speaks in its plain voice, and says nothing of it, where a variant is none of these.
ESPEAK_VARIANTS = (*(f"m{number}" for number in range(1, 9)), *(f"f{number}" for number in range(1, 6)))
COMMAND_TIMEOUT_SEC = 120
WINDOW = 256
SILENCE = 1e-4  # of full scale: a recording that stays below it is empty
REJECTED_NAME = "rejected.jsonl"


class Voice(Protocol):
    """A back-end. `name` tells whatever its sound depends on beside speaker and text; at most `jobs` texts at a time."""

    name: str
    speakers: tuple[str, ...]
    jobs: int

    def speak(self, text: str, speaker: str) -> tuple[np.ndarray, int]:
        """Samples [T] float, and their rate in Hz; `DataError` says why a text cannot be spoken."""


class CommandVoice:
    """Any program. Words of the line are split as a shell does, but no shell runs: a text can hold what it likes.

    Raises:
        ConfigError: a line without {text} or {out}, or with several speakers and no {speaker}.
    """

    jobs = 1 << 10

    def __init__(self, line: str, speakers: Sequence[str] = ()) -> None:
        try:
            self.words = shlex.split(line)
        except ValueError as error:
            raise ConfigError(f"--command `{line}`: {error}") from error
        for place in ("{text}", "{out}", *(("{speaker}",) if len(speakers) > 1 else ())):
            if not any(place in word for word in self.words):
                raise ConfigError(f"--command `{line}`: {place} is not in it")
        self.speakers = tuple(speakers) or ("default",)
        self.name = f"command {line}"

    def speak(self, text: str, speaker: str) -> tuple[np.ndarray, int]:
        """Run it, and read what it wrote."""
        with tempfile.TemporaryDirectory(prefix="xllm-speech-") as folder:
            out = Path(folder) / "speech.wav"
            values = {"{text}": text, "{out}": str(out), "{speaker}": speaker}
            words = []
            for word in self.words:
                # One pass: a text that reads `{out}` stays that text.
                parts = word.replace("{text}", "\0{text}\0").replace("{out}", "\0{out}\0").replace("{speaker}", "\0{speaker}\0")
                words.append("".join(values.get(part, part) for part in parts.split("\0")))
            _run(words, None)
            if not out.is_file():
                raise DataError(f"`{self.words[0]}` wrote no {out.name}")
            return _read_audio(out)


class EspeakVoice:
    """eSpeak NG from its wheel, one process per text. Speakers differ in timbre, speed and pitch.

    Raises:
        ConfigError: a speaker that is no variant of it.
    """

    jobs = 1 << 10

    def __init__(self, speakers: Sequence[str] = ESPEAK_SPEAKERS) -> None:
        for speaker in speakers:
            require_choice("--speakers", speaker, ESPEAK_VARIANTS)
        self.speakers = tuple(speakers)
        self.name = f"espeak {ESPEAK_VOICE}"

    def speak(self, text: str, speaker: str) -> tuple[np.ndarray, int]:
        """In a process of its own."""
        draw = hashlib.sha256(speaker.encode()).digest()
        speed, pitch = 170 + draw[0] % 61, 25 + draw[1] % 51
        words = [sys.executable, "-m", "xllm_speech.datasets.espeak", f"{ESPEAK_VOICE}+{speaker}", str(speed), str(pitch)]
        return np.frombuffer(_run(words, text), dtype=np.int16) / 32768, ENGINE_HZ


class EspnetVoice:
    """A TTS model of espnet2: a folder with config.yaml and one .pth. One text at a time.

    A model that gives spectra speaks through Griffin-Lim; VITS and JETS need no vocoder. Models of several speakers
    (`spks` in the configuration) take the numbers 0 .. spks - 1 as speakers.

    Raises:
        MissingDependency: espnet2's TTS cannot be imported. CheckpointError: not such a folder.
    """

    jobs = 1

    def __init__(self, folder: str | Path, speakers: Sequence[str] = (), seed: int = 1) -> None:
        folder = Path(folder)
        weights = sorted(folder.glob("*.pth"))
        if not (folder / "config.yaml").is_file() or len(weights) != 1:
            raise CheckpointError(f"{folder}: expected config.yaml and one .pth in it, found {len(weights)} .pth")
        try:
            import torch
            from espnet2.bin.tts_inference import Text2Speech
        except ImportError as error:
            raise MissingDependency(
                f"espnet2's TTS cannot be imported ({first_line(error)}); `pip install pyworld` is what it lacks as a rule"
            ) from error
        try:
            # espnet2's own loading would run code from the file, so the model is built bare and filled here.
            self._model: Any = Text2Speech(folder / "config.yaml", None, seed=seed, always_fix_seed=True)
            self._model.model.load_state_dict(torch.load(weights[0], map_location="cpu", weights_only=True))
        except Exception as error:  # espnet2 raises whatever its classes do
            raise CheckpointError(f"{folder}: not a TTS model that espnet2 reads ({first_line(error)})") from error
        count = int(getattr(self._model.tts, "spks", None) or 1)
        self.speakers = tuple(speakers) or tuple(str(number) for number in range(count))
        if unknown := [name for name in self.speakers if not name.isdigit() or int(name) >= count]:
            raise ConfigError(f"--speakers {unknown[0]}: the model has the speakers 0 .. {count - 1}")
        self._several = count > 1
        self.name = f"espnet {folder.name} {weights[0].name} {weights[0].stat().st_size} seed {seed}"

    def speak(self, text: str, speaker: str) -> tuple[np.ndarray, int]:
        """By the model."""
        try:
            more = {"sids": np.array([int(speaker)])} if self._several else {}
            wav = self._model(text, **more)["wav"]
        except Exception as error:
            raise DataError(f"espnet2: {first_line(error)}") from error
        return wav.detach().cpu().numpy().reshape(-1), int(self._model.fs)


def _run(words: Sequence[str], text: str | None) -> bytes:
    try:
        done = subprocess.run(
            words, input=None if text is None else text.encode(), capture_output=True, timeout=COMMAND_TIMEOUT_SEC, check=False,
            stdin=subprocess.DEVNULL if text is None else None,
        )
    except FileNotFoundError as error:
        raise UserError(f"`{words[0]}`: no such program") from error
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise DataError(f"`{words[0]}`: {first_line(error)}") from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise DataError(f"`{words[0]}` ended with status {done.returncode}{f': {said[-1]}' if said else ''}")
    return done.stdout


def _read_audio(path: Path) -> tuple[np.ndarray, int]:
    try:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise DataError(f"no audio that libsndfile reads ({first_line(error)})") from error
    return samples.mean(axis=1), int(rate_hz)


def _encode(samples: np.ndarray, rate_hz: int) -> tuple[bytes, float]:
    """FLAC at 16 kHz, and seconds; `DataError` for what nobody can hear."""
    from scipy.signal import resample_poly

    if not len(samples) or not np.isfinite(samples).all() or np.abs(samples).max() < SILENCE:
        raise DataError("an empty or silent recording")
    speech = samples.astype(np.float64)
    if rate_hz != SAMPLE_RATE_HZ:
        divisor = np.gcd(rate_hz, SAMPLE_RATE_HZ)
        speech = resample_poly(speech, SAMPLE_RATE_HZ // divisor, rate_hz // divisor)
    speech = speech / max(1.0, float(np.abs(speech).max()))  # rather softer than clipped
    stream = io.BytesIO()
    soundfile.write(stream, speech, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return stream.getvalue(), len(speech) / SAMPLE_RATE_HZ


def read_spoken_texts(path: str | Path, texts: str | Path | None = None) -> Iterator[str]:
    """What is to be spoken: `target` of a translation table, or `text`; of texts with `roles` only the questions.

    Args:
        texts: texts.jsonl; of the table only its questions are spoken then.

    Raises:
        DataError: a line with neither.
    """
    questions = None
    if texts is not None:
        questions = {clean_text(str(row.get("text"))) for _, row in read_jsonl(texts) if "question" in row.get("roles", [])}
    for number, row in read_jsonl(path):
        text = row.get("target", row.get("text"))
        if not isinstance(text, str) or not is_whole(text):
            raise DataError(f"{path}:{number}: neither `target` nor `text` that can be read")
        if "question" not in row.get("roles", ["question"]):
            continue
        if questions is None or clean_text(str(row.get("source"))) in questions:
            yield clean_text(text)


def synthesise(
    texts: Iterable[str], voice: Voice, out: str | Path, seed: int = 1, jobs: int = 1, max_rejected: float = DEFAULT_MAX_SHARE,
    licence: str = "",
) -> dict[str, float]:
    """Speak every different text by a speaker that seed and text choose; the module's docstring tells the files.

    Texts that differ only in what `question_key` passes over are one. licence: of the recordings, to be told of each.

    Returns: `recordings`, `hours`, `spoken_now` and `rejected`.

    Raises:
        DataError: too many texts that cannot be spoken; recordings stay, and a rerun goes on. UserError: no such program.
    """
    out = Path(out)
    rejects = Rejects(max_rejected)
    rows: list[dict[str, Any]] = []
    spoken_now = 0

    def different() -> Iterator[str]:
        seen: set[bytes] = set()
        for text in texts:
            key = hashlib.blake2b(question_key(text).encode(), digest_size=12).digest()
            if text and key not in seen:
                seen.add(key)
                yield text

    source = different()
    with ThreadPoolExecutor(max(1, min(jobs, voice.jobs))) as pool:
        while window := list(itertools.islice(source, WINDOW)):
            for text, (row, fresh) in zip(window, pool.map(lambda one: _speak(one, voice, out, seed), window), strict=True):
                if isinstance(row, str):
                    rejects.add(text[:60], out, f"cannot speak {text!r}: {row}", "not-spoken")
                else:
                    rows.append({**row, **({"licence": licence} if licence else {})})
                    spoken_now += fresh
    rejects.write(out / REJECTED_NAME)
    rejects.check(len(rows) + len(rejects.rows), out / REJECTED_NAME)
    if not rows:
        raise DataError(f"{out}: nothing to speak")
    write_jsonl(out / SPEECH_NAME, rows)
    hours = sum(row["duration_sec"] for row in rows) / 3600
    return {
        "recordings": len(rows), "hours": round(hours, 3), "spoken_now": spoken_now, "rejected": len(rejects.rows),
    }


def _speak(text: str, voice: Voice, out: Path, seed: int) -> tuple[dict[str, Any] | str, bool]:
    """(row of speech.jsonl or why not, whether it was spoken now)."""
    digest = hashlib.sha256(f"{seed}\n{question_key(text)}".encode()).digest()
    speaker = voice.speakers[int.from_bytes(digest[:8], "big") % len(voice.speakers)]
    name = hashlib.sha256(f"{voice.name}\n{speaker}\n{text}".encode()).hexdigest()[:20]
    path = out / "wav" / name[:2] / f"{name}.flac"
    fresh = not path.is_file()
    try:
        if fresh:
            content, duration_sec = _encode(*voice.speak(text, speaker))
            with atomic_write(path, "wb") as stream:
                stream.write(content)
        else:
            duration_sec = soundfile.info(str(path)).duration
    except DataError as error:
        return str(error), False
    row = {
        "id": name, "text": text, "path": os.path.relpath(path, out), "speaker": speaker,
        "duration_sec": round(duration_sec, 4), "provenance": f"synthesised: {voice.name}",
    }
    return row, fresh

"""Noise for the mini corpus: white, pink, and babble of other voices, mixed in at a given ratio."""

from __future__ import annotations

import numpy as np

KINDS = ("white", "pink", "babble")
# A silent recording is never digital silence: the noise of the recorder itself, about 80 dB below full scale.
FLOOR = 1e-4


def coloured_noise(rng: np.random.Generator, kind: str, length: int) -> np.ndarray:
    """White or pink (power falling with frequency) noise [length], unit power."""
    white = rng.standard_normal(length)
    if kind == "white":
        return white
    spectrum = np.fft.rfft(white)
    spectrum /= np.sqrt(np.maximum(np.arange(spectrum.size), 8))
    pink = np.fft.irfft(spectrum, length)
    return pink / np.sqrt(np.mean(pink**2))


def cut_babble(rng: np.random.Generator, tracks: list[np.ndarray], length: int) -> np.ndarray:
    """A stretch [length] of one babble track, begun anywhere and repeated where it ends, unit power."""
    track = tracks[int(rng.integers(len(tracks)))]
    stretch = np.take(track, np.arange(length) + int(rng.integers(track.size)), mode="wrap")
    return stretch / np.sqrt(np.mean(stretch**2))


def mix_babble(rng: np.random.Generator, voices: list[np.ndarray], length: int) -> np.ndarray:
    """A babble track [length]: every voice at equal power, begun anywhere and repeated."""
    track = np.zeros(length)
    for voice in voices:
        level = np.sqrt(np.mean(voice**2))
        track += np.take(voice, np.arange(length) + int(rng.integers(voice.size)), mode="wrap") / level
    return track / np.sqrt(np.mean(track**2))


def mix(speech: np.ndarray, noise: np.ndarray | None, snr_db: float, span: tuple[int, int]) -> np.ndarray:
    """Speech [T] plus noise [T] of unit power, `snr_db` below the mean power of the speech within `span`."""
    if noise is None:
        return speech
    power = float(np.mean(speech[span[0] : span[1]] ** 2))
    return speech + noise * np.sqrt(power * 10 ** (-snr_db / 10))


def place(
    rng: np.random.Generator, spoken: np.ndarray, noise_kind: str | None, snr_db: float, tracks: list[np.ndarray], rate_hz: int
) -> np.ndarray:
    """Set speech between two short pauses, add noise, and bring it to a level of chance without clipping.

    Returns: samples [T] as int16. Pauses are 60 to 200 ms before and 120 to 260 ms after; peaks lie 3 to 12 dB below full
    scale.
    """
    before, after = (int(rng.uniform(low, high) * rate_hz) for low, high in ((0.06, 0.2), (0.12, 0.26)))
    padded = np.pad(spoken, (before, after))
    noise = None
    if noise_kind == "babble":
        noise = cut_babble(rng, tracks, padded.size)
    elif noise_kind is not None:
        noise = coloured_noise(rng, noise_kind, padded.size)
    mixed = mix(padded, noise, snr_db, (before, before + spoken.size))
    mixed *= 10 ** (-rng.uniform(3, 12) / 20) / np.max(np.abs(mixed))
    mixed += FLOOR * rng.standard_normal(mixed.size)
    return np.rint(np.clip(mixed, -1, 1) * 32767).astype(np.int16)

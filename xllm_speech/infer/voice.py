"""Whether anybody speaks in an utterance, by voice activity: what the guard asks where the ASR model is in doubt."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from lhotse.cut import Cut

from xllm_speech.base.errors import DataError, MissingDependency
from xllm_speech.base.units import SAMPLE_RATE_HZ
from xllm_speech.features.audio import load_samples
from xllm_speech.features.vad import SileroVad, SpeechDetector, find_segments, load_vad


@runtime_checkable
class KnowsVoice(Protocol):
    """A reader of speech items that can tell whether anybody speaks in one."""

    def has_voice(self, name: str) -> bool | None:
        """Of the item of that name; None: it cannot be told."""
        ...


class VoiceWitness:
    """Hears voices with `features.vad`; its network is loaded when it is asked for the first time."""

    def __init__(self) -> None:
        self.network: SileroVad | None = None
        self.missing = False

    def hears(self, samples_N: np.ndarray | torch.Tensor) -> bool | None:
        """Whether 16 kHz samples in [-1, 1] hold a stretch of speech; None: the package silero-vad is not installed."""
        if self.network is None and not self.missing:
            try:
                self.network = load_vad()
            except MissingDependency:
                self.missing = True
        if self.network is None:
            return None
        detector = SpeechDetector(self.network)
        probabilities = [*detector.push(samples_N), *detector.finish()]
        return any(True for _ in find_segments(probabilities, len(samples_N) / SAMPLE_RATE_HZ))

    def hears_cut(self, cut: Cut, channel: str | int) -> bool | None:
        """The same of a cut; None too where it has features and no recording that can be read."""
        try:
            return self.hears(load_samples(cut, channel))
        except DataError:
            return None

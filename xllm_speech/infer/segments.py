"""What recognises the segments of a long recording: a CIF ASR model, or an X-LLM."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from lhotse.cut import Cut

from xllm_speech.base.files import sha256_file
from xllm_speech.features.vad import VadConfig
from xllm_speech.infer.asr import CifAsr, DecodingReport, speech_items
from xllm_speech.infer.llm_asr import LlmRecogniser
from xllm_speech.infer.transcribing import SpeechAnswerer
from xllm_speech.infer.xllm import XLLM
from xllm_speech.models.asr import SearchConfig
from xllm_speech.models.search import describe_search
from xllm_speech.records import Hypothesis

FASTEST_UNITS_PER_SEC = 6.5  # of Mandarin; mostly 4 to 5
SHORTEST_SEC = 6.0  # segments are not cut shorter on the model's account
PROMPT_TOKENS = 64  # left for the instruction and the tags around the speech

Progress = Callable[[DecodingReport], None]


class SegmentRecogniser(Protocol):
    """Recognises segments."""

    @property
    def channel(self) -> str:
        """Of recordings with several."""
        ...

    @property
    def vad(self) -> VadConfig:
        """How recordings are cut for it where nothing else is said."""
        ...

    def describe(self) -> dict[str, Any]:
        """What its results depend on, as plain values: a journal of other values is not taken up."""
        ...

    def stream(
        self, cuts: Sequence[Cut], report: DecodingReport, on_progress: Progress | None = None
    ) -> Iterator[Hypothesis]:
        """A hypothesis for each cut, in order."""
        ...


@dataclass(frozen=True)
class CifSegments:
    """A CIF ASR model. search, image, batch_sec: as in `CifAsr.stream`; given_channel: None as the model was trained."""

    model: CifAsr
    search: SearchConfig
    image: str | Path | None = None
    given_channel: str | None = None
    batch_sec: float = 60.0

    @property
    def channel(self) -> str:
        """Of recordings with several."""
        return self.given_channel or self.model.checkpoint.description.features.channel

    @property
    def vad(self) -> VadConfig:
        """As it is."""
        return VadConfig()

    def describe(self) -> dict[str, Any]:
        """See `SegmentRecogniser`."""
        return {
            "model_sha256": self.model.weights_sha256, "search": describe_search(self.search), **_describe_image(self.image),
            "guard": None if self.model.guard is None else asdict(self.model.guard.config),
        }

    def stream(
        self, cuts: Sequence[Cut], report: DecodingReport, on_progress: Progress | None = None
    ) -> Iterator[Hypothesis]:
        """See `SegmentRecogniser`."""
        return self.model.stream(
            cuts, self.search, self.image, self.batch_sec, report=report, channel=self.channel, on_progress=on_progress
        )


@dataclass(frozen=True)
class LlmSegments:
    """An X-LLM. recogniser: from `XLLM.make_recogniser`, with the same picture. image, batch_sec: as in `XLLM.stream`."""

    model: XLLM
    recogniser: LlmRecogniser
    image: str | Path | None = None
    batch_sec: float = 60.0

    @property
    def channel(self) -> str:
        """Of recordings with several."""
        return self.recogniser.channel

    @property
    def vad(self) -> VadConfig:
        """Segments short enough for the speech interface and for the prompt, however fast somebody speaks."""
        description = self.model.checkpoint.description.model
        room = self.model.answerer.room(self.recogniser.options)
        units = min(description.interfaces.speech.positions, self.model.checkpoint.model.max_tokens - room - PROMPT_TOKENS)
        longest_sec = VadConfig().longest_sec
        return VadConfig(longest_sec=min(longest_sec, max(SHORTEST_SEC, units / FASTEST_UNITS_PER_SEC)))

    def describe(self) -> dict[str, Any]:
        """See `SegmentRecogniser`."""
        recogniser = self.recogniser
        found: dict[str, Any] = {
            "model_sha256": self.model.weights_sha256,
            "frozen_sha256": dict(self.model.checkpoint.description.frozen_sha256),
            "search": {"search": "llm", **asdict(recogniser.options), "wording": recogniser.wording},
        }
        answerer = recogniser.answerer
        if isinstance(answerer, SpeechAnswerer):  # a draft changes nothing
            found["search"]["hotwords"] = None if answerer.bias is None else answerer.bias.source
            found["guard"] = None if answerer.guard is None else asdict(answerer.guard.config)
        return found | _describe_image(self.image)

    def stream(
        self, cuts: Sequence[Cut], report: DecodingReport, on_progress: Progress | None = None
    ) -> Iterator[Hypothesis]:
        """See `SegmentRecogniser`."""
        items = speech_items(cuts, None if self.image is None else str(self.image))
        return self.recogniser.stream(items, self.batch_sec, report, on_progress)


def _describe_image(image: str | Path | None) -> dict[str, Any]:
    return {"image": None if image is None else sha256_file(image)}

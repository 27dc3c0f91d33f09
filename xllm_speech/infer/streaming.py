"""Recognition while somebody speaks: samples in, partial and final texts out, with a CIF ASR model that has chunks.

The final text of an utterance is that of `CifAsr.transcribe` over the same samples, however they came in pieces: front-end,
encoder, CIF and decoder carry their state from piece to piece. A token is shown at most `StreamingRecogniser.delay_sec`
after its end was heard. Voice activity (`EndpointConfig`) cuts the utterances out of the stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xllm_speech.base.config import require
from xllm_speech.base.errors import DataError
from xllm_speech.base.units import SAMPLE_RATE_HZ, STEP_SEC, sec_from_steps
from xllm_speech.cif.streaming import FiredUnits, StreamingCif
from xllm_speech.decoders.search import SearchResult
from xllm_speech.encoders.streaming import StreamingEncoder
from xllm_speech.features.images import load_pixels
from xllm_speech.features.streaming import REACH, SHIFT, StreamingFbank
from xllm_speech.features.vad import WINDOW, WINDOW_SEC, SpeechDetector, load_vad
from xllm_speech.infer.asr import CifAsr
from xllm_speech.infer.listening import hear_steps
from xllm_speech.infer.unit_times import frame_energies, place_tokens, token_spans
from xllm_speech.models.asr import BLANK_ID, CTC_METHODS, SearchConfig
from xllm_speech.nn.transformer import ProjectedMemory
from xllm_speech.records import AsrBatch, CifOut, EncoderOut, FbankBatch, Hypothesis, Memory, PixelBatch, TimedToken

SPEECH, NO_SPEECH = 0.5, 0.35  # probabilities of the voice activity
BEGIN_WINDOWS = 3  # of speech in a row, 32 ms each, begin an utterance
LEAD_WINDOWS, TRAIL_WINDOWS = 6, 6  # recognised before speech was noticed, and behind its end
LAG = REACH - SHIFT  # samples behind a chunk that its last frame sees


@dataclass
class EndpointConfig:
    """Where utterances begin and end, seconds.

    silence_sec: without speech, by voice activity (`features.vad`), until an utterance is over; what is no speech is not
    recognised then. 0: no voice activity. longest_sec: of an utterance, cut there whatever is said; 0: never. Without either,
    memory grows with the stream.
    """

    silence_sec: float = 1.0
    longest_sec: float = 30.0

    def __post_init__(self) -> None:
        for name, value in (("silence_sec", self.silence_sec), ("longest_sec", self.longest_sec)):
            require(value >= 0, f"endpoint.{name} {value} must not be negative")


@dataclass(frozen=True)
class StreamUpdate:
    """What is known by `heard_sec` of the stream. final: nothing of this utterance will change any more."""

    hypothesis: Hypothesis
    final: bool
    heard_sec: float


class _Utterance:
    """The state of one utterance."""

    def __init__(self, model: CifAsr, start_samples: int, visual: Memory | None) -> None:
        network = model.model
        self.start_samples, self.samples = start_samples, 0
        self.fbank, self.encoder = StreamingFbank(), StreamingEncoder(network.encoder)
        self.cif = StreamingCif(network.alpha, network.decoder.width, network.tail_threshold)
        self.memories: tuple[ProjectedMemory | None, ...] = network.decoder.project_memories(1, visual, None)
        self.state = network.decoder.start(1)
        self.previous_1 = torch.full((1,), network.decoder.sos_id, device=model.device)
        self.tokens: list[int] = []
        self.log_probs: list[float] = []
        self.fired: list[FiredUnits] = []
        self.steps: list[torch.Tensor] = []
        self.ended = False  # by <sos/eos>
        # For the guard and the times of the final text.
        self.sound: list[torch.Tensor] = []
        self.energies: list[np.ndarray] = []
        self.heard_steps: float | None = 0.0 if network.ctc_weight > 0 else None


class StreamingRecogniser:
    """One stream of 16 kHz mono samples.

    Partial texts are greedy; `search` gives the final one, from the units of the whole utterance.

    Args:
        model: trained with encoder.chunk_steps > 0. search: of final texts, greedy by default. image: a picture that the
            speech is about. endpoint: where utterances end; None: the stream is one utterance. name: of the recording.

    Raises:
        ConfigError: a model that hears whole utterances, or one without pictures where there is an image.
    """

    def __init__(
        self, model: CifAsr, search: SearchConfig | None = None, image: str | Path | None = None,
        endpoint: EndpointConfig | None = None, name: str = "stream",
    ) -> None:
        self.model, self.search, self.endpoint, self.name = model, search or SearchConfig(), endpoint, name
        self.keeps_steps = self.search.method != "greedy" or self.search.fusion is not None
        require(image is None or model.sees_images, f"{model.folder}: trained without pictures; leave the image away")
        self.visual = None if image is None else self._see(image)
        self.number, self.heard, self.position = 1, 0, 0  # position: of the next sample to be recognised
        self.utterance = _Utterance(model, 0, self.visual)
        self.gate = _Gate(endpoint.silence_sec) if endpoint is not None and endpoint.silence_sec else None

    @property
    def delay_sec(self) -> float:
        """From the end of a token in the stream until it is shown, at most: its chunk, and what a weight waits for."""
        encoder = self.utterance.encoder
        steps = encoder.encoder.chunk_steps + self.utterance.cif.predictor.context
        return steps * STEP_SEC + LAG / SAMPLE_RATE_HZ

    @torch.no_grad()
    def push(self, samples_N: np.ndarray | torch.Tensor) -> Iterator[StreamUpdate]:
        """Take samples in [-1, 1]; an update wherever the text has grown or an utterance has ended."""
        samples_N = torch.as_tensor(samples_N, dtype=torch.float32)
        if self.gate is None:
            self.heard += len(samples_N)
            yield from self._feed(samples_N)
            return
        for window_N in self.gate.cut(samples_N):
            self.heard += len(window_N)
            spoken_N, begins, ends = self.gate.judge(window_N)
            if begins:
                self.position = self.heard - len(spoken_N)
                self.utterance = _Utterance(self.model, self.position, self.visual)
            yield from self._feed(spoken_N)
            if ends:
                yield self._close()

    def _feed(self, samples_N: torch.Tensor) -> Iterator[StreamUpdate]:
        chunk = self.utterance.encoder.chunk_frames * SHIFT
        # Chunk by chunk, so that neither updates nor the ends of utterances depend on how the samples come.
        while len(samples_N):
            taken = min(len(samples_N), chunk - (self.utterance.samples - LAG) % chunk)
            before = len(self.utterance.tokens)
            self._take(samples_N[:taken])
            samples_N = samples_N[taken:]
            if self._is_over():
                yield self._close()
            elif len(self.utterance.tokens) > before:
                yield StreamUpdate(self._describe(), False, self.heard / SAMPLE_RATE_HZ)

    @torch.no_grad()
    def finish(self) -> StreamUpdate:
        """The end of the stream: the last utterance, possibly empty."""
        if self.gate is not None:
            rest_N = self.gate.finish()
            self.heard += self.gate.rest
            for _ in self._feed(rest_N):
                pass
        return self._close()

    def _take(self, samples_N: torch.Tensor) -> None:
        utterance = self.utterance
        utterance.samples += len(samples_N)
        utterance.sound.append(samples_N)
        self.position += len(samples_N)
        self._read(self._encode(utterance.fbank.push(samples_N)))

    def _encode(self, x_TF: torch.Tensor) -> torch.Tensor:
        self.utterance.energies.append(frame_energies(x_TF))
        return self.utterance.encoder.push(self.model.model.cmvn(x_TF.to(self.model.device)))

    def _read(self, x_SD: torch.Tensor) -> None:
        if not len(x_SD):
            return
        if self.keeps_steps:
            self.utterance.steps.append(x_SD)
        if self.utterance.heard_steps is not None:
            (steps,) = hear_steps(self.model.model, EncoderOut(x_SD[None], torch.tensor([len(x_SD)], device=x_SD.device)))
            self.utterance.heard_steps += steps or 0.0
        self._write(self.utterance.cif.push(x_SD))

    def _write(self, fired: FiredUnits) -> None:
        """One token for each unit, greedily."""
        utterance, network = self.utterance, self.model.model
        banned = [BLANK_ID] if network.eos_unit else [BLANK_ID, network.decoder.sos_id]
        utterance.fired.append(fired)
        for unit_D in fired.units_UD:
            logits_1V, utterance.state = network.decoder.step(
                utterance.previous_1, unit_D[None], utterance.state, utterance.memories
            )
            log_probs_1V = logits_1V.float().log_softmax(-1)
            log_probs_1V[:, banned] = -math.inf
            score_1, utterance.previous_1 = log_probs_1V.max(-1)
            token = int(utterance.previous_1)
            utterance.ended = utterance.ended or token == network.decoder.sos_id
            if not utterance.ended:
                utterance.tokens.append(token)
                utterance.log_probs.append(float(score_1))

    def _is_over(self) -> bool:
        utterance, endpoint = self.utterance, self.endpoint
        if endpoint is None or (utterance.samples - LAG) % (utterance.encoder.chunk_frames * SHIFT):
            return False
        return 0 < endpoint.longest_sec <= utterance.samples / SAMPLE_RATE_HZ

    def _close(self) -> StreamUpdate:
        """End the utterance and begin the next one behind it."""
        utterance = self.utterance
        self._read(self._encode(utterance.fbank.finish()))
        self._read(utterance.encoder.finish())
        self._write(utterance.cif.finish())
        update = StreamUpdate(self._conclude(), True, self.heard / SAMPLE_RATE_HZ)
        self.number += 1
        self.utterance = _Utterance(self.model, self.position, self.visual)
        return update

    def _conclude(self) -> Hypothesis:
        """The final hypothesis, as `CifAsr.transcribe` gives it."""
        utterance = self.utterance
        columns = [torch.cat([fired[column] for fired in utterance.fired])[None] for column in range(4)]
        units_BUD, start_BU, fire_BU, alpha_BS = columns
        lens_B = torch.tensor([units_BUD.shape[1]], device=self.model.device)
        cif = CifOut(units_BUD, lens_B, alpha_BS.double().sum(1), start_BU, fire_BU, alpha_BS)
        result = SearchResult(utterance.tokens, utterance.log_probs, sum(utterance.log_probs))
        if utterance.steps:
            x_BSD = torch.cat(utterance.steps)[None]
            encoded = EncoderOut(x_BSD, torch.tensor([x_BSD.shape[1]], device=self.model.device))
            (result,), _ = self.model.model.decode(encoded, cif, self.visual, None, self.search)
        energy_T = np.concatenate(utterance.energies)
        count = len(result.tokens) if self.search.method in CTC_METHODS else units_BUD.shape[1]
        spans = token_spans(alpha_BS[0], count, energy_T)
        heard = self.model.hear(result, spans, units_BUD.shape[1], utterance.heard_steps, energy_T)
        refused = self.model.judge(heard, lambda: self.model.voice.hears(torch.cat(utterance.sound)))
        if refused is not None:
            return self._hypothesis("", [], None, refused)
        return self._hypothesis(heard.text, heard.tokens, result.score, {})

    def _describe(self) -> Hypothesis:
        """The hypothesis so far; its tokens begin and end where units fired, as nothing is known of what will follow."""
        utterance = self.utterance
        starts = [value for fired in utterance.fired for value in fired.start_U.tolist()]
        fires = [value for fired in utterance.fired for value in fired.fire_U.tolist()]
        tokens = [
            TimedToken(self.model.table.piece(token), sec_from_steps(begin), sec_from_steps(end), math.exp(log_prob))
            for token, log_prob, begin, end in zip(utterance.tokens, utterance.log_probs, starts, fires, strict=False)
        ]
        return self._hypothesis(self.model.table.decode(utterance.tokens), tokens, sum(utterance.log_probs), {})

    def _hypothesis(
        self, text: str, tokens: list[TimedToken], score: float | None, extra: dict[str, Any]
    ) -> Hypothesis:
        start_sec, duration_sec = self.utterance.start_samples / SAMPLE_RATE_HZ, self.utterance.samples / SAMPLE_RATE_HZ
        return Hypothesis(
            f"{self.name}-{self.number:05d}", text, place_tokens(tokens, start_sec, duration_sec),
            None if score is None else round(score, 4), self.name, round(start_sec, 3), round(duration_sec, 3), extra=extra,
        )

    def _see(self, image: str | Path) -> Memory | None:
        pixels_CHW = load_pixels(image, self.model.checkpoint.description.features.image_size)
        present_B = torch.ones(1, dtype=torch.bool)
        nothing = FbankBatch(torch.zeros(1, 0, pixels_CHW.shape[0]), torch.zeros(1, dtype=torch.long))
        batch = AsrBatch([self.name], nothing, 0.0, pixels=PixelBatch(pixels_CHW[None], present_B))
        with torch.no_grad():
            return self.model.model.see(batch.to(self.model.device))[0]


class _Gate:
    """Lets the speech of a stream through, window by window."""

    def __init__(self, silence_sec: float) -> None:
        self.detector = SpeechDetector(load_vad())
        self.silence_windows = max(1, round(silence_sec / WINDOW_SEC))
        self.left_N = torch.zeros(0)
        self.speaking, self.count = False, 0  # count: windows of speech in a row before it begins, of silence before it ends
        self.held: list[torch.Tensor] = []  # not let through yet
        self.rest = 0  # samples behind the last whole window, known at the end

    def cut(self, samples_N: torch.Tensor) -> Iterator[torch.Tensor]:
        """Whole windows."""
        self.left_N = torch.cat([self.left_N, samples_N])
        while len(self.left_N) >= WINDOW:
            window_N, self.left_N = self.left_N[:WINDOW], self.left_N[WINDOW:]
            yield window_N

    def judge(self, window_N: torch.Tensor) -> tuple[torch.Tensor, bool, bool]:
        """Samples to be recognised now, whether an utterance begins with them, and whether it ends behind them."""
        (probability,) = self.detector.push(window_N)
        self.held.append(window_N)
        if not self.speaking:
            self.count = self.count + 1 if probability >= SPEECH else 0
            self.held = self.held[-LEAD_WINDOWS - BEGIN_WINDOWS :]
            if self.count < BEGIN_WINDOWS:
                return torch.zeros(0), False, False
            self.speaking, self.count = True, 0
            return self._release(), True, False
        self.count = self.count + 1 if probability < NO_SPEECH else 0
        if self.count >= self.silence_windows:
            self.speaking, self.count = False, 0
            return torch.zeros(0), False, True
        return (self._release() if self.count <= TRAIL_WINDOWS else torch.zeros(0)), False, False

    def finish(self) -> torch.Tensor:
        """What is still to be recognised at the end."""
        self.rest = len(self.left_N)
        return torch.cat([self._release(), self.left_N]) if self.speaking and not self.count else torch.zeros(0)

    def _release(self) -> torch.Tensor:
        spoken_N, self.held = torch.cat(self.held) if self.held else torch.zeros(0), []
        return spoken_N


def stream_recordings(
    recogniser: StreamingRecogniser, blocks: Iterable[np.ndarray], interrupted: Callable[[], bool] = lambda: False
) -> Iterator[StreamUpdate]:
    """All updates of a source of samples, the last one final, also where the source breaks off or somebody interrupts.

    Raises:
        DataError: of the source, once what came before is recognised.
    """
    broken: DataError | None = None
    try:
        for samples_N in blocks:
            yield from recogniser.push(samples_N)
            if interrupted():
                break
    except DataError as error:
        broken = error
    if broken is None or recogniser.heard:
        yield recogniser.finish()
    if broken is not None:
        raise broken

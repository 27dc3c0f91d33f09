"""Recognition with a CIF ASR model: `CifAsr.from_pretrained(dir).transcribe(paths or cuts)`."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.utils import fastcopy

from xllm_speech.base.errors import DataError, SeamError, first_line
from xllm_speech.base.files import atomic_dir, sha256_file
from xllm_speech.datasets.asr import AsrDataset
from xllm_speech.decoders.search import SearchResult
from xllm_speech.features.audio import audio_path, load_file
from xllm_speech.infer.guard import Guard
from xllm_speech.infer.halving import halve_on_failure
from xllm_speech.infer.listening import Heard, hear_steps, loudest
from xllm_speech.infer.unit_times import energy_swing, frame_energies, place_tokens, token_spans
from xllm_speech.infer.voice import VoiceWitness
from xllm_speech.models.asr import CTC_METHODS, SearchConfig
from xllm_speech.models.checkpoints import WEIGHTS, AsrCheckpoint, load_asr, save_asr
from xllm_speech.records import AsrBatch, Hypothesis, TimedToken

# Utterances that are read ahead and sorted by length before batches are cut from them.
WINDOW = 256


@dataclass
class DecodingReport:
    """What a decoding run did, for the file beside its output. Seconds: audio decoded, wall time by part."""

    utterances: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)  # recognised, but not with all that belongs to it
    audio_sec: float = 0.0
    loading_sec: float = 0.0
    decoding_sec: float = 0.0


class CifAsr:
    """A CIF ASR model ready to recognise.

    An utterance in which nobody speaks has an empty text; why stands in `extra["guard"]`. Set `guard` to None to have texts of
    silence and noise too.

    Args:
        checkpoint: from `models.checkpoints.load_asr`.
        device: where it runs.
    """

    def __init__(self, checkpoint: AsrCheckpoint, device: torch.device | str = "cpu") -> None:
        self.checkpoint = checkpoint
        self.guard: Guard | None = Guard(checkpoint.table)
        self.voice = VoiceWitness()
        self.model, self.table, self.folder = checkpoint.model, checkpoint.table, checkpoint.folder
        self.device = torch.device(device)

    @classmethod
    def from_pretrained(cls, path: str | Path, device: torch.device | str = "cpu") -> CifAsr:
        """Load a model directory or the best model of an experiment; `CheckpointError` where that fails."""
        return cls(load_asr(path, device), device)

    def save_pretrained(self, path: str | Path) -> None:
        """Write the model directory to `path`, atomically."""
        description = self.checkpoint.description
        with atomic_dir(path) as part:
            save_asr(part, self.model.state_dict(), description.model, self.table, description.features)

    @property
    def weights_sha256(self) -> str:
        """Hash of the weights file, for score files."""
        return sha256_file(self.folder / WEIGHTS)

    @property
    def sees_images(self) -> bool:
        """Whether the model was trained with pictures."""
        return self.checkpoint.description.features.image_size > 0

    def transcribe(
        self,
        speech: str | Path | Cut | CutSet | Iterable[str | Path | Cut],
        search: SearchConfig | None = None,
        image: str | Path | None = None,
        batch_sec: float = 60.0,
        use_images: bool = True,
        use_captions: bool = True,
    ) -> list[Hypothesis]:
        """Recognise files or cuts; one hypothesis each, in order. A file that cannot be read gives one with `error` set.

        Args:
            speech: one or many paths of audio files, or lhotse cuts.
            image: a picture for all of them; cuts may bring their own (`use_images`, `use_captions`: whether those count).
            batch_sec: audio seconds decoded together; results do not depend on it.
        """
        return list(self.stream(speech, search, image, batch_sec, use_images, use_captions))

    def stream(
        self,
        speech: str | Path | Cut | CutSet | Iterable[str | Path | Cut],
        search: SearchConfig | None = None,
        image: str | Path | None = None,
        batch_sec: float = 60.0,
        use_images: bool = True,
        use_captions: bool = True,
        report: DecodingReport | None = None,
        channel: str | None = None,
        on_progress: Callable[[DecodingReport], None] | None = None,
    ) -> Iterator[Hypothesis]:
        """Like `transcribe`, one by one; `report` is filled in on the way."""
        search, report = search or SearchConfig(), report or DecodingReport()
        features = self.checkpoint.description.features
        image_size = features.image_size if use_images or image is not None else 0
        dataset = AsrDataset(
            None, channel=channel or features.channel, image_size=image_size, caption_share=1.0 if use_captions else 0.0
        )
        items = speech_items(speech, None if image is None else str(image))
        while window := list(itertools.islice(items, WINDOW)):
            done: dict[int, Hypothesis] = {}
            loadable: list[tuple[int, Cut]] = []
            for place, (cut, failed) in enumerate(window):
                if cut is None:
                    done[place] = failed  # type: ignore[assignment]
                else:
                    loadable.append((place, cut))
            for group in batches_by_length(loadable, batch_sec):
                done |= halve_on_failure(
                    group, lambda part: self._decode(part, dataset, search, report),
                    lambda item, error: {item[0]: describe_cut(item[1], "", error=first_line(error))},
                )
                if on_progress is not None:
                    on_progress(report)
            for place in range(len(window)):
                hypothesis = done[place]
                report.utterances += 1
                if hypothesis.error is not None:
                    report.failed.append((hypothesis.id, hypothesis.error))
                yield hypothesis

    @torch.no_grad()
    def _decode(
        self, group: Sequence[tuple[int, Cut]], dataset: AsrDataset, search: SearchConfig, report: DecodingReport
    ) -> dict[int, Hypothesis]:
        """Hypotheses of one batch by place; what cannot be loaded is reported in its own hypothesis."""
        begin = time.perf_counter()
        # Ids may repeat in a window of loose files, so the batch goes by place.
        batch = dataset[CutSet([cut.with_id(str(place)) for place, cut in group])]
        loaded = time.perf_counter()
        report.loading_sec += loaded - begin
        out: dict[int, Hypothesis] = {}
        cuts = dict(group)
        if batch.ids:
            batch = _with_device(batch, self.device)
            encoded, cif = self.model.find_units(batch.fbank)
            results, _ = self.model.decode(encoded, cif, *self.model.see(batch), search)
            report.audio_sec += batch.seconds
            steps_B = hear_steps(self.model, encoded)
            for row, (key, result) in enumerate(zip(batch.ids, results, strict=True)):
                energy_T = frame_energies(batch.fbank.x_BTF[row, : batch.fbank.lens_B[row]])
                units = int(cif.lens_B[row])
                count = len(result.tokens) if search.method in CTC_METHODS else units
                spans = token_spans(cif.alpha_BS[row], count, energy_T)
                heard = self.hear(result, spans, units, steps_B[row], energy_T)
                out[int(key)] = self._describe(cuts[int(key)], result.score, heard, dataset.channel)
            report.decoding_sec += time.perf_counter() - loaded
        for key, reason in batch.skipped:
            cut, reason = cuts[int(key)], reason.replace(f"{key}: ", "", 1)
            if int(key) in out:  # decoded all the same, without its picture
                report.notes.append((cut.id, reason))
            else:
                out[int(key)] = describe_cut(cut, "", error=reason)
        return out

    def hear(
        self, result: SearchResult, spans: list[tuple[float, float]], units: int, steps: float | None, energy_T: np.ndarray
    ) -> Heard:
        """An utterance as the guard wants it.

        Args:
            spans: seconds at which tokens begin and end, at least one for each (`unit_times.token_spans`). units: of CIF.
            steps: that CTC takes for speech (`listening.hear_steps`). energy_T: from `unit_times.frame_energies`.
        """
        tokens = [
            TimedToken(self.table.piece(token), *spans[place], math.exp(log_prob))
            for place, (token, log_prob) in enumerate(zip(result.tokens, result.log_probs, strict=True))
        ]
        text = self.table.decode(result.tokens)
        return Heard(text, tokens, units, steps, loudest(energy_T), energy_swing(energy_T))

    def judge(self, heard: Heard, has_voice: Callable[[], bool | None]) -> dict[str, Any] | None:
        """What `extra` holds of an utterance in which nobody speaks, whose text does not count; None: somebody does.

        has_voice: asks `voice` for the samples, which is done in doubt only.
        """
        verdict = None if self.guard is None else self.guard.judge_sound(heard, has_voice)
        return None if verdict is None else {"guard": verdict.record() | ({"cif_text": heard.text} if heard.text else {})}

    def _describe(self, cut: Cut, score: float, heard: Heard, channel: str | int) -> Hypothesis:
        refused = self.judge(heard, lambda: self.voice.hears_cut(cut, channel))
        if refused is not None:
            return describe_cut(cut, "", extra=refused)
        return describe_cut(cut, heard.text, tokens=place_tokens(heard.tokens, cut.start, cut.duration), score=round(score, 4))


def _with_device(batch: AsrBatch, device: torch.device) -> AsrBatch:
    return batch if device.type == "cpu" else batch.to(device)


def speech_items(speech: Any, image: str | None) -> Iterator[tuple[Cut | None, Hypothesis | None]]:
    """(cut, None) of everything readable in `speech`, (None, hypothesis with an error) of what is not."""
    if isinstance(speech, str | Path) or (not isinstance(speech, CutSet) and hasattr(speech, "duration")):
        speech = [speech]
    for entry in speech:
        if isinstance(entry, Hypothesis):  # a manifest line that is no speech: passed on as it is
            yield None, entry
            continue
        if isinstance(entry, str | Path):
            try:
                cut = load_file(entry)
            except DataError as error:
                yield None, Hypothesis(Path(entry).stem, "", recording=str(entry), error=str(error))
                continue
        else:
            cut = entry
        if image is not None:
            cut = fastcopy(cut, custom={**(cut.custom or {}), "image": image})
        yield cut, None


def batches_by_length(cuts: list[tuple[int, Cut]], batch_sec: float) -> Iterator[list[tuple[int, Cut]]]:
    """Groups of like length whose padded length stays within `batch_sec`; a longer utterance stands alone."""
    group: list[tuple[int, Cut]] = []
    for item in sorted(cuts, key=lambda item: (item[1].duration, item[0])):
        if group and item[1].duration * (len(group) + 1) > batch_sec:
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def describe_cut(cut: Cut, text: str, **more: Any) -> Hypothesis:
    """A hypothesis about a cut: where it lies, and `more` of its fields."""
    source = audio_path(cut)
    recording = getattr(getattr(cut, "recording", None), "id", None) or source
    channel = cut.channel if isinstance(getattr(cut, "channel", 0), int) else 0
    try:
        return Hypothesis(
            cut.id, text, recording=recording, start_sec=round(cut.start, 3), duration_sec=round(cut.duration, 3),
            channel=channel, **more,
        )
    except AttributeError as error:  # a mixed cut has no start of its own
        raise SeamError(f"{cut.id}: {error}") from error

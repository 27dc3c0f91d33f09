"""Recordings through the X-LLM or its CIF ASR model, those that wait for the same one together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lhotse.cut import Cut
from lhotse.utils import fastcopy

from xllm_speech.base.errors import DataError, UserError
from xllm_speech.datasets.asr import pad_features
from xllm_speech.features.audio import load_file
from xllm_speech.features.fbank import load_features
from xllm_speech.infer.asr import CifAsr, DecodingReport
from xllm_speech.infer.long_audio import transcribe_long
from xllm_speech.infer.segments import CifSegments, LlmSegments, SegmentRecogniser
from xllm_speech.infer.xllm import XLLM
from xllm_speech.models.asr import SearchConfig
from xllm_speech.records import Hypothesis
from xllm_speech.serve.jobs import SpeechJob, Transcribed, too_late
from xllm_speech.serve.refusal import Refusal, bad_request

LONG_SEC = 30.0  # recordings beyond are cut by voice activity; for the LLM, those beyond its segments


class Ears:
    """Transcribes for `SpeechJob`s. Args: model: the X-LLM. cif: the ASR model of its speech interface."""

    def __init__(self, model: XLLM, cif: CifAsr) -> None:
        self.model, self.cif = model, cif
        llm = LlmSegments(model, model.make_recogniser(wording=0))
        self._longest_sec = {"cif": LONG_SEC, "llm": llm.vad.longest_sec}

    def run(self, jobs: Sequence[SpeechJob]) -> None:
        """Give jobs of one method what was heard, or a refusal."""
        short: list[tuple[SpeechJob, Cut]] = []
        for job in jobs:
            try:
                cut = load_file(job.path)
                if cut.duration > self._longest_sec[job.method]:
                    self._run_long(job)
                else:
                    short.append((job, cut if job.image is None else fastcopy(cut, custom={"image": str(job.image)})))
            except UserError as error:
                job.put(_refuse(job, str(error)))
        cuts = [cut for _, cut in short]
        report = DecodingReport()  # else notes, which name files, go to the log
        if not cuts:
            return
        found = (
            self.cif.stream(cuts, report=report) if short[0][0].method == "cif"
            else self.model.stream(cuts, wording=0, report=report)
        )
        for (job, cut), hypothesis in zip(short, found, strict=True):
            if hypothesis.error is not None:
                job.put(_refuse(job, hypothesis.error))
            else:
                job.put(Transcribed([hypothesis], self._weigh(cut) if job.weights else None))

    def _segments(self, job: SpeechJob) -> SegmentRecogniser:
        if job.method == "cif":
            return CifSegments(self.cif, SearchConfig(), job.image)
        return LlmSegments(self.model, self.model.make_recogniser(image=job.image, wording=0), job.image)

    def _run_long(self, job: SpeechJob) -> None:
        found: list[Hypothesis] = []
        for hypothesis in transcribe_long(self._segments(job), job.path, report=DecodingReport()):
            if hypothesis.error is not None:
                raise DataError(hypothesis.error)
            found.append(hypothesis)
            if job.cancelled.is_set() or job.expired:
                job.put(too_late())
                return
        job.put(Transcribed(found))

    @torch.no_grad()
    def _weigh(self, cut: Cut) -> np.ndarray:
        """CIF weights of a recording, one per step."""
        feats_TF = load_features(cut, self.cif.checkpoint.description.features.channel)
        _, cif = self.cif.model.find_units(pad_features([feats_TF]).to(self.cif.device))
        return cif.alpha_BS[0].float().cpu().numpy()


def _refuse(job: SpeechJob, reason: str) -> Refusal:
    """The reason without names of files."""
    for path in (job.path, *([job.image] if job.image else [])):
        reason = reason.replace(f"{path}: ", "").replace(f"{path.stem}: ", "").replace(str(path), Path(path).stem)
    return bad_request(f"file: cannot be read ({reason[:200]})", "file", "invalid_media")

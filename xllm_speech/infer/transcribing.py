"""Transcripts from an X-LLM that uses all of its ASR model: for a draft, a guard and times; the encoder runs once."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from xllm_speech.base.config import require_choice
from xllm_speech.base.errors import SeamError
from xllm_speech.datasets.media import MediaReader, load_media
from xllm_speech.infer.answering import Answerer, Readers, failed, note_of
from xllm_speech.infer.answers import Answer, AnsweringReport
from xllm_speech.infer.draft import Drafter
from xllm_speech.infer.generation import AnswerOptions
from xllm_speech.infer.guard import Guard, GuardConfig, Verdict
from xllm_speech.infer.listening import Heard, Listener
from xllm_speech.infer.llm_hotwords import Hotwords
from xllm_speech.infer.llm_times import letter_log_probs
from xllm_speech.infer.voice import KnowsVoice
from xllm_speech.llm.beam import BeamSearcher
from xllm_speech.llm.verify import GreedyAnswer, Verifier
from xllm_speech.models.asr import CifAsrModel
from xllm_speech.records import Conversation, FbankBatch, LlmInput
from xllm_speech.text.tokens import TokenTable

DRAFTS = ("cif", "none")


@dataclass(frozen=True)
class Transcript(Answer):
    """The answer to one request for a transcript.

    text: as the LLM wrote it; the verdict may put another in its place. heard: by the ASR model. letter_log_probs: of the
    LLM, for each character of its text without white space; None with beams. verdict: of the guard, None without one.
    """

    heard: Heard | None = None
    letter_log_probs: list[float] | None = None
    verdict: Verdict | None = None


@dataclass
class TranscribingReport:
    """What a run of transcribing did. asked: utterances that the LLM was asked about by greedy search; passes, offered,
    accepted, near_ties: as in `llm.verify.GreedyAnswer`, summed. tokens: written, with their ends. decisions: of the guard.
    """

    asked: int = 0
    passes: int = 0
    offered: int = 0
    accepted: int = 0
    near_ties: int = 0
    tokens: int = 0
    decisions: Counter[str] = field(default_factory=Counter)

    def add(self, answer: GreedyAnswer, room: int) -> None:
        """Count one answer of at most `room` tokens."""
        self.asked += 1
        self.passes += answer.passes
        self.offered += answer.offered
        self.accepted += answer.accepted
        self.near_ties += answer.near_tie
        self.tokens += min(len(answer.ids) + 1, room)

    def describe(self) -> dict[str, object]:
        """For the file beside an output; rates are None where nothing was asked or offered."""
        return {
            "llm_utterances": self.asked, "llm_passes_per_utterance": self.passes / self.asked if self.asked else None,
            "acceptance_rate": self.accepted / self.offered if self.offered else None, "near_ties": self.near_ties,
            "guard": dict(sorted(self.decisions.items())),
        }


class SpeechAnswerer(Answerer):
    """Answers conversations of one utterance each (pictures may stand beside it), which ask for a transcript.

    Args:
        base: the model. table: of its ASR model. draft: what greedy search verifies, cif (the ASR model's hypothesis) or none;
            it changes how long a transcript takes and nothing in it. guard: bounds, None for no guard. told: filled in on
            the way. hotwords: likely phrases, for the LLM and for what the ASR model hears.

    Raises:
        ConfigError: an unknown draft.
    """

    def __init__(
        self, base: Answerer, asr: CifAsrModel, table: TokenTable, draft: str = "cif", guard: GuardConfig | None = None,
        told: TranscribingReport | None = None, hotwords: Hotwords | None = None,
    ) -> None:
        require_choice("draft", draft, DRAFTS)
        self.model, self.encoders, self.device, self.draft = base.model, base.encoders, base.device, draft
        self.bias = None if hotwords is None else hotwords.bias(base.model.llm)
        self.verifier, self.beams = Verifier(base.model.llm, self.bias), BeamSearcher(base.model.llm, self.bias)
        self.listener = Listener(asr, table, None if hotwords is None else hotwords.search(table))
        self.guard = None if guard is None else Guard(table, guard)
        self.told = told or TranscribingReport()

    @torch.no_grad()
    def _try(
        self, conversations: list[Conversation], options: AnswerOptions, readers: Readers, report: AnsweringReport
    ) -> dict[str, Answer]:
        begin = time.perf_counter()
        room = self.room(options)
        batch = load_media(conversations, readers)
        found: dict[str, Answer] = {name: failed(name, reason) for name, reason in batch.skipped}
        if not batch.conversations:
            return found
        batch = batch.to(self.device)
        fbank = batch.media["speech"]
        if not isinstance(fbank, FbankBatch) or len(fbank.lens_B) != len(batch.conversations):
            raise SeamError(f"transcripts: {len(batch.conversations)} conversations, one utterance of features each is needed")
        cif, hearings = self.listener.hear(fbank)
        heard = dict(zip(batch.ids, hearings, strict=True))
        speech = readers.get("speech")
        silent = {name: verdict for name in heard if (verdict := self._judge_sound(name, heard[name], speech)) is not None}
        if silent:  # what is silent costs the LLM nothing, and is no reason to refuse its prompt either
            report.reading_sec += time.perf_counter() - begin
            rest = [conversation for conversation in batch.conversations if conversation.id not in silent]
            found |= self._try(rest, options, readers, report) if rest else {}
            for name, verdict in silent.items():  # counted once nothing can fail any more
                found[name] = Transcript(name, "", heard=heard[name], verdict=verdict)
                self.told.decisions[verdict.decision] += 1
            return found
        media = {kind: value for kind, value in batch.media.items() if kind != "speech"}
        encoded = self.encoders.encode(replace(batch, media=media, features={**batch.features, "speech": cif}))
        spliced = self.model.splice(encoded, train=False, answer_room=room)
        spliced_at = time.perf_counter()
        report.reading_sec += spliced_at - begin
        found |= {name: failed(name, reason) for name, reason in spliced.rejected}
        if spliced.llm_input is not None:
            ids = [plan.id for plan in spliced.plans]
            answers = self._write(spliced.llm_input, [heard[name].text for name in ids], options, room)
            for plan, answer in zip(spliced.plans, answers, strict=True):
                found[plan.id] = self._transcript(plan.id, answer, heard[plan.id], note_of(plan.report), room)
            report.answering_sec += time.perf_counter() - spliced_at
        return found

    def _judge_sound(self, name: str, heard: Heard, reader: MediaReader | None) -> Verdict | None:
        if self.guard is None:
            return None
        return self.guard.judge_sound(heard, partial(reader.has_voice, name) if isinstance(reader, KnowsVoice) else None)

    def _write(
        self, prompt: LlmInput, expected: list[str], options: AnswerOptions, room: int
    ) -> list[GreedyAnswer | list[int]]:
        """The LLM's answers; with beams ids alone."""
        if options.num_beams > 1 or options.do_sample:
            return list(self.write(prompt, options, room))
        drafter = Drafter(self.model.llm, expected) if self.draft == "cif" else None
        return list(self.verifier.answer(prompt, room, drafter))

    def _transcript(
        self, name: str, answer: GreedyAnswer | list[int], heard: Heard, note: str | None, room: int
    ) -> Transcript:
        llm, probabilities = self.model.llm, None
        ids = answer if isinstance(answer, list) else answer.ids
        if isinstance(answer, GreedyAnswer):
            self.told.add(answer, room)
            if len(answer.log_probs) == len(ids):
                probabilities = letter_log_probs(llm, ids, answer.log_probs)
        text = llm.decode(ids)
        verdict = None if self.guard is None else self.guard.judge(heard, text)
        if verdict is not None:
            self.told.decisions[verdict.decision] += 1
        return Transcript(
            name, text, note=note, tokens=len(ids), cut=len(ids) >= room, heard=heard, letter_log_probs=probabilities,
            verdict=verdict,
        )

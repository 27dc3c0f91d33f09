"""Speech recognition through the LLM: files or cuts as conversations with the instruction to transcribe."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from lhotse.cut import Cut

from xllm_speech.base.errors import DataError, SeamError, first_line
from xllm_speech.datasets.readers import Place, SpeechReader
from xllm_speech.features.fbank import load_features
from xllm_speech.infer.answering import Answerer, Readers
from xllm_speech.infer.answers import Answer, AnsweringReport, prepare
from xllm_speech.infer.asr import WINDOW, DecodingReport, batches_by_length, describe_cut
from xllm_speech.infer.generation import AnswerOptions
from xllm_speech.infer.guard import EMPTY, KEPT
from xllm_speech.infer.llm_times import time_text
from xllm_speech.infer.transcribing import Transcript
from xllm_speech.infer.voice import VoiceWitness
from xllm_speech.manifests.cuts import utterance_of
from xllm_speech.prompts import with_caption
from xllm_speech.records import Conversation, ConversationItem, Hypothesis, Message, TimedToken

logger = logging.getLogger(__name__)


class CutReader(SpeechReader):
    """Speech items that name a cut, from cuts in memory.

    Args:
        channel: as for `SpeechReader`. known: the cuts by the name that items call them. voice: for `has_voice`.
    """

    def __init__(self, channel: str, known: Mapping[str, Cut], voice: VoiceWitness | None = None) -> None:
        super().__init__(channel)
        self.known, self.voice = known, voice

    def has_voice(self, name: str) -> bool | None:
        """Whether anybody speaks in a cut; None: nobody can tell."""
        return None if self.voice is None else self.voice.hears_cut(self.known[name], self.channel)

    def read(self, item: ConversationItem, place: Place) -> torch.Tensor:
        """Features [T, 80], at least one frame; `DataError` names the cut."""
        cut = self.known[str(item.cut)]
        feats_TF = load_features(cut, self.channel)
        if not len(feats_TF):
            raise DataError(f"{cut.id}: {cut.duration:.4f} s is too short for a single frame")
        return feats_TF


@dataclass(frozen=True)
class LlmRecogniser:
    """Transcripts from an X-LLM.

    answerer: the model; a `SpeechAnswerer` gives times, confidences and the guard's word too. readers: of pictures. channel:
    of recordings with several. use_images: whether the pictures that cuts bring along count. wording: which instruction is
    given, None draws one by the cut's id. use_captions: whether the captions that cuts bring along stand in the prompt as text.
    voice: asked where the guard doubts that anybody speaks.
    """

    answerer: Answerer
    readers: Readers
    options: AnswerOptions
    channel: str = "mix"
    use_images: bool = True
    wording: int | None = None
    use_captions: bool = False
    voice: VoiceWitness = field(default_factory=VoiceWitness)

    def stream(
        self, items: Iterator[tuple[Cut | None, Hypothesis | None]], batch_sec: float, given: DecodingReport | None,
        on_progress: Callable[[DecodingReport], None] | None = None,
    ) -> Iterator[Hypothesis]:
        """Hypotheses in the order of `items`; without a report its notes go to the log."""
        report = given or DecodingReport()
        while window := list(itertools.islice(items, WINDOW)):
            done = {place: told for place, (_, told) in enumerate(window) if told is not None}
            cuts = [(place, cut) for place, (cut, _) in enumerate(window) if cut is not None]
            for group in batches_by_length(cuts, batch_sec):
                noted = len(report.notes)
                done |= self.recognise(group, report)
                for name, note in report.notes[noted:] if given is None else ():
                    logger.warning("%s: %s", name, note)
                if on_progress is not None:
                    on_progress(report)
            for place in range(len(window)):
                report.utterances += 1
                if (reason := done[place].error) is not None:
                    report.failed.append((done[place].id, reason))
                yield done[place]

    def recognise(self, group: list[tuple[int, Cut]], report: DecodingReport) -> dict[int, Hypothesis]:
        """Hypotheses of one batch by place; a cut whose picture cannot be read is recognised without it."""
        out: dict[int, Hypothesis] = {}
        asked: dict[str, tuple[int, Cut]] = {}
        talks: dict[str, Conversation] = {}
        captions: dict[str, str | None] = {}
        for place, cut in group:
            name = cut.id if cut.id not in asked else f"{cut.id} at place {place}"  # loose files may share a name
            try:
                told = utterance_of(cut)
            except (DataError, SeamError) as error:
                out[place] = describe_cut(cut, "", error=first_line(error))
                continue
            asked[name] = place, cut
            captions[name] = told.caption if self.use_captions else None
            talks[name] = self._ask(name, told.image if self.use_images else None, captions[name])
        cuts = {name: cut for name, (_, cut) in asked.items()}
        readers = {**self.readers, "speech": CutReader(self.channel, cuts, self.voice)}
        work = AnsweringReport()
        answers = self.answerer.answer_batch(list(talks.values()), self.options, readers, work) if talks else {}
        blind = [
            self._ask(name, None, captions[name])
            for name, answer in answers.items() if answer.error is not None and talks[name].task == "masr"
        ]
        heard = self.answerer.answer_batch(blind, self.options, readers, work) if blind else {}
        for name, answer in heard.items():
            if answer.error is None:
                report.notes.append((asked[name][1].id, f"used without its picture: {answers[name].error}"))
        for name, answer in (answers | heard).items():
            place, cut = asked[name]
            out[place] = describe_transcript(cut, answer)
            if answer.error is None:
                report.audio_sec += cut.duration
            if answer.cut:
                report.notes.append((cut.id, f"the text was cut after {answer.tokens} tokens; allow more"))
        report.loading_sec += work.reading_sec
        report.decoding_sec += work.answering_sec
        return out

    def _ask(self, name: str, image: str | None, caption: str | None) -> Conversation:
        return with_caption(prepare(ask_transcript(name, image), self.wording), caption)


def describe_transcript(cut: Cut, answer: Answer) -> Hypothesis:
    """The hypothesis that an answer makes: what the guard left of its text, with times in the recording and confidences."""
    if answer.error is not None or not isinstance(answer, Transcript) or answer.heard is None:
        return describe_cut(cut, answer.text, error=answer.error)
    text, score, extra = answer.text, None, {}
    tokens = time_text(text, answer.heard, answer.letter_log_probs)
    if answer.letter_log_probs is not None:
        score = round(sum(answer.letter_log_probs), 4)
    if answer.verdict is not None:
        extra["guard"] = answer.verdict.record(answer.text)
        if answer.verdict.decision != KEPT:
            text, score = answer.verdict.text, None
            tokens = [] if answer.verdict.decision == EMPTY else answer.heard.tokens
    return describe_cut(cut, text, tokens=[_in_recording(token, cut) for token in tokens], score=score, extra=extra)


def _in_recording(token: TimedToken, cut: Cut) -> TimedToken:
    """The token with times from the start of the recording, none behind the end of the cut."""
    begin, end = (round(cut.start + min(value, cut.duration), 3) for value in (token.start_sec, token.end_sec))
    return TimedToken(token.text, begin, end, None if token.confidence is None else round(token.confidence, 4))


def ask_transcript(name: str, image: str | None) -> Conversation:
    """Recognition of the cut `name`, with an image where there is one."""
    seen = [] if image is None else [ConversationItem("image", path=image)]
    items = (*seen, ConversationItem("speech", cut=name))
    return Conversation(name, "asr" if image is None else "masr", (Message("user", items),))

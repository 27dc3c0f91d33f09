"""Using an X-LLM: `XLLM.from_pretrained(dir)`, then `transcribe`, `chat` or `answer` (system.md, section 6)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload

import torch
from lhotse import CutSet
from lhotse.cut import Cut

from xllm_speech.base.config import require
from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.base.files import sha256_file
from xllm_speech.datasets.media import build_readers
from xllm_speech.datasets.readers import MediaReader
from xllm_speech.datasets.units import UnitCache
from xllm_speech.infer.answering import Answerer, Readers, failed, note_of
from xllm_speech.infer.answers import Answer, AnsweringReport
from xllm_speech.infer.asr import DecodingReport, speech_items
from xllm_speech.infer.export import export_xllm
from xllm_speech.infer.generation import AnswerOptions, stream_text
from xllm_speech.infer.guard import GuardConfig
from xllm_speech.infer.llm_asr import LlmRecogniser
from xllm_speech.infer.llm_hotwords import Hotwords
from xllm_speech.infer.messages import question_from_messages
from xllm_speech.infer.transcribing import SpeechAnswerer, TranscribingReport
from xllm_speech.models.checkpoints import WEIGHTS, find_model
from xllm_speech.models.xllm_checkpoints import XllmCheckpoint, hash_own, load_xllm
from xllm_speech.prompts import INSTRUCTIONS, Spliced
from xllm_speech.records import Conversation, Hypothesis
from xllm_speech.text.tokens import TokenTable

logger = logging.getLogger(__name__)

Speech: TypeAlias = str | Path | Cut | CutSet | Iterable[str | Path | Cut]


class XLLM:
    """An X-LLM ready to answer.

    Args:
        checkpoint: from `models.xllm_checkpoints.load_xllm`. device: where it runs.

    Attributes:
        kinds: of media that it has interfaces for. readers: by kind, for media by path.
    """

    def __init__(self, checkpoint: XllmCheckpoint, device: torch.device | str = "cpu") -> None:
        self.checkpoint, self.folder = checkpoint, checkpoint.folder
        self.answerer = Answerer(checkpoint, torch.device(device))
        self.kinds = tuple(checkpoint.description.model.interfaces.kinds)
        self.readers: Readers = self.make_readers()

    @classmethod
    def from_pretrained(cls, path: str | Path, device: torch.device | str = "cpu") -> XLLM:
        """Load a model directory or the best model of a training; `CheckpointError` where that fails."""
        return cls(load_xllm(path, str(device)), device)

    def save_pretrained(self, path: str | Path, include_frozen: bool = True) -> None:
        """Write a model directory with whole interfaces to `path`, atomically.

        include_frozen: the LLM and the frozen encoders too, so that it works wherever it is moved, offline; else it names
        them by where they are now.
        """
        export_xllm(self.checkpoint, path, include_frozen)

    @property
    def weights_sha256(self) -> str:
        """Hash of the weights file, for score files."""
        return hash_own(self.folder)

    def describe(self, wording: int | None = None) -> dict[str, Any]:
        """Model, hashes and prompt, for the file beside an output. wording: the one that was asked for, None for all."""
        description = self.checkpoint.description
        asked = {task: list(set_ if wording is None else set_[wording : wording + 1]) for task, set_ in INSTRUCTIONS.items()}
        return {
            "model": str(self.folder), "checkpoint_sha256": self.weights_sha256, "method": "llm", "phase": description.phase,
            "kinds": list(self.kinds), "frozen_sha256": dict(description.frozen_sha256),
            "prompt": asdict(description.model.prompt) | {"wording": wording, "instructions": asked},
        }

    def make_readers(self, cuts: Sequence[str] = (), units: str | Path | None = None) -> dict[str, MediaReader]:
        """Readers of media, for `answer`.

        Args:
            cuts: manifests in which the `cut` ids of speech items are looked up. units: a unit cache to read instead of audio.

        Raises:
            DataError: a manifest is absent. CheckpointError: the cache belongs to another ASR model.
        """
        description, cache = self.checkpoint.description, None
        if units is not None:
            cache = UnitCache.open(units, sha256_file(find_model(description.model.encoders.asr) / WEIGHTS))
        return build_readers(
            self.kinds, self.checkpoint.encoders.image_size, description.model.video_frames, channel=description.channel,
            units=cache, cuts=cuts,
        )

    def answer(
        self,
        conversations: Iterable[Conversation],
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        batch_size: int = 16,
        report: AnsweringReport | None = None,
        wording: int | None = None,
        without: Sequence[str] = (),
        readers: Readers | None = None,
        on_progress: Callable[[AnsweringReport], None] | None = None,
    ) -> Iterator[Answer]:
        """Answers to the last question of each conversation, in order; a reference answer behind it is not read.

        A conversation that cannot be answered gives an answer with `error` set. Results do not depend on batches.

        Args:
            max_new_tokens: None for 256, or half of what the model takes. report: filled in on the way.
            wording: of instructions for messages of media alone, None draws one by the conversation's id.
            without: kinds of media to leave out, while their messages keep the instruction (blind and deaf baselines).
            readers: from `make_readers`, where items name cuts or units.

        Raises:
            ConfigError: an option out of its range. DataError: an id occurs twice among what is answered together.
        """
        options = AnswerOptions(max_new_tokens, num_beams)
        report = AnsweringReport() if report is None else report
        readers = self.readers if readers is None else readers
        return self.answerer.answer(conversations, options, batch_size, report, readers, wording, without, on_progress)

    def transcribe(
        self,
        speech: Speech,
        image: str | Path | None = None,
        use_images: bool = True,
        wording: int | None = None,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        batch_sec: float = 60.0,
        draft: str = "cif",
        guard: bool | GuardConfig = True,
        hotwords: Hotwords | None = None,
    ) -> list[Hypothesis]:
        """Recognise files or cuts; one hypothesis each, in order. A file that cannot be read gives one with `error` set.

        Args:
            speech: one or many paths of audio files, or lhotse cuts. image: a picture for all of them; cuts may bring their
                own (`use_images`: whether those count). wording: which instruction is given, None draws one by the cut's id.
            batch_sec: audio seconds answered together; results do not depend on it.
            draft: what greedy search verifies in few passes of the LLM, cif (the ASR model's hypothesis) or none; the text is
                the same. guard: silence gives no text, and a transcript that cannot come from what was said gives way to the
                ASR model's (`infer.guard`; decisions stand in `extra`). hotwords: phrases that the speech is likely to hold.

        Raises:
            ConfigError: the model has no interface for speech, or none for the image, or an option is out of its range.
        """
        options = AnswerOptions(max_new_tokens, num_beams)
        return list(self.stream(
            speech, options, image, use_images, wording, batch_sec, draft=draft, guard=guard, hotwords=hotwords
        ))

    def stream(
        self,
        speech: Speech,
        options: AnswerOptions | None = None,
        image: str | Path | None = None,
        use_images: bool = True,
        wording: int | None = None,
        batch_sec: float = 60.0,
        report: DecodingReport | None = None,
        channel: str | None = None,
        on_progress: Callable[[DecodingReport], None] | None = None,
        draft: str = "cif",
        guard: bool | GuardConfig = True,
        told: TranscribingReport | None = None,
        use_captions: bool = False,
        hotwords: Hotwords | None = None,
    ) -> Iterator[Hypothesis]:
        """Like `transcribe`, one by one; `report` and `told` are filled in on the way, without `report` its notes go to the
        log. use_captions: captions that cuts bring along stand in the prompt, as text (`prompts.with_caption`)."""
        recogniser = self.make_recogniser(
            options, image, use_images, wording, channel, draft, guard, told, use_captions, hotwords
        )
        return recogniser.stream(speech_items(speech, None if image is None else str(image)), batch_sec, report, on_progress)

    def make_recogniser(
        self,
        options: AnswerOptions | None = None,
        image: str | Path | None = None,
        use_images: bool = True,
        wording: int | None = None,
        channel: str | None = None,
        draft: str = "cif",
        guard: bool | GuardConfig = True,
        told: TranscribingReport | None = None,
        use_captions: bool = False,
        hotwords: Hotwords | None = None,
    ) -> LlmRecogniser:
        """What `stream` recognises with, for its arguments; the picture itself comes with the cuts."""
        options = options or AnswerOptions()
        self.answerer.room(options)
        has = ", ".join(self.kinds)
        require("speech" in self.kinds, f"{self.folder}: has interfaces for {has}, none for speech; it cannot transcribe")
        require(
            image is None or "image" in self.kinds, f"{self.folder}: has interfaces for {has}, none for images; leave it away"
        )
        return LlmRecogniser(
            self.make_speech_answerer(draft, guard, told, hotwords), self.readers, options,
            channel or self.checkpoint.description.channel,
            "image" in self.kinds and (use_images or image is not None), wording, use_captions,
        )

    def make_speech_answerer(
        self, draft: str = "cif", guard: bool | GuardConfig = True, told: TranscribingReport | None = None,
        hotwords: Hotwords | None = None,
    ) -> SpeechAnswerer:
        """What `transcribe` asks for transcripts; its arguments mean the same there."""
        description, asr = self.checkpoint.description, self.checkpoint.encoders.asr
        if asr is None:
            raise ConfigError(f"{self.folder}: no ASR model is loaded; transcripts need model.encoders.asr")
        bounds = GuardConfig() if guard is True else guard or None
        table = TokenTable.load(find_model(description.model.encoders.asr))
        return SpeechAnswerer(self.answerer, asr, table, draft, bounds, told, hotwords)

    @overload
    def chat(
        self, messages: Sequence[Mapping[str, Any]], stream: Literal[False] = False, max_new_tokens: int | None = None,
        num_beams: int = 1, do_sample: bool = False, temperature: float = 1.0, top_p: float = 1.0,
        report: AnsweringReport | None = None,
    ) -> str: ...

    @overload
    def chat(
        self, messages: Sequence[Mapping[str, Any]], stream: Literal[True], max_new_tokens: int | None = None,
        num_beams: int = 1, do_sample: bool = False, temperature: float = 1.0, top_p: float = 1.0,
        report: AnsweringReport | None = None,
    ) -> Generator[str, None, None]: ...

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        stream: bool = False,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        report: AnsweringReport | None = None,
    ) -> str | Generator[str, None, None]:
        """Answer the last message of a conversation.

        Args:
            messages: {"role", "content"} as in `manifests.conversations`: content is a text or a list of items such as
                {"type": "image", "path": ...} and {"type": "text", "text": ...}; the last is the user's. A message of media
                alone gets an instruction of their kind.
            stream: give an iterator over pieces of the text as it comes; closing it ends the generation. With beams there is
                one piece. report: told what was left out of the history; without one that goes to the log.

        Raises:
            DataError: a message is not in this form, a medium cannot be read, or it does not fit the model.
            ConfigError: an option out of its range.
        """
        options = AnswerOptions(max_new_tokens, num_beams, do_sample, temperature, top_p)
        room = self.answerer.room(options)
        conversation = question_from_messages(messages)
        spliced, rejected = self.answerer.splice([conversation], room, self.readers)
        if spliced is None or spliced.llm_input is None:
            raise DataError(str(failed(*rejected[0]).error))
        pieces = self._say(spliced, options, room, report)
        return pieces if stream else "".join(pieces)

    def _say(
        self, spliced: Spliced, options: AnswerOptions, room: int, report: AnsweringReport | None
    ) -> Generator[str, None, None]:
        assert spliced.llm_input is not None
        plan, told = spliced.plans[0], report or AnsweringReport()
        begin, tokens = time.perf_counter(), 0
        try:
            tokens = yield from stream_text(self.checkpoint.model.llm, spliced.llm_input, options, room)
        finally:
            told.answering_sec += time.perf_counter() - begin
            told.add(Answer(plan.id, "", note=note_of(plan.report), tokens=tokens, cut=tokens >= room))
            for _, note in told.notes if report is None else ():
                logger.warning("%s", note)
            if report is None and told.cut:
                logger.warning("the answer was cut after %d tokens; allow more", tokens)

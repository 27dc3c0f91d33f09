"""Draft and verify beside plain greedy search, on the same prompts in turn, so that a busy machine slows both alike.

Three searches answer each prompt: `generate` of transformers, whose ids are the reference; our own search without drafts; and
with drafts. Times are those of our own two, the CIF model's search for the draft counted to the second; what comes before,
reading and encoding and the prompt, is the same for both and told apart. So is what else is asked of the CIF model whether
there are drafts or not, for times and for the guard; that is not timed.

A draft saves passes, not arithmetic: the more utterances a pass answers, the better it fills the machine, and the less a
pass saved is worth.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from lhotse.cut import Cut

from xllm_speech.base.errors import DataError
from xllm_speech.datasets.media import load_media
from xllm_speech.infer.answers import prepare
from xllm_speech.infer.draft import Drafter
from xllm_speech.infer.generation import AnswerOptions
from xllm_speech.infer.llm_asr import CutReader, ask_transcript
from xllm_speech.infer.transcribing import TranscribingReport
from xllm_speech.infer.xllm import XLLM
from xllm_speech.manifests.cuts import utterance_of
from xllm_speech.records import ConversationBatch

Result = TypeVar("Result")
WARM_UP = 2  # batches that are answered once before any is timed


@torch.no_grad()
def bench_decode(
    model: XLLM, cuts: Iterable[Cut], batch_size: int = 1, max_new_tokens: int | None = None, use_images: bool = True,
) -> dict[str, Any]:
    """Answer the cuts one batch after another.

    Keys: utterances, identical (those whose drafted ids equal the reference, id for id), differing (ids of others), failed
    ((id, reason) of cuts that no prompt could be made of), llm_passes_per_utterance, plain_passes_per_utterance,
    acceptance_rate (of draft tokens), near_ties, plain_sec, drafted_sec (draft_sec of them for the CIF search), wall_ratio
    (plain_sec / drafted_sec), generate_sec (of the reference), prompt_sec (before the search), end_to_end_ratio (prompt_sec
    counted to both).

    Raises:
        ConfigError: the model has no interface for speech, or an option is out of its range. DataError: nothing to answer.
    """
    bench = _Bench(model, max_new_tokens, use_images and "image" in model.kinds)
    source = iter(cuts)
    while batch := list(itertools.islice(source, batch_size)):
        bench.answer(batch)
    return bench.describe(batch_size)


class _Bench:
    def __init__(self, model: XLLM, max_new_tokens: int | None, use_images: bool) -> None:
        self.model, self.use_images = model, use_images
        self.answerer = model.make_speech_answerer()
        self.room = self.answerer.room(AnswerOptions(max_new_tokens))
        self.plain, self.drafted = TranscribingReport(), TranscribingReport()
        self.seconds = dict.fromkeys(("prompt", "draft", "verify", "plain", "generate"), 0.0)
        self.differing: list[str] = []
        self.failed: list[tuple[str, str]] = []
        self.batches = 0

    def answer(self, cuts: Sequence[Cut]) -> None:
        """One batch by all three searches, the order of the timed two changing from batch to batch."""
        asked = {cut.id: cut for cut in cuts}
        if len(asked) < len(cuts):
            raise DataError("bench decode: an id occurs twice among the cuts; give every cut its own")
        begin = time.perf_counter()
        images = {name: utterance_of(cut).image if self.use_images else None for name, cut in asked.items()}
        talks = [prepare(ask_transcript(name, image)) for name, image in images.items()]
        channel = self.model.checkpoint.description.channel
        batch = load_media(talks, {**self.model.readers, "speech": CutReader(channel, asked)}).to(self.answerer.device)
        self.failed += batch.skipped
        if batch.conversations:
            self._search(batch, begin)

    def _search(self, batch: ConversationBatch, begin: float) -> None:
        answerer, fbank = self.answerer, batch.media["speech"]
        encoded, cif = answerer.listener.asr.find_units(fbank)
        media = {kind: value for kind, value in batch.media.items() if kind != "speech"}
        features = answerer.encoders.encode(ConversationBatch(batch.conversations, {"speech": cif}, media))
        spliced = answerer.model.splice(features, train=False, answer_room=self.room)
        self.failed += spliced.rejected
        if spliced.llm_input is None:
            return
        self._wait()
        prompt_sec = time.perf_counter() - begin
        names, prompt, verifier = [plan.id for plan in spliced.plans], spliced.llm_input, answerer.verifier

        def draft() -> Drafter:
            listener = answerer.listener
            results, _ = listener.asr.decode(encoded, cif, None, None, listener.search)
            heard = {name: listener.table.decode(result.tokens) for name, result in zip(batch.ids, results, strict=True)}
            return Drafter(answerer.model.llm, [heard[name] for name in names])

        if self.batches < WARM_UP:
            verifier.answer(prompt, self.room, draft())
        self.batches += 1
        self.seconds["prompt"] += prompt_sec
        found: dict[str, Any] = {}

        def plainly() -> None:
            found["plain"] = self._timed("plain", lambda: verifier.answer(prompt, self.room))

        def with_draft() -> None:
            drafter = self._timed("draft", draft)
            found["drafted"] = self._timed("verify", lambda: verifier.answer(prompt, self.room, drafter))

        for call in (plainly, with_draft) if self.batches % 2 else (with_draft, plainly):
            call()
        reference = self._timed("generate", lambda: answerer.model.llm.generate(prompt, self.room))
        for name, ids, plain, drafted in zip(names, reference, found["plain"], found["drafted"], strict=True):
            self.plain.add(plain, self.room)
            self.drafted.add(drafted, self.room)
            if not ids == plain.ids == drafted.ids:
                self.differing.append(name)

    def _wait(self) -> None:
        if self.answerer.device.type == "cuda":
            torch.cuda.synchronize()

    def _timed(self, name: str, call: Callable[[], Result]) -> Result:
        begin = time.perf_counter()
        result = call()
        self._wait()
        self.seconds[name] += time.perf_counter() - begin
        return result

    def describe(self, batch_size: int) -> dict[str, Any]:
        if not self.drafted.asked:
            reason = f"; {self.failed[0][0]}: {self.failed[0][1]}" if self.failed else ""
            raise DataError(f"bench decode: no utterance could be put to the model{reason}")
        asked, seconds = self.drafted.asked, self.seconds
        drafted_sec = seconds["draft"] + seconds["verify"]
        return {
            "bench": "decode", "model": str(self.model.folder), "utterances": asked,
            "identical": asked - len(self.differing), "differing": self.differing, "failed": self.failed,
            "llm_passes_per_utterance": self.drafted.passes / asked, "plain_passes_per_utterance": self.plain.passes / asked,
            "acceptance_rate": self.drafted.describe()["acceptance_rate"], "near_ties": self.drafted.near_ties,
            "wall_ratio": seconds["plain"] / drafted_sec, "plain_sec": seconds["plain"], "drafted_sec": drafted_sec,
            "draft_sec": seconds["draft"], "generate_sec": seconds["generate"], "prompt_sec": seconds["prompt"],
            "end_to_end_ratio": (seconds["prompt"] + seconds["plain"]) / (seconds["prompt"] + drafted_sec),
            "batch": batch_size, "device": str(self.answerer.device), "threads": torch.get_num_threads(),
        }

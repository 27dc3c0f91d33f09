"""How answers are generated, and one answer as pieces of text while it comes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from xllm_speech.base.config import require
from xllm_speech.llm.loaded import LoadedLlm
from xllm_speech.records import LlmInput

# What a decoder puts where the bytes of a character are not all there yet.
INCOMPLETE = "\ufffd"


@dataclass(frozen=True)
class AnswerOptions:
    """How the LLM answers.

    max_new_tokens: most tokens of an answer; None for 256, or half of what the model takes if that is less. num_beams: 1
    for greedy search or sampling. do_sample: draw tokens by `temperature` and `top_p`.

    Raises:
        ConfigError: a number out of its range, or one that would have no effect.
    """

    max_new_tokens: int | None = None
    num_beams: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        most = self.max_new_tokens
        require(most is None or most >= 1, f"max_new_tokens {most} must be at least 1")
        require(self.num_beams >= 1, f"num_beams {self.num_beams} must be at least 1")
        require(self.temperature > 0, f"temperature {self.temperature} must be positive; or do not sample")
        require(0 < self.top_p <= 1, f"top_p {self.top_p} must lie in (0, 1]")
        drawn = self.temperature != 1.0 or self.top_p != 1.0
        require(self.do_sample or not drawn, "temperature and top_p have no effect without sampling; set do_sample")

    def room(self, max_tokens: int) -> int:
        """Tokens to leave for an answer within `max_tokens` positions; `ConfigError` when none remain for a question."""
        if self.max_new_tokens is None:
            return max(1, min(256, max_tokens // 2))
        require(
            self.max_new_tokens < max_tokens,
            f"max_new_tokens {self.max_new_tokens} leaves no room for a question: the model takes {max_tokens} tokens in all",
        )
        return self.max_new_tokens

    def arguments(self, max_new_tokens: int) -> dict[str, Any]:
        """For `LoadedLlm.generate`."""
        drawn = {"temperature": self.temperature, "top_p": self.top_p} if self.do_sample else {}
        return {"max_new_tokens": max_new_tokens, "num_beams": self.num_beams, "do_sample": self.do_sample, **drawn}


class TextPieces:
    """Ids of one answer as they come -> pieces of its text, whose sum is the text; a character comes when it is whole.

    Args:
        decode: ids -> text.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self.decode = decode
        self.ids: list[int] = []
        self.shown = ""

    def add(self, index: int) -> str:
        """The text that is certain now and was not before, often empty."""
        self.ids.append(index)
        return self._advance(self.decode(self.ids).rstrip(INCOMPLETE))

    def end(self) -> str:
        """What is left, whole or not."""
        return self._advance(self.decode(self.ids))

    def _advance(self, text: str) -> str:
        # A tokenizer may write an earlier token otherwise once it knows the next; what was shown stays.
        same = next((place for place, pair in enumerate(zip(self.shown, text, strict=False)) if pair[0] != pair[1]), None)
        new = text[len(self.shown) if same is None else same :]
        self.shown = text if new else self.shown
        return new


class _Streamer(BaseStreamer):
    """Puts pieces into a queue."""

    def __init__(self, pieces: TextPieces, silent: set[int], out: queue.SimpleQueue[Any]) -> None:
        self.pieces, self.silent, self.out = pieces, silent, out

    def put(self, value: torch.Tensor) -> None:
        if value.dim() > 1:  # the prompt
            return
        for index in value.tolist():
            if index not in self.silent and (piece := self.pieces.add(index)):
                self.out.put(piece)

    def end(self) -> None:
        if piece := self.pieces.end():
            self.out.put(piece)


class _Stop(StoppingCriteria):
    """Ends a generation that nobody wants any more."""

    def __init__(self, unwanted: threading.Event) -> None:
        self.unwanted = unwanted

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.unwanted.is_set(), dtype=torch.bool, device=input_ids.device)


def stream_text(
    llm: LoadedLlm, prompt: LlmInput, options: AnswerOptions, max_new_tokens: int
) -> Generator[str, None, int]:
    """The answer to a single prompt in pieces; with beams in one, since nothing is certain before the end.

    Returns the number of tokens.

    Closing the iterator, or an exception in the loop around it such as Ctrl-C, ends the generation within one token.
    """
    arguments = options.arguments(max_new_tokens)
    if options.num_beams > 1:
        ids = llm.generate(prompt, **arguments)[0]
        yield llm.decode(ids)
        return len(ids)
    out: queue.SimpleQueue[Any] = queue.SimpleQueue()
    unwanted = threading.Event()
    streamer = _Streamer(TextPieces(llm.decode), {*llm.framing.end_ids, llm.pad_id}, out)
    threads = torch.get_num_threads()

    def work() -> None:
        torch.set_num_threads(threads)  # a thread's own setting
        try:
            llm.generate(prompt, **arguments, streamer=streamer, stopping_criteria=StoppingCriteriaList([_Stop(unwanted)]))
        except BaseException as error:  # for the caller, whatever it is
            out.put(error)
        else:
            out.put(None)

    worker = threading.Thread(target=work, name="answer", daemon=True)
    worker.start()
    try:
        while (piece := out.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        unwanted.set()
        worker.join()
    return len(streamer.pieces.ids)

"""What a language model wants around what is said: the ids before, between and after turns, and those that end an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xllm_speech.base.errors import CheckpointError


@dataclass(frozen=True)
class ChatGLMFraming:
    """Text `[gMASK]` `<sop>` answer `<eop>` (chatglm.md 10); earlier turns are part of the text (system.md 4).

    Attributes:
        answer_end_id: closes an answer in training.
    """

    gmask_id: int
    sop_id: int
    answer_end_id: int

    @property
    def end_ids(self) -> tuple[int, ...]:
        """What ends generation: `<eop>` only."""
        return (self.answer_end_id,)

    def frame(self, roles: Sequence[str]) -> list[tuple[int, ...]]:
        """Ids before the first turn, between turns, and after the last: len(roles) + 1 pieces; here for one turn of the user.

        Raises:
            ValueError: other turns.
        """
        if tuple(roles) != ("user",):
            raise ValueError(f"ChatGLM: one turn of the user with its history inside, not {tuple(roles)}")
        return [(), (self.gmask_id, self.sop_id)]


class TemplateFraming:
    """The model's own chat template, or nothing but its begin-of-sentence token where it has none.

    Args:
        tokenizer: of `transformers`. end_ids: that end generation by the model's configuration. where: named in errors.

    Attributes:
        answer_end_id: closes an answer in training. end_ids: any of them ends generation.

    Raises:
        CheckpointError: nothing ends an answer, or the template cannot be used.
    """

    def __init__(self, tokenizer: Any, end_ids: Sequence[int], where: str) -> None:
        self.tokenizer, self.where = tokenizer, where
        self._frames: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
        own = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        ends = [*own, *(index for index in end_ids if index not in own)]
        if tokenizer.chat_template:
            closing = self._pieces(("user", "assistant"))[-1]
            if closing and (closing[0] in tokenizer.all_special_ids or closing[0] in ends):
                ends = [closing[0], *(index for index in ends if index != closing[0])]
        if not ends:
            raise CheckpointError(f"{where}: neither tokenizer nor configuration names an id that ends an answer")
        self.answer_end_id, self.end_ids = ends[0], tuple(ends)

    def frame(self, roles: Sequence[str]) -> list[tuple[int, ...]]:
        """As `ChatGLMFraming.frame`, for any turns; roles are system, user and assistant, the last being user.

        Raises:
            CheckpointError: the template refuses these turns or changes what is said in them.
        """
        key = tuple(roles)
        if key not in self._frames:
            self._frames[key] = self._pieces(key)
        return list(self._frames[key])

    def _pieces(self, roles: tuple[str, ...]) -> list[tuple[int, ...]]:
        if not self.tokenizer.chat_template:
            bos = self.tokenizer.bos_token_id
            return [() if bos is None else (int(bos),), *[()] * len(roles)]
        said = [f"turn{number}of{len(roles)}" for number in range(len(roles))]
        messages = [{"role": role, "content": content} for role, content in zip(roles, said, strict=True)]
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=roles[-1] != "assistant",
                enable_thinking=False,  # templates of reasoning models then open no chain of thought; others ignore it
            )
        except Exception as error:  # whatever the template raises
            what = (str(error).strip() or repr(error)).splitlines()[0]
            raise CheckpointError(f"{self.where}: its chat template refuses the turns {', '.join(roles)} ({what})") from error
        pieces = []
        for content in said:
            before, found, text = text.partition(content)
            if not found:
                raise CheckpointError(f"{self.where}: its chat template drops or reorders one of the turns {', '.join(roles)}")
            pieces.append(before)
        ids = [self.tokenizer(piece, add_special_tokens=False)["input_ids"] if piece else [] for piece in [*pieces, text]]
        return [tuple(piece) for piece in ids]


Framing = ChatGLMFraming | TemplateFraming

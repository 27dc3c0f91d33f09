"""A language model of the tests: one id per character, frames in ChatGLM's and in a chat template's form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from xllm_speech.records import Conversation, ConversationItem, Message, SlotEmbeds

PAD, FILLER, GMASK, SOP, EOP, OPEN, CLOSE, NEWLINE = range(8)
ROLE = {"system": 8, "user": 9, "assistant": 10}
BASE, VOCABULARY = 20, 320
WIDTH = 6


@dataclass
class GlmFrame:
    answer_end_id: int = EOP
    end_ids: Sequence[int] = (EOP,)

    def frame(self, roles: Sequence[str]) -> list[tuple[int, ...]]:
        if tuple(roles) != ("user",):
            raise ValueError("one turn of the user")
        return [(), (GMASK, SOP)]


@dataclass
class ChatFrame:
    """OPEN role text CLOSE NEWLINE ..., with an opened assistant turn at the end."""

    answer_end_id: int = CLOSE
    end_ids: Sequence[int] = (CLOSE, EOP)

    def frame(self, roles: Sequence[str]) -> list[tuple[int, ...]]:
        heads = [(OPEN, ROLE[role]) for role in [*roles, "assistant"]]
        return [heads[0], *((CLOSE, NEWLINE, *head) for head in heads[1:])]


@dataclass
class BareFrame:
    """An LLM without a chat template."""

    answer_end_id: int = EOP
    end_ids: Sequence[int] = (EOP,)

    def frame(self, roles: Sequence[str]) -> list[tuple[int, ...]]:
        return [(OPEN,), *[()] * len(roles)]


@dataclass
class CharTokenizer:
    framing: GlmFrame | ChatFrame | BareFrame = field(default_factory=GlmFrame)
    pad_id: int = PAD
    filler_id: int = FILLER

    def encode(self, text: str) -> list[int]:
        return [BASE + ord(character) % (VOCABULARY - BASE) for character in text]


GLM, CHAT, BARE = CharTokenizer(), CharTokenizer(ChatFrame()), CharTokenizer(BareFrame())


def item(spec: str) -> ConversationItem:
    """`image:`, `video:` and `speech:` are media, anything else is text."""
    kind, colon, _ = spec.partition(":")
    return ConversationItem(kind, path=spec) if colon else ConversationItem("text", text=spec)


def talk(*turns: str | list[str], system: str | None = None, task: str = "vl", id: str = "talk-1") -> Conversation:
    """A conversation: turns alternate, a user turn first; a turn is a text or a list of `item` specifications."""
    messages = [] if system is None else [Message("system", (item(system),))]
    for number, turn in enumerate(turns):
        specs = [turn] if isinstance(turn, str) else turn
        messages.append(Message(("user", "assistant")[number % 2], tuple(item(spec) for spec in specs)))
    return Conversation(id, task, tuple(messages))


def vectors(kind: str, lens: Sequence[int], seed: int = 0, width: int = WIDTH) -> SlotEmbeds:
    """Random vectors with nan as padding: what is padding must reach nothing."""
    lens_N = torch.tensor(lens, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    x_NQH = torch.randn(len(lens), max(lens) + 1, width, generator=generator)
    x_NQH[torch.arange(x_NQH.shape[1]) >= lens_N[:, None]] = float("nan")
    return SlotEmbeds(x_NQH, lens_N, kind)


def embedding(width: int = WIDTH) -> torch.nn.Embedding:
    """A frozen table of input embeddings."""
    torch.manual_seed(7)
    return torch.nn.Embedding(VOCABULARY, width).requires_grad_(False)

"""What a search adds to the model's own scores: an n-gram language model (shallow fusion) and hotwords."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from xllm_speech.decoders.hotwords import START, HotwordGraph, HotwordState
from xllm_speech.decoders.ngram import NgramModel


class FusionState(NamedTuple):
    """Where one hypothesis stands; `ended` once it has written the end of the sentence."""

    lm: Any
    hotwords: HotwordState
    ended: bool


@dataclass(frozen=True)
class Fusion:
    """Scores to be added, of one text from its first token to its end: lm_weight x log P(text) + hotword bonuses.

    lm: over the model's tokens, or None. hotwords: or None. eos_id: the token that ends a text; what follows it counts nothing.
    source: where both came from, for the record of a run.
    """

    eos_id: int
    lm: NgramModel | None = None
    lm_weight: float = 0.3
    hotwords: HotwordGraph | None = None
    source: str = ""

    def start(self) -> FusionState:
        """Before the first token."""
        return FusionState(None if self.lm is None else self.lm.start(), START, False)

    def step(self, state: FusionState, token: int) -> tuple[float, FusionState]:
        """What a token adds, and the next state."""
        if state.ended:
            return 0.0, state
        if token == self.eos_id:
            return self.finish(state), state._replace(ended=True)
        score, lm, hotwords = 0.0, state.lm, state.hotwords
        if self.lm is not None:
            log_prob, lm = self.lm.step(lm, token)
            score += self.lm_weight * log_prob
        if self.hotwords is not None:
            earned, hotwords = self.hotwords.step(hotwords, token)
            score += earned
        return score, FusionState(lm, hotwords, False)

    def finish(self, state: FusionState) -> float:
        """What the end of the text adds."""
        if state.ended:
            return 0.0
        score = 0.0 if self.lm is None else self.lm_weight * self.lm.finish(state.lm)
        return score + (0.0 if self.hotwords is None else self.hotwords.finish(state.hotwords))

    def promise(self, states: Sequence[FusionState], vocab: int, device: torch.device) -> torch.Tensor | None:
        """Hotword scores of every token [N, vocab], by which candidates are chosen; None without hotwords."""
        if self.hotwords is None:
            return None
        return self.hotwords.scores([START if state.ended else state.hotwords for state in states], vocab, device)

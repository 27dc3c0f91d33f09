"""Hotwords for an LLM's transcripts: a bonus on the LLM's own tokens for the phrases, with the rules of the CIF search.

The graph is `decoders.hotwords.HotwordGraph`: each token inside a phrase earns the bonus, and what a phrase that is left
unfinished had earned is taken back by the token that leaves it, the end of the text included. A phrase is cut into tokens
in several ways, for what stands before it may change its first ones.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import LogitsProcessor

from xllm_speech.base.config import require
from xllm_speech.base.errors import DataError
from xllm_speech.decoders.hotwords import START, HotwordGraph
from xllm_speech.infer.draft import INCOMPLETE
from xllm_speech.llm.loaded import LoadedLlm
from xllm_speech.models.asr import SearchConfig
from xllm_speech.models.fusion import HOTWORD_BONUS, build_fusion
from xllm_speech.text.hotwords import read_hotwords
from xllm_speech.text.tokens import TokenTable

# What may stand before a phrase: nothing, a sentence's end, a common character, a space.
BEFORE = ("", "，", "的", "a ")

logger = logging.getLogger(__name__)


class HotwordBias(LogitsProcessor):
    """Adds what the next token earns or costs. Args: graph: of the LLM's tokens. source: for the record of a run."""

    def __init__(self, graph: HotwordGraph, source: str = "") -> None:
        self.graph, self.source = graph, source

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Ids written so far [N, n], scores of the next [N, V] -> scores [N, V]."""
        states = []
        for ids in input_ids.tolist():
            state = START
            for index in ids:
                _, state = self.graph.step(state, index)
            states.append(state)
        return scores + self.graph.scores(states, scores.shape[1], scores.device)


class Hotwords:
    """A list of phrases, for the LLM and for the CIF model that drafts for it.

    Args:
        phrases: a file with one per line (as `models.fusion.build_fusion` reads it), or the phrases. bonus: natural log, per
            token.

    Raises:
        DataError: the file is absent or not UTF-8. ConfigError: a negative bonus.
    """

    def __init__(self, phrases: str | Path | Iterable[str], bonus: float = HOTWORD_BONUS) -> None:
        require(bonus >= 0, f"hotword_bonus {bonus} must not be negative")
        self.phrases: str | Path | list[str] = phrases if isinstance(phrases, str | Path) else list(phrases)
        self.bonus = bonus
        if isinstance(self.phrases, list):
            self.rows = [("hotwords", phrase) for phrase in self.phrases]
        else:
            self.rows = read_hotwords(self.phrases)

    def bias(self, llm: LoadedLlm) -> HotwordBias:
        """For searches with the LLM. A phrase that it cannot write is left out, with a warning that names it.

        Raises:
            DataError: there is no phrase that it can write.
        """
        spellings: list[list[int]] = []
        known = 0
        for where, phrase in self.rows:
            found = spell(llm, phrase)
            known += bool(found)
            spellings += found
            if not found:
                logger.warning("%s: hotword `%s` is left out: the language model has no tokens for it", where, phrase)
        if not known:
            place = "hotwords" if isinstance(self.phrases, list) else self.phrases
            raise DataError(f"{place}: none of {len(self.rows)} phrases can be written by the language model")
        digest = hashlib.sha256(repr(spellings).encode()).hexdigest()
        return HotwordBias(HotwordGraph(spellings, self.bonus), f"{known} hotwords ({digest[:12]}) x {self.bonus:g}")

    def search(self, table: TokenTable) -> SearchConfig | None:
        """For the CIF model's drafts; None where its table can write none of the phrases."""
        try:
            return SearchConfig("greedy", fusion=build_fusion(table, hotwords=self.phrases, hotword_bonus=self.bonus))
        except DataError as error:
            logger.warning("drafts go without hotwords: %s", error)
            return None


def spell(llm: LoadedLlm, phrase: str) -> list[list[int]]:
    """The token sequences by which an LLM may write a phrase, without the white space before it; none if it cannot."""
    wanted = "".join(phrase.split())
    found: list[list[int]] = []
    for before in BEFORE:
        first, whole = llm.encode(before) if before else [], llm.encode(before + phrase)
        if whole[: len(first)] != first:  # the border lies within a token
            continue
        ids = whole[len(first) :]
        while ids and not llm.decode(ids[:1]).strip():
            ids = ids[1:]
        text = "".join(llm.decode(ids).split())
        if ids and ids not in found and text == wanted and INCOMPLETE not in text:
            found.append(ids)
    return found

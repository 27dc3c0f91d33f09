"""CTC prefix beam search with an n-gram model, hotwords and a length bonus (Hannun et al. 2014, First-pass LVCSR, Alg. 1).

A hypothesis is a text, not a path: the probabilities of all paths that write it are summed, in two parts, of those that
end in blank and those that end in its last token. Its score is

    log P_ctc(text) + lm_weight x log P_lm(text) + hotword bonuses + length_bonus x tokens
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from xllm_speech.decoders.fusion import Fusion, FusionState

NEVER = float("-inf")


@dataclass(frozen=True)
class PrefixResult:
    """tokens; for each the step in which the best path writes it and its log probability there; the score of the search."""

    tokens: list[int]
    steps: list[int]
    log_probs: list[float]
    score: float


@dataclass
class _Prefix:
    """One text so far: summed log probabilities, the best single path of each kind, and what fusion has added."""

    fusion: FusionState | None
    fused: float
    blank: float = NEVER
    token: float = NEVER
    best_blank: tuple[float, tuple[int, ...]] = field(default=(NEVER, ()))
    best_token: tuple[float, tuple[int, ...]] = field(default=(NEVER, ()))

    @property
    def total(self) -> float:
        return _add(self.blank, self.token)

    @property
    def best(self) -> tuple[float, tuple[int, ...]]:
        return max(self.best_blank, self.best_token)


def search_prefix(
    log_probs_SV: torch.Tensor,
    beam: int,
    blank_id: int = 0,
    banned: tuple[int, ...] = (),
    fusion: Fusion | None = None,
    length_bonus: float = 0.0,
    candidates: int | None = None,
) -> PrefixResult:
    """The best text of one utterance.

    Args:
        log_probs_SV: log probabilities of its valid steps. beam: texts kept after each step. banned: tokens never written.
        candidates: tokens tried in each step, 2 x beam and at least 10 by default.
    """
    vocab = log_probs_SV.shape[1]
    log_probs_SV = log_probs_SV.detach().float().cpu()
    spoken_SV = log_probs_SV.clone()
    spoken_SV[:, [blank_id, *banned]] = NEVER
    best_SC, token_SC = spoken_SV.topk(min(candidates or max(10, 2 * beam), vocab), dim=-1)
    prefixes: dict[tuple[int, ...], _Prefix] = {
        (): _Prefix(None if fusion is None else fusion.start(), 0.0, blank=0.0, best_blank=(0.0, ()))
    }
    for step, (blank, values, tokens) in enumerate(
        zip(log_probs_SV[:, blank_id].tolist(), best_SC.tolist(), token_SC.tolist(), strict=True)
    ):
        following: dict[tuple[int, ...], _Prefix] = {}
        offered = [(token, value) for token, value in zip(tokens, values, strict=True) if value > NEVER]
        last_values = log_probs_SV[step]
        for text, prefix in prefixes.items():
            same = following.setdefault(text, _Prefix(prefix.fusion, prefix.fused))
            score, path = prefix.best
            same.blank = _add(same.blank, prefix.total + blank)
            same.best_blank = max(same.best_blank, (score + blank, path))
            last = text[-1] if text else None
            if last is not None:  # the last token goes on
                value = float(last_values[last])
                same.token = _add(same.token, prefix.token + value)
                same.best_token = max(same.best_token, (prefix.best_token[0] + value, prefix.best_token[1]))
            for token, value in offered:
                # Written once more only behind a blank.
                before, (score, path) = (
                    (prefix.blank, prefix.best_blank) if token == last else (prefix.total, prefix.best)
                )
                if before == NEVER:
                    continue
                longer = (*text, token)
                target = following.get(longer)
                if target is None:
                    target = following[longer] = _extend(prefixes.get(longer), prefix, token, fusion)
                target.token = _add(target.token, before + value)
                target.best_token = max(target.best_token, (score + value, (*path, step)))
        ranked = sorted(following.items(), key=lambda item: _score(item[0], item[1], length_bonus), reverse=True)
        prefixes = dict(ranked[:beam])
    text, prefix = max(prefixes.items(), key=lambda item: _score(item[0], item[1], length_bonus) + _end(item[1], fusion))
    steps = list(prefix.best[1])
    return PrefixResult(
        list(text), steps, [float(log_probs_SV[step, token]) for step, token in zip(steps, text, strict=True)],
        _score(text, prefix, length_bonus) + _end(prefix, fusion),
    )


def read_path(log_probs_SV: torch.Tensor, path: Sequence[int], score: float, blank_id: int = 0) -> PrefixResult:
    """The text that a single path writes, one token or blank per step."""
    steps = [step for step, token in enumerate(path) if token != blank_id and (step == 0 or token != path[step - 1])]
    tokens = [path[step] for step in steps]
    return PrefixResult(
        tokens, steps, [float(log_probs_SV[step, token]) for step, token in zip(steps, tokens, strict=True)], score
    )


def _extend(known: _Prefix | None, prefix: _Prefix, token: int, fusion: Fusion | None) -> _Prefix:
    """A longer text without paths yet; what fusion says of it depends on the text alone."""
    if known is not None:
        return _Prefix(known.fusion, known.fused)
    if fusion is None or prefix.fusion is None:
        return _Prefix(None, 0.0)
    score, state = fusion.step(prefix.fusion, token)
    return _Prefix(state, prefix.fused + score)


def _score(text: tuple[int, ...], prefix: _Prefix, length_bonus: float) -> float:
    return prefix.total + prefix.fused + length_bonus * len(text)


def _end(prefix: _Prefix, fusion: Fusion | None) -> float:
    return 0.0 if fusion is None or prefix.fusion is None else fusion.finish(prefix.fusion)


def _add(first: float, second: float) -> float:
    """log(exp(first) + exp(second))."""
    if first < second:
        first, second = second, first
    return first if second == NEVER else first + math.log1p(math.exp(second - first))

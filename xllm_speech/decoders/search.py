"""Search over the CIF decoder: greedy, beam with CTC joint scores and fusion, a fast path that reads units without context.

Every utterance yields exactly as many tokens as it has units, so hypotheses of one utterance always have equal length, no
length bonus is needed, and a batch decodes in step with rows dropping out when their units are used up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional

from xllm_speech.decoders.cif_decoder import CifDecoder
from xllm_speech.decoders.ctc import CtcPrefixScorer, CtcPrefixState
from xllm_speech.decoders.fusion import Fusion, FusionState
from xllm_speech.nn.transformer import ProjectedMemory
from xllm_speech.records import CifOut, Memory


@dataclass(frozen=True)
class SearchResult:
    """One utterance: token ids, the log probability of each, and the total score of the search."""

    tokens: list[int]
    log_probs: list[float]
    score: float


@dataclass(frozen=True)
class CtcInput:
    """What joint scoring needs: CTC log probabilities [B, S, V], steps per utterance, and the weight of CTC in 0..1."""

    log_probs_BSV: torch.Tensor
    lens_B: torch.Tensor
    weight: float


def search_greedy(
    decoder: CifDecoder,
    cif: CifOut,
    visual: Memory | None = None,
    linguistic: Memory | None = None,
    banned: tuple[int, ...] = (),
) -> list[SearchResult]:
    """The best token of each unit in turn. banned: tokens never to be written, such as `<blank>`."""
    batch, units = cif.units_BUD.shape[:2]
    device = cif.units_BUD.device
    rows_B, running = _longest_first(cif)
    memories = _narrow(decoder.project_memories(batch, visual, linguistic), rows_B)
    state = decoder.start(batch)
    previous_B = torch.full((batch,), decoder.sos_id, device=device)
    tokens_BU = torch.zeros(batch, units, dtype=torch.long, device=device)
    scores_BU = torch.zeros(batch, units, device=device)
    for u, count in enumerate(running):
        if count < len(previous_B):
            left = slice(count)
            state, previous_B, memories = state.select(left), previous_B[left], _narrow(memories, left)
        here_B = rows_B[:count]
        logits_BV, state = decoder.step(previous_B, cif.units_BUD[here_B, u], state, memories)
        scores_BU[here_B, u], previous_B = _allow(functional.log_softmax(logits_BV.float(), -1), banned).max(-1)
        tokens_BU[here_B, u] = previous_B
    return _collect(tokens_BU, scores_BU, cif.lens_B)


def search_fast(
    decoder: CifDecoder,
    cif: CifOut,
    unit_logits_BUV: torch.Tensor,
    visual: Memory | None = None,
    linguistic: Memory | None = None,
    passes: int = 1,
    banned: tuple[int, ...] = (),
) -> list[SearchResult]:
    """Non-autoregressive: a draft from the units alone, then `passes` parallel passes of the decoder over the draft."""
    log_probs_BUV = _allow(functional.log_softmax(unit_logits_BUV.float(), -1), banned)
    scores_BU, tokens_BU = log_probs_BUV.max(-1)
    for _ in range(passes if tokens_BU.shape[1] else 0):
        logits_BUV = decoder(tokens_BU, cif.units_BUD, visual, linguistic)
        scores_BU, tokens_BU = _allow(functional.log_softmax(logits_BUV.float(), -1), banned).max(-1)
    return _collect(tokens_BU, scores_BU, cif.lens_B)


def search_beam(
    decoder: CifDecoder,
    cif: CifOut,
    beam: int,
    ctc: CtcInput | None = None,
    visual: Memory | None = None,
    linguistic: Memory | None = None,
    banned: tuple[int, ...] = (),
    candidates: int | None = None,
    fusion: Fusion | None = None,
) -> list[SearchResult]:
    """Beam search; with `ctc`, scores are (1 - weight) x decoder + weight x CTC prefix score; `fusion` adds its own to that.

    Args:
        candidates: tokens of the decoder (hotwords counted in) per hypothesis that are rescored by CTC and the language
            model; 2 x beam by default.
    """
    batch, units = cif.units_BUD.shape[:2]
    vocab = decoder.vocabulary.out_features
    device = cif.units_BUD.device
    width = min(beam, vocab - len(set(banned)))
    pool = min(candidates or 2 * width, vocab)
    rows_B, running = _longest_first(cif)
    results = [SearchResult([], [], 0.0)] * batch
    if not running:
        return results
    rows_B = rows_B[: running[0]]
    batch = len(rows_B)
    rows_N = rows_B.repeat_interleave(width)
    memories = _narrow(decoder.project_memories(len(cif.lens_B), visual, linguistic), rows_N)
    units_NUD, lens_B = cif.units_BUD[rows_N], cif.lens_B[rows_B]
    state = decoder.start(batch * width)
    previous_N = torch.full((batch * width,), decoder.sos_id, device=device)
    # All hypotheses start equal, so only the first of each utterance may be extended at the first unit.
    decoder_BK = torch.full((batch, width), float("-inf"), device=device)
    decoder_BK[:, 0] = 0.0
    tokens_NU = torch.zeros(batch * width, units, dtype=torch.long, device=device)
    log_probs_NU = torch.zeros(batch * width, units, device=device)
    scorer = state_ctc = None
    if ctc is not None:
        scorer = CtcPrefixScorer(ctc.log_probs_BSV[rows_N], ctc.lens_B[rows_N])
        state_ctc = scorer.start()
    fused = None if fusion is None else _Fused(fusion, width, lens_B.tolist(), device)
    share = 1.0 if ctc is None else 1 - ctc.weight
    for u, count in enumerate(running):
        logits_NV, state = decoder.step(previous_N, units_NUD[: count * width, u], state, memories)
        log_probs_NV = _allow(functional.log_softmax(logits_NV.float(), -1), banned)
        best_NC, token_NC = log_probs_NV.topk(pool, dim=-1) if fused is None else fused.choose(log_probs_NV, share, pool)
        joint_BKC = decoder_BK[:, :, None] + best_NC.view(count, width, pool)
        forward = None
        left = running[u + 1] if u + 1 < len(running) else 0
        if scorer is not None and state_ctc is not None and ctc is not None:
            prefix_NC, *forward = scorer.extend(state_ctc, token_NC)
            prefix_BKC = prefix_NC.view(count, width, pool)
            if left < count:  # the last unit of some: CTC must end there too
                prefix_BKC[left:] = _end_scores(scorer, *forward).view(count, width, pool)[left:]
            joint_BKC = (1 - ctc.weight) * joint_BKC + ctc.weight * prefix_BKC
        if fused is not None:
            joint_BKC = joint_BKC + fused.extend(token_NC, u)
        score_BK, flat_BK = joint_BKC.flatten(1).topk(width, dim=-1)
        parent_BK, choice_BK = flat_BK // pool, flat_BK % pool
        parent_N = (parent_BK + torch.arange(count, device=device)[:, None] * width).flatten()
        choice_N = choice_BK.flatten()
        previous_N = token_NC[parent_N, choice_N]
        tokens_NU, log_probs_NU = tokens_NU[parent_N], log_probs_NU[parent_N]
        tokens_NU[:, u], log_probs_NU[:, u] = previous_N, best_NC[parent_N, choice_N]
        for b in range(left, count):  # topk sorts: the first row of an utterance is its best
            tokens, log_probs = tokens_NU[b * width, : u + 1].tolist(), log_probs_NU[b * width, : u + 1].tolist()
            results[int(rows_B[b])] = SearchResult(tokens, log_probs, float(score_BK[b, 0]))
        parent_N, choice_N = parent_N[: left * width], choice_N[: left * width]
        decoder_BK = (decoder_BK.flatten()[parent_N] + best_NC[parent_N, choice_N]).view(left, width)
        state, previous_N = state.select(parent_N), previous_N[: left * width]
        tokens_NU, log_probs_NU = tokens_NU[: left * width], log_probs_NU[: left * width]
        if fused is not None:
            fused.select(parent_N, choice_N)
        if forward is not None:
            state_ctc = CtcPrefixState(forward[0][parent_N, choice_N], forward[1][parent_N, choice_N], previous_N)
        if left < count:
            memories = _narrow(memories, slice(left * width))
            scorer = None if scorer is None else scorer.select(slice(left * width))
    return results


class _Fused:
    """Fusion scores of a beam: for each row what was added so far, and where its text stands."""

    def __init__(self, fusion: Fusion, width: int, units: list[int], device: torch.device) -> None:
        self.fusion, self.width, self.device = fusion, width, device
        self.units_N = [count for count in units for _ in range(width)]
        self.states_N: list[FusionState] = [fusion.start()] * len(self.units_N)
        self.added_N = [0.0] * len(self.units_N)
        self.next_NC: list[list[tuple[float, FusionState]]] = []

    def choose(self, log_probs_NV: torch.Tensor, share: float, pool: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The `pool` best tokens of each row, with the bonus that hotwords promise them, and the decoder's word on them."""
        promise_NV = self.fusion.promise(self.states_N, log_probs_NV.shape[1], self.device)
        keys_NV = log_probs_NV if promise_NV is None else share * log_probs_NV + promise_NV
        token_NC = keys_NV.topk(pool, dim=-1).indices
        return log_probs_NV.gather(1, token_NC), token_NC

    def extend(self, token_NC: torch.Tensor, u: int) -> torch.Tensor:
        """Added so far, with each candidate: [B, K, C]; with the end of the text at an utterance's last unit."""
        self.next_NC, scores = [], []
        for row, tokens in enumerate(token_NC.tolist()):
            state, added, last = self.states_N[row], self.added_N[row], self.units_N[row] - 1
            steps = [self.fusion.step(state, token) for token in tokens]
            self.next_NC.append([(added + score, following) for score, following in steps])
            scores.append([
                total + (self.fusion.finish(following) if u == last else 0.0) for total, following in self.next_NC[-1]
            ])
        return torch.tensor(scores, device=self.device).view(-1, self.width, token_NC.shape[1])

    def select(self, parent_N: torch.Tensor, choice_N: torch.Tensor) -> None:
        """Go on with the chosen candidates; rows that have ended stood behind them."""
        chosen = [self.next_NC[row][choice] for row, choice in zip(parent_N.tolist(), choice_N.tolist(), strict=True)]
        self.added_N, self.states_N = [added for added, _ in chosen], [state for _, state in chosen]


def _end_scores(scorer: CtcPrefixScorer, token_NCS: torch.Tensor, blank_NCS: torch.Tensor) -> torch.Tensor:
    total_NCS = torch.logaddexp(token_NCS, blank_NCS)
    index = scorer.last_step_N[:, None, None].expand(-1, total_NCS.shape[1], 1)
    return total_NCS.gather(2, index).squeeze(2)


def _longest_first(cif: CifOut) -> tuple[torch.Tensor, list[int]]:
    """The order in which rows stand, and how many of them still have units at each unit: those stand in front."""
    rows_B = cif.lens_B.argsort(descending=True, stable=True)
    lens = cif.lens_B.tolist()
    return rows_B, [sum(length > u for length in lens) for u in range(max(lens, default=0))]


def _narrow(memories: tuple[ProjectedMemory | None, ...], rows: torch.Tensor | slice) -> tuple[ProjectedMemory | None, ...]:
    return tuple(
        None if m is None else ProjectedMemory((m.key_value[0][rows], m.key_value[1][rows]), m.mask[rows]) for m in memories
    )


def _allow(log_probs: torch.Tensor, banned: tuple[int, ...]) -> torch.Tensor:
    if banned:
        log_probs = log_probs.clone()
        log_probs[..., list(banned)] = float("-inf")
    return log_probs


def _collect(tokens_BU: torch.Tensor, scores_BU: torch.Tensor, lens_B: torch.Tensor) -> list[SearchResult]:
    return [
        SearchResult(row[:length], points[:length], sum(points[:length]))
        for row, points, length in zip(tokens_BU.tolist(), scores_BU.tolist(), lens_B.tolist(), strict=True)
    ]

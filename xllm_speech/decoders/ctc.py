"""CTC: the head's loss, and prefix scores for joint search (Hori, Watanabe and Hershey 2017, section 3.2)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as functional

from xllm_speech.nn.masks import valid_mask

NEVER = -1e10  # log of nothing; finite, so that differences of two stay numbers


def ctc_loss(
    logits_BSV: torch.Tensor, lens_B: torch.Tensor, tokens_BL: torch.Tensor, token_lens_B: torch.Tensor, blank_id: int = 0
) -> torch.Tensor:
    """Sum over the batch, in float32. An utterance with fewer steps than its tokens need contributes zero, not infinity."""
    log_probs_SBV = functional.log_softmax(logits_BSV.float(), -1).transpose(0, 1)
    return functional.ctc_loss(
        log_probs_SBV, tokens_BL, lens_B, token_lens_B, blank=blank_id, reduction="sum", zero_infinity=True
    )


def ctc_greedy(logits_BSV: torch.Tensor, lens_B: torch.Tensor, blank_id: int = 0) -> list[list[int]]:
    """Best path, repeats merged and blanks dropped."""
    best_BS = logits_BSV.argmax(-1).masked_fill(~valid_mask(lens_B, logits_BSV.shape[1]), blank_id)
    rows = []
    for row in best_BS.tolist():
        rows.append([token for i, token in enumerate(row) if token != blank_id and (i == 0 or token != row[i - 1])])
    return rows


@dataclass(frozen=True)
class CtcPrefixState:
    """Forward variables of N prefixes: log P(prefix emitted by step s), ending in its last token or in blank."""

    token_NS: torch.Tensor
    blank_NS: torch.Tensor
    last_N: torch.Tensor

    def select(self, rows_N: torch.Tensor) -> CtcPrefixState:
        """The given rows, in their order."""
        return CtcPrefixState(self.token_NS[rows_N], self.blank_NS[rows_N], self.last_N[rows_N])


class CtcPrefixScorer:
    """Scores of prefixes and their extensions for rows of a beam.

    Args:
        log_probs_NSV: log probabilities of each row's utterance. lens_N: valid steps.
    """

    def __init__(self, log_probs_NSV: torch.Tensor, lens_N: torch.Tensor, blank_id: int = 0) -> None:
        self.log_probs_NSV = log_probs_NSV.float()
        self.valid_NS = valid_mask(lens_N, log_probs_NSV.shape[1])
        self.last_step_N = lens_N.clamp(min=1) - 1
        self.blank_NS = self.log_probs_NSV[:, :, blank_id].masked_fill(~self.valid_NS, 0.0)

    def select(self, rows: slice) -> CtcPrefixScorer:
        """A scorer of some of the rows."""
        chosen = copy.copy(self)
        chosen.log_probs_NSV, chosen.valid_NS = self.log_probs_NSV[rows], self.valid_NS[rows]
        chosen.last_step_N, chosen.blank_NS = self.last_step_N[rows], self.blank_NS[rows]
        return chosen

    def start(self) -> CtcPrefixState:
        """The empty prefix: blanks only."""
        blank_NS = self.blank_NS.cumsum(1)
        return CtcPrefixState(
            torch.full_like(blank_NS, NEVER), blank_NS, torch.full((len(blank_NS),), -1, device=blank_NS.device)
        )

    def extend(self, state: CtcPrefixState, tokens_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Append each of K candidate tokens to each row's prefix.

        Returns log P(the utterance begins with the new prefix) [N, K], and the new forward variables [N, K, S] (token, blank).
        """
        emit_NKS = self.log_probs_NSV.gather(2, tokens_NK[:, None].expand(-1, self.log_probs_NSV.shape[1], -1)).transpose(1, 2)
        emit_NKS = emit_NKS.masked_fill(~self.valid_NS[:, None], NEVER)
        # A repeated token needs a blank between, so only paths that end in blank may go on with it.
        repeats_NK1 = (tokens_NK == state.last_N[:, None])[:, :, None]
        both_NS = torch.logaddexp(state.token_NS, state.blank_NS)
        before_NKS = torch.where(repeats_NK1, state.blank_NS[:, None], both_NS[:, None])
        # Before the first step only the empty prefix is complete.
        empty_N = (state.last_N < 0).to(emit_NKS.dtype)
        entry_NK1 = ((empty_N - 1) * -NEVER)[:, None, None].expand(-1, emit_NKS.shape[1], 1)
        before_NKS = torch.cat([entry_NK1, before_NKS[:, :, :-1]], 2)
        starts_NKS = before_NKS + emit_NKS
        token, blank = torch.full_like(starts_NKS[:, :, 0], NEVER), torch.full_like(starts_NKS[:, :, 0], NEVER)
        tokens, blanks = [], []
        for s in range(emit_NKS.shape[2]):
            blank = torch.logaddexp(token, blank) + self.blank_NS[:, s, None]
            token = torch.logaddexp(token + emit_NKS[:, :, s], starts_NKS[:, :, s])
            tokens.append(token)
            blanks.append(blank)
        prefix_NK = starts_NKS.masked_fill(~self.valid_NS[:, None], NEVER).logsumexp(2)
        return prefix_NK, torch.stack(tokens, 2), torch.stack(blanks, 2)

    def finish(self, state: CtcPrefixState) -> torch.Tensor:
        """log P(the utterance is exactly the prefix) [N]."""
        total_NS = torch.logaddexp(state.token_NS, state.blank_NS)
        return total_NS.gather(1, self.last_step_N[:, None]).squeeze(1)

"""Greedy answers in few passes: tokens that somebody expects are read in one pass and kept as far as the LLM agrees.

One forward pass over the prompt and a draft gives the LLM's own choice behind every draft token. The longest prefix that
agrees is kept, the first choice that differs is the LLM's, and a new draft may follow; so every pass writes at least one
token, and a right draft costs one pass in all. (Stern et al. 2018, arXiv 1811.03115; Leviathan et al. 2023, arXiv 2211.17192,
for greedy choices.) Without drafts this is plain greedy search. Rows that have ended leave the batch.

A choice between two tokens that are nearly as likely could fall otherwise than in plain search, by rounding. A row in which
this happens (`passes.NEAR_TIE`) is answered anew, alone and without a draft: what comes out is what plain greedy search of
that prompt alone gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from xllm_speech.llm.loaded import LoadedLlm, Processor, left_padded
from xllm_speech.llm.passes import NEAR_TIE, CachedBatch, SearchSettings, read_settings, single_row, takes_back
from xllm_speech.records import LlmInput

NEAR_TIE_HALF_EPS = 4.0  # in half precision, in units of its rounding; there equality is likely, not certain

# (row of the batch, ids written so far) -> ids that may come next, or none.
Propose = Callable[[int, list[int]], Sequence[int]]


@dataclass(frozen=True)
class GreedyAnswer:
    """One answer.

    ids: as `LoadedLlm.generate` gives them. log_probs: natural logarithm of the probability of each id, a bias not counted, or
    none where the model's cache cannot take tokens back. passes: forward passes that it took part in. offered, accepted:
    tokens of drafts. near_tie: it was answered anew because two tokens were nearly as likely.
    """

    ids: list[int]
    log_probs: list[float]
    passes: int
    offered: int = 0
    accepted: int = 0
    near_tie: bool = False


class Verifier:
    """Greedy search with a language model, with or without drafts.

    Args:
        llm: the model. Its generation settings (penalties, suppressed tokens ...) count as in `LoadedLlm.generate`.
        bias: adds to the logits by which tokens are chosen, hotwords' bonus for example; None for nothing.
    """

    def __init__(self, llm: LoadedLlm, bias: Processor | None = None) -> None:
        self.llm, self.bias = llm, bias
        self.takes_back = takes_back(llm)
        self._settings: dict[int, SearchSettings] = {}

    @torch.no_grad()
    def answer(self, prompt: LlmInput, max_new_tokens: int, propose: Propose | None = None) -> list[GreedyAnswer]:
        """Answers to a batch of prompts, the same as to each of them alone; padding may be on either side. (In half precision
        a batch without drafts is as exact as `LoadedLlm.generate` of it, for nearly every answer has a near tie there.)

        propose: drafts. They decide about the number of passes and about nothing else.

        Raises:
            ValueError: what `LoadedLlm.forward` raises.
        """
        prompt = left_padded(prompt)
        batch = len(prompt.ids_BL)
        if not self.takes_back:
            found = self.llm.generate(prompt, max_new_tokens, bias=self.bias)
            return [GreedyAnswer(ids, [], min(len(ids) + 1, max_new_tokens)) for ids in found]
        half = torch.finfo(self.llm.dtype).bits < 32
        near = NEAR_TIE_HALF_EPS * torch.finfo(self.llm.dtype).eps if half else NEAR_TIE
        if propose is None and (half or batch == 1):
            near = 0.0
        if max_new_tokens not in self._settings:
            self._settings[max_new_tokens] = read_settings(self.llm, max_new_tokens)
        processors = (self._settings[max_new_tokens].processor, self.bias)
        search = _Search(self.llm, max_new_tokens, propose, processors, batch, near)
        search.run(prompt)
        return [
            self._anew(single_row(prompt, row), max_new_tokens, answer) if answer.near_tie else answer
            for row, answer in enumerate(search.answers())
        ]

    def _anew(self, prompt: LlmInput, max_new_tokens: int, first: GreedyAnswer) -> GreedyAnswer:
        plain = self.answer(prompt, max_new_tokens)[0]
        return GreedyAnswer(plain.ids, plain.log_probs, first.passes + plain.passes, first.offered, 0, near_tie=True)


class _Search:
    """The decoding loop of one batch. processors: of the model's settings, and a bias. near: 0 where no tie is looked for."""

    def __init__(
        self, llm: LoadedLlm, room: int, propose: Propose | None, processors: tuple[Processor | None, Processor | None],
        batch: int, near: float,
    ) -> None:
        self.llm, self.room, self.propose, self.near = llm, room, propose, near
        self.processor, self.bias = processors
        self.ends = frozenset(llm.framing.end_ids)
        self.written: list[list[int]] = [[] for _ in range(batch)]
        self.log_probs: list[list[float]] = [[] for _ in range(batch)]
        self.passes, self.offered, self.accepted = [0] * batch, [0] * batch, [0] * batch
        self.near_tie = [False] * batch

    def answers(self) -> list[GreedyAnswer]:
        """What was found, row by row."""
        found = zip(self.written, self.log_probs, self.passes, self.offered, self.accepted, self.near_tie, strict=True)
        answers = []
        for ids, log_probs, *counts in found:
            real = [place for place, index in enumerate(ids) if index != self.llm.pad_id]
            answers.append(GreedyAnswer([ids[place] for place in real], [log_probs[place] for place in real], *counts))
        return answers

    def run(self, prompt: LlmInput) -> None:
        """Search from left-padded prompts."""
        known = CachedBatch(self.llm)
        prompt_BLH: torch.Tensor | None = known.begin(prompt)
        rows = list(range(len(prompt.ids_BL)))
        device = prompt.mask_BL.device
        while rows:
            drafts = [self._draft(row) for row in rows]
            first = prompt_BLH is not None
            said = [draft if first else [self.written[row][-1], *draft] for row, draft in zip(rows, drafts, strict=True)]
            ids_BN, new_BN = self._pad(said, device)
            embeds_BNH, real_BN = self.llm.embed(ids_BN), new_BN
            if prompt_BLH is not None:
                embeds_BNH = torch.cat([prompt_BLH, embeds_BNH.to(prompt_BLH)], dim=1)
                real_BN, prompt_BLH = torch.cat([prompt.mask_BL, new_BN], dim=1), None
            logits_BNV = known.read(embeds_BNH, real_BN, 1 + max(map(len, drafts)))
            kept = self._choose(rows, drafts, logits_BNV)
            staying = [place for place, row in enumerate(rows) if kept[place] is not None]
            new_BN = new_BN & (torch.arange(new_BN.shape[1], device=device) < torch.tensor(
                [(count or 0) + (not first) for count in kept], device=device
            )[:, None])
            known.mask_BK[:, known.mask_BK.shape[1] - new_BN.shape[1] :] = new_BN
            if staying and len(staying) < len(rows):
                known.select(staying)
            if staying and not bool(new_BN[staying].all()):  # drafts left holes
                known.compact()
            rows = [rows[place] for place in staying]

    def _draft(self, row: int) -> list[int]:
        """The next draft of a row, cut so that the LLM's own token still has room behind it."""
        room = self.room - len(self.written[row]) - 1
        if self.propose is None or room < 1:
            return []
        draft = list(self.propose(row, list(self.written[row])))[:room]
        stop = next((place for place, index in enumerate(draft) if index in self.ends), len(draft))
        self.offered[row] += stop
        return draft[:stop]

    def _pad(self, said: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(map(len, said))
        ids = [[*row, *[self.llm.pad_id] * (longest - len(row))] for row in said]
        real = [[place < len(row) for place in range(longest)] for row in said]
        return (
            torch.tensor(ids, dtype=torch.long, device=device).view(len(said), longest),
            torch.tensor(real, dtype=torch.bool, device=device).view(len(said), longest),
        )

    def _choose(self, rows: list[int], drafts: list[list[int]], logits_BNV: torch.Tensor) -> list[int | None]:
        """Write what this pass decides. Draft tokens to keep in the cache by place in the batch; None for rows that end."""
        logits_BNV = self._processed(self.processor, rows, drafts, logits_BNV)
        merits_BNV = self._processed(self.bias, rows, drafts, logits_BNV)
        best_BN = merits_BNV.argmax(-1)
        log_probs_BN = logits_BNV.gather(-1, best_BN[..., None]).squeeze(-1) - logits_BNV.logsumexp(-1)
        doubtful_BN = torch.zeros_like(best_BN, dtype=torch.bool)
        if self.near:
            top_BN2 = merits_BNV.topk(2, dim=-1).values
            doubtful_BN = top_BN2[..., 0] - top_BN2[..., 1] < self.near * top_BN2[..., 0].abs().clamp(min=1)
        best, log_probs, doubtful = best_BN.tolist(), log_probs_BN.tolist(), doubtful_BN.tolist()
        kept: list[int | None] = []
        for place, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
            agreed = next((n for n, index in enumerate(draft) if best[place][n] != index), len(draft))
            self.passes[row] += 1
            self.accepted[row] += agreed
            self.near_tie[row] = any(doubtful[place][: agreed + 1])
            ended = self.near_tie[row]
            for n in range(agreed + 1):
                ended = ended or best[place][n] in self.ends
                if not ended:
                    self.written[row].append(best[place][n])
                    self.log_probs[row].append(log_probs[place][n])
            kept.append(None if ended or len(self.written[row]) >= self.room else agreed)
        return kept

    def _processed(
        self, processor: Processor | None, rows: list[int], drafts: list[list[int]], logits_BNV: torch.Tensor
    ) -> torch.Tensor:
        """Logits as a processor changes them, each position with what stands before it."""
        if processor is None:
            return logits_BNV
        logits_BNV = logits_BNV.clone()
        for place, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
            history = torch.tensor([*self.written[row], *draft], dtype=torch.long, device=logits_BNV.device)[None]
            for n in range(len(draft) + 1):
                known = history[:, : len(self.written[row]) + n]
                logits_BNV[place, n] = processor(known, logits_BNV[place, n][None])[0]
        return logits_BNV

"""Greedy answers in few passes: tokens that somebody expects are read in one pass and kept as far as the LLM agrees.

One forward pass over the prompt and a draft gives the LLM's own choice behind every draft token. The longest prefix that
agrees is kept, the first choice that differs is the LLM's, and a new draft may follow; so every pass writes at least one
token, and a right draft costs one pass in all. (Stern et al. 2018, arXiv 1811.03115; Leviathan et al. 2023, arXiv 2211.17192,
for greedy choices.) Without drafts this is plain greedy search. Rows that have ended leave the batch.

Rounding differs with the shape of a pass, by some 1e-5 of a logit in float32, so a choice between two tokens that are nearly
as likely could fall otherwise than in plain search. A row in which this happens (`NEAR_TIE`) is answered anew, alone and
without a draft: what comes out is what plain greedy search of that prompt alone gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from xllm_speech.llm.loaded import LoadedLlm, left_padded
from xllm_speech.records import LlmInput

# Logits of the two best that differ by less than this share of the best (of 1 where that is less) are a near tie.
NEAR_TIE = 1e-4
NEAR_TIE_HALF_EPS = 4.0  # in half precision, in units of its rounding; there equality is likely, not certain

# (row of the batch, ids written so far) -> ids that may come next, or none.
Propose = Callable[[int, list[int]], Sequence[int]]


@dataclass(frozen=True)
class GreedyAnswer:
    """One answer.

    ids: as `LoadedLlm.generate` gives them. log_probs: natural logarithm of the probability of each id, or none where the
    model's cache cannot take tokens back. passes: forward passes that it took part in. offered, accepted: tokens of drafts.
    near_tie: it was answered anew because two tokens were nearly as likely.
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
    """

    def __init__(self, llm: LoadedLlm) -> None:
        self.llm = llm
        layers = DynamicCache(config=llm.model.config).layers
        # A state that sums tokens up, as in linear attention, cannot give any back.
        self.takes_back = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
        self._processors: dict[int, Any] = {}

    @torch.no_grad()
    def answer(self, prompt: LlmInput, max_new_tokens: int, propose: Propose | None = None) -> list[GreedyAnswer]:
        """Answers to a batch of prompts, the same as to each of them alone; padding may be on either side.

        propose: drafts. They decide about the number of passes and about nothing else.

        Raises:
            ValueError: what `LoadedLlm.forward` raises.
        """
        prompt = left_padded(prompt)
        batch = len(prompt.ids_BL)
        if not self.takes_back:
            found = self.llm.generate(prompt, max_new_tokens)
            return [GreedyAnswer(ids, [], min(len(ids) + 1, max_new_tokens)) for ids in found]
        plain = batch == 1 and propose is None
        search = _Search(self.llm, max_new_tokens, propose, self._processor(max_new_tokens), batch, careful=not plain)
        search.run(**self.llm._arguments(prompt))
        return [
            self._anew(single_row(prompt, row), max_new_tokens, answer) if answer.near_tie else answer
            for row, answer in enumerate(search.answers())
        ]

    def _anew(self, prompt: LlmInput, max_new_tokens: int, first: GreedyAnswer) -> GreedyAnswer:
        plain = self.answer(prompt, max_new_tokens)[0]
        return GreedyAnswer(plain.ids, plain.log_probs, first.passes + plain.passes, first.offered, 0, near_tie=True)

    def _processor(self, max_new_tokens: int) -> Any:
        """What `generate` of transformers does to logits by the model's settings, asked of itself; prompts do not matter."""
        if max_new_tokens not in self._processors:
            llm = self.llm

            def keep(model: Any, input_ids: Any, logits_processor: Any, **_: Any) -> torch.Tensor:
                self._processors[max_new_tokens] = logits_processor
                return input_ids

            before, after = llm.framing.frame(("user",))
            ids = torch.tensor([[*before, *llm.encode("a"), *after]], device=llm.model.device)
            mask = torch.ones_like(ids, dtype=torch.bool)
            llm.model.generate(
                **llm._arguments(LlmInput(ids, llm.embed(ids), mask, ~mask)), max_new_tokens=max_new_tokens, num_beams=1,
                do_sample=False, eos_token_id=list(llm.framing.end_ids), pad_token_id=llm.pad_id, custom_generate=keep,
            )
        return self._processors[max_new_tokens]


def single_row(prompt: LlmInput, row: int) -> LlmInput:
    """One prompt of a batch, without its padding."""
    real_L = prompt.mask_BL[row]
    return LlmInput(
        prompt.ids_BL[row, real_L][None], prompt.embeds_BLH[row, real_L][None], prompt.mask_BL[row, real_L][None],
        prompt.slots_BL[row, real_L][None],
    )


class _Search:
    """The decoding loop of one batch."""

    def __init__(
        self, llm: LoadedLlm, room: int, propose: Propose | None, processor: Any, batch: int, careful: bool
    ) -> None:
        self.llm, self.room, self.propose, self.processor, self.careful = llm, room, propose, processor, careful
        self.ends = frozenset(llm.framing.end_ids)
        self.written: list[list[int]] = [[] for _ in range(batch)]
        self.log_probs: list[list[float]] = [[] for _ in range(batch)]
        self.passes, self.offered, self.accepted = [0] * batch, [0] * batch, [0] * batch
        self.near_tie = [False] * batch
        half = torch.finfo(llm.dtype).bits < 32
        self.near = NEAR_TIE_HALF_EPS * torch.finfo(llm.dtype).eps if half else NEAR_TIE

    def answers(self) -> list[GreedyAnswer]:
        """What was found, row by row."""
        found = zip(self.written, self.log_probs, self.passes, self.offered, self.accepted, self.near_tie, strict=True)
        answers = []
        for ids, log_probs, *counts in found:
            real = [place for place, index in enumerate(ids) if index != self.llm.pad_id]
            answers.append(GreedyAnswer([ids[place] for place in real], [log_probs[place] for place in real], *counts))
        return answers

    def run(self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor, **prefix: torch.Tensor) -> None:
        """Search from left-padded prompts. prefix: `sop_index_B` and `mask_index_B` of a ChatGLM."""
        # Without a configuration no layer forgets what lies behind its window, so that tokens can be taken back; the mask
        # still hides it.
        cache = DynamicCache()
        rows = list(range(len(inputs_embeds)))
        mask_BK = attention_mask.bool()
        prompt_BLH: torch.Tensor | None = inputs_embeds
        while rows:
            drafts = [self._draft(row) for row in rows]
            first = prompt_BLH is not None
            said = [draft if first else [self.written[row][-1], *draft] for row, draft in zip(rows, drafts, strict=True)]
            ids_BN, new_BN = self._pad(said, mask_BK.device)
            embeds_BNH = self.llm.embed(ids_BN) if ids_BN.shape[1] else inputs_embeds[:, :0]
            if prompt_BLH is not None:
                embeds_BNH, prompt_BLH = torch.cat([prompt_BLH, embeds_BNH.to(prompt_BLH)], dim=1), None
            mask_BK = torch.cat([mask_BK, new_BN], dim=1)
            logits_BNV = self._pass(embeds_BNH, mask_BK, cache, prefix, 1 + max(map(len, drafts)))
            kept = self._choose(rows, drafts, logits_BNV)
            staying = [place for place, row in enumerate(rows) if kept[place] is not None]
            new_BN = new_BN & (torch.arange(new_BN.shape[1], device=new_BN.device) < torch.tensor(
                [(count or 0) + (not first) for count in kept], device=new_BN.device
            )[:, None])
            mask_BK[:, mask_BK.shape[1] - new_BN.shape[1] :] = new_BN
            if staying and len(staying) < len(rows):
                mask_BK, prefix = _select(cache, mask_BK, prefix, staying)
            if staying and not bool(new_BN[staying].all()):  # drafts left holes
                mask_BK, prefix = _compact(cache, mask_BK, prefix)
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

    def _pass(
        self, embeds_BNH: torch.Tensor, mask_BK: torch.Tensor, cache: Cache, prefix: dict[str, torch.Tensor], keep: int
    ) -> torch.Tensor:
        """Logits [B, keep, V] in float32 of the last positions."""
        arguments: dict[str, Any] = dict(prefix)
        if not prefix:
            places_BK = (mask_BK.long().cumsum(1) - 1).clamp(min=0)
            arguments["position_ids"] = places_BK[:, places_BK.shape[1] - embeds_BNH.shape[1] :]
        if self.llm._keeps_logits:
            arguments["logits_to_keep"] = keep
        out = self.llm.model(
            inputs_embeds=embeds_BNH, attention_mask=mask_BK.long(), past_key_values=cache, use_cache=True, return_dict=True,
            **arguments,
        )
        return out.logits[:, -keep:].float()

    def _choose(self, rows: list[int], drafts: list[list[int]], logits_BNV: torch.Tensor) -> list[int | None]:
        """Write what this pass decides. Draft tokens to keep in the cache by place in the batch; None for rows that end."""
        if self.processor:
            logits_BNV = self._processed(rows, drafts, logits_BNV)
        best_BN = logits_BNV.argmax(-1)
        log_probs_BN = logits_BNV.gather(-1, best_BN[..., None]).squeeze(-1) - logits_BNV.logsumexp(-1)
        doubtful_BN = torch.zeros_like(best_BN, dtype=torch.bool)
        if self.careful:
            top_BN2 = logits_BNV.topk(2, dim=-1).values
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

    def _processed(self, rows: list[int], drafts: list[list[int]], logits_BNV: torch.Tensor) -> torch.Tensor:
        """Logits as the model's generation settings change them, each position with what stands before it."""
        logits_BNV = logits_BNV.clone()
        for place, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
            history = torch.tensor([*self.written[row], *draft], dtype=torch.long, device=logits_BNV.device)[None]
            for n in range(len(draft) + 1):
                known = history[:, : len(self.written[row]) + n]
                logits_BNV[place, n] = self.processor(known, logits_BNV[place, n][None])[0]
        return logits_BNV


def _select(
    cache: Any, mask_BK: torch.Tensor, prefix: dict[str, torch.Tensor], staying: list[int]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Take rows that ended out of the cache."""
    rows_B = torch.tensor(staying, device=mask_BK.device)
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[rows_B], layer.values[rows_B]
    return mask_BK[rows_B], {name: index_B[rows_B] for name, index_B in prefix.items()}


def _compact(
    cache: Any, mask_BK: torch.Tensor, prefix: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Take masked positions out of the cache as far as all rows can; what is left is padded on the left again."""
    order_BK = mask_BK.long().argsort(dim=1, stable=True)[:, mask_BK.shape[1] - int(mask_BK.sum(1).max()) :]
    place_BHKD = order_BK[:, None, :, None]
    for layer in cache.layers:
        layer.keys = layer.keys.take_along_dim(place_BHKD.to(layer.keys.device), dim=2)
        layer.values = layer.values.take_along_dim(place_BHKD.to(layer.values.device), dim=2)
    moved = {name: (order_BK == index_B[:, None]).long().argmax(1) for name, index_B in prefix.items()}
    return mask_BK.gather(1, order_BK), moved

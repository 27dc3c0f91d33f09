"""Beam search from which finished prompts leave, with the answers of `generate` of transformers to each prompt alone.

The rules are those of transformers: scores are summed log probabilities; of the best candidates of a step those that end
among the first `num_beams` are kept as answers, at score / length ** length_penalty, and the first `num_beams` of the others
go on; `early_stopping` says when a prompt has ended. There a prompt that has ended is carried on to the end of the batch;
here its rows leave, and a prompt is read once instead of once per beam.

Rounding differs with the shape of a pass. A prompt for which it could have decided something (`passes.NEAR_TIE`) is answered
anew, alone, by transformers' own search.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from xllm_speech.llm.loaded import LoadedLlm, Processor, left_padded
from xllm_speech.llm.passes import NEAR_TIE, CachedBatch, SearchSettings, read_settings, single_row, takes_back
from xllm_speech.records import LlmInput


class BeamSearcher:
    """Beam search with a language model.

    Args:
        llm: the model. Its generation settings count as in `LoadedLlm.generate`. bias: adds to the log probabilities of the
            next token, hotwords' bonus for example; None for nothing.
    """

    def __init__(self, llm: LoadedLlm, bias: Processor | None = None) -> None:
        self.llm, self.bias = llm, bias
        self.takes_back = takes_back(llm)
        self._settings: dict[int, SearchSettings] = {}

    @torch.no_grad()
    def answer(self, prompt: LlmInput, max_new_tokens: int, num_beams: int) -> list[list[int]]:
        """Answers to a batch of prompts as ids, the same as to each of them alone; padding may be on either side. (In half
        precision equality is likely, not certain.)

        Raises:
            ValueError: what `LoadedLlm.forward` raises.
        """
        prompt = left_padded(prompt)
        if not self.takes_back:
            return self.llm.generate(prompt, max_new_tokens, num_beams, bias=self.bias)
        if max_new_tokens not in self._settings:
            self._settings[max_new_tokens] = read_settings(self.llm, max_new_tokens)
        settings = self._settings[max_new_tokens]
        processors = [processor for processor in (settings.processor, self.bias) if processor is not None]
        ends = frozenset(self.llm.framing.end_ids)
        found = [_Beams(num_beams, max_new_tokens, ends, settings) for _ in prompt.ids_BL]
        _search(self.llm, prompt, found, processors)
        answers = []
        for row, beams in enumerate(found):
            ids = beams.best()
            if beams.near_tie:
                ids = self.llm.generate(single_row(prompt, row), max_new_tokens, num_beams, bias=self.bias)[0]
            answers.append([index for index in ids if index != self.llm.pad_id])
        return answers


@dataclass
class _Beams:
    """The hypotheses of one prompt.

    running: ids so far. scores: of those, best first. finished: (score with length penalty, ids), best first.
    """

    width: int
    room: int
    ends: frozenset[int]
    settings: SearchSettings
    running: list[list[int]] = field(default_factory=lambda: [[]])
    scores: list[float] = field(default_factory=lambda: [0.0])
    finished: list[tuple[float, list[int]]] = field(default_factory=list)
    near_tie: bool = False

    @property
    def pool(self) -> int:
        """Candidates of a step: so many that `width` of them go on even if all others end."""
        return max(2, 1 + len(self.ends)) * self.width

    def best(self) -> list[int]:
        """The answer, empty where a near tie broke the search off."""
        if len(self.finished) > 1:
            self._compare(self.finished[0][0], self.finished[1][0])
        return self.finished[0][1] if self.finished else []

    def advance(self, scores: list[float], parents: list[int], ids: list[int]) -> list[int]:
        """Take the candidates of a step, `pool` and one more, best first; the parents of those that go on, or none at the end.

        ids: of their last tokens.
        """
        length = len(self.running[0]) + 1
        last = length >= self.room
        ended = [last or index in self.ends for index in ids]
        going = [place for place in range(len(ids)) if not ended[place]]
        if any(ended[self.width - 1 : self.width + 1]):  # an end counts among the first only
            self._compare(*scores[self.width - 1 : self.width + 1])
        if len(going) > self.width:
            self._compare(scores[going[self.width - 1]], scores[going[self.width]])
        if not (self.settings.early_stopping is True and len(self.finished) == self.width):
            penalty = length**self.settings.length_penalty
            for place, over in enumerate(ended[: self.width]):
                if over:
                    said = [*self.running[parents[place]], *([] if ids[place] in self.ends else [ids[place]])]
                    self._finish(scores[place] / penalty, said)
        going = going[: self.width]
        self.running = [[*self.running[parents[place]], ids[place]] for place in going]
        self.scores = [scores[place] for place in going]
        return [parents[place] for place in going] if going and not self._over(length) else []

    def _finish(self, score: float, ids: list[int]) -> None:
        self.finished = sorted([*self.finished, (score, ids)], key=lambda pair: -pair[0])
        if len(self.finished) > self.width:
            self._compare(self.finished[-2][0], self.finished[-1][0])
            self.finished.pop()

    def _over(self, length: int) -> bool:
        """Whether nothing that runs could still be better."""
        if len(self.finished) < self.width:
            return False
        if self.settings.early_stopping is True:
            return True
        penalty = self.settings.length_penalty
        longest = self.room if self.settings.early_stopping == "never" and penalty > 0 else length
        hope, worst = self.scores[0] / longest**penalty, self.finished[-1][0]
        self._compare(hope, worst)
        return hope <= worst

    def _compare(self, one: float, other: float = math.inf) -> None:
        """Note where rounding could have decided which of two scores is better."""
        if math.isfinite(one) and math.isfinite(other) and abs(one - other) < NEAR_TIE * max(1.0, abs(one)):
            self.near_tie = True


def _search(llm: LoadedLlm, prompt: LlmInput, beams: list[_Beams], processors: list[Processor]) -> None:
    """Run all prompts to their ends. Rows of the cache: the running hypotheses of the prompts in `active`, in order."""
    known = CachedBatch(llm)
    logits_NV = known.read(known.begin(prompt), prompt.mask_BL, 1)[:, 0]
    active = beams
    while active:
        merits_NV = logits_NV.log_softmax(-1)
        history = [ids for one in active for ids in one.running]
        said_NL = torch.tensor(history, dtype=torch.long, device=merits_NV.device).view(len(history), len(history[0]))
        for processor in processors:
            merits_NV = processor(said_NL, merits_NV)
        vocab = merits_NV.shape[1]
        rows: list[int] = []
        begin = 0
        for one in active:
            end = begin + len(one.running)
            scores_K1 = merits_NV.new_tensor(one.scores)[:, None]
            best, flat = (merits_NV[begin:end] + scores_K1).flatten().topk(min(one.pool + 1, (end - begin) * vocab))
            parents = one.advance(best.tolist(), (flat // vocab).tolist(), (flat % vocab).tolist())
            if one.near_tie or not parents:
                one.running = []
            else:
                rows += [begin + parent for parent in parents]
            begin = end
        active = [one for one in active if one.running]
        if active:
            known.select(rows)
            last_N1 = torch.tensor([ids[-1:] for one in active for ids in one.running], device=merits_NV.device)
            logits_NV = known.read(llm.embed(last_N1), torch.ones_like(last_N1, dtype=torch.bool), 1)[:, 0]

"""Hotwords: a list of phrases that speech is likely to hold, as a bonus on the tokens that write them.

A text earns `bonus` (natural log) for every token that lies inside at least one whole phrase. A search cannot know yet
whether a begun phrase will end, so it gives the bonus as the phrase is being written and takes back what was given for a
match that fails; the sum over a whole text is exact. Matching is by an Aho-Corasick automaton (Aho and Corasick 1975), so
a phrase may begin inside another one's failed match.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch


class HotwordState(NamedTuple):
    """node: the longest suffix of the text that begins a phrase. covered: bits of its tokens that lie in a whole phrase."""

    node: int
    covered: int


START = HotwordState(0, 0)


class HotwordGraph:
    """The automaton of a list of phrases.

    Args:
        phrases: token ids of each phrase; empty ones are left out, equal ones count once. bonus: per token, natural log.
    """

    def __init__(self, phrases: Iterable[Sequence[int]], bonus: float = 1.5) -> None:
        self.bonus = bonus
        self.children: list[dict[int, int]] = [{}]
        self.depth, self.fail, self.whole = [0], [0], [0]  # whole: length of the longest phrase that ends at the node
        for phrase in phrases:
            node = 0
            for token in phrase:
                node = self.children[node].setdefault(token, len(self.children))
                if node == len(self.children):
                    self.children.append({})
                    for column in (self.depth, self.fail, self.whole):
                        column.append(0)
            if node:
                self.whole[node] = len(phrase)
        self._link()
        self._first_V: torch.Tensor | None = None
        self._cache: dict[HotwordState, tuple[torch.Tensor, torch.Tensor]] = {}

    def __len__(self) -> int:
        return sum(self.whole[node] == self.depth[node] for node in range(1, len(self.children)))

    def _link(self) -> None:
        """Depths, and where a failed match goes on: breadth first, as shallower nodes are needed first."""
        queue = deque([0])
        while queue:
            node = queue.popleft()
            for token, child in self.children[node].items():
                self.depth[child] = self.depth[node] + 1
                self.fail[child] = self._move(self.fail[node], token) if node else 0
                self.whole[child] = self.whole[child] or self.whole[self.fail[child]]
                queue.append(child)

    def _move(self, node: int, token: int) -> int:
        while token not in self.children[node]:
            if node == 0:
                return 0
            node = self.fail[node]
        return self.children[node][token]

    def _owed(self, state: HotwordState) -> float:
        """What was given for tokens that are not in a whole phrase yet."""
        return self.bonus * (self.depth[state.node] - state.covered.bit_count())

    def step(self, state: HotwordState, token: int) -> tuple[float, HotwordState]:
        """What the token earns or costs, and the next state."""
        node = self._move(state.node, token)
        covered = (state.covered << 1) & ((1 << self.depth[node]) - 1)
        phrase = (1 << self.whole[node]) - 1
        earned = self.bonus * (phrase & ~covered).bit_count()
        after = HotwordState(node, covered | phrase)
        return earned + self._owed(after) - self._owed(state), after

    def finish(self, state: HotwordState) -> float:
        """What the end of the text costs: a begun phrase is paid back."""
        return -self._owed(state)

    def scores(self, states: Sequence[HotwordState], vocab: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """`step` of every token: float32 [N, vocab]."""
        if self._first_V is None:  # as at the start of a text: where a match fails, tokens begin anew
            self._first_V = torch.zeros(vocab)
            for token in self.children[0]:
                self._first_V[token] = self.step(START, token)[0]
        rows = self._first_V.repeat(len(states), 1)
        for row, state in zip(rows, states, strict=True):
            if state.node:
                tokens, values = self._going_on(state)
                row -= self._owed(state)
                row[tokens] = values
        return rows.to(device)

    def _going_on(self, state: HotwordState) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens that go on with a begun phrase, and what they earn."""
        found = self._cache.get(state)
        if found is None:
            node, continuing = state.node, set[int]()
            while node:
                continuing |= set(self.children[node])
                node = self.fail[node]
            tokens = sorted(continuing)
            values = [self.step(state, token)[0] for token in tokens]
            found = self._cache[state] = torch.tensor(tokens, dtype=torch.long), torch.tensor(values)
        return found

"""Drafts of an LLM's transcript from the CIF model's: what of the expected text is still to come, as the LLM's tokens."""

from __future__ import annotations

from collections.abc import Sequence

from xllm_speech.llm.loaded import LoadedLlm

# What a decoder writes where the bytes of a character are not all there yet.
INCOMPLETE = "\ufffd"


def rest_of(expected: str, written: str) -> str:
    """What follows in `expected` behind the part that `written` covers: that prefix which differs from it in the fewest
    characters (edit distance).

    Among prefixes equally far off one that ends with the last character written comes first, then the one nearest in
    length, so that a replaced character stands for one.
    """
    if expected.startswith(written):
        return expected[len(written) :]
    costs = list(range(len(expected) + 1))  # of what is written so far, by length of the prefix
    for count, letter in enumerate(written, 1):
        before, costs[0] = costs[0], count
        for place, other in enumerate(expected, 1):
            before, costs[place] = costs[place], min(costs[place] + 1, costs[place - 1] + 1, before + (letter != other))

    def merit(length: int) -> tuple[int, bool, int]:
        return costs[length], length == 0 or expected[length - 1] != written[-1], abs(length - len(written))

    return expected[min(range(len(expected) + 1), key=merit) :]


class Drafter:
    """Proposals for `llm.verify.Verifier`.

    Args:
        llm: whose tokens they are. expected: the text that is expected of each row, such as the CIF model's hypothesis.
    """

    def __init__(self, llm: LoadedLlm, expected: Sequence[str]) -> None:
        self.llm, self.expected = llm, expected

    def __call__(self, row: int, written: list[int]) -> list[int]:
        """Ids that may follow what row `row` has written."""
        if not written:
            return self.llm.encode(self.expected[row])
        text = self.llm.decode(written)
        rest = rest_of(self.expected[row], text.rstrip(INCOMPLETE))
        if not rest:
            return []
        # Tokens depend on what stands before them; where the LLM cut its own text otherwise, the rest is cut by itself.
        whole = self.llm.encode(text + rest)
        return whole[len(written) :] if whole[: len(written)] == written else self.llm.encode(rest)

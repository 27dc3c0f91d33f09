"""Words with times, from the tokens of a hypothesis: what ctm, srt and TextGrid show."""

from __future__ import annotations

from xllm_speech.records import Hypothesis, TimedToken
from xllm_speech.text.normalise import mer_tokens
from xllm_speech.text.tokens import join_tokens


def timed_words(hypothesis: Hypothesis) -> tuple[list[TimedToken], bool]:
    """(words with times, whether they spell the hypothesis' text).

    A word is a Chinese character or a run of other characters without a space. It lasts from the start of the token with
    its first character to the end of that with its last; its confidence is the least of its tokens'. A token that holds
    several words makes one entry of them. Where tokens and text do not spell the same (a decoder that punctuates, say),
    the words are the tokens, and the flag is False.
    """
    tokens = [(join_tokens([token.text]).replace(" ", ""), token) for token in hypothesis.tokens]
    owners = [index for index, (text, _) in enumerate(tokens) for _ in text]
    spelt = "".join(text for text, _ in tokens)
    if spelt != "".join(hypothesis.text.split()):
        return [TimedToken(text, *_span([token])) for text, token in tokens if text], False
    groups: list[tuple[str, int, int]] = []  # text, first and last token
    position = 0
    for word in mer_tokens(hypothesis.text):
        first, last = owners[position], owners[position + len(word) - 1]
        position += len(word)
        if groups and groups[-1][2] == first:
            text, first, _ = groups.pop()
            word = text + word
        groups.append((word, first, last))
    return [TimedToken(text, *_span([token for _, token in tokens[first : last + 1]])) for text, first, last in groups], True


def _span(tokens: list[TimedToken]) -> tuple[float, float, float | None]:
    confidences = [token.confidence for token in tokens if token.confidence is not None]
    start, end = tokens[0].start_sec, tokens[-1].end_sec
    return start, max(start, end), min(confidences, default=None)


def utterance_span(hypothesis: Hypothesis) -> tuple[float, float]:
    """Start and end of an utterance in seconds: from its duration, else its last token, else guessed at 0.25 s a letter."""
    start = hypothesis.start_sec
    if hypothesis.duration_sec is not None:
        return start, start + hypothesis.duration_sec
    if hypothesis.tokens:
        return start, max(start, hypothesis.tokens[-1].end_sec)
    return start, start + 0.25 * max(1, len(hypothesis.text))

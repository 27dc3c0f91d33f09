"""SubRip (srt) subtitles of one recording."""

from __future__ import annotations

from xllm_speech.infer.words import timed_words, utterance_span
from xllm_speech.records import Hypothesis, TimedToken
from xllm_speech.text.normalise import is_spaceless, join_words

LONGEST_CUE = 20  # in Chinese characters; others count half
PAUSE_SEC = 0.6

_Cue = tuple[int, int, str]  # start and end in milliseconds, text


def srt_document(hypotheses: list[Hypothesis]) -> str:
    """Cues of one recording in order of time: numbered from 1, no two at once, each at least a millisecond long.

    An utterance is cut at pauses and before a cue grows too long; one whose tokens have no times, or spell another text,
    is a single cue. Utterances without text give none.
    """
    cues = sorted(cue for hypothesis in hypotheses if hypothesis.text.strip() for cue in _cues(hypothesis))
    blocks = []
    earliest = 0
    for index, (start, end, text) in enumerate(cues):
        start = max(start, earliest)
        if index + 1 < len(cues):
            end = min(end, cues[index + 1][0])
        earliest = end = max(end, start + 1)
        blocks.append(f"{index + 1}\n{_clock(start)} --> {_clock(end)}\n{text}\n\n")
    return "".join(blocks)


def _cues(hypothesis: Hypothesis) -> list[_Cue]:
    words, agree = timed_words(hypothesis)
    if not words or not agree:
        start, end = (words[0].start_sec, words[-1].end_sec) if words else utterance_span(hypothesis)
        return [_cue(start, end, hypothesis.text)]
    groups: list[list[TimedToken]] = [[words[0]]]
    for word in words[1:]:
        group = groups[-1]
        long = _width(group) + _width([word]) > LONGEST_CUE
        if long or word.start_sec - group[-1].end_sec > PAUSE_SEC:
            groups.append([word])
        else:
            group.append(word)
    return [
        _cue(group[0].start_sec, group[-1].end_sec, join_words(" ".join(word.text for word in group))) for group in groups
    ]


def _cue(start_sec: float, end_sec: float, text: str) -> _Cue:
    return round(1000 * max(0.0, start_sec)), round(1000 * max(0.0, end_sec)), " ".join(text.split())


def _width(words: list[TimedToken]) -> float:
    return sum(1 if is_spaceless(character) else 0.5 for word in words for character in word.text)


def _clock(milliseconds: int) -> str:
    seconds, milliseconds = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d},{milliseconds:03d}"

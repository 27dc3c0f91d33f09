"""Praat TextGrid (long text format) of one recording."""

from __future__ import annotations

from xllm_speech.infer.words import timed_words, utterance_span
from xllm_speech.records import Hypothesis

_Interval = tuple[int, int, str]  # start and end in microseconds, text


def textgrid_document(hypotheses: list[Hypothesis]) -> str:
    """Interval tiers `utterances` and `words`, numbered by channel where there are several.

    Every tier covers the whole time axis without gap or overlap, as Praat demands: gaps are empty intervals, and where
    utterances overlap the earlier one ends as the later begins. The axis ends with the last utterance.
    """
    end = max((_micro(utterance_span(hypothesis)[1]) for hypothesis in hypotheses), default=0)
    tiers: list[tuple[str, list[_Interval]]] = []
    channels = sorted({hypothesis.channel for hypothesis in hypotheses}) or [0]
    for channel in channels:
        number = f" {channel + 1}" if len(channels) > 1 else ""
        own = [hypothesis for hypothesis in hypotheses if hypothesis.channel == channel]
        utterances = [_interval(*utterance_span(hypothesis), hypothesis.text) for hypothesis in own]
        words = [
            _interval(word.start_sec, word.end_sec, word.text)
            for hypothesis in own
            for word in timed_words(hypothesis)[0]
        ]
        tiers += [(f"utterances{number}", utterances), (f"words{number}", words)]
    end = max([end, 1, *(interval[1] for _, intervals in tiers for interval in intervals)])
    filled = [(name, _fill(sorted(intervals), end)) for name, intervals in tiers]
    end = max(intervals[-1][1] for _, intervals in filled)
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {_sec(end)}",
             "tiers? <exists>", f"size = {len(filled)}", "item []:"]
    for index, (name, intervals) in enumerate(filled, 1):
        if intervals[-1][1] < end:
            intervals.append((intervals[-1][1], end, ""))
        lines += [f"    item [{index}]:", '        class = "IntervalTier"', f"        name = {_quote(name)}",
                  "        xmin = 0", f"        xmax = {_sec(end)}", f"        intervals: size = {len(intervals)}"]
        for position, (start, stop, text) in enumerate(intervals, 1):
            lines += [f"        intervals [{position}]:", f"            xmin = {_sec(start)}",
                      f"            xmax = {_sec(stop)}", f"            text = {_quote(text)}"]
    return "\n".join(lines) + "\n"


def _fill(intervals: list[_Interval], end: int) -> list[_Interval]:
    """Sorted intervals without overlap, with empty ones in the gaps, from 0 to `end` at least; none is empty in time."""
    filled: list[_Interval] = []
    reached = 0
    for index, (start, stop, text) in enumerate(intervals):
        start = max(start, reached)
        if index + 1 < len(intervals):
            stop = min(stop, intervals[index + 1][0])
        stop = max(stop, start + 1)
        if start > reached:
            filled.append((reached, start, ""))
        filled.append((start, stop, text))
        reached = stop
    if reached < end:
        filled.append((reached, end, ""))
    return filled


def _interval(start_sec: float, end_sec: float, text: str) -> _Interval:
    return _micro(start_sec), _micro(end_sec), text


def _micro(seconds: float) -> int:
    return round(1e6 * max(0.0, seconds))


def _sec(microseconds: int) -> str:
    return f"{microseconds / 1e6:.6f}".rstrip("0").rstrip(".")


def _quote(text: str) -> str:
    return '"' + " ".join(text.split()).replace('"', '""') + '"'

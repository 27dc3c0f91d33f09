"""The two scores in a judge's words (evaluation.md, LLaVA-test): asked for one line "8 9", judges write many other things.

The text is brought into one form (`verdict_words`), then read in this order; the first form that gives both scores stands:

    sentence      one sentence about both: "the scores for Assistant 1 and Assistant 2 are 3 and 8, respectively"
    scores        a heading before a pair: "Scores: 8 9"
    labels        each assistant with its score behind its name: "Assistant 1: 3 / Assistant 2: 8"
    first line    a bare pair where it was asked for: "8 9"
    further down  a pair on a later line of its own, or each assistant's score somewhere in the prose

Where two forms give different scores the verdict contradicts itself; `Reading.conflict` says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from xllm_speech.metrics.verdict_words import (
    AND,
    BOTH,
    DIGITS,
    NAME,
    OF_TEN,
    ONE,
    TWO,
    UNIT,
    ignoring_case,
    plain,
    score_of,
    sentences,
    value,
)

Scores = tuple[float, float]


@dataclass(frozen=True)
class Reading:
    """What a verdict says: scores of assistants 1 and 2 (None: none found), the form they were in, and contradictions."""

    scores: Scores | None
    form: str | None = None
    conflict: bool = False


def read_verdict(text: str) -> Reading:
    """Find both scores in a judge's text, English or Chinese, in the order of forms that the module tells.

    A range counts as its middle; a number outside 0..10 is no score. Raises nothing.
    """
    text = _STACKED.sub(r"\1: ", plain(text))
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    mentions = list(_mentions(text))
    listed = _NUMBERED.search(text)
    numbered = _pair(listed["first"], listed["second"]) if listed else None
    found = [
        ("sentence", _last(_in_one_sentence(sentence) for sentence in sentences(text))),
        ("scores", _last(_pair(match["first"], match["second"]) for match in _HEADED_PAIR.finditer(text))),
        ("labels", _both([mention for mention in mentions if mention.label])),
        ("labels", numbered),
        ("first line", None if numbered else _first_line(lines)),
        ("further down", None if numbered else _last(_pair_line(line) for line in lines[1:])),
        ("further down", _both(mentions)),
    ]
    given = [(form, scores) for form, scores in found if scores is not None]
    if not given:
        return Reading(None)
    form, scores = given[0]
    return Reading(scores, form, any(other != scores for _, other in given))


_BETWEEN = rf"(?:\s*(?:,|;|:|/|-|–|—)\s*{AND}?|{AND}|\s+)"
_OPEN, _CLOSE = r"[\[({]{0,3}\s?", r"\s?[\])}]{0,3}"
_PAIR = rf"{_OPEN}{value('first')}{_CLOSE}{_BETWEEN}{_OPEN}{value('second')}{_CLOSE}"
# What may follow a score: nothing that it would count ("gives 3 reasons").
_ENDS = (
    rf"(?=\s*(?:$|[^\w\s]|{NAME}|{BOTH}|[和而与及分]|"
    r"(?:and|while|whilst|but|whereas|although|though|so|compared|versus|vs|for|because|since|due|as|out|to|with|given|in|on|"
    r"overall|respectively|than|which)\b))"
)
_HEADING = r"(?:scores?|ratings?|grades?|marks?|output|results?|评分|得分|分数|打分|分值|结果)"
_IS = r"(?:\s*(?:[:=]|→)\s*|\s+[-–—]\s+|\s*(?:\bare\b|\bis\b|\bwould be\b|为|是)\s*:?\s*)"
_HEADED_PAIR = ignoring_case(rf"{_HEADING}{_IS}{_PAIR}{_ENDS}")
_SIGNS = rf"[^\w{ONE}{TWO}{BOTH}]{{0,9}}"
_BARE_PAIR = ignoring_case(rf"{_SIGNS}{_PAIR}[.,;:\s]{{0,9}}")
_LEADING_PAIR = re.compile(
    rf"{_PAIR}(?:[.,;:]?\s+(?=[A-Z{ONE}{TWO}{BOTH}\u4e00-\u9fff])"
    rf"|(?:\s*[:(]\s*|\s+[-–—]\s+)(?=[A-Za-z{ONE}{TWO}{BOTH}\u4e00-\u9fff]))"
)
_NUMBERED = re.compile(
    rf"(?:^|\n)[^\w\n]{{0,9}}1\s*[.):]\s*{value('first')}[^\w\n]{{0,9}}\n\s*[^\w\n]{{0,9}}2\s*[.):]\s*{value('second')}"
    r"[^\w\n]{0,9}(?=\n|$)"
)
_BARE_VALUE = ignoring_case(rf"{_SIGNS}{value('only')}{_SIGNS}")

_STACKED = re.compile(rf"({NAME})[^\w\n]{{0,9}}\n+(?=[^\w\n]{{0,9}}\d{{1,2}}(?:\.\d+)?(?:/10)?[^\w\n]{{0,9}}(?:\n|$))")

# A sentence must speak of scores, or at least of giving and getting, before its numbers are taken for scores.
_CUE = ignoring_case(
    r"\b(?:scor(?:e[sd]?|ing)|rat(?:e[sd]?|ings?)|grade[sd]?|marks?|points?)\b|评分|得分|打分|分数|评[为价]|分(?![别析钟类辨为])"
)
_WEAK_CUE = ignoring_case(
    r"\b(?:gets?|got|receive[sd]?|earn(?:s|ed)?|deserve[sd]?|give[ns]?|gave|award(?:s|ed)?|assign(?:s|ed)?|respectively)\b"
)
_GETTING = ignoring_case(r"\b(?:gets?|got|receive[sd]?|earn(?:s|ed)?|deserve[sd]?)\b")
_GAP = rf"[^\d{ONE}{TWO}{BOTH}]{{0,90}}?"
_LIST = rf"(?P<one>{NAME})(?:'s)?(?:\s*{AND}\s*)(?P<two>{NAME})(?:'s)?"
_LIST_PAIR = ignoring_case(rf"(?:{_LIST}|(?P<both>{BOTH})){_GAP}{_PAIR}{_ENDS}")
_LIST_LABEL = ignoring_case(rf"{_LIST}\s*[:=]\s*{_PAIR}{_ENDS}")
_PAIR_LIST = ignoring_case(rf"{_PAIR}[^\d]{{0,40}}?{_LIST}")
_BOTH_SAME = ignoring_case(rf"{BOTH}{_GAP}{value('only')}{_ENDS}|{value('ahead')}\s*(?:for|to)\s+{BOTH}")

# One assistant's score: behind the name (a label); behind a word for scores; behind a verb; with its unit; before the name.
_POSSESSIVE = r"(?:'s|的)?\s*(?:response|answer|performance|回答|表现)?"
_LABEL = ignoring_case(
    rf"{NAME}{_POSSESSIVE}\s*(?:\(?\s*(?:final\s+|overall\s+|total\s+|总|最终|综合)?{_HEADING}\)?)?"
    rf"(?:{_IS}|\s*\(\s*|\s*[-–—]\s*|\s+|(?=\d)|得){_OPEN}{value('value')}{_ENDS}"
)
_NOUN_SCORE = ignoring_case(
    rf"(?:\b(?:scores?|ratings?|grades?|marks?)\b|评分|得分|打分|分数)[^\d.]{{0,60}}?{value('value')}{_ENDS}"
)
_VERB_SCORE = ignoring_case(
    r"(?:\b(?:rate[sd]?|scored?|give[ns]?|gave|award(?:s|ed)?|assign(?:s|ed)?|receive[sd]?|gets?|got|earn(?:s|ed|ing)?"
    rf"|deserve[sd]?|graded?)\b|打|给|得|评)[^\d.]{{0,80}}?{value('value', DIGITS)}{_ENDS}"
)
_UNIT_SCORE = ignoring_case(value("value", unit=OF_TEN))
_SHORT_SCORE = ignoring_case(
    rf"{NAME}{_POSSESSIVE}(?:\s*,|\s*\b(?:only\s+)?(?:an?|as|at|with))\s+(?:an?\s+)?{value('value', DIGITS)}{_ENDS}"
)
_VALUE_NAME = ignoring_case(rf"{value('value')}\s*(?:\(\s*|\b(?:for|to|goes\s+to)\s+)(?={NAME})")
_NAME_BEHIND = ignoring_case(
    rf"{UNIT}*\s*[\])]*\s*(?:\(\s*|\b(?:for|to|goes\s+to|given\s+to)\s+(?:the\s+)?)(?P<name>{NAME})"
)
# The other side of a comparison is not who is being scored ("better than Assistant 1's, earning a 9"), unless a score of its
# own follows at once ("compared to Assistant 1's score of 2").
_COMPARED = ignoring_case(
    r"\b(?:than|over|unlike|like|versus|(?:compared|similar|superior|inferior|relative|equal|identical)\s+(?:to|with))\s+"
    rf"(?:(?:that|those|the\s+\w+)\s+(?:of|from|by)\s+)?{NAME}|(?:比|相比于?|相较于|不如)\s*{NAME}"
)
_OWN = ignoring_case(rf"{NAME}(?:'s)?\s*(?:with\s+)?(?:an?\s+)?(?:\w+er\s+)?(?:scores?|ratings?)?\s*(?:of\s+)?$")
_OVERALL = ignoring_case(r"overall|final|total|总|综合|最终")
_CRITERION = (
    r"(?:helpful(?:ness)?|relevan(?:ce|cy|t)|accura(?:cy|te)|details?|correctness|creativity|depth|completeness|clarity"
    r"|coherence|帮助性?|有用性?|相关性?|准确性?|细节|详细程度|完整性)"
)
_CRITERION_BEFORE = ignoring_case(rf"{_CRITERION}\W*(?:\b(?:score|rating|is|of)\b\W*|(?:评分|得分)\W*)*$")
_CRITERION_BEHIND = ignoring_case(rf"\W*{UNIT}*\s*\b(?:for|in|on)\s+(?:level\s+of\s+)?{_CRITERION}")


class _Mention(NamedTuple):
    """One assistant's score somewhere in the text. label: right behind the name; criterion: for one criterion only."""

    name: str
    score: float
    label: bool
    overall: bool
    criterion: bool


def _pair(first: str, second: str, swapped: bool = False) -> Scores | None:
    one, two = score_of(first), score_of(second)
    if one is None or two is None:
        return None
    return (two, one) if swapped else (one, two)


def _last(found: Iterable[Scores | None]) -> Scores | None:
    """The last that was found: judges come to their conclusion at the end."""
    return next((scores for scores in reversed(list(found)) if scores is not None), None)


def _speaks_of_scores(sentence: str) -> bool:
    if _CUE.search(sentence) or _WEAK_CUE.search(sentence) or _LIST_LABEL.search(sentence):
        return True
    return len(_VALUE_NAME.findall(sentence)) > 1


def _in_one_sentence(sentence: str) -> Scores | None:
    """Scores of a sentence that gives one to each assistant."""
    if not _speaks_of_scores(sentence):
        return None
    for pattern in (_LIST_PAIR, _PAIR_LIST):
        if match := pattern.search(sentence):
            return _pair(match["first"], match["second"], swapped=match["one"] == TWO)
    if re.search(NAME, sentence):
        return _both(list(_in_sentence(sentence, None)))
    match = _BOTH_SAME.search(sentence)
    said = match and sentence[: match.end()]
    if match and said and (_CUE.search(said) or _GETTING.search(said) or re.search(UNIT, match[0], re.IGNORECASE)):
        same = match["only"] or match["ahead"]
        return _pair(same, same)
    return None


def _first_line(lines: list[str]) -> Scores | None:
    """A bare pair that opens the verdict, on one line or a number on each of two."""
    if not lines:
        return None
    if scores := _pair_line(lines[0]):
        return scores
    if match := _LEADING_PAIR.match(lines[0]):
        return _pair(match["first"], match["second"])
    if len(lines) > 1 and (one := _BARE_VALUE.fullmatch(lines[0])) and (two := _BARE_VALUE.fullmatch(lines[1])):
        return _pair(one["only"], two["only"])
    return None


def _pair_line(line: str) -> Scores | None:
    match = _BARE_PAIR.fullmatch(line)
    return _pair(match["first"], match["second"]) if match else None


def _mentions(text: str) -> Iterator[_Mention]:
    """Every score of one assistant, in order; "it" is the assistant that was last spoken of alone."""
    subject: str | None = None
    for sentence in sentences(text):
        yield from _in_sentence(sentence, subject)
        named = set(re.findall(f"{NAME}|{BOTH}", _COMPARED.sub("", sentence)))
        if named:
            subject = named.pop() if len(named) == 1 and BOTH not in named else None


def _in_sentence(sentence: str, subject: str | None) -> Iterator[_Mention]:
    weighed = _speaks_of_scores(sentence)
    spans: dict[int, tuple[re.Match[str], bool]] = {}
    for pattern in (_LABEL, _NOUN_SCORE, _VERB_SCORE, _UNIT_SCORE, *((_SHORT_SCORE, _VALUE_NAME) if weighed else ())):
        for match in _chained(pattern, sentence):
            spans.setdefault(match.start("value"), (match, pattern is _LABEL))
    compared = [match.span() for match in _COMPARED.finditer(sentence)]
    for start, (match, label) in sorted(spans.items()):
        score, end = score_of(match["value"]), match.end("value")
        behind = None if label else _NAME_BEHIND.match(sentence, end)
        before = [
            named[0] for named in re.finditer(f"{NAME}|{BOTH}", sentence[:start])
            if not any(low <= named.start() < high for low, high in compared) or _OWN.fullmatch(sentence, named.start(), start)
        ]
        name = behind["name"] if behind else before[-1] if before else subject
        if score is None or name is None or name == BOTH:
            continue
        clause = re.split(r"[,;]|\band\b|\bwhile\b", sentence[:start])[-1]
        ahead = any(_CRITERION_BEFORE.search(part) for part in (clause, sentence[: match.start()]))
        criterion = ahead or bool(_CRITERION_BEHIND.match(sentence, end))
        yield _Mention(name, score, label, bool(_OVERALL.search(clause)), criterion)


def _chained(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """Matches of which the next may begin right behind the score of the one before."""
    place = 0
    while match := pattern.search(text, place):
        yield match
        place = match.end("value")


def _both(mentions: Sequence[_Mention]) -> Scores | None:
    """One score per assistant: the last overall one, else the last; those of single criteria only where they all agree."""
    scores = []
    for name in (ONE, TWO):
        own = [mention for mention in mentions if mention.name == name]
        overall = [mention.score for mention in own if mention.overall]
        whole = [mention.score for mention in own if not mention.criterion]
        alike = {mention.score for mention in own}
        if not (overall or whole or len(alike) == 1):
            return None
        scores.append((overall or whole or list(alike))[-1])
    return scores[0], scores[1]

"""Numbers read aloud in Mandarin: integers, decimals, percentages, fractions, years.

二 is written throughout, never 两, and 一, never 幺: which of them was said cannot be known from digits.
"""

from __future__ import annotations

import re
from collections.abc import Callable

DIGITS = "零一二三四五六七八九"
LARGEST_DIGITS = 16  # 千万亿; longer strings are codes and are read digit by digit

_MINUS = r"(?:(?<![^\s(\[:：])-|−)"
_UNSIGNED = r"\d+(?:\.\d+)?"
_YEAR = re.compile(r"(?<![\d.])([12]\d{3})(?=\s*年)")
_FRACTION = re.compile(r"(\d+)\s*⁄\s*(\d+)")
_DOTTED = re.compile(r"\d+(?:\.\d+){2,}")
_PERCENT = re.compile(rf"({_MINUS}?)({_UNSIGNED})\s*%")
_NUMBER = re.compile(rf"({_MINUS}?)({_UNSIGNED})")


def read_digits(digits: str) -> str:
    """Digit by digit: 2023 -> 二零二三."""
    return "".join(DIGITS[int(digit)] for digit in digits)


def read_integer(digits: str) -> str:
    """A string of ASCII digits as a cardinal number: 10203 -> 一万零二百零三, 15 -> 十五.

    Codes are read digit by digit: a leading zero (007), a mobile number (11 digits from 13 to 19), more than 16 digits.
    """
    is_mobile = len(digits) == 11 and digits[0] == "1" and digits[1] in "3456789"
    if digits == "0":
        return "零"
    if digits[0] == "0" or is_mobile or len(digits) > LARGEST_DIGITS:
        return read_digits(digits)
    value = int(digits)
    # 万亿 is 万 of 亿: the part above 10^8 is itself a number with 万.
    high, low = divmod(value, 10**8)
    text = _below_hundred_million(high) + "亿" if high else ""
    text += _with_zero(low, 10**7, bool(high), _below_hundred_million)
    return text[1:] if text.startswith("一十") else text


def _with_zero(value: int, full: int, follows: bool, read: Callable[[int], str]) -> str:
    """`read(value)`, after 零 where something stands before it and its highest place (`full`) is empty; "" for 0."""
    if not value:
        return ""
    return ("零" if follows and value < full else "") + read(value)


def _below_hundred_million(value: int) -> str:
    high, low = divmod(value, 10**4)
    return (_below_ten_thousand(high) + "万" if high else "") + _with_zero(low, 1000, bool(high), _below_ten_thousand)


def _below_ten_thousand(value: int) -> str:
    text, gap = "", False
    for place, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = value // place % 10
        if digit:
            text += ("零" if gap and text else "") + DIGITS[digit] + name
            gap = False
        else:
            gap = True
    return text


def _read(sign: str, number: str) -> str:
    whole, _, fraction = number.partition(".")
    text = ("负" if sign else "") + read_integer(whole)
    return text + "点" + read_digits(fraction) if fraction else text


def read_numbers(text: str) -> str:
    """Replace every ASCII number in `text` by its reading; text must already be NFKC, without thousands separators.

    3.14 -> 三点一四; 50% -> 百分之五十; -5 -> 负五 (a hyphen counts as a sign only at the start of a word);
    1⁄2 (what NFKC makes of ½) -> 二分之一; 1998年 -> 一九九八年; 1.2.3 -> 一点二点三.
    """
    text = _YEAR.sub(lambda match: read_digits(match[1]), text)
    text = _FRACTION.sub(lambda match: f"{read_integer(match[2])}分之{read_integer(match[1])}", text)
    text = _DOTTED.sub(lambda match: "点".join(read_integer(part) for part in match[0].split(".")), text)
    text = _PERCENT.sub(lambda match: ("负" if match[1] else "") + "百分之" + _read("", match[2]), text)
    return _NUMBER.sub(lambda match: _read(match[1], match[2]), text)

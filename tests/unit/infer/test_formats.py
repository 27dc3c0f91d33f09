from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.infer.formats import write_hypotheses
from xllm_speech.infer.subtitles import srt_document
from xllm_speech.infer.textgrid import textgrid_document
from xllm_speech.infer.words import timed_words
from xllm_speech.records import Hypothesis, TimedToken


def spoken(id: str, pieces: list[str], text: str, start: float = 0.0, each: float = 0.2, **more) -> Hypothesis:
    """An utterance whose tokens last `each` seconds one after the other, from half a second after its start."""
    times = [start + 0.5 + each * index for index in range(len(pieces) + 1)]
    tokens = [
        TimedToken(piece, times[index], times[index + 1], 0.9 - 0.1 * (index % 3)) for index, piece in enumerate(pieces)
    ]
    more = {"recording": "rec", "duration_sec": 1.0 + each * len(pieces), **more}
    return Hypothesis(id, text, tokens, score=-1.5, start_sec=start, **more)


MIXED = spoken("u1", ["用", "▁py", "thon", "写", "▁hello", "▁world", "程序"], "用python写hello world程序")
LATER = spoken("u2", ["好", "的"], "好的", start=10.0)
BROKEN = Hypothesis("u3", "", recording="rec", start_sec=20.0, duration_sec=1.0, error="not audio")
SILENT = Hypothesis("u4", "", recording="rec", start_sec=30.0, duration_sec=2.5)
ALL = [MIXED, LATER, BROKEN, SILENT]


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_words_take_the_times_of_their_tokens() -> None:
    words, agree = timed_words(MIXED)
    assert agree
    assert [word.text for word in words] == ["用", "python", "写", "hello", "world", "程序"]
    assert (words[1].start_sec, words[1].end_sec) == (pytest.approx(0.7), pytest.approx(1.1))
    assert words[1].confidence == pytest.approx(0.7)


@pytest.mark.parametrize("pieces", [
    [*"你好hi", "<space>", *"yo"], ["你", "好", "▁hi", "▁yo"], ["你", "好", "hi", "", "yo"], ["你好", "▁h", "i", "▁", "yo"],
])
def test_spaces_come_from_the_text_however_tokens_are_written(pieces: list[str]) -> None:
    words, agree = timed_words(spoken("u", pieces, "你好hi yo"))
    assert agree
    assert [word.text for word in words][-2:] == ["hi", "yo"]


def test_tokens_that_spell_another_text_are_shown_as_they_are() -> None:
    words, agree = timed_words(spoken("u", ["你", "好", "吗", "<unk>"], "你好吗？"))
    assert not agree
    assert [word.text for word in words] == ["你", "好", "吗", "�"]


def test_json_keeps_everything(tmp_path: Path) -> None:
    odd = Hypothesis("u5", "x", score=float("nan"), extra={"units": 3}, channel=1)
    written = write_hypotheses(iter([*ALL, odd]), tmp_path / "hyp.jsonl", "json")
    rows = [json.loads(line) for line in lines(tmp_path / "hyp.jsonl")]
    assert (written.utterances, written.skipped, written.files) == (5, [], [tmp_path / "hyp.jsonl"])
    assert [row["id"] for row in rows] == ["u1", "u2", "u3", "u4", "u5"]
    assert rows[1] == {
        "id": "u2", "text": "好的", "score": -1.5, "recording": "rec", "channel": 0, "start": 10.0, "duration": 1.4,
        "tokens": [{"text": "好", "start": 10.5, "end": 10.7, "confidence": 0.9},
                   {"text": "的", "start": 10.7, "end": 10.9, "confidence": 0.8}],
        "error": None,
    }
    assert rows[2]["error"] == "not audio"
    assert (rows[4]["score"], rows[4]["extra"], rows[4]["tokens"]) == (None, {"units": 3}, [])
    assert "用python" in lines(tmp_path / "hyp.jsonl")[0]


def test_text_is_a_kaldi_file(tmp_path: Path) -> None:
    odd = Hypothesis("my file", "two\n lines")
    write_hypotheses([*ALL, odd], tmp_path / "text", "text")
    assert lines(tmp_path / "text") == ["u1 用python写hello world程序", "u2 好的", "u3", "u4", "my_file two lines"]


def test_ctm_is_sorted_and_its_words_do_not_overlap(tmp_path: Path) -> None:
    second = spoken("u6", ["嗯"], "嗯", recording="a rec", channel=1)
    untimed = Hypothesis("u7", "无时", recording="rec")
    written = write_hypotheses([LATER, MIXED, BROKEN, SILENT, second, untimed], tmp_path / "ctm", "ctm")
    assert written.skipped == [("u3", "not audio"), ("u7", "its tokens have no times")]
    assert lines(tmp_path / "ctm") == [
        "a_rec 2 0.500 0.200 嗯 0.900",
        "rec 1 0.500 0.200 用 0.900",
        "rec 1 0.700 0.400 python 0.700",
        "rec 1 1.100 0.200 写 0.900",
        "rec 1 1.300 0.200 hello 0.800",
        "rec 1 1.500 0.200 world 0.700",
        "rec 1 1.700 0.200 程序 0.900",
        "rec 1 10.500 0.200 好 0.900",
        "rec 1 10.700 0.200 的 0.800",
    ]


def test_ctm_rounding_never_makes_neighbours_overlap(tmp_path: Path) -> None:
    generator = random.Random(0)
    times = list(itertools.accumulate(generator.random() * 0.1 for _ in range(200)))
    tokens = [TimedToken("好", start, end) for start, end in itertools.pairwise(times)]
    write_hypotheses([Hypothesis("u", "好" * 199, tokens)], tmp_path / "ctm", "ctm")
    rows = [line.split() for line in lines(tmp_path / "ctm")]
    assert all(len(row) == 5 for row in rows)  # no confidence, no column
    for before, after in itertools.pairwise(rows):
        assert round(1000 * (float(before[2]) + float(before[3]))) <= round(1000 * float(after[2]))


def cues_of(document: str) -> list[tuple[int, int, int, str]]:
    """(number, start ms, end ms, text) of each cue, by a strict reading of the format."""
    pattern = re.compile(r"(\d+)\n(\d\d):(\d\d):(\d\d),(\d{3}) --> (\d\d):(\d\d):(\d\d),(\d{3})\n(.+)\n\n")
    cues, position = [], 0
    while position < len(document):
        match = pattern.match(document, position)
        assert match, document[position : position + 80]
        numbers = [int(value) for value in match.groups()[1:9]]
        start, end = (
            ((hours * 60 + minutes) * 60 + seconds) * 1000 + milliseconds
            for hours, minutes, seconds, milliseconds in (numbers[:4], numbers[4:])
        )
        cues.append((int(match[1]), start, end, match[10]))
        position = match.end()
    return cues


def check_cues(document: str) -> list[tuple[int, int, int, str]]:
    cues = cues_of(document)
    assert [cue[0] for cue in cues] == list(range(1, len(cues) + 1))
    assert all(start < end for _, start, end, _ in cues)
    assert all(before[2] <= after[1] for before, after in itertools.pairwise(cues))
    return cues


def test_srt_of_one_recording(tmp_path: Path) -> None:
    written = write_hypotheses([LATER, *ALL[::2], SILENT], tmp_path / "a.srt", "srt")
    assert written.skipped == [("u3", "not audio")]
    assert check_cues((tmp_path / "a.srt").read_text(encoding="utf-8")) == [
        (1, 500, 1900, "用python写hello world程序"), (2, 10500, 10900, "好的"),
    ]


def test_srt_cuts_at_pauses_and_at_length() -> None:
    text = "一二三四五六七八九十" * 5
    cues = check_cues(srt_document([spoken("u", list(text), text, start=3600.0)]))
    assert [len(cue[3]) for cue in cues] == [20, 20, 10]
    assert "".join(cue[3] for cue in cues) == text
    assert cues[0][1] == 3600500
    tokens = [TimedToken("你", 0.0, 0.3), TimedToken("好", 1.5, 1.8), TimedToken("吗", 2.3, 2.5)]
    assert [cue[3] for cue in check_cues(srt_document([Hypothesis("u", "你好吗", tokens)]))] == ["你", "好吗"]


def test_srt_without_or_with_foreign_times_is_one_cue() -> None:
    untimed = Hypothesis("u", "没有时间，\n\n很长很长的一句话也在一处", start_sec=1.0, duration_sec=2.0)
    punctuated = spoken("v", ["你", "好"], "你好！", start=5.0)
    assert [cue[1:] for cue in check_cues(srt_document([punctuated, untimed]))] == [
        (1000, 3000, "没有时间， 很长很长的一句话也在一处"), (5500, 5900, "你好！"),
    ]


def overlapping(seed: int) -> list[Hypothesis]:
    generator = random.Random(seed)
    return [
        spoken(f"u{index}", list("今天天气") * generator.randint(1, 8), "今天天气", start=generator.random() * 5,
               each=generator.choice([0.0, 0.01, 0.3]), channel=generator.randint(0, seed % 2))
        for index in range(12)
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_srt_of_overlapping_utterances_keeps_every_text(seed: int) -> None:
    cues = check_cues(srt_document(overlapping(seed)))
    assert len(cues) >= 12


def test_srt_of_utterances_that_begin_at_once() -> None:
    both = [spoken("u", ["你"], "你"), spoken("v", ["好"], "好", channel=1)]
    assert {cue[3] for cue in check_cues(srt_document(both))} == {"你", "好"}
    tiers = read_textgrid(textgrid_document([*both, spoken("w", ["吗"], "吗")]))
    assert [row[2] for row in tiers["words 1"] if row[2]] == ["你", "吗"]


def read_textgrid(document: str) -> dict[str, list[tuple[float, float, str]]]:
    """Tiers of a long TextGrid, with the checks that Praat makes."""
    head = re.match(r'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = (\S+)\n'
                    r"tiers\? <exists>\nsize = (\d+)\nitem \[\]:\n", document)
    assert head
    end = float(head[1])
    parts = re.split(r"    item \[\d+\]:\n", document[head.end() :])[1:]
    assert len(parts) == int(head[2])
    tiers = {}
    for part in parts:
        top = re.match(r' {8}class = "IntervalTier"\n {8}name = "(.+)"\n {8}xmin = 0\n {8}xmax = (\S+)\n'
                       r" {8}intervals: size = (\d+)\n", part)
        assert top
        assert float(top[2]) == end
        found = re.findall(r' {8}intervals \[(\d+)\]:\n {12}xmin = (\S+)\n {12}xmax = (\S+)\n {12}text = "((?:[^"]|"")*)"\n',
                           part)
        assert [int(row[0]) for row in found] == list(range(1, int(top[3]) + 1))
        rows = [(float(start), float(stop), text.replace('""', '"')) for _, start, stop, text in found]
        assert (rows[0][0], rows[-1][1]) == (0.0, end)
        assert all(start < stop for start, stop, _ in rows)
        assert all(before[1] == after[0] for before, after in itertools.pairwise(rows))
        tiers[top[1]] = rows
    return tiers


def test_textgrid_of_one_recording(tmp_path: Path) -> None:
    quoted = spoken("u8", ["他", "说"], '他"说"', start=40.0)
    written = write_hypotheses([*ALL, quoted], tmp_path / "a.TextGrid", "textgrid")
    assert written.skipped == [("u3", "not audio")]
    tiers = read_textgrid((tmp_path / "a.TextGrid").read_text(encoding="utf-8"))
    assert list(tiers) == ["utterances", "words"]
    assert [row for row in tiers["utterances"] if row[2]] == [
        (0.0, 2.4, "用python写hello world程序"), (10.0, 11.4, "好的"), (40.0, 41.4, '他"说"'),
    ]
    assert (30.0, 32.5, "") in tiers["utterances"]
    words = [row[2] for row in tiers["words"] if row[2]]
    assert words == ["用", "python", "写", "hello", "world", "程序", "好", "的", "他", "说"]


@pytest.mark.parametrize("seed", range(6))
def test_textgrid_of_overlapping_utterances_and_channels(seed: int) -> None:
    tiers = read_textgrid(textgrid_document(overlapping(seed)))
    assert sum(bool(row[2]) for name, rows in tiers.items() if name.startswith("utt") for row in rows) == 12
    channels = {hypothesis.channel for hypothesis in overlapping(seed)}
    assert len(tiers) == 2 * len(channels)


def test_empty_textgrid_is_still_one() -> None:
    assert read_textgrid(textgrid_document([])) == {"utterances": [(0.0, 1e-06, "")], "words": [(0.0, 1e-06, "")]}


def test_several_recordings_need_a_directory(tmp_path: Path) -> None:
    other = spoken("v1", ["好"], "好", recording="a/b rec")
    clash = spoken("v2", ["的"], "的", recording="a_b_rec")
    for format in ("srt", "textgrid"):
        for out in (tmp_path / "one.srt", None):
            with pytest.raises(DataError, match="here are rec and a/b rec; give --out a directory"):
                write_hypotheses([MIXED, other], out, format)
        assert list(tmp_path.iterdir()) == []
    written = write_hypotheses([MIXED, other, clash], tmp_path / "subtitles", "srt")
    names = sorted(path.name for path in (tmp_path / "subtitles").iterdir())
    assert names == ["a_b_rec.srt", "a_b_rec_.srt", "rec.srt"] == sorted(path.name for path in written.files)


def test_stdout_comes_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[str] = []

    def arriving() -> Iterator[Hypothesis]:
        for hypothesis in ALL:
            yield hypothesis
            shown.append(capsys.readouterr().out)

    for out in (None, "-"):
        for format in ("json", "text", "ctm"):
            shown.clear()
            write_hypotheses(arriving(), out, format)
            assert "用" in shown[0]
            assert "好" in shown[1]
            assert "用" not in shown[1]
    write_hypotheses(ALL, None, "srt")
    assert len(check_cues(capsys.readouterr().out)) == 2


@pytest.mark.parametrize("format", ["json", "text", "ctm", "srt", "textgrid"])
def test_a_failure_in_the_middle_leaves_no_file(format: str, tmp_path: Path) -> None:
    def failing() -> Iterator[Hypothesis]:
        yield MIXED
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        write_hypotheses(failing(), tmp_path / "hyp.out", format)
    assert list(tmp_path.iterdir()) == []
    assert write_hypotheses([], tmp_path / "hyp.out", format).utterances == 0
    assert (tmp_path / "hyp.out").is_file()


def test_unknown_format_lists_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`vtt` is not one of json, text, srt, ctm, textgrid"):
        write_hypotheses(ALL, tmp_path / "x", "vtt")

"""The guard: each bound lets what was said pass and stops what was not, and says so."""

from __future__ import annotations

import pytest

from xllm_speech.base.errors import ConfigError
from xllm_speech.infer.guard import Guard, GuardConfig, count_decisions
from xllm_speech.infer.listening import Heard
from xllm_speech.records import TimedToken
from xllm_speech.text.tokens import TokenTable

SAID = "左上是什么颜色的"


@pytest.fixture(scope="module")
def guard():
    return Guard(TokenTable.train(["左上是什么颜色的形状一二三四五六七八九十百千万", "hello"], "char"))


def heard(text=SAID, units=None, steps=None, log_energy=15.0, swing=8.0):
    units = len(text) if units is None else units
    tokens = [TimedToken(letter, number, number + 1, 0.9) for number, letter in enumerate(text)]
    return Heard(text, tokens, units, 1.8 * units if steps is None else steps, log_energy, swing)


@pytest.mark.parametrize(
    ("sound", "reason"),
    [
        (heard("", 0), "no unit"),
        (heard(log_energy=4.5), "nothing louder than 6"),
        (heard(log_energy=float("-inf")), "nothing louder"),
        (heard(units=8, steps=2.0), "CTC hears less than 0.5 steps per unit"),
    ],
)
def test_silence_gives_no_text(guard, sound, reason):
    verdict = guard.judge_sound(sound)
    assert (verdict.decision, verdict.text) == ("empty", "")
    assert reason in verdict.reason
    record = verdict.record("")
    assert record["decision"] == "empty"
    assert "llm_text" not in record
    assert record["units"] == sound.units


def never_asked():
    raise AssertionError("voice activity was asked without doubt")


@pytest.mark.parametrize(
    ("sound", "voice", "reason"),
    [
        (heard(units=10, steps=8.9), False, "voice activity hears nobody"),
        (heard(units=10, steps=8.9), True, None),
        (heard(units=10, steps=8.9), None, None),
        (heard(units=10, steps=2.0), True, None),  # a voice that the model does not know
        (heard(units=10, steps=2.0), None, "CTC hears less than 0.5 steps per unit"),
        (heard(units=10, steps=8.9, swing=0.3), None, "a steady sound, and CTC hears less than 0.9"),
        (heard(units=10, steps=8.9, swing=0.3), True, None),
        (heard(units=10, steps=8.9, swing=0.5), None, None),
        (Heard(SAID, [], 8, None, 15.0, 0.3), False, "voice activity hears nobody"),  # without CTC
        (Heard(SAID, [], 8, None, 15.0, 0.3), None, None),
    ],
)
def test_in_doubt_voice_activity_is_asked(guard, sound, voice, reason):
    verdict = guard.judge_sound(sound, lambda: voice)
    assert (None if verdict is None else verdict.reason[: len(reason or "")]) == reason


def test_without_doubt_nobody_is_asked(guard):
    assert guard.judge_sound(heard(units=10, steps=9.1, swing=0.1), never_asked) is None
    assert guard.judge_sound(heard(log_energy=4.0), never_asked).reason == "nothing louder than 6"


@pytest.mark.parametrize("sound", [heard(), heard(log_energy=6.1), heard(steps=4.1), Heard(SAID, [], 8, None, 15.0)])
def test_speech_passes_to_the_llm(guard, sound):
    assert guard.judge_sound(sound) is None


@pytest.mark.parametrize(
    "text", [SAID, "左上是什么颜色", "左下是什么颜色的", "左上，是什么颜色的？", "左上是什么形状的", "左上面是什么颜色的呢"]
)
def test_a_transcript_near_what_was_heard_is_kept(guard, text):
    verdict = guard.judge(heard(), text)
    assert (verdict.decision, verdict.text, verdict.reason) == ("kept", text, "")
    assert "llm_text" not in verdict.record(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("左上是什么颜色的的的的", "a loop"),
        ("左上是什么" * 4, "a loop"),
        (SAID + "一二三四五", "13 tokens for 8 units, more than 12.8"),
        ("左上", "2 tokens for 8 units, fewer than 4"),
        ("", "0 tokens for 8 units"),
        ("一二三四五六七八", "further than 0.7"),
    ],
)
def test_a_transcript_that_was_not_said_gives_way(guard, text, reason):
    verdict = guard.judge(heard(), text)
    assert (verdict.decision, verdict.text) == ("cif", SAID)
    assert reason in verdict.reason
    record = verdict.record(text)
    assert record.get("llm_text", "") == text
    assert set(record) >= {"units", "tokens", "distance", "log_energy", "heard_per_unit"}


def test_what_is_written_otherwise_is_no_distance(guard):
    assert guard.judge(heard("一百二十三"), "123").decision == "kept"
    assert guard.judge(heard("左左左左左左"), "左左左左左左").decision == "kept"  # said six times over
    assert guard.judge(heard("左"), "左上是").decision == "kept"  # short texts get some slack
    assert guard.judge(heard("左"), "左上是什么").decision == "cif"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heard_per_unit": -1}, "heard_per_unit -1"), ({"doubtful": 0.4}, "must not be below heard_per_unit 0.5"),
        ({"longest": 0.5}, "longest 0.5"), ({"slack": -1}, "slack -1"),
        ({"furthest": 0}, "furthest 0"),
    ],
)
def test_bounds_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        GuardConfig(**options)


def test_decisions_are_counted():
    assert count_decisions([{"decision": "kept"}, {"decision": "cif"}, {"decision": "kept"}]) == {"cif": 1, "kept": 2}

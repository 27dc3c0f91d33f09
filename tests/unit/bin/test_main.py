"""The entry of the command line: exit statuses and what a user sees."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from xllm_speech.base.errors import DataError
from xllm_speech.bin import main as entry
from xllm_speech.version import __version__


def verb_that(action):  # type: ignore[no-untyped-def]
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--number", type=int, default=0, help="a number")

    return SimpleNamespace(add_arguments=add_arguments, run=action)


def test_no_verb_is_a_wrong_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main([]) == 2
    assert "usage: xllm-speech VERB" in capsys.readouterr().err


@pytest.mark.parametrize(("word", "near"), [("trian", "train"), ("scores", "score"), ("transcirbe", "transcribe")])
def test_unknown_verb_names_the_nearest(word: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main([word]) == 2
    assert f"unknown verb `{word}`; did you mean `{near}`?" in capsys.readouterr().err


def test_wholly_unknown_verb_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["xyzzy"]) == 2
    assert "verbs: prepare, features" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["--version"]) == 0
    assert capsys.readouterr().out == f"xllm-speech {__version__}\n"


def test_status_and_arguments_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "load_verb", lambda name: verb_that(lambda args: args.number))
    assert entry.main(["score", "--number", "3"]) == 3


def test_user_error_is_one_line_without_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Special(DataError):
        exit_code = 4

    def fail(args: argparse.Namespace) -> int:
        raise Special("text:3: utterance a has no text; delete the line")

    monkeypatch.setattr(entry, "load_verb", lambda name: verb_that(fail))
    assert entry.main(["score"]) == 4
    assert capsys.readouterr().err == "xllm-speech score: text:3: utterance a has no text; delete the line\n"


def test_defects_of_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: argparse.Namespace) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(entry, "load_verb", lambda name: verb_that(fail))
    with pytest.raises(ZeroDivisionError):
        entry.main(["score"])


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(args: argparse.Namespace) -> int:
        import no_such_package_here.inner  # noqa: F401

        return 0

    monkeypatch.setattr(entry, "load_verb", lambda name: verb_that(fail))
    assert entry.main(["score"]) == 1
    error = capsys.readouterr().err
    assert "`no_such_package_here` is not installed" in error
    assert "xllm-speech doctor" in error


CHILD = """
import sys
from types import SimpleNamespace
from xllm_speech.bin import main as entry

def run(args):
    {body}
    return 0

entry.load_verb = lambda name: SimpleNamespace(add_arguments=lambda parser: None, run=run)
sys.exit(entry.main(["score"]))
"""


def test_interrupt_gives_130_without_traceback() -> None:
    code = CHILD.format(body="import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(10)")
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert child.returncode == 130
    assert child.stderr.strip() == "xllm-speech score: interrupted"


def test_reader_that_goes_away_makes_no_noise() -> None:
    code = CHILD.format(body="[print('x' * 1000) for _ in range(10000)]")
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.readline()
    child.stdout.close()
    assert child.stderr.read() == ""
    assert child.wait(timeout=30) == 128 + signal.SIGPIPE


def test_runs_as_a_module() -> None:
    child = subprocess.run(
        [sys.executable, "-m", "xllm_speech.bin.main", "--version"], capture_output=True, text=True, timeout=30,
        env={**os.environ, "PYTHONWARNINGS": "error"}, check=False,
    )
    assert child.stdout == f"xllm-speech {__version__}\n"
    assert child.stderr == ""

"""The chat at the terminal: commands, files dropped into a line, mistakes that change nothing, Ctrl-C, pipes."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from xllm_speech import XLLM
from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.infer.chat import Chat, dropped_files, kind_of, run_chat
from xllm_speech.manifests.conversations import read_conversations


@pytest.fixture(scope="module")
def model(xllm_dir):
    return XLLM.from_pretrained(xllm_dir)


class Talk:
    """A chat whose output is text."""

    def __init__(self, model, **options):
        self.said, self.wrong = io.StringIO(), io.StringIO()
        consoles = (Console(file=stream, width=300, highlight=False) for stream in (self.said, self.wrong))
        self.chat = Chat(model, *consoles, max_new_tokens=8, **options)

    def take(self, line):
        """What a line brings: (answer or note, mistake)."""
        places = self.said.tell(), self.wrong.tell()
        assert self.chat.take(line)
        return self.said.getvalue()[places[0] :].rstrip("\n"), self.wrong.getvalue()[places[1] :].rstrip("\n")


def test_rounds_with_media_are_one_conversation(model, media, tmp_path):
    talk = Talk(model)
    assert talk.take(f"/image {media / 'red.png'}")[1] == ""
    first, wrong = talk.take("什么颜色")
    first_messages = [{"role": "user", "content": [{"type": "image", "path": str(media / "red.png")},
                                                   {"type": "text", "text": "什么颜色"}]}]
    assert first == model.chat(first_messages, max_new_tokens=8)
    assert "cut after 8 tokens" in wrong
    assert talk.take(f"'{media / 'long.wav'}'") == ("", "")  # dropped: waits for the question
    second, _ = talk.take("")
    messages = [
        *first_messages, {"role": "assistant", "content": first},
        {"role": "user", "content": [{"type": "speech", "path": str(media / "long.wav")}]},
    ]
    assert second == model.chat(messages, max_new_tokens=8)
    history = talk.take("/history")[0].splitlines()
    assert history == [
        f"user: [image {media / 'red.png'}] 什么颜色", f"assistant: {first}", f"user: [speech {media / 'long.wav'}]",
        f"assistant: {second}",
    ]
    assert talk.take(f"/save {tmp_path / 'said.jsonl'}")[1] == ""
    saved = next(iter(read_conversations(tmp_path / "said.jsonl")))
    assert [message.role for message in saved.messages] == ["user", "assistant", "user", "assistant"]
    talk.take("/new")
    assert talk.take("/history")[0] == "nothing was said yet"
    assert talk.take("什么颜色")[0] == model.chat([{"role": "user", "content": "什么颜色"}], max_new_tokens=8)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/image {media}/broken.png", "broken.png: unreadable picture"),
        ("/speech {media}/nothing.wav", "nothing.wav: no such audio file"),
        ("/video {media}/broken.wav", "broken.wav"),
        ("/audio {media}/long.wav", "no interface for audio; it takes image, video, speech"),
        ("/image", "needs the path"),
        ("/save", "needs the path"),
        ("/save x.jsonl", "nothing was said yet"),
        ("/colour red", "/colour is no command"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(model, media, line, message):
    talk = Talk(model)
    said, wrong = talk.take(line.format(media=media))
    assert said == ""
    assert message in wrong
    assert wrong.count("\n") == 0
    assert (talk.chat.messages, talk.chat.waiting, talk.chat.failures) == ([], [], 1)


def test_a_question_that_does_not_fit_leaves_the_conversation_as_it_was(model):
    talk = Talk(model)
    talk.take("什么颜色")
    before = list(talk.chat.messages)
    assert "max_tokens is 256" in talk.take("什么颜色" * 100)[1]
    assert talk.chat.messages == before
    assert talk.take("什么")[0]


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(model, monkeypatch):
    talk = Talk(model)
    closed = []

    def interrupted(*_, **__):
        try:
            yield "红"
            raise KeyboardInterrupt
        finally:
            closed.append(True)

    monkeypatch.setattr(model, "chat", interrupted)
    assert talk.take("什么颜色")[0] == "红 (stopped)"
    assert closed
    assert talk.chat.messages[-1] == {"role": "assistant", "content": "红"}


def test_files_dropped_into_a_line(tmp_path):
    odd = tmp_path / "a picture (1).png"
    plain = tmp_path / "b.wav"
    for path in (odd, plain):
        path.write_bytes(b"")
    escaped = str(odd).replace(" ", "\\ ").replace("(", "\\(").replace(")", "\\)")
    for form in (str(odd), f"'{odd}'", f'"{odd}"', f"file://{str(odd).replace(' ', '%20')}", escaped):
        assert dropped_files(form) == ([str(odd)], "")
    assert dropped_files(f"{plain} 什么颜色") == ([str(plain)], "什么颜色")
    assert dropped_files(f"看 '{odd}' {plain} 什么") == ([str(odd), str(plain)], "看 什么")
    for text in ("what's 1.5 and a.png?", "什么颜色", str(tmp_path / "absent.png"), str(tmp_path)):
        assert dropped_files(text) == ([], text)
    assert [kind_of(name) for name in ("a.JPG", "b.mp4", "c.flac")] == ["image", "video", "speech"]
    with pytest.raises(DataError, match="say /image, /video or /speech"):
        kind_of("notes.txt")


def test_a_chat_that_nobody_watches(model, media, capsys, monkeypatch):
    question = [{"type": "image", "path": str(media / "red.png")}, {"type": "text", "text": "什么颜色"}]
    first = model.chat([{"role": "user", "content": question}], max_new_tokens=8)
    picture = [("image", str(media / "red.png"))]
    assert run_chat(model, picture, ["什么颜色", "/image nowhere.png"], False, max_new_tokens=8) == 1
    out, err = capsys.readouterr()
    assert out == f"{first}\n"
    assert "nowhere.png: no such picture" in err
    monkeypatch.setattr(sys, "stdin", io.StringIO("什么颜色\n/quit\n什么\n"))
    assert run_chat(model, [], [], False, max_new_tokens=8) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert run_chat(model, [("speech", str(media / "long.wav"))], [], False, max_new_tokens=8) == 0
    asked = [{"role": "user", "content": [{"type": "speech", "path": str(media / "long.wav")}]}]
    assert capsys.readouterr().out == model.chat(asked, max_new_tokens=8) + "\n"
    with pytest.raises(DataError, match="no such audio file"):
        run_chat(model, [("speech", "nowhere.wav")], ["什么"], False)
    with pytest.raises(ConfigError, match="nothing to type"):
        run_chat(model, [], ["什么"], True)


def test_the_verb_at_a_terminal_survives_ctrl_c(xllm_dir, media):
    """Through a pseudo terminal: Ctrl-C at the prompt and around an answer, a file by its path."""
    primary, secondary = pty.openpty()
    command = [sys.executable, "-m", "xllm_speech.bin.main", "chat", "--model", str(xllm_dir), "--max-tokens", "200"]
    child = subprocess.Popen(
        command, stdin=secondary, stdout=secondary, stderr=secondary, close_fds=True, start_new_session=True,
        env={**os.environ, "TERM": "dumb", "COLUMNS": "200"},
    )
    os.close(secondary)
    seen = ""

    def do_until(act, text, start):
        """Repeat `act` until `text` is seen: readline misses a signal that comes just before it waits."""
        nonlocal seen
        limit = time.monotonic() + 60
        while text not in seen[start:]:
            assert time.monotonic() < limit, seen
            act()
            again = time.monotonic() + 2
            while text not in seen[start:] and time.monotonic() < again:
                if select.select([primary], [], [], 0.2)[0]:
                    seen += os.read(primary, 65536).decode(errors="replace")
        return len(seen)

    def interrupt():
        os.kill(child.pid, signal.SIGINT)

    try:
        place = do_until(lambda: None, "> ", 0)
        place = do_until(interrupt, "/quit leaves", place)
        os.write(primary, f"{media / 'red.png'}\n".encode())
        place = do_until(lambda: None, "now ask", place)
        os.write(primary, "什么颜色\n".encode())
        do_until(lambda: None, "\n> ", place)
        interrupt()  # before the answer, in it, or at the prompt if that was quick
        place = do_until(lambda: os.write(primary, b"/history\n"), "user: [image", place)
        limit = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < limit:
            os.write(primary, b"/quit\n")
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(2)
        assert child.returncode == 0
    finally:
        child.kill()
        os.close(primary)
    assert "Traceback" not in seen

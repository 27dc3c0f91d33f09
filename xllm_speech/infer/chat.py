"""A chat at the terminal: what was said, media that wait for the next question, and commands."""

from __future__ import annotations

import contextlib
import mimetypes
import os
import shlex
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlparse

from rich.console import Console
from rich.text import Text

from xllm_speech.base.config import require
from xllm_speech.base.errors import DataError, SeamError, UserError
from xllm_speech.datasets.readers import Place
from xllm_speech.infer.answers import AnsweringReport
from xllm_speech.infer.messages import conversation_from_messages
from xllm_speech.infer.xllm import XLLM
from xllm_speech.manifests.conversations import write_conversations
from xllm_speech.records import ConversationItem

HELP = """\
/image PATH, /video PATH, /speech PATH   show or play it with the next question (or drop a file's path into the line)
an empty line                            ask about these media without words of your own
/new                                     forget everything that was said
/history                                 show what was said
/save FILE                               write it as a line of a conversation manifest
/help, /quit                             this help; leave (also Ctrl-D). Ctrl-C stops an answer"""
_KIND_OF = {"image": "image", "video": "video", "audio": "speech"}


class Chat:
    """One chat. `take` handles a line that was typed.

    Args:
        model: who answers. console: where answers go; notes and mistakes go to `problems`. options: of `XLLM.chat`.

    Attributes:
        messages: what was said. waiting: media for the next question. failures: lines that could not be answered.
    """

    def __init__(
        self, model: XLLM, console: Console, problems: Console, interactive: bool = False, **options: Any
    ) -> None:
        self.model, self.console, self.problems, self.options = model, console, problems, options
        self.interactive = interactive
        self.messages: list[dict[str, Any]] = []
        self.waiting: list[dict[str, str]] = []
        self.failures = 0

    def take(self, line: str) -> bool:
        """Do what a line says; False when it ends the chat. A mistake is told in one line and changes nothing."""
        line = line.strip()
        command, _, rest = line.partition(" ")
        rest = _unquote(rest.strip())
        try:
            match command:
                case "/quit" | "/exit":
                    return False
                case "/help":
                    self._say(HELP)
                case "/new":
                    self.messages, self.waiting = [], []
                    self._say("a new conversation")
                case "/history":
                    self._show_history()
                case "/save":
                    self.save(rest)
                case "/image" | "/video" | "/speech" | "/audio" | "/terminal":
                    self.attach(command[1:], rest)
                case _ if command.startswith("/") and not os.path.exists(command) and "/" not in command[1:]:
                    raise DataError(f"{command} is no command; /help tells them")
                case _:
                    self._take_text(line)
        except UserError as error:
            self.failures += 1
            self._complain(str(error))
        return True

    def _take_text(self, line: str) -> None:
        paths, text = dropped_files(line)
        for path in paths:
            self.attach(kind_of(path), path)
        if text or (self.waiting and not paths):
            self.ask(text)

    def attach(self, kind: str, path: str) -> None:
        """Put a medium in front of the next question; it is read at once, so that a broken file is told at once.

        Raises:
            DataError: it cannot be read, or the model has no interface for it.
        """
        if kind not in self.model.kinds:
            raise DataError(f"the model has no interface for {kind}; it takes {', '.join(self.model.kinds)}")
        if not path:
            raise DataError(f"/{kind} needs the path of a file")
        self.model.readers[kind].read(ConversationItem(kind, path=path), Place(id=kind, text=""))
        self.waiting.append({"type": kind, "path": path})
        if self.interactive:
            self._say(f"{kind} {path}; now ask, or press Enter")

    def ask(self, text: str) -> None:
        """Ask, with the media that wait; the answer is shown as it comes and becomes part of what was said.

        Ctrl-C stops it; what came until then counts, and if that is nothing the media wait again.

        Raises:
            DataError: it cannot be answered; what was said stays as it was, and the media are gone.
        """
        media, self.waiting = self.waiting, []
        messages = [*self.messages, {"role": "user", "content": [*media, *([{"type": "text", "text": text}] if text else [])]}]
        report, answer = AnsweringReport(), ""
        try:
            with contextlib.closing(self.model.chat(messages, stream=True, report=report, **self.options)) as pieces:
                for piece in pieces:
                    answer += piece
                    self.console.print(Text(piece), end="", soft_wrap=True)
        except KeyboardInterrupt:
            self.console.print(Text(" (stopped)"), end="")
            self.waiting = [] if answer.strip() else media
        except SeamError as error:
            raise DataError(str(error)) from error
        self.console.print()
        for _, note in report.notes:
            self._complain(note)
        if report.cut:
            self._complain(f"the answer was cut after {report.tokens} tokens; allow more with --max-tokens")
        if answer.strip():  # an empty answer would be no turn
            self.messages = [*messages, {"role": "assistant", "content": answer}]

    def save(self, path: str) -> None:
        """Write what was said as a conversation manifest of one line; `DataError` when there is nothing, or no place."""
        if not path:
            raise DataError("/save needs the path of a file")
        if not self.messages:
            raise DataError("nothing was said yet")
        conversation = conversation_from_messages(self.messages)
        try:
            write_conversations(path, [conversation])
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror})") from error
        self._say(f"written to {path}")

    def _show_history(self) -> None:
        for message in [*self.messages, *([{"role": "user", "content": self.waiting}] if self.waiting else [])]:
            content = message["content"]
            items = [{"type": "text", "text": content}] if isinstance(content, str) else content
            parts = [item["text"] if item["type"] == "text" else f"[{item['type']} {item['path']}]" for item in items]
            self._say(f"{message['role']}: {' '.join(parts)}")
        if not self.messages and not self.waiting:
            self._say("nothing was said yet")

    def _say(self, text: str) -> None:
        self.console.print(Text(text, style="dim"), soft_wrap=True)

    def _complain(self, text: str) -> None:
        self.problems.print(Text(f"xllm-speech chat: {text}", style="red"), soft_wrap=True)


def kind_of(path: str) -> str:
    """Kind of medium by a file's name; `DataError` for one that tells nothing."""
    name, _ = mimetypes.guess_type(path)
    kind = _KIND_OF.get((name or "").partition("/")[0])
    if kind is None:
        raise DataError(f"{path}: the name does not tell what it is; say /image, /video or /speech in front")
    return kind


def dropped_files(line: str) -> tuple[list[str], str]:
    """Paths of media files that were dropped into a line, as terminals write them, and the text that remains."""
    if os.path.isfile(_unquote(line)):
        return [_unquote(line)], ""
    try:
        words = shlex.split(line)
    except ValueError:  # a quotation mark of the text's own
        words = line.split()
    paths = [word for word in map(_unquote, words) if _is_media(word)]
    if not paths:
        return [], line
    return paths, " ".join(word for word in words if _unquote(word) not in paths)


def _is_media(word: str) -> bool:
    try:
        return "." in word and os.path.isfile(word) and kind_of(word) != ""
    except DataError:
        return False


def _unquote(word: str) -> str:
    """A path without the quotation marks, backslashes or `file://` that a terminal puts around it; `~` is the home folder."""
    if word.startswith("file://"):
        return unquote(urlparse(word).path)
    if len(word) > 1 and word[0] == word[-1] and word[0] in "'\"":
        return word[1:-1]
    word = os.path.expanduser(word)
    return word if os.path.exists(word) else word.replace("\\ ", " ")


def run_chat(
    model: XLLM, media: list[tuple[str, str]], questions: list[str], interactive: bool,
    read_line: Callable[[], str] | None = None, **options: Any,
) -> int:
    """Chat: at the terminal, or through `questions` and then, without any, the lines of standard input.

    Args:
        media: (kind, path) in front of the first question. interactive: lines are typed by somebody, with `read_line`.

    Returns:
        1 when something could not be answered in a chat that nobody watches, else 0.

    Raises:
        DataError: a medium of `media` cannot be read.
    """
    require(not (interactive and questions), "questions on the command line are answered one after another; nothing to type")
    console, problems = Console(highlight=False), Console(stderr=True, highlight=False)
    chat = Chat(model, console, problems, interactive, **options)
    for kind, path in media:
        chat.attach(kind, path)
    if interactive:
        console.print(Text("an X-LLM for " + ", ".join(model.kinds) + "; /help tells the commands", style="dim"))
        while True:
            try:
                if not chat.take((read_line or _typed_line)()):
                    return 0
            except EOFError:
                console.print()
                return 0
            except KeyboardInterrupt:
                console.print(Text("\n/quit leaves", style="dim"))
    lines = questions or [line.rstrip("\n") for line in sys.stdin]
    for line in lines or [""]:
        if not chat.take(line):
            break
    if chat.waiting:  # media without a question are asked about all the same
        chat.take("")
    return 1 if chat.failures else 0


def _typed_line() -> str:
    import readline  # noqa: F401 - gives `input` a history and keys

    return input("> ")

"""N-gram language models over the tokens of a table: ARPA files read here or by KenLM, KenLM's binaries by KenLM only.

A model scores tokens by their pieces as `tokens.txt` writes them, so the words of the ARPA file must be those pieces
(characters for a table of characters). Back-off as in Katz 1987; scores are natural logarithms.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from xllm_speech.base.errors import DataError, MissingDependency, first_line
from xllm_speech.base.files import numbered_lines

logger = logging.getLogger(__name__)

LOG_10 = math.log(10.0)
BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
KENLM_MAGIC = b"mmap lm http://kheafield.com/code"
NEVER_LOG10 = -100.0  # of an unknown word in a file without <unk>; KenLM's choice too
LEAST_KNOWN = 0.5  # share of the table's tokens that the model must know


class NgramModel(Protocol):
    """What the searches ask. A state is opaque; it belongs to the model that gave it."""

    order: int

    def start(self) -> Any:
        """State at the beginning of a sentence."""

    def step(self, state: Any, token: int) -> tuple[float, Any]:
        """log P(token | state), and the state behind it."""

    def finish(self, state: Any) -> float:
        """log P(end of sentence | state)."""


class ArpaModel:
    """An ARPA model in Python: small, slow to load, always there.

    Args:
        grams: for each order from 1: {words: (log10 probability, log10 back-off weight)}. pieces: token strings by id.
    """

    def __init__(self, grams: Sequence[dict[tuple[str, ...], tuple[float, float]]], pieces: Sequence[str]) -> None:
        self.grams, self.order = grams, len(grams)
        self.words = [piece if (piece,) in grams[0] else UNKNOWN for piece in pieces]

    def start(self) -> tuple[str, ...]:
        """The words that matter for what follows, here `<s>`."""
        return (BEGIN,)[: self.order - 1]

    def step(self, state: tuple[str, ...], token: int) -> tuple[float, tuple[str, ...]]:
        """Natural log probability and the next words that matter."""
        word = self.words[token]
        kept = (*state, word)[max(0, len(state) + 2 - self.order) :] if self.order > 1 else ()
        return self.log10(state, word) * LOG_10, kept

    def finish(self, state: tuple[str, ...]) -> float:
        """Natural log probability of the end."""
        return self.log10(state, END) * LOG_10

    def log10(self, context: tuple[str, ...], word: str) -> float:
        """log10 P(word | context), through the back-off weights of longer contexts that do not hold the word."""
        weight = 0.0
        for first in range(len(context) + 1):
            found = self.grams[len(context) - first].get((*context[first:], word))
            if found is not None:
                return weight + found[0]
            if first < len(context):
                weight += self.grams[len(context) - first - 1].get(context[first:], (0.0, 0.0))[1]
        return weight + NEVER_LOG10


class KenlmModel:
    """A model queried through KenLM.

    Args:
        model: a `kenlm.Model`. pieces: token strings by id.
    """

    def __init__(self, model: Any, pieces: Sequence[str]) -> None:
        from kenlm import State

        self.model, self.pieces, self.order, self._new_state = model, list(pieces), int(model.order), State

    def start(self) -> Any:
        """KenLM's state behind `<s>`."""
        state = self._new_state()
        self.model.BeginSentenceWrite(state)
        return state

    def step(self, state: Any, token: int) -> tuple[float, Any]:
        """Natural log probability and KenLM's next state."""
        following = self._new_state()
        return self.model.BaseScore(state, self.pieces[token], following) * LOG_10, following

    def finish(self, state: Any) -> float:
        """Natural log probability of the end."""
        return self.model.BaseScore(state, END, self._new_state()) * LOG_10


def load_ngram(path: str | Path, pieces: Sequence[str], use_kenlm: bool | None = None) -> NgramModel:
    """An ARPA file (plain or gzip) or a KenLM binary, for the tokens `pieces` (by id).

    Args:
        use_kenlm: None takes KenLM where it is installed and says so where a large file would want it.

    Raises:
        DataError: absent, broken (file and line), or made of other tokens than these. MissingDependency: a KenLM binary, or
            `use_kenlm`, without KenLM.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such language model")
    with open(path, "rb") as stream:
        binary = stream.read(len(KENLM_MAGIC)) == KENLM_MAGIC
    kenlm = _import_kenlm() if use_kenlm is not False else None
    if kenlm is None and (binary or use_kenlm):
        raise MissingDependency(
            f"{path}: {'a KenLM binary' if binary else 'asked for'}, and the package kenlm is not installed; "
            "`.venv/bin/python -m pip install 'kenlm>=0.3'` (it wants g++ and cmake), or give an ARPA file"
        )
    if kenlm is not None:
        config = kenlm.Config()
        config.show_progress, config.arpa_complain = False, kenlm.ARPALoadComplain.NONE
        try:
            model = kenlm.Model(str(path), config)
        except (OSError, RuntimeError) as error:
            # Our reader takes unigram models, which KenLM does not, and names the line where a file is broken.
            if binary:
                raise DataError(f"{path}: KenLM cannot read it ({first_line(error)})") from error
        else:
            _check_tokens(path, [piece for piece in _spoken(pieces) if piece not in model], pieces)
            return KenlmModel(model, pieces)
    elif use_kenlm is None:
        logger.info("%s: kenlm is not installed, so the slower reader of ARPA files is used", path)
    arpa = ArpaModel(read_arpa(path), pieces)
    _check_tokens(path, [piece for piece in _spoken(pieces) if (piece,) not in arpa.grams[0]], pieces)
    return arpa


def _import_kenlm() -> Any:
    try:
        import kenlm
    except ImportError:
        return None
    return kenlm


def _spoken(pieces: Sequence[str]) -> list[str]:
    """Tokens that stand for something said: all but <blank>, <unk> and <sos/eos>."""
    return [piece for piece in pieces if not (piece.startswith("<") and piece.endswith(">") and piece != "<space>")]


def _check_tokens(path: Path, unknown: list[str], pieces: Sequence[str]) -> None:
    wanted = len(_spoken(pieces))
    if wanted - len(unknown) < LEAST_KNOWN * wanted:
        raise DataError(
            f"{path}: knows {wanted - len(unknown)} of the model's {wanted} tokens, not {', '.join(unknown[:5])}; its words "
            "must be the pieces of tokens.txt (`xllm-speech ngram` makes such a model)"
        )


def read_arpa(path: str | Path) -> list[dict[tuple[str, ...], tuple[float, float]]]:
    """The n-grams of an ARPA file by order: {words: (log10 probability, log10 back-off weight)}.

    Raises:
        DataError: absent or broken; names the file and the line.
    """
    lines = numbered_lines(path)
    counts = _read_counts(path, lines)
    grams: list[dict[tuple[str, ...], tuple[float, float]]] = []
    section: dict[tuple[str, ...], tuple[float, float]] | None = None
    number = 0
    for number, line in lines:
        if not line.strip():
            continue
        if line.startswith("\\"):
            if grams and section is not None and len(section) != counts[len(grams) - 1]:
                raise DataError(f"{path}:{number}: {len(section)} {len(grams)}-grams, its head says {counts[len(grams) - 1]}")
            if line.strip() == "\\end\\":
                if len(grams) != len(counts):
                    raise DataError(f"{path}:{number}: ends after order {len(grams)} of {len(counts)}")
                return grams
            if len(grams) == len(counts) or line.strip() != f"\\{len(grams) + 1}-grams:":
                raise DataError(f"{path}:{number}: expected \\{len(grams) + 1}-grams: or \\end\\, found {line.strip()!r}")
            section = {}
            grams.append(section)
            continue
        if section is None:
            raise DataError(f"{path}:{number}: an n-gram before \\1-grams:")
        fields, order = line.split(), len(grams)
        try:
            probability = float(fields[0])
            weight = float(fields[order + 1]) if len(fields) == order + 2 else 0.0
        except (ValueError, IndexError):
            fields = []
        if len(fields) not in (order + 1, order + 2):
            raise DataError(f"{path}:{number}: expected log10 probability, {order} words and a back-off weight; found {line!r}")
        section[tuple(fields[1 : order + 1])] = (probability, weight)
    raise DataError(f"{path}:{number}: stops before \\end\\; the file was cut off")


def _read_counts(path: str | Path, lines: Iterator[tuple[int, str]]) -> list[int]:
    """The head of the file: how many n-grams of each order."""
    counts: list[int] = []
    started = False
    for number, line in lines:
        if line.strip() == "\\data\\":
            started = True
        elif started and line.startswith("ngram "):
            order, _, count = line[6:].partition("=")
            if not count.strip().isdigit() or order.strip() != str(len(counts) + 1):
                raise DataError(f"{path}:{number}: expected `ngram {len(counts) + 1}=COUNT`, found {line!r}")
            counts.append(int(count))
        elif started and not line.strip() and counts:
            return counts
        elif started and line.strip():
            raise DataError(f"{path}:{number}: expected counts of n-grams, found {line!r}")
    raise DataError(f"{path}: not an ARPA file: no \\data\\ with counts of n-grams")

"""Token tables: characters, sentencepiece pieces, or both mixed, with ids as in ESPnet.

id 0 is `<blank>`, 1 `<unk>`, then the tokens, and the last id is `<sos/eos>`. A table lives in a directory as
`tokens.txt` (one token per line, in id order), `tokenizer.json` (kind and normaliser) and, with pieces,
`sentencepiece.model`.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from xllm_speech.base.config import require, require_choice
from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.base.files import atomic_write, numbered_lines, read_json, write_json
from xllm_speech.text.normalise import NORMALISER, UNKNOWN, is_spaceless, join_words, normalise

BLANK, UNK, SPACE, EOS = "<blank>", "<unk>", "<space>", "<sos/eos>"
KINDS = ("char", "sentencepiece", "mixed")
WORD_START = "▁"  # how sentencepiece writes the space before a word

logger = logging.getLogger(__name__)


class TokenTable:
    """Text to token ids and back.

    kind `char`: one character one token, `<space>` between Latin words where the table has it. `sentencepiece`: pieces
    throughout. `mixed`: a Chinese character is one token, the text between is cut into pieces. A piece that begins with
    `▁` begins a Latin word; Chinese characters never carry that sign, so no unit is spent on a space nobody hears.

    Args:
        kind: `char`, `sentencepiece` or `mixed`.
        tokens: all tokens in id order, the special ones included.
        spm_model: serialised sentencepiece model; None for `char`, and for `mixed` where the text held no Latin.

    Raises:
        ConfigError: unknown kind; a special token out of place; a token that occurs twice; a model that is missing.
    """

    def __init__(self, kind: str, tokens: Sequence[str], spm_model: bytes | None = None) -> None:
        require_choice("token kind", kind, KINDS)
        require(
            len(tokens) >= 3 and tokens[0] == BLANK and tokens[1] == UNK and tokens[-1] == EOS,
            f"a token table begins with {BLANK} and {UNK} and ends with {EOS}; these {len(tokens)} tokens do not",
        )
        double = next((token for token, count in Counter(tokens).items() if count > 1), None)
        require(double is None, f"token `{double}` occurs twice in the table")
        require(kind != "sentencepiece" or spm_model is not None, "a sentencepiece table needs its model")
        self.kind = kind
        self.tokens = tuple(tokens)
        self.spm_model = spm_model
        self._ids = {token: index for index, token in enumerate(self.tokens)}
        self._processor = None if spm_model is None else _open_sentencepiece(spm_model)

    @property
    def size(self) -> int:
        """Number of tokens, the special ones included: the width of the model's output."""
        return len(self.tokens)

    @property
    def blank_id(self) -> int:
        """Id of `<blank>`: 0."""
        return 0

    @property
    def unk_id(self) -> int:
        """Id of `<unk>`: 1."""
        return 1

    @property
    def eos_id(self) -> int:
        """Id of `<sos/eos>`: the last."""
        return self.size - 1

    sos_id = eos_id

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, which is brought into normal form here; no `<sos/eos>` is added; "" gives [].

        A character that the table does not know gives `<unk>`, one each. A space gives `<space>`, or nothing where the
        table has none (the normal form has spaces between non-Chinese words only).
        """
        return [self._ids.get(token, self.unk_id) for token in self._cut(normalise(text))]

    def count_unknown(self, text: str) -> Counter[str]:
        """The pieces of `text`'s normal form that `encode` turns into `<unk>`, with their counts."""
        return Counter(token for token in self._cut(normalise(text)) if token not in self._ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` in the spacing of the normal form; blank and eos are left out, `<unk>` becomes U+FFFD.

        Raises `ConfigError` for an id outside the table.
        """
        return join_tokens(self.piece(index) for index in ids if index not in (self.blank_id, self.eos_id))

    def piece(self, index: int) -> str:
        """The token with this id as `tokens.txt` writes it (`▁hello`, `<space>`, `好`)."""
        index = int(index)
        require(0 <= index < self.size, f"token id {index} is outside the table of {self.size} tokens")
        return self.tokens[index]

    def save(self, directory: str | Path) -> None:
        """Write the table's files into `directory` (made where absent, other files in it stay), each atomically."""
        directory = Path(directory)
        if self.spm_model is not None:
            with atomic_write(directory / "sentencepiece.model", "wb") as stream:
                stream.write(self.spm_model)
        with atomic_write(directory / "tokens.txt") as stream:
            stream.writelines(token + "\n" for token in self.tokens)
        write_json(directory / "tokenizer.json", self._description())

    def _description(self) -> dict[str, Any]:
        digest = None if self.spm_model is None else hashlib.sha256(self.spm_model).hexdigest()
        return {"kind": self.kind, "size": self.size, "normaliser": NORMALISER, "sentencepiece_sha256": digest}

    @classmethod
    def load(cls, path: str | Path) -> TokenTable:
        """Read a table's directory, or a bare `tokens.txt` as Kaldi, WeNet and ESPnet write them (kind `char`).

        A bare file holds one token per line, or a token and its id; ids must count up from 0.

        Raises:
            DataError: a file is missing or unreadable, or files disagree; the text names the file and the numbers.
        """
        path = Path(path)
        if path.is_file():
            tokens = _read_tokens(path)
            long = [token for token in tokens[2:-1] if len(token) > 1 and token != SPACE]
            if long:
                logger.warning("%s: read as a table of characters; %d longer tokens are never used, first `%s`",
                               path, len(long), long[0])
            return _named(path, "char", tokens, None)
        for name in ("tokens.txt", "tokenizer.json"):
            if not (path / name).is_file():
                raise DataError(f"{path}: no {name} here; a token table is made by `xllm-speech tokens --out {path}`")
        description = read_json(path / "tokenizer.json")
        if not isinstance(description, dict) or not {"kind", "size"} <= description.keys():
            raise DataError(f"{path / 'tokenizer.json'}: expected `kind` and `size`")
        tokens = _read_tokens(path / "tokens.txt")
        if len(tokens) != description["size"]:
            raise DataError(f"{path}: tokens.txt holds {len(tokens)} tokens, tokenizer.json says {description['size']}")
        if description.get("normaliser") != NORMALISER:
            logger.warning("%s: made with normaliser %s, this is %s; some characters may turn into %s",
                           path, description.get("normaliser"), NORMALISER, UNK)
        digest, model = description.get("sentencepiece_sha256"), None
        if digest is not None:
            try:
                model = (path / "sentencepiece.model").read_bytes()
            except OSError as error:
                raise DataError(f"{path}: sentencepiece.model cannot be read ({error.strerror}); "
                                "copy it from where the table was trained") from error
            if hashlib.sha256(model).hexdigest() != digest:
                raise DataError(f"{path}: sentencepiece.model is not the one that tokenizer.json was written with")
        return _named(path, description["kind"], tokens, model)

    @classmethod
    def train(cls, texts: Iterable[str], kind: str = "char", vocab_size: int | None = None) -> TokenTable:
        """Make a table from transcripts, the same table for the same texts in any order.

        vocab_size: most tokens of the whole table. char: the most frequent characters stay (None: all). Otherwise the
        number of pieces sought (None: 2000); little text gives fewer, which is said in the log; for `mixed`, Chinese
        characters come first and pieces fill the rest.

        Raises:
            ConfigError: unknown kind, a vocab_size with no room for the characters that pieces need, or no text at all.
        """
        require_choice("token kind", kind, KINDS)
        sentences = sorted(filter(None, map(normalise, texts)))
        require(bool(sentences), "token table: every transcript is empty in normal form; nothing to make a table from")
        limit = None if vocab_size is None else vocab_size - 3
        require(limit is None or limit >= 1, f"vocab_size {vocab_size}: at least 4, as three tokens are special")
        match kind:
            case "char":
                characters = _by_frequency(sentences)
                _say_dropped(characters[limit:] if limit is not None else [], vocab_size)
                middle, model = [SPACE if token == " " else token for token in characters[:limit]], None
            case "sentencepiece":
                model = _train_sentencepiece(sentences, limit if limit is not None else 1997)
                middle = _pieces(model)
            case _:
                middle, model = _train_mixed(sentences, limit)
        return cls(kind, [BLANK, UNK, *middle, EOS], model)

    def _cut(self, text: str) -> list[str]:
        """Tokens of a text in normal form, unknown ones as single characters."""
        match self.kind:
            case "char":
                has_space = SPACE in self._ids
                return [SPACE if token == " " else token for token in text if token != " " or has_space]
            case "sentencepiece":
                return self._cut_pieces(text)
            case _:
                tokens: list[str] = []
                for run in _runs(text):
                    tokens.extend([run] if is_spaceless(run[0]) else self._cut_pieces(run))
                return tokens

    def _cut_pieces(self, text: str) -> list[str]:
        if self._processor is None:
            return [character for character in text if character != " "]
        tokens: list[str] = []
        for piece in self._processor.encode(_mark_words(text), out_type=str):
            # sentencepiece joins neighbouring unknown characters; each must count once.
            tokens.extend([piece] if piece in self._ids else piece.replace(WORD_START, ""))
        return tokens


def join_tokens(pieces: Iterable[str]) -> str:
    """Text of tokens as `tokens.txt` writes them, in the spacing of the normal form."""
    parts = (" " if piece == SPACE else UNKNOWN if piece == UNK else piece.replace(WORD_START, " ") for piece in pieces)
    return join_words("".join(parts))


def _named(path: Path, kind: str, tokens: list[str], model: bytes | None) -> TokenTable:
    try:
        return TokenTable(kind, tokens, model)
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from error


def _read_tokens(path: Path) -> list[str]:
    """Tokens of a `tokens.txt`, with or without ids; every line is a token, a trailing empty one excepted."""
    tokens: list[str] = []
    for number, line in numbered_lines(path):
        fields = line.split()
        if not fields or len(fields) > 2:
            raise DataError(f"{path}:{number}: expected a token, or a token and its id; found {line!r}")
        if len(fields) == 2 and fields[1] != str(len(tokens)):
            raise DataError(f"{path}:{number}: token `{fields[0]}` has id {fields[1]}, expected {len(tokens)}")
        tokens.append(fields[0])
    return tokens


def _runs(text: str) -> list[str]:
    """Cut a normal form into single Chinese characters and the runs of other text between them."""
    runs: list[str] = []
    for character in text:
        if runs and not is_spaceless(character) and not is_spaceless(runs[-1][0]):
            runs[-1] += character
        else:
            runs.append(character)
    return runs


def _mark_words(text: str) -> str:
    """A space before every word that is not Chinese, the first one too: what sentencepiece is trained on and cuts."""
    return "".join(run if is_spaceless(run[0]) else f" {run}" for run in _runs(" ".join(text.split())))


def _by_frequency(texts: Iterable[str]) -> list[str]:
    """Characters, most frequent first, ties in code point order; the unknown sign is no token."""
    counts = Counter(character for text in texts for character in text if character != UNKNOWN)
    return sorted(counts, key=lambda character: (-counts[character], character))


def _say_dropped(dropped: Sequence[str], vocab_size: int | None) -> None:
    if dropped:
        logger.warning("vocab_size %s: %d rarer characters become %s, first %s",
                       vocab_size, len(dropped), UNK, dropped[0])


def _train_mixed(sentences: list[str], limit: int | None) -> tuple[list[str], bytes | None]:
    runs = [run for sentence in sentences for run in _runs(sentence)]
    characters = _by_frequency(run for run in runs if is_spaceless(run[0]))
    latin = sorted(run for run in runs if not is_spaceless(run[0]))
    if not latin:
        _say_dropped(characters[limit:] if limit is not None else [], None if limit is None else limit + 3)
        return characters[:limit], None
    model = _train_sentencepiece(latin, 1997 if limit is None else limit - len(characters))
    return characters + _pieces(model), model


def _open_sentencepiece(model: bytes) -> Any:
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except Exception as error:
        raise ConfigError(f"the sentencepiece model cannot be opened ({str(error).splitlines()[0]})") from error


def _pieces(model: bytes) -> list[str]:
    """Pieces of a model without its own <unk>."""
    processor = _open_sentencepiece(model)
    return [processor.id_to_piece(index) for index in range(processor.vocab_size()) if not processor.is_unknown(index)]


def _train_sentencepiece(sentences: list[str], pieces: int) -> bytes:
    """A unigram model of at most `pieces` pieces; one thread and sorted, unsampled input make it repeatable."""
    import sentencepiece

    # The unknown sign would become a piece of its own and never be unknown again.
    forms = [_mark_words(sentence.replace(UNKNOWN, " ")) for sentence in sentences]
    alphabet = set("".join(forms))
    require(pieces >= len(alphabet),
            f"vocab_size leaves room for {pieces} sentencepiece pieces, but the text has {len(alphabet)} different "
            f"characters; raise it by at least {len(alphabet) - pieces}")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(forms), model_writer=model, model_type="unigram", vocab_size=pieces + 1,
            hard_vocab_limit=False, character_coverage=1.0, normalization_rule_name="identity",
            add_dummy_prefix=False, remove_extra_whitespaces=False, num_threads=1, input_sentence_size=0,
            shuffle_input_sentence=False, max_sentence_length=1 << 20, unk_id=0, bos_id=-1, eos_id=-1, pad_id=-1,
            minloglevel=2,
        )
    except Exception as error:
        reason = re.sub(r"\s+", " ", str(error))
        raise ConfigError(f"sentencepiece could not be trained on {len(sentences)} texts: {reason}") from error
    made = len(_pieces(model.getvalue()))
    if made < pieces:
        logger.warning("sentencepiece made %d pieces of the %d sought: the text holds no more", made, pieces)
    return model.getvalue()

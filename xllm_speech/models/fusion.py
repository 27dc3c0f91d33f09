"""From files to what a search adds to its scores: a language model and a list of hotwords, in the tokens of a model."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

from xllm_speech.base.config import require
from xllm_speech.base.errors import DataError
from xllm_speech.base.files import sha256_file
from xllm_speech.decoders.fusion import Fusion
from xllm_speech.decoders.hotwords import HotwordGraph
from xllm_speech.decoders.ngram import load_ngram
from xllm_speech.text.hotwords import read_hotwords
from xllm_speech.text.tokens import TokenTable

logger = logging.getLogger(__name__)

HOTWORD_BONUS = 1.5
LM_WEIGHT = 0.3


def build_fusion(
    table: TokenTable,
    lm: str | Path | None = None,
    lm_weight: float = LM_WEIGHT,
    hotwords: str | Path | Iterable[str] | None = None,
    hotword_bonus: float = HOTWORD_BONUS,
) -> Fusion | None:
    """For `SearchConfig.fusion`; None where neither is given.

    Args:
        lm: an ARPA file or a KenLM binary over the table's pieces. lm_weight: of its natural log probabilities.
        hotwords: a file with one phrase per line (empty lines and lines that begin with `#` do not count), or the phrases.
            One that the table cannot write is left out, with a warning that names it. hotword_bonus: natural log, per token.

    Raises:
        DataError: a file is absent, broken, or has no phrase that can be written. ConfigError: a weight is negative.
    """
    require(lm_weight >= 0, f"lm_weight {lm_weight} must not be negative")
    require(hotword_bonus >= 0, f"hotword_bonus {hotword_bonus} must not be negative")
    if lm is None and hotwords is None:
        return None
    model = None if lm is None else load_ngram(lm, [table.piece(index) for index in range(table.size)])
    graph, source = None, [] if lm is None else [f"lm {lm} ({sha256_file(lm)[:12]}) x {lm_weight:g}"]
    if hotwords is not None:
        phrases = _encode(table, hotwords)
        graph = HotwordGraph(phrases, hotword_bonus)
        digest = hashlib.sha256(repr(phrases).encode()).hexdigest()
        source.append(f"{len(phrases)} hotwords ({digest[:12]}) x {hotword_bonus:g}")
    return Fusion(table.eos_id, model, lm_weight, graph, "; ".join(source))


def _encode(table: TokenTable, hotwords: str | Path | Iterable[str]) -> list[list[int]]:
    from_file = isinstance(hotwords, str | Path)
    rows = read_hotwords(hotwords) if isinstance(hotwords, str | Path) else [("hotwords", phrase) for phrase in hotwords]
    phrases = []
    for where, phrase in rows:
        tokens = table.encode(phrase)
        if not tokens or table.unk_id in tokens:
            lost = ", ".join(table.count_unknown(phrase)) or "all of it"
            logger.warning("%s: hotword `%s` is left out: the model has no token for %s", where, phrase, lost)
        else:
            phrases.append(tokens)
    if not phrases:
        source = str(hotwords) if from_file else "hotwords"
        raise DataError(f"{source}: none of {len(rows)} phrases can be written with the model's {table.size} tokens")
    return phrases

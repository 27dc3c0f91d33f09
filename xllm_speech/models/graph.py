"""From a list of words and a word n-gram model to a graph in the tokens of a model (`SearchConfig.graph`)."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from xllm_speech.base.files import numbered_lines, sha256_file
from xllm_speech.decoders.graph import SearchGraph, build_graph
from xllm_speech.decoders.ngram import read_arpa
from xllm_speech.text.tokens import TokenTable

logger = logging.getLogger(__name__)


def load_graph(table: TokenTable, lexicon: str | Path, arpa: str | Path, lm_weight: float = 1.0) -> SearchGraph:
    """Compile a graph; a word that the table cannot write is left out, and their number goes to the log.

    Args:
        lexicon: one word per line, spelt by the table; or Kaldi's `lexicon.txt`, a word and its tokens as tokens.txt writes
            them. arpa: an n-gram model of these words. lm_weight: of its natural log probabilities.

    Raises:
        DataError: a file is absent or broken, or the two have no word in common. MissingDependency: no kaldifst.
    """
    ids = {table.piece(index): index for index in range(table.size)}
    spellings: dict[str, list[list[int]]] = {}
    left_out: list[str] = []
    for number, line in numbered_lines(lexicon):
        if not line.strip():
            continue
        word, *pieces = line.split()
        tokens = [ids.get(piece, table.unk_id) for piece in pieces] if pieces else table.encode(word)
        if not tokens or {table.unk_id, table.blank_id, table.eos_id} & set(tokens):
            left_out.append(f"{word} (line {number})")
        else:
            spellings.setdefault(word, []).append(tokens)
    if left_out:
        logger.warning("%s: %d words have no spelling in the model's tokens, first %s", lexicon, len(left_out), left_out[0])
    graph = build_graph(spellings, read_arpa(arpa), table.size, lm_weight, table.blank_id)
    hashes = [sha256_file(path)[:12] for path in (lexicon, arpa)]
    return replace(graph, source=f"lexicon {lexicon} ({hashes[0]}); words {arpa} ({hashes[1]}) x {lm_weight:g}")

"""From transcripts and a token table to an ARPA file: what `xllm-speech ngram` does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from xllm_speech.base.files import numbered_lines
from xllm_speech.decoders.ngram_estimate import NgramCounts, count_ngrams, estimate_ngram, write_arpa
from xllm_speech.decoders.ngram_prune import perplexity, prune_entropy
from xllm_speech.metrics.transcripts import read_transcripts
from xllm_speech.models.checkpoints import DESCRIPTION, find_model
from xllm_speech.text.tokens import TokenTable


@dataclass
class MadeNgram:
    """Sizes by order; transcripts counted, and left out for a character without a token; n-grams pruned, by counts and entropy.

    perplexities: (name of a text, before pruning by entropy, of the model written): of the transcripts, and of those held out.
    """

    sizes: list[int]
    sentences: int
    unknown: int
    pruned: int
    perplexities: list[tuple[str, float, float]]


def make_ngram(
    texts: Sequence[str | Path],
    plain: bool,
    tokens: str | Path,
    order: int,
    prune: Sequence[int],
    out: str | Path,
    entropy: float = 0.0,
    held_out: Sequence[str | Path] = (),
) -> MadeNgram:
    """Read transcripts, estimate a model over the table's pieces, write it to `out`, atomically.

    Args:
        texts: as `metrics.transcripts` reads them, or `plain` lines. tokens: a table's folder, a model directory, or the
            output of a training. prune: see `decoders.ngram_estimate.estimate_ngram`. entropy: threshold of
            `decoders.ngram_prune.prune_entropy`. held_out: further texts, whose perplexity is told.

    Raises:
        DataError: a file is absent or broken, or holds no transcript that the table can write.
        ConfigError: an order or a threshold out of its range.
    """
    folder = Path(tokens)
    holds_table = folder.is_dir() and any(folder.glob("tokens.*"))
    table = TokenTable.load(folder if holds_table and not (folder / DESCRIPTION).exists() else find_model(folder))
    pieces = [table.piece(index) for index in range(table.size)]
    counts, left_out = _count(texts, plain, table, order)
    measured = {"the transcripts": counts}
    if held_out:
        measured["the held-out transcripts"] = _count(held_out, plain, table, order)[0]
    special = {pieces[table.blank_id], pieces[table.unk_id], pieces[table.eos_id]}
    estimate = estimate_ngram(counts, prune, [piece for piece in pieces if piece not in special])
    grams = prune_entropy(estimate.grams, counts, entropy)
    write_arpa(out, grams)
    sizes = [len(table) for table in grams]
    pruned = sum(estimate.pruned) + sum(len(table) for table in estimate.grams) - sum(sizes)
    perplexities = [(name, perplexity(estimate.grams, text), perplexity(grams, text)) for name, text in measured.items()]
    return MadeNgram(sizes, counts.sentences, left_out, pruned, perplexities)


def _count(texts: Sequence[str | Path], plain: bool, table: TokenTable, order: int) -> tuple[NgramCounts, int]:
    """N-grams of pieces; and how many transcripts were left out for a character without a token."""
    left_out = 0

    def sentences() -> Iterator[list[str]]:
        nonlocal left_out
        for text in _read(texts, plain):
            ids = table.encode(text)
            if table.unk_id in ids:
                left_out += 1
            else:
                yield [table.piece(index) for index in ids]

    return count_ngrams(sentences(), order), left_out


def _read(texts: Sequence[str | Path], plain: bool) -> Iterator[str]:
    for path in texts:
        if plain:
            yield from (line for _, line in numbered_lines(path))
        else:
            yield from (row.text for row in read_transcripts(path))

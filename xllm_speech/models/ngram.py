"""From transcripts and a token table to an ARPA file: what `xllm-speech ngram` does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from xllm_speech.base.files import numbered_lines
from xllm_speech.decoders.ngram_estimate import count_ngrams, estimate_ngram, write_arpa
from xllm_speech.metrics.transcripts import read_transcripts
from xllm_speech.models.checkpoints import DESCRIPTION, find_model
from xllm_speech.text.tokens import TokenTable


@dataclass
class MadeNgram:
    """Sizes by order; transcripts counted, and left out for a character without a token; n-grams pruned."""

    sizes: list[int]
    sentences: int
    unknown: int
    pruned: int


def make_ngram(
    texts: Sequence[str | Path], plain: bool, tokens: str | Path, order: int, prune: Sequence[int], out: str | Path
) -> MadeNgram:
    """Read transcripts, estimate a model over the table's pieces, write it to `out`, atomically.

    Args:
        texts: as `metrics.transcripts` reads them, or `plain` lines. tokens: a table's folder, a model directory, or the
            output of a training. prune: see `decoders.ngram_estimate.estimate_ngram`.

    Raises:
        DataError: a file is absent or broken, or holds no transcript that the table can write.
        ConfigError: an order or a threshold out of its range.
    """
    folder = Path(tokens)
    holds_table = folder.is_dir() and any(folder.glob("tokens.*"))
    table = TokenTable.load(folder if holds_table and not (folder / DESCRIPTION).exists() else find_model(folder))
    pieces = [table.piece(index) for index in range(table.size)]
    left_out = 0

    def sentences() -> Iterator[list[str]]:
        nonlocal left_out
        for text in _read(texts, plain):
            ids = table.encode(text)
            if table.unk_id in ids:
                left_out += 1
            else:
                yield [pieces[index] for index in ids]

    counts = count_ngrams(sentences(), order)
    special = {pieces[table.blank_id], pieces[table.unk_id], pieces[table.eos_id]}
    estimate = estimate_ngram(counts, prune, [piece for piece in pieces if piece not in special])
    write_arpa(out, estimate.grams)
    return MadeNgram([len(grams) for grams in estimate.grams], counts.sentences, left_out, sum(estimate.pruned))


def _read(texts: Sequence[str | Path], plain: bool) -> Iterator[str]:
    for path in texts:
        if plain:
            yield from (line for _, line in numbered_lines(path))
        else:
            yield from (row.text for row in read_transcripts(path))

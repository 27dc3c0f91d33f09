"""From transcripts to an ARPA file, in Python and on the command line's verb."""

from __future__ import annotations

import argparse
import re

import pytest

from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.bin import ngram
from xllm_speech.decoders.ngram import load_ngram, read_arpa
from xllm_speech.models.ngram import make_ngram
from xllm_speech.text.tokens import TokenTable


@pytest.fixture
def tokens(tmp_path):
    TokenTable.train(["天地玄黄"], "char").save(tmp_path / "tokens")
    return tmp_path / "tokens"


def test_transcripts_of_both_forms_make_a_model_of_the_tables_pieces(tokens, tmp_path):
    (tmp_path / "text").write_text("a 天地玄\nb 玄黄。\nc 天空\nd\n")
    (tmp_path / "rows.jsonl").write_text('{"id": "e", "text": "天地"}\n')
    made = make_ngram([tmp_path / "text", tmp_path / "rows.jsonl"], False, tokens, 3, (), tmp_path / "lm.arpa.gz")
    assert (made.sentences, made.unknown, made.pruned) == (3, 1, 0)
    grams = read_arpa(tmp_path / "lm.arpa.gz")
    assert made.sizes == [len(table) for table in grams]
    assert {words[0] for words in grams[0]} == {*"天地玄黄", "<s>", "</s>", "<unk>"}
    model = load_ngram(tmp_path / "lm.arpa.gz", TokenTable.load(tokens).tokens, use_kenlm=False)
    table = TokenTable.load(tokens)
    sky, earth, dark = table.encode("天地玄")
    state = model.step(model.start(), sky)[1]
    assert model.step(state, earth)[0] > model.step(state, dark)[0]


def run(*words):
    parser = argparse.ArgumentParser()
    ngram.add_arguments(parser)
    return ngram.run(parser.parse_args([str(word) for word in words]))


def test_the_verb(tokens, tmp_path, capsys):
    (tmp_path / "text").write_text("天地\n天地\n天玄\n")
    options = ["--text", tmp_path / "text", "--plain", "--tokens", tokens, "--out", tmp_path / "lm.arpa"]
    assert run(*options, "--order", 2, "--prune", "0,1") == 0
    assert "7 1-grams, 3 2-grams from 3 transcripts, 2 n-grams pruned; 0 transcripts" in capsys.readouterr().out
    (tmp_path / "other").write_text("天地\n地天\n空\n")
    more = ["--prune-entropy", 0.05, "--held-out", tmp_path / "other"]
    assert run(*options, "--order", 2, *more) == 0
    lines = capsys.readouterr().out.splitlines()
    pruned = int(re.search(r"(\d+) n-grams pruned", lines[0])[1])
    assert pruned > 0
    assert len(read_arpa(tmp_path / "lm.arpa")[1]) == 5 - pruned
    for line, name in zip(lines[1:], ("the transcripts", "the held-out transcripts"), strict=True):
        found = re.fullmatch(rf"perplexity of {name}: ([0-9.]+); ([0-9.]+) before pruning by entropy", line)
        assert float(found[1]) != float(found[2])
    with pytest.raises(ConfigError, match=r"prune_entropy -1 must not"):
        run(*options, "--prune-entropy", -1)
    with pytest.raises(ConfigError, match=r"--prune x: expected counts"):
        run(*options, "--prune", "x")
    (tmp_path / "text").write_text("空\n")
    with pytest.raises(DataError, match="no sentence"):
        run(*options)

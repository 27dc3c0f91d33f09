"""Back-off scores against a definition written out, KenLM beside our reader, and every way a file can be wrong."""

from __future__ import annotations

import gzip
import itertools
import math
import random

import pytest

from xllm_speech.base.errors import DataError, MissingDependency
from xllm_speech.decoders import ngram
from xllm_speech.decoders.ngram import LOG_10, load_ngram, read_arpa
from xllm_speech.decoders.ngram_estimate import count_ngrams, estimate_ngram, write_arpa

PIECES = ["<blank>", "<unk>", "a", "b", "c", "d", "<sos/eos>"]
SMALL = """\\data\\
ngram 1=5
ngram 2=2

\\1-grams:
-99\t<s>\t-0.5
-0.6\t</s>
-0.7\ta\t-0.25
-0.8\tb\t-0.125
-1.5\t<unk>

\\2-grams:
-0.1\t<s> a
-0.2\ta b

\\end\\
"""


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.arpa"
    path.write_text(SMALL)
    return path


def score(model, tokens):
    state, scores = model.start(), []
    for token in tokens:
        log_prob, state = model.step(state, token)
        scores.append(log_prob)
    return [*scores, model.finish(state)]


def test_scores_follow_the_file_by_hand(small):
    model = load_ngram(small, ["<blank>", "<unk>", "a", "b"], use_kenlm=False)
    assert model.order == 2
    # <s> a | a b | b b backs off: -0.125 - 0.8 | b </s>: -0.125 - 0.6
    assert score(model, [2, 3, 3]) == pytest.approx([x * LOG_10 for x in (-0.1, -0.2, -0.925, -0.725)])
    assert score(model, [1]) == pytest.approx([x * LOG_10 for x in (-0.5 - 1.5, -0.6)])


def test_our_reader_and_kenlm_agree_on_our_models(tmp_path):
    pytest.importorskip("kenlm", reason="the optional package kenlm is not installed")
    generator = random.Random(0)
    sentences = [generator.choices("abc", weights=[5, 2, 1], k=generator.randint(1, 7)) for _ in range(60)]
    for order, prune in ((1, ()), (2, ()), (3, (0, 0, 1)), (4, (0, 1, 1, 2))):
        path = tmp_path / f"{order}.arpa"
        write_arpa(path, estimate_ngram(count_ngrams(sentences, order), prune, "abcd").grams)
        ours, theirs = (load_ngram(path, PIECES, use_kenlm=choice) for choice in (False, True))
        for tokens in itertools.chain(itertools.product(range(1, 6), repeat=3), [[], [2] * 9, [5, 4, 3, 2, 2, 3, 4, 5]]):
            assert score(ours, tokens) == pytest.approx(score(theirs, tokens), abs=1e-4)


def test_gzip_is_read_by_our_reader(small, tmp_path):
    zipped = tmp_path / "small.arpa.gz"
    zipped.write_bytes(gzip.compress(SMALL.encode()))
    assert read_arpa(zipped) == read_arpa(small)


@pytest.mark.parametrize(("old", "new", "words"), [
    ("\\end\\\n", "", "stops before"),
    ("ngram 2=2", "ngram 2=3", "2 2-grams, its head says 3"),
    ("-0.2\ta b", "-0.2\ta b c d", ":14: expected log10"),
    ("-0.2\ta b", "x\ta b", ":14: expected log10"),
    ("\\2-grams:", "\\3-grams:", "expected \\2-grams:"),
    ("ngram 2=2", "ngram 3=2", ":3: expected `ngram 2=COUNT`"),
    ("\\data\\", "data", "not an ARPA file"),
])
def test_a_broken_file_is_named_with_its_line(tmp_path, old, new, words):
    path = tmp_path / "broken.arpa"
    path.write_text(SMALL.replace(old, new))
    with pytest.raises(DataError) as caught:
        load_ngram(path, PIECES, use_kenlm=False)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_model_of_other_tokens_is_refused(small):
    with pytest.raises(DataError, match=r"knows 2 of the model's 6 tokens, not c, d, e.*xllm-speech ngram"):
        load_ngram(small, ["<blank>", "<unk>", *"abcdef", "<sos/eos>"], use_kenlm=False)


def test_an_absent_file_and_a_binary_without_kenlm(tmp_path, small, monkeypatch, caplog):
    with pytest.raises(DataError, match="no such language model"):
        load_ngram(tmp_path / "none", PIECES)
    monkeypatch.setattr(ngram, "_import_kenlm", lambda: None)
    binary = tmp_path / "lm.bin"
    binary.write_bytes(ngram.KENLM_MAGIC + b" version 5\n")
    with pytest.raises(MissingDependency, match=r"KenLM binary.*pip install"):
        load_ngram(binary, PIECES)
    with caplog.at_level("INFO"):
        model = load_ngram(small, PIECES[:4])
    assert "slower reader" in caplog.text
    assert math.isfinite(sum(score(model, [2, 3])))

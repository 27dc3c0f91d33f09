"""k2 beside torch and kaldi-decoder: the same losses, gradients and texts; a word where it is absent."""

from __future__ import annotations

import random
import sys

import pytest
import torch

from xllm_speech.base.errors import MissingDependency
from xllm_speech.decoders.ctc import ctc_greedy, ctc_loss
from xllm_speech.decoders.graph import build_graph, search_graph
from xllm_speech.decoders.k2_paths import ctc_loss_k2, search_graph_k2, search_tokens_k2
from xllm_speech.decoders.ngram_estimate import count_ngrams, estimate_ngram
from xllm_speech.decoders.prefix_beam import read_path

TOKENS = 6
LEXICON = {"x": [[1]], "xy": [[1, 2]], "yy": [[2, 2]], "z": [[3], [2]], "zz": [[3]], "long": [[4, 5, 4, 5]], "w": [[5]]}


@pytest.fixture
def k2():
    return pytest.importorskip("k2", reason="k2 is not installed: its paths are not compared")


@pytest.fixture(scope="module")
def graph():
    pytest.importorskip("kaldifst", reason="the optional package kaldifst is not installed")
    pytest.importorskip("kaldi_decoder", reason="the optional package kaldi-decoder is not installed")
    generator = random.Random(1)
    sentences = [generator.choices(list(LEXICON), k=generator.randint(1, 4)) for _ in range(60)]
    return build_graph(LEXICON, estimate_ngram(count_ngrams(sentences, 3)).grams, TOKENS, 0.7)


def make_batch(seed, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    lens_B = torch.randint(1, 13, (5,), generator=generator)
    return torch.randn(5, int(lens_B.max()), TOKENS, generator=generator) * scale, lens_B


@pytest.mark.parametrize("seed", range(8))
def test_losses_and_gradients_are_those_of_torch(k2, seed):
    logits, lens_B = make_batch(seed)
    generator = torch.Generator().manual_seed(seed)
    token_lens_B = torch.randint(0, 6, (5,), generator=generator)  # some do not fit their steps, some are empty
    tokens_BL = torch.randint(1, 4, (5, 5), generator=generator)
    found = []
    for loss in (ctc_loss, ctc_loss_k2):
        leaf = logits.clone().requires_grad_()
        value = loss(leaf, lens_B, tokens_BL, token_lens_B)
        value.backward()
        found.append((value.detach(), leaf.grad))
    torch.testing.assert_close(found[0], found[1], atol=2e-4, rtol=1e-5)


def test_a_loss_of_nothing_possible_is_zero(k2):
    logits = torch.randn(1, 2, TOKENS, requires_grad=True)
    loss = ctc_loss_k2(logits, torch.tensor([2]), torch.tensor([[1, 1]]), torch.tensor([2]))
    loss.backward()
    assert float(loss) == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("seed", range(4))
def test_the_best_path_is_the_greedy_one(k2, seed):
    logits, lens_B = make_batch(seed)
    log_probs = logits.log_softmax(-1)
    found = search_tokens_k2(log_probs, lens_B)
    written = [read_path(log_probs[row], result.tokens, 0.0).tokens for row, result in enumerate(found)]
    assert written == ctc_greedy(logits, lens_B)
    for row, result in enumerate(found):
        length = int(lens_B[row])
        assert result.tokens == log_probs[row, :length].argmax(-1).tolist()
        assert result.score == pytest.approx(float(log_probs[row, :length].max(-1).values.sum()), abs=1e-3)


@pytest.mark.parametrize("seed", range(12))
def test_words_and_steps_are_those_of_kaldi_decoder(k2, graph, seed):
    logits, lens_B = make_batch(seed)
    log_probs = logits.log_softmax(-1)
    found = search_graph_k2(graph, log_probs, lens_B, beam=60.0)
    for row, result in enumerate(found):
        other = search_graph(graph, log_probs[row, : int(lens_B[row])], beam=60.0)
        assert result.score == pytest.approx(other.score, abs=1e-3)
        assert (result.words, result.tokens) == (other.words, other.tokens)


def test_no_steps_give_nothing_and_half_a_word_what_came_before(k2, graph):
    log_probs = torch.full((2, 3, TOKENS), -90.0)
    for step, token in enumerate([1, 4, 5]):
        log_probs[0, step, token] = 0.0
    found = search_graph_k2(graph, log_probs, torch.tensor([3, 0]))
    assert [result.words for result in found] == [["x"], []]
    assert [result.tokens for result in search_tokens_k2(log_probs, torch.tensor([3, 0]))] == [[1, 4, 5], []]


def test_what_is_missing_is_named(graph, monkeypatch):
    monkeypatch.setitem(sys.modules, "k2", None)
    logits, lens_B = make_batch(0)
    for call in (
        lambda: search_graph_k2(graph, logits, lens_B), lambda: search_tokens_k2(logits, lens_B),
        lambda: ctc_loss_k2(logits, lens_B, torch.ones(5, 1, dtype=torch.long), torch.ones(5, dtype=torch.long)),
    ):
        with pytest.raises(MissingDependency, match=r"k2 is not installed for torch .*k2-fsa.github.io/k2/cuda.html"):
            call()

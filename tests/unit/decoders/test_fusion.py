"""The CIF beam search with a language model and hotwords against the score of every possible text."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from xllm_speech.cif import integrate_and_fire
from xllm_speech.decoders.cif_decoder import CifDecoder
from xllm_speech.decoders.fusion import Fusion
from xllm_speech.decoders.hotwords import HotwordGraph
from xllm_speech.decoders.ngram import ArpaModel
from xllm_speech.decoders.ngram_estimate import count_ngrams, estimate_ngram
from xllm_speech.decoders.search import CtcInput, search_beam, search_greedy

VOCAB = 6
PIECES = ["<blank>", "<unk>", "a", "b", "c", "<sos/eos>"]
BANNED = (0, VOCAB - 1)
COUNTS = [3, 0, 1, 2]


@pytest.fixture
def decoder():
    torch.manual_seed(1)
    model = CifDecoder(VOCAB, VOCAB - 1, width=16, heads=2, feedforward=24, blocks=2, dropout=0.0, visual_blocks=(),
                       linguistic_blocks=()).eval()
    torch.nn.init.normal_(model.vocabulary.weight, std=0.7)
    return model


@pytest.fixture
def cif():
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(len(COUNTS), 6, 16, generator=generator) * 2
    return integrate_and_fire(h, torch.full((len(COUNTS), 6), 0.5), torch.tensor([2 * n for n in COUNTS]))


def make_fusion(weight=1.0, bonus=1.0):
    generator = random.Random(0)
    sentences = [generator.choices("abc", k=generator.randint(1, 4)) for _ in range(40)]
    lm = ArpaModel(estimate_ngram(count_ngrams(sentences, 2), (), "abc").grams, PIECES)
    return Fusion(VOCAB - 1, lm, weight, HotwordGraph([[2, 3], [4, 4, 4]], bonus))


def added(fusion, tokens):
    state, total = fusion.start(), 0.0
    for token in tokens:
        score, state = fusion.step(state, token)
        total += score
    return total + fusion.finish(state)


def decoder_score(decoder, cif, row, tokens):
    logits = decoder(torch.tensor([tokens]), cif.units_BUD[row : row + 1, : len(tokens)])
    return float(logits.log_softmax(-1)[0].gather(1, torch.tensor(tokens)[:, None]).sum())


@pytest.mark.parametrize("ctc_weight", [0.0, 0.4])
def test_a_wide_beam_finds_the_best_of_all_texts(decoder, cif, ctc_weight):
    fusion = make_fusion()
    log_probs = torch.randn(len(COUNTS), 6, VOCAB, generator=torch.Generator().manual_seed(2)).log_softmax(-1)
    lens = torch.tensor([6, 5, 4, 6])
    ctc = CtcInput(log_probs, lens, ctc_weight) if ctc_weight else None

    def total(row, tokens):
        ours = decoder_score(decoder, cif, row, tokens)
        theirs = 0.0
        if ctc_weight:
            steps = int(lens[row])
            theirs = -float(torch.nn.functional.ctc_loss(
                log_probs[row, :steps, None], torch.tensor([tokens]), torch.tensor([steps]), torch.tensor([len(tokens)]),
                reduction="sum",
            ))
        return (1 - ctc_weight) * ours + ctc_weight * theirs + added(fusion, tokens)

    with torch.no_grad():
        found = search_beam(decoder, cif, VOCAB**3, ctc, banned=BANNED, candidates=VOCAB, fusion=fusion)
        assert found[1].tokens == []
        for row in (0, 2, 3):
            texts = list(itertools.product(range(1, VOCAB - 1), repeat=COUNTS[row]))
            best = max(texts, key=lambda tokens: total(row, list(tokens)))
            assert tuple(found[row].tokens) == best
            assert found[row].score == pytest.approx(total(row, list(best)), abs=1e-4)


def test_fusion_of_no_weight_changes_nothing(decoder, cif):
    with torch.no_grad():
        plain = search_beam(decoder, cif, 3, banned=BANNED)
        fused = search_beam(decoder, cif, 3, banned=BANNED, fusion=make_fusion(0.0, 0.0))
        greedy = search_beam(decoder, cif, 1, banned=BANNED, candidates=4, fusion=make_fusion(0.0, 0.0))
        assert [row.tokens for row in plain] == [row.tokens for row in fused]
        assert [row.tokens for row in greedy] == [row.tokens for row in search_greedy(decoder, cif, banned=BANNED)]


def test_a_hotword_comes_from_outside_of_the_decoders_candidates(decoder, cif):
    """Its tokens are the decoder's last choice, and two candidates are looked at."""
    with torch.no_grad():
        plain = search_beam(decoder, cif, 1, banned=BANNED, candidates=2)[0].tokens
        steps = decoder(torch.tensor([plain]), cif.units_BUD[:1])[0].log_softmax(-1)
        phrase = [int(step[1 : VOCAB - 1].argmin()) + 1 for step in steps]
        fusion = Fusion(VOCAB - 1, hotwords=HotwordGraph([phrase], 30.0))
        assert phrase != plain
        assert search_beam(decoder, cif, 1, banned=BANNED, candidates=2, fusion=fusion)[0].tokens == phrase


def test_what_follows_the_end_of_a_sentence_counts_nothing():
    fusion = make_fusion()
    end = VOCAB - 1
    assert added(fusion, [2, 3, end, 4, 4]) == pytest.approx(added(fusion, [2, 3]))
    state = fusion.step(fusion.start(), end)[1]
    assert state.ended
    assert fusion.step(state, 2) == (0.0, state)

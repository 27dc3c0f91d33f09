"""Search against exhaustive enumeration, and the decoder against itself step by step."""

from __future__ import annotations

import itertools

import pytest
import torch

from xllm_speech.cif import integrate_and_fire
from xllm_speech.decoders.cif_decoder import CifDecoder
from xllm_speech.decoders.search import CtcInput, search_beam, search_fast, search_greedy
from xllm_speech.records import Memory

VOCAB = 6


@pytest.fixture
def decoder():
    torch.manual_seed(1)
    model = CifDecoder(
        VOCAB, VOCAB - 1, width=16, heads=2, feedforward=24, blocks=3, dropout=0.0, visual_blocks=(2,), linguistic_blocks=(3,),
        visual_width=8, linguistic_width=8,
    ).eval()
    torch.nn.init.normal_(model.vocabulary.weight, std=1.0)
    return model


def whole_score(log_probs, tokens):
    """log P(tokens) under CTC, by PyTorch's loss."""
    return -float(torch.nn.functional.ctc_loss(
        log_probs[:, None], torch.tensor([tokens]), torch.tensor([len(log_probs)]), torch.tensor([len(tokens)]), reduction="sum"
    ))


def make_units(counts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    steps = 2 * max(counts)
    h = torch.randn(len(counts), steps, 16, generator=generator) * 2
    lens = torch.tensor([2 * n for n in counts])
    return integrate_and_fire(h, torch.full((len(counts), steps), 0.5), lens)


def score_by_teacher_forcing(decoder, cif, row, tokens):
    length = int(cif.lens_B[row])
    logits = decoder(torch.tensor([tokens]), cif.units_BUD[row : row + 1, :length])
    return float(logits.log_softmax(-1)[0].gather(1, torch.tensor(tokens)[:, None]).sum())


def test_step_by_step_equals_teacher_forcing(decoder):
    cif = make_units([4, 4])
    tokens = torch.tensor([[1, 2, 3, 4], [2, 2, 1, 3]])
    visual = Memory(torch.randn(2, 3, 8), torch.tensor([3, 0]))
    with torch.no_grad():
        whole = decoder(tokens, cif.units_BUD, visual)
        memories, state = decoder.project_memories(2, visual, None), decoder.start(2)
        previous = torch.full((2,), decoder.sos_id)
        for u in range(4):
            logits, state = decoder.step(previous, cif.units_BUD[:, u], state, memories)
            torch.testing.assert_close(logits, whole[:, u], atol=1e-5, rtol=1e-5)
            previous = tokens[:, u]


def test_wide_beam_finds_the_best_sequence_of_all(decoder):
    cif = make_units([3, 1, 2])
    banned = (0, VOCAB - 1)
    with torch.no_grad():
        found = search_beam(decoder, cif, beam=VOCAB**3, banned=banned, candidates=VOCAB)
        narrow = search_beam(decoder, cif, beam=1, banned=banned)
        greedy = search_greedy(decoder, cif, banned=banned)
        for row, units in enumerate([3, 1, 2]):
            best = max(
                itertools.product(range(1, VOCAB - 1), repeat=units),
                key=lambda tokens: score_by_teacher_forcing(decoder, cif, row, list(tokens)),
            )
            wide_beam = search_beam(decoder, make_row(cif, row), beam=4, banned=banned)[0]
            assert tuple(found[row].tokens) == best
            assert found[row].score == pytest.approx(score_by_teacher_forcing(decoder, cif, row, list(best)), abs=1e-4)
            assert narrow[row].tokens == greedy[row].tokens
            assert wide_beam.score >= greedy[row].score - 1e-5


def make_row(cif, row):
    length = int(cif.lens_B[row])
    return type(cif)(
        cif.units_BUD[row : row + 1, :length], cif.lens_B[row : row + 1], cif.quantity_B[row : row + 1],
        cif.start_BU[row : row + 1, :length], cif.fire_BU[row : row + 1, :length], cif.alpha_BS[row : row + 1],
    )


def test_joint_beam_maximises_the_weighted_sum(decoder):
    cif = make_units([2, 3])
    torch.manual_seed(3)
    log_probs, lens = (2 * torch.randn(2, 6, VOCAB)).log_softmax(-1), torch.tensor([5, 6])
    banned, weight = (0, VOCAB - 1), 0.4
    with torch.no_grad():
        found = search_beam(decoder, cif, 64, CtcInput(log_probs, lens, weight), banned=banned, candidates=VOCAB)
        for row, units in enumerate([2, 3]):
            scored = {
                tokens: (1 - weight) * score_by_teacher_forcing(decoder, cif, row, list(tokens))
                + weight * whole_score(log_probs[row, : lens[row]], tokens)
                for tokens in itertools.product(range(1, VOCAB - 1), repeat=units)
            }
            best = max(scored, key=scored.get)
            assert tuple(found[row].tokens) == best
            assert found[row].score == pytest.approx(scored[best], abs=1e-3)


@pytest.mark.parametrize("method", ["greedy", "beam", "fast"])
def test_an_utterance_gives_the_same_alone_and_in_a_batch(decoder, method):
    cif = make_units([5, 2, 0, 4], seed=4)
    torch.manual_seed(4)
    log_probs = torch.randn(4, 10, VOCAB).log_softmax(-1)
    lens = torch.tensor([10, 4, 1, 8])
    unit_logits = torch.randn(4, 5, VOCAB)
    visual = Memory(torch.randn(4, 3, 8), torch.tensor([3, 0, 2, 1]))

    def run(cif, rows):
        seen = Memory(visual.x_BND[rows], visual.lens_B[rows])
        match method:
            case "greedy":
                return search_greedy(decoder, cif, seen, banned=(0,))
            case "beam":
                return search_beam(decoder, cif, 3, CtcInput(log_probs[rows], lens[rows], 0.3), seen, banned=(0,))
        return search_fast(decoder, cif, unit_logits[rows, : cif.units_BUD.shape[1]], seen, banned=(0,))

    with torch.no_grad():
        together = run(cif, [0, 1, 2, 3])
        for row in range(4):
            alone = run(make_row(cif, row), [row])[0]
            assert alone.tokens == together[row].tokens
            assert alone.score == pytest.approx(together[row].score, abs=1e-4)
            assert len(alone.tokens) == int(cif.lens_B[row])


@pytest.mark.parametrize("width", [1, 3])
def test_an_utterance_without_units_left_leaves_the_batch(decoder, monkeypatch, width):
    cif, sizes, step = make_units([2, 5, 0, 4]), [], decoder.step

    def watched(previous_N, *args):
        sizes.append(len(previous_N))
        return step(previous_N, *args)

    monkeypatch.setattr(decoder, "step", watched)
    with torch.no_grad():
        if width == 1:
            search_greedy(decoder, cif)
        else:
            search_beam(decoder, cif, width, CtcInput(torch.randn(4, 10, VOCAB).log_softmax(-1), 2 * cif.lens_B, 0.3))
    assert sizes == [width * count for count in (3, 3, 2, 2, 1)]


def test_absent_modality_is_the_same_as_zeros_and_as_nothing(decoder):
    cif = make_units([4, 3])
    tokens = torch.tensor([[1, 2, 3, 4], [2, 2, 1, 0]])
    with torch.no_grad():
        nothing = decoder(tokens, cif.units_BUD)
        for zeros in (
            Memory(torch.zeros(2, 7, 8), torch.tensor([7, 7])),
            Memory(torch.zeros(2, 7, 8), torch.tensor([0, 0])),
            Memory(torch.full((2, 2, 8), 5.0), torch.tensor([0, 0])),  # absent, whatever the padding holds
            Memory(torch.zeros(2, 0, 8), torch.tensor([0, 0])),
        ):
            assert torch.equal(decoder(tokens, cif.units_BUD, zeros, zeros), nothing)
        present = decoder(tokens, cif.units_BUD, Memory(torch.ones(2, 1, 8), torch.tensor([1, 0])))
    assert not torch.allclose(present[0], nothing[0])
    torch.testing.assert_close(present[1], nothing[1])

"""Times of units: the weight inside the speech, cut into equal shares."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xllm_speech.base.units import STEP_SEC
from xllm_speech.cif import integrate_and_fire
from xllm_speech.infer.unit_times import energy_swing, frame_energies, place_tokens, speech_span, token_spans, unit_edges
from xllm_speech.records import TimedToken


def test_weight_that_lies_in_the_speech_fires_as_cif_does():
    generator = torch.Generator().manual_seed(0)
    alpha_S = torch.rand(20, generator=generator)
    alpha_S = alpha_S * 6 / alpha_S.sum()  # six whole units
    cif = integrate_and_fire(torch.zeros(1, 20, 2), alpha_S[None], torch.tensor([20]))
    edges = unit_edges(alpha_S, 6, 0.0, 20 * STEP_SEC)
    assert edges[:-1] == pytest.approx((cif.start_BU[0] * STEP_SEC).tolist(), abs=1e-4)
    assert edges[1:] == pytest.approx((cif.fire_BU[0] * STEP_SEC).tolist(), abs=1e-4)
    # pauses without weight change nothing but the ends
    padded = torch.cat([torch.zeros(5), alpha_S, torch.zeros(5)])
    later = [5 * STEP_SEC + edge for edge in edges]
    assert unit_edges(padded, 6, 5 * STEP_SEC, 25 * STEP_SEC) == pytest.approx(later, abs=1e-4)


def test_weight_in_the_pauses_belongs_to_nobody():
    alpha_S = torch.full((10,), 0.4)
    assert unit_edges(alpha_S, 4, 0.24, 0.64) == pytest.approx([0.24, 0.34, 0.44, 0.54, 0.64])
    assert unit_edges(torch.zeros(10), 2, 0.2, 0.6) == pytest.approx([0.2, 0.4, 0.6])
    holes = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    edges = unit_edges(holes, 2, 0.0, 6 * STEP_SEC)
    assert 2 * STEP_SEC - 1e-6 <= edges[1] <= 4 * STEP_SEC + 1e-6
    assert unit_edges(alpha_S, 0, 0.1, 0.5) == [0.1]


def test_edges_never_run_backwards_nor_leave_the_speech():
    generator = torch.Generator().manual_seed(1)
    for units in range(1, 9):
        alpha_S = torch.rand(12, generator=generator).square()
        edges = unit_edges(alpha_S, units, 0.1, 0.9)
        assert len(edges) == units + 1
        assert edges == sorted(edges)
        assert (edges[0], edges[-1]) == (pytest.approx(0.1), pytest.approx(0.9))


def test_speech_is_where_it_is_loud():
    rng = np.random.default_rng(0)
    energy_T = np.concatenate([rng.normal(4, 0.3, 30), rng.normal(14, 1.0, 100), rng.normal(4, 0.3, 50)])
    feats_TF = torch.from_numpy(energy_T)[:, None].expand(-1, 8)
    begin_sec, end_sec = speech_span(frame_energies(feats_TF))
    assert begin_sec == pytest.approx(0.3, abs=0.03)
    assert end_sec == pytest.approx(1.3, abs=0.03)
    even_TF = torch.full((50, 8), 12.0) + 0.1 * torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert speech_span(frame_energies(even_TF)) == (0.0, 0.5)
    assert speech_span(frame_energies(feats_TF[:2])) == (0.0, 0.02)


def test_noise_swings_little_and_speech_much():
    generator = torch.Generator().manual_seed(0)
    steady_TF = 12.0 + torch.randn(300, 80, generator=generator)
    assert 0.05 < energy_swing(frame_energies(steady_TF)) < 0.4
    steady_TF[100:200] += 5
    assert energy_swing(frame_energies(steady_TF)) == pytest.approx(5, abs=0.4)
    assert energy_swing(np.zeros(2)) == 0.0


def test_spans_lie_in_the_speech_and_tokens_are_placed_in_the_recording():
    energy_T = np.concatenate([np.zeros(24), np.full(40, 9.0), np.zeros(16)])
    spans = token_spans(torch.full((10,), 0.4), 4, energy_T)
    assert [begin for begin, _ in spans] == pytest.approx([0.24, 0.34, 0.44, 0.54], abs=0.02)
    assert [end for _, end in spans] == pytest.approx([0.34, 0.44, 0.54, 0.64], abs=0.02)
    placed = place_tokens([TimedToken("a", 0.1, 0.20004, 0.123456), TimedToken("b", 0.2, 0.9)], 3.0, 0.5)
    assert placed == [TimedToken("a", 3.1, 3.2, 0.1235), TimedToken("b", 3.2, 3.5)]

"""The batched CIF against a loop that follows the specification, on random and edge cases."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xllm_speech.base.errors import SeamError
from xllm_speech.cif import integrate_and_fire
from xllm_speech.cif.reference import integrate_by_loop, integrate_by_scatter


def assert_same(h, alpha, lens, targets=None, tail=0.5, grads=True, tolerance=1e-9):
    """Compare values, times and gradients of both forms."""
    outs = []
    for form in (integrate_and_fire, integrate_by_loop):
        h_, alpha_ = h.clone().requires_grad_(), alpha.clone().requires_grad_()
        out = form(h_, alpha_, lens, targets, tail)
        probe = torch.sin(torch.arange(out.units_BUD.numel(), dtype=h.dtype)).view_as(out.units_BUD)
        loss = (out.units_BUD * probe).sum() + (out.quantity_B * 0.3).sum()
        loss.backward()
        outs.append((out, torch.zeros_like(h) if h_.grad is None else h_.grad, alpha_.grad))
    (ours, h_ours, a_ours), (loop, h_loop, a_loop) = outs
    assert ours.lens_B.tolist() == loop.lens_B.tolist()
    torch.testing.assert_close(ours.units_BUD, loop.units_BUD, atol=tolerance, rtol=1e-7)
    torch.testing.assert_close(ours.fire_BU, loop.fire_BU, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.start_BU, loop.start_BU, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.quantity_B, loop.quantity_B, atol=tolerance, rtol=1e-7)
    torch.testing.assert_close(ours.alpha_BS, loop.alpha_BS, atol=tolerance, rtol=1e-7)
    if grads:
        torch.testing.assert_close(h_ours, h_loop, atol=1e-8, rtol=1e-6)
        torch.testing.assert_close(a_ours, a_loop, atol=1e-8, rtol=1e-6)
    return ours


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000), batch=st.integers(1, 4), steps=st.integers(1, 12), width=st.integers(1, 5),
    bias=st.floats(-4, 4), training=st.booleans(), tail=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_agrees_with_the_loop_on_random_ragged_batches(seed, batch, steps, width, bias, training, tail):
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(batch, steps, width, generator=generator, dtype=torch.float64)
    alpha = torch.sigmoid(torch.randn(batch, steps, generator=generator, dtype=torch.float64) + bias)
    lens = torch.randint(0, steps + 1, (batch,), generator=generator)
    targets = torch.randint(0, 2 * steps + 2, (batch,), generator=generator) if training else None
    if targets is not None:
        targets[lens == 0] = 0  # a text without speech has no gradient to compare; it has its own test
    assert_same(h, alpha, lens, targets, tail)


CASES = {
    "no fire": ([[0.1, 0.1, 0.1]], [3], None),
    "exact threshold": ([[0.5, 0.5, 0.25, 0.75]], [4], None),
    "weights all one": ([[1.0, 1.0, 1.0]], [3], None),
    "one step": ([[0.7]], [1], None),
    "one step, five fires": ([[0.7]], [1], [5]),
    "several fires in a step": ([[0.2, 0.9, 0.1]], [3], [7]),
    "silence before and after": ([[0.0, 0.0, 0.6, 0.6, 0.0, 0.0, 0.9]], [7], None),
    "silence between, exact": ([[0.5, 0.5, 0.0, 0.0, 0.5, 0.5]], [6], None),
    "target 0 beside target 3": ([[0.3, 0.4, 0.2], [0.3, 0.4, 0.2]], [3, 2], [0, 3]),
    "ragged, empty row": ([[0.625] * 5, [0.625] * 5, [0.625] * 5], [5, 0, 2], None),
    "tail at the threshold": ([[0.5, 1.0]], [2], None),
}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_loop_on_edge_cases(name):
    weights, lens, targets = CASES[name]
    alpha = torch.tensor(weights, dtype=torch.float64)
    h = torch.randn(*alpha.shape, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert_same(h, alpha, torch.tensor(lens), None if targets is None else torch.tensor(targets))


def test_worked_example_by_hand():
    h = torch.eye(4, dtype=torch.float64)[None]
    alpha = torch.tensor([[0.4, 0.8, 0.2, 0.3]], dtype=torch.float64)  # cumulated 0.4, 1.2, 1.4, 1.7
    out = integrate_and_fire(h, alpha, torch.tensor([4]))
    expected = torch.tensor([[0.4, 0.6, 0, 0], [0, 0.2 / 0.7, 0.2 / 0.7, 0.3 / 0.7]], dtype=torch.float64)
    torch.testing.assert_close(out.units_BUD[0], expected)
    torch.testing.assert_close(out.fire_BU[0], torch.tensor([1.75, 4.0], dtype=torch.float64))  # 1 + 0.6 / 0.8; the end
    torch.testing.assert_close(out.start_BU[0], torch.tensor([0.0, 1.75], dtype=torch.float64))
    assert out.quantity_B.item() == pytest.approx(1.7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_always_yields_exactly_the_target_length(dtype):
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        h = torch.randn(6, 90, 8, generator=generator).to(dtype)
        alpha = torch.rand(6, 90, generator=generator).to(dtype)
        targets = torch.randint(1, 60, (6,), generator=generator)
        out = integrate_and_fire(h, alpha, torch.full((6,), 90), targets)
        assert out.lens_B.tolist() == targets.tolist()
        assert out.units_BUD.dtype == dtype
        # Every unit holds a whole unit of weight: with h = 1 it is 1, the last one too.
        ones = integrate_and_fire(torch.ones_like(h), alpha, torch.full((6,), 90), targets).units_BUD.float()
        inside = torch.arange(ones.shape[1]) < targets[:, None]
        tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(ones[inside], torch.ones_like(ones[inside]), atol=tolerance, rtol=0)


def test_result_does_not_depend_on_the_batch():
    generator = torch.Generator().manual_seed(3)
    h, alpha = torch.randn(5, 40, 6, generator=generator), torch.rand(5, 40, generator=generator)
    lens = torch.tensor([40, 31, 17, 3, 1])
    h[:, 35:] = 1e4  # rubbish in the padding must not leak, nor NaN
    h[1, 33:] = float("nan")
    batched = integrate_and_fire(h, alpha, lens)
    for b, length in enumerate(lens.tolist()):
        alone = integrate_and_fire(h[b : b + 1, :length], alpha[b : b + 1, :length], lens[b : b + 1])
        units = int(alone.lens_B)
        assert int(batched.lens_B[b]) == units
        assert torch.equal(batched.units_BUD[b, :units], alone.units_BUD[0])
        assert torch.equal(batched.fire_BU[b, :units], alone.fire_BU[0])
        assert not batched.units_BUD[b, units:].any()


def test_autocast_and_half_precision_accumulate_in_float32():
    generator = torch.Generator().manual_seed(4)
    h, alpha = torch.randn(2, 400, 4, generator=generator), torch.rand(2, 400, generator=generator)
    lens = torch.tensor([400, 380])
    exact = integrate_and_fire(h.double(), alpha.double(), lens)
    with torch.autocast("cpu", torch.bfloat16):
        out = integrate_and_fire(h, alpha, lens)
    assert out.lens_B.tolist() == exact.lens_B.tolist()
    torch.testing.assert_close(out.units_BUD.double(), exact.units_BUD, atol=1e-5, rtol=1e-5)


def test_empty_utterance_and_text_without_speech_give_no_nan():
    h = torch.randn(2, 3, 4, requires_grad=True)
    alpha = torch.zeros(2, 3, requires_grad=True)
    out = integrate_and_fire(h, alpha, torch.tensor([0, 3]), torch.tensor([0, 2]))
    (out.units_BUD.sum() + out.quantity_B.sum()).backward()
    assert out.lens_B.tolist() == [0, 2]
    assert torch.isfinite(h.grad).all()
    assert torch.isfinite(alpha.grad).all()
    nothing = integrate_and_fire(torch.zeros(2, 0, 4), torch.zeros(2, 0), torch.tensor([0, 0]))
    assert nothing.units_BUD.shape == (2, 0, 4)


def test_a_unit_of_zero_vectors_is_still_a_unit():
    out = integrate_and_fire(torch.zeros(1, 4, 2), torch.full((1, 4), 0.5), torch.tensor([4]))
    assert out.lens_B.tolist() == [2]


def test_scatter_reference_agrees_where_it_is_defined():
    generator = torch.Generator().manual_seed(5)
    h, alpha = torch.randn(3, 30, 4, generator=generator), torch.rand(3, 30, generator=generator)
    lens, targets = torch.tensor([30, 22, 9]), torch.tensor([8, 30, 3])
    ours = integrate_and_fire(h, alpha, lens, targets).units_BUD
    torch.testing.assert_close(integrate_by_scatter(h, alpha, lens, targets), ours, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha_BS": torch.zeros(2, 4)}, "alpha"),
        ({"lens_B": torch.tensor([3])}, "lens"),
        ({"lens_B": torch.tensor([3, 9])}, "lengths"),
        ({"lens_B": torch.tensor([3.0, 3.0])}, "integers"),
        ({"alpha_BS": torch.tensor([[0.1, -0.1, 0.2], [0.1, 0.1, 0.1]])}, "negative"),
        ({"target_lens_B": torch.tensor([1, -1])}, "negative"),
    ],
)
def test_refuses_what_does_not_fit(change, message):
    good = {"h_BSD": torch.zeros(2, 3, 4), "alpha_BS": torch.zeros(2, 3), "lens_B": torch.tensor([3, 2])}
    with pytest.raises(SeamError, match=message):
        integrate_and_fire(**{**good, **change})


def test_memory_stays_near_the_input():
    from xllm_speech.models.bench import measure_peak

    h, alpha = torch.randn(16, 2000, 256, requires_grad=True), torch.rand(16, 2000, requires_grad=True)
    lens, targets = torch.full((16,), 2000), torch.full((16,), 500)

    def step() -> None:
        integrate_and_fire(h, alpha, lens, targets).units_BUD.sum().backward()

    step()
    h.grad = alpha.grad = None
    input_mib = h.numel() * 4 / 2**20
    peak_mib = measure_peak(step, "cpu")
    assert peak_mib is not None
    assert input_mib < peak_mib < 3 * input_mib  # at least the gradient of the input

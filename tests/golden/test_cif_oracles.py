"""CIF against vectors made by two published implementations (cif.md, last sections)."""

from __future__ import annotations

import pytest
import torch

from xllm_speech.cif import integrate_and_fire


def load(shared_data, name):
    from safetensors.torch import load_file

    tensors = load_file(shared_data / "oracles" / "cif" / f"{name}.safetensors")
    padding = tensors["in.padding_mask"].bool()
    return tensors, tensors["in.encoder_out"], tensors["in.alpha"], (~padding).sum(1)


@pytest.mark.parametrize("name", ["r01_b4_t23_c8", "e04_multi_fire"])
def test_training_form_matches_torch_cif(shared_data, name):
    tensors, h, alpha, lens = load(shared_data, name)
    targets = tensors["in.target_lengths"].long()
    h, alpha = h.requires_grad_(), alpha.requires_grad_()
    out = integrate_and_fire(h, alpha, lens, targets)
    assert out.lens_B.tolist() == targets.tolist() == tensors["torch_cif.train.lengths"].tolist()
    # It adds 1e-4 to the target sum, hence the tolerances. Gradients there are of the sum of squares.
    torch.testing.assert_close(out.units_BUD, tensors["torch_cif.train.cif_out"], atol=2e-3, rtol=0)
    out.units_BUD.square().sum().backward()
    torch.testing.assert_close(h.grad, tensors["torch_cif.train.grad_encoder_out"], atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(alpha.grad, tensors["torch_cif.train.grad_alpha"], atol=5e-2, rtol=5e-3)


def test_inference_form_matches_torch_cif(shared_data):
    tensors, h, alpha, lens = load(shared_data, "r01_b4_t23_c8")
    h, alpha = h.requires_grad_(), alpha.requires_grad_()
    out = integrate_and_fire(h, alpha, lens)
    assert out.lens_B.tolist() == tensors["torch_cif.eval.lengths"].tolist()
    torch.testing.assert_close(out.units_BUD, tensors["torch_cif.eval.cif_out"], atol=2e-5, rtol=0)
    torch.testing.assert_close(out.quantity_B, tensors["torch_cif.eval.quantity"], atol=2e-5, rtol=0)
    out.units_BUD.square().sum().backward()
    torch.testing.assert_close(h.grad, tensors["torch_cif.eval.grad_encoder_out"], atol=2e-5, rtol=1e-4)
    # It holds the divisor of a tail unit constant; ours is the derivative of what cif.md says, so tails are left out here.
    whole = out.lens_B == out.quantity_B.floor()
    assert int(whole.sum()) == 2
    torch.testing.assert_close(alpha.grad[whole], tensors["torch_cif.eval.grad_alpha"][whole], atol=1e-4, rtol=1e-4)


def test_unscaled_units_match_the_authors_loop_up_to_its_tail(shared_data):
    tensors, h, alpha, lens = load(shared_data, "r01_b4_t23_c8")
    out = integrate_and_fire(h.double(), alpha.double(), lens)
    theirs = tensors["official.eval.cif_out.f64"]
    # Their loop fires at 0.99 of a unit: where no sum falls between 0.99 and 1 the two agree, tails apart.
    cumulated = (alpha.double() * (torch.arange(23) < lens[:, None])).cumsum(1)
    compared = 0
    for b, units in enumerate(out.quantity_B.floor().long().tolist()):
        early = ((cumulated[b] % 1.0) >= 0.99).nonzero().flatten()
        sure = units if not len(early) else int(cumulated[b][early[0]])
        torch.testing.assert_close(out.units_BUD[b, :sure], theirs[b, :sure], atol=1e-6, rtol=0)
        compared += sure
    assert compared >= 10

"""The CIF ASR model: losses against their definitions, gradients everywhere, invariance, and the paper's size."""

from __future__ import annotations

import pytest
import torch

from xllm_speech.base.errors import ConfigError
from xllm_speech.models.asr import SearchConfig, build_asr_model
from xllm_speech.models.asr_config import AsrModelConfig, CifConfig, DecoderConfig, EncoderConfig, LossConfig
from xllm_speech.records import AsrBatch, FbankBatch, Memory

VOCAB = 12


def tiny_config(**changes):
    return AsrModelConfig(**{
        "encoder": EncoderConfig(
            channels=4, width=32, heads=2, feedforward=48, kernel=5, blocks=3, pool_after=[1, 2], dropout=0.0
        ),
        "cif": CifConfig(channels=16),
        "decoder": DecoderConfig(heads=2, feedforward=48, blocks=2, dropout=0.0, visual_blocks=[1], linguistic_blocks=[2]),
        "loss": LossConfig(unit_weight=0.3),
        **changes,
    })


def make_batch(lens=(90, 61, 30), texts=((2, 3, 4, 5), (6, 7), (8,)), seed=0, rows=None):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(lens), max(lens), 80, generator=generator)
    rows = list(range(len(lens))) if rows is None else rows
    lens, texts = [lens[r] for r in rows], [texts[r] for r in rows]
    tokens = torch.zeros(len(rows), max(map(len, texts)), dtype=torch.long)
    for b, text in enumerate(texts):
        tokens[b, : len(text)] = torch.tensor(text)
    fbank = FbankBatch(x[rows][:, : max(lens)], torch.tensor(lens))
    return AsrBatch([f"u{r}" for r in rows], fbank, sum(lens) / 100, tokens, torch.tensor([len(text) for text in texts]))


def test_batch_losses_are_the_sums_of_single_ones():
    torch.manual_seed(0)
    model = build_asr_model(tiny_config(), VOCAB, VOCAB - 1)
    together = model(make_batch())
    singles = [model(make_batch(rows=[r])) for r in range(3)]
    torch.testing.assert_close(together.total, sum(one.total for one in singles), atol=1e-3, rtol=1e-4)
    for name in ("ce", "ctc", "quantity", "unit"):
        torch.testing.assert_close(together.parts[name], sum(one.parts[name] for one in singles), atol=1e-3, rtol=1e-4)
    assert together.tokens == 7 == sum(one.tokens for one in singles)


def test_total_is_the_weighted_sum_of_its_parts():
    torch.manual_seed(0)
    model = build_asr_model(tiny_config(), VOCAB, VOCAB - 1)
    losses = model(make_batch())
    expected = losses.parts["ce"] + 0.5 * losses.parts["ctc"] + 1.0 * losses.parts["quantity"] + 0.3 * losses.parts["unit"]
    torch.testing.assert_close(losses.total.detach(), expected)
    quantity = model.find_units(make_batch().fbank)[1].quantity_B
    torch.testing.assert_close(losses.parts["quantity"], (quantity - torch.tensor([4, 2, 1])).abs().sum(), atol=1e-4, rtol=1e-4)


def test_every_parameter_learns():
    torch.manual_seed(0)
    model = build_asr_model(tiny_config(), VOCAB, VOCAB - 1)
    batch = make_batch()
    seen = Memory(torch.randn(3, 2, 768), torch.tensor([2, 1, 0]))
    losses = model(AsrBatch(**{**vars(batch), "visual": seen, "linguistic": seen}))
    losses.total.backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # The query of an absent memory has no say (one key), but here items with two keys exist; nothing may stay idle.
    assert idle == [] or all("cross_attention" in name for name in idle), idle


def test_eos_unit_is_counted_and_cut_from_the_text():
    torch.manual_seed(0)
    model = build_asr_model(tiny_config(eos_unit=True), VOCAB, VOCAB - 1)
    assert model(make_batch()).tokens == 7 + 3
    model.eval()
    with torch.no_grad():
        model.decoder.vocabulary.bias[VOCAB - 1] = 1e4  # it now always writes eos
    results, _ = model.recognise(make_batch(), SearchConfig())
    assert [result.tokens for result in results] == [[], [], []]


def test_special_tokens_are_never_written():
    torch.manual_seed(0)
    model = build_asr_model(tiny_config(), VOCAB, VOCAB - 1).eval()
    with torch.no_grad():
        model.decoder.vocabulary.bias[[0, VOCAB - 1]] = 1e4
    for method in ("greedy", "beam", "fast"):
        results, cif = model.recognise(make_batch(), SearchConfig(method=method))
        assert [len(result.tokens) for result in results] == cif.lens_B.tolist()
        assert not {0, VOCAB - 1} & {token for result in results for token in result.tokens}


def test_a_batch_of_only_broken_items_gives_a_zero_loss_with_gradients():
    model = build_asr_model(tiny_config(), VOCAB, VOCAB - 1)
    empty = AsrBatch([], FbankBatch(torch.zeros(0, 0, 80), torch.zeros(0, dtype=torch.long)), 0.0,
                     torch.zeros(0, 0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    losses = model(empty)
    losses.total.backward()
    assert losses.tokens == 0
    assert set(losses.parts) == set(model(make_batch()).parts)


def test_fast_search_without_its_head_is_refused():
    model = build_asr_model(tiny_config(loss=LossConfig(unit_weight=0.0)), VOCAB, VOCAB - 1)
    assert set(model(make_batch()).parts) == {"ce", "ctc", "quantity"}  # the paper's three
    with pytest.raises(ConfigError, match="unit_weight"):
        model.recognise(make_batch(), SearchConfig(method="fast"))


def test_paper_configuration_builds_with_the_size_it_implies(top):
    from xllm_speech.base.config import load_config
    from xllm_speech.train.asr import AsrExperiment

    config = load_config(top / "conf" / "asr_paper.yaml", AsrExperiment).model
    with torch.device("meta"):
        model = build_asr_model(config, vocab=5000, sos_id=4999)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    d, f, v = 512, 2048, 5000
    norms = 5 * 2 * d
    block = 2 * (2 * d * f + f + d) + 4 * d * (d + 1) + (2 * d * (d + 1) + d * 31 + d + 2 * d + d * (d + 1)) + norms
    frontend = 256 * 9 + 256 + 256 * 40 * d + d
    assert count["encoder"] == 18 * block + frontend + 2 * d
    cross = 4 * d * 768 // 2 + 2 * d + 2 * d * (d + 1) + 2 * d  # keys and values from width 768, query, out, norm
    decoder_block = 4 * d * (d + 1) + 2 * d * f + f + d + 2 * 2 * d
    assert count["decoder"] == v * d + 2 * (2 * d * d + d) + 6 * decoder_block + 4 * cross + 2 * d + v * (d + 1)
    assert count["alpha"] == 512 * 5 * d + 512 + d + 1
    assert 140e6 < sum(count.values()) < 160e6


def test_half_precision_autocast_stays_near_float32():
    torch.manual_seed(0)
    model = build_asr_model(tiny_config(), VOCAB, VOCAB - 1)
    exact = model(make_batch())
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(make_batch())
    rough.total.backward()
    assert rough.tokens == exact.tokens
    torch.testing.assert_close(rough.total.float(), exact.total, rtol=0.05, atol=0.0)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with torch.autocast("cpu", torch.bfloat16):
        results, cif = model.eval().recognise(make_batch(), SearchConfig("beam", beam=3))
    assert [len(result.tokens) for result in results] == cif.lens_B.tolist()


def test_the_frozen_image_encoder_stays_bit_for_bit_through_a_training_step():
    from xllm_speech.encoders.vision import build_vit
    from xllm_speech.models.asr_config import VisualConfig
    from xllm_speech.records import PixelBatch
    from xllm_speech.train.config import OptimConfig
    from xllm_speech.train.optim import make_optimizer

    torch.manual_seed(0)
    vit = build_vit(image_size=32, patch_size=16, width=16, depth=1, heads=2)
    config = tiny_config(visual=VisualConfig(kind="vit", path="somewhere", width=16))
    model = build_asr_model(config, VOCAB, VOCAB - 1, visual=vit).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pixels = PixelBatch(torch.randn(3, 3, 32, 32), torch.tensor([True, False, True]))
    batch = AsrBatch(**{**vars(make_batch()), "pixels": pixels})
    optimizer = make_optimizer(model, OptimConfig(lr=1e-2, weight_decay=0.1))
    model(batch).total.backward()
    optimizer.step()
    after = model.state_dict()
    same = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    frozen = {name for name in before if name.startswith("visual.")}
    assert frozen <= same
    assert same - frozen <= {"cmvn.mean_F", "cmvn.std_F"}
    assert not any(module.training for module in model.visual.module.modules())
    seen, _ = model.see(batch)
    assert seen.lens_B.tolist() == [5, 0, 5]  # 4 patches and the class token

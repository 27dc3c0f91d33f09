"""BLIP-2 of LAVIS and of Hugging Face: our interface must give the original's numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from originals import (
    EYE,
    EYE_BLOCKS,
    EYE_HEADS,
    GRID,
    HEADS,
    INNER,
    LAYERS,
    LLM,
    PATCH,
    QUERIES,
    WIDTH,
    apply_linear,
    ask,
    attend,
    chance,
    eva_weights,
    halved,
    linear_weights,
    norm_weights,
    qformer_weights,
    see,
)  # fmt: skip

from xllm_speech.base.errors import CheckpointError
from xllm_speech.encoders.vision import load_vision_encoder
from xllm_speech.interfaces.qformer import QueryTransformer
from xllm_speech.interfaces.qformer_losses import QFormerPretraining
from xllm_speech.interfaces.vision import ImageInterface
from xllm_speech.models.checkpoints import load_foreign
from xllm_speech.models.foreign.blip2 import pretraining_state
from xllm_speech.records import Memory, PixelBatch

TOKENS = GRID**2 + 1


def image_interface(llm_width: int = LLM) -> ImageInterface:
    return ImageInterface(QueryTransformer(EYE, QUERIES, WIDTH, LAYERS, HEADS, INNER), llm_width).eval()


def part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def pictures(count: int = 2) -> PixelBatch:
    return PixelBatch(torch.randn(count, 3, GRID * PATCH, GRID * PATCH), torch.ones(count, dtype=torch.bool))


@pytest.mark.parametrize("projection", ["opt_proj", "t5_proj"])
@torch.no_grad()
def test_second_stage_of_lavis_gives_the_original_numbers(projection: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    weights = halved(qformer_weights() | eva_weights() | linear_weights(projection, LLM, WIDTH))
    assert weights[f"{projection}.weight"].dtype == torch.float16
    weights["Qformer.bert.embeddings.position_ids"] = torch.arange(9)[None]
    (tmp_path / "eva.json").write_text(json.dumps({"heads": EYE_HEADS}))  # no file of LAVIS tells them
    file = tmp_path / "blip2.pth"
    torch.save({"model": weights, "epoch": 3}, file)
    state, report = load_foreign(file, layout="lavis")
    interface = image_interface()
    interface.load_state_dict(part(state, "image."))
    encoder = load_vision_encoder("eva", str(file))
    pixels = pictures()
    features = encoder(pixels)
    assert features.x_BND.shape == (2, TOKENS, EYE)
    found = interface(features).x_NQH
    for row, picture in enumerate(pixels.x_BCHW):
        seen = see(weights, picture)
        torch.testing.assert_close(features.x_BND[row], seen, atol=2e-5, rtol=0)
        torch.testing.assert_close(found[row], apply_linear(weights, projection, ask(weights, seen)), atol=2e-5, rtol=0)
    assert report.used["query_tokens"] == ["image.querying.queries"]
    assert set(report.ignored) == {"Qformer.bert.embeddings.position_ids"}
    assert set(report.used) | set(report.ignored) == set(weights)
    assert report.missing == {}
    assert report.settings["interfaces.image.qformer.encoder_width"] == EYE
    assert report.settings["interfaces.image.qformer.cross_attention_every"] == 2
    assert report.settings["llm_width"] == LLM
    assert report.settings["interfaces.image.activation"] == "none"
    torch.testing.assert_close(part(state, "vision.")["cls_token"], weights["visual_encoder.cls_token"])


def first_stage_weights(words: int = 11, places: int = 8, shared: int = 6) -> dict[str, torch.Tensor]:
    embeddings, cls = "Qformer.bert.embeddings", "Qformer.cls.predictions"
    weights = qformer_weights(text=True) | linear_weights("vision_proj", shared, WIDTH) | linear_weights("itm_head", 2, WIDTH)
    weights |= linear_weights("text_proj", shared, WIDTH) | {"temp": torch.tensor(0.05)}
    weights[f"{embeddings}.word_embeddings.weight"] = chance(words, WIDTH)
    weights[f"{embeddings}.position_embeddings.weight"] = chance(places, WIDTH)
    weights |= linear_weights(f"{cls}.transform.dense", WIDTH, WIDTH) | norm_weights(f"{cls}.transform.LayerNorm", WIDTH)
    weights |= {f"{cls}.bias": chance(words), f"{cls}.decoder.weight": weights[f"{embeddings}.word_embeddings.weight"]}
    return weights | {f"{cls}.decoder.bias": weights[f"{cls}.bias"].clone()}


@torch.no_grad()
def test_first_stage_of_lavis_fills_interface_and_pretraining(tmp_path: Path) -> None:
    from transformers import Blip2Config, Blip2ForImageTextRetrieval, Blip2QFormerConfig, Blip2VisionConfig

    torch.manual_seed(2)
    weights = first_stage_weights()
    torch.save({"model": weights}, tmp_path / "first.pth")
    state, report = load_foreign(tmp_path / "first.pth", layout="lavis")
    interface = image_interface()
    lost = interface.load_state_dict(part(state, "image."), strict=False)
    assert sorted(lost.missing_keys) == ["adapter.bias", "adapter.weight"]
    assert lost.unexpected_keys == []
    assert sorted(report.missing) == ["image.adapter.bias", "image.adapter.weight"]
    features = torch.randn(TOKENS, EYE)
    asked = interface.querying(Memory(features[None], torch.tensor([TOKENS])))[0]
    torch.testing.assert_close(asked, ask(weights, features), atol=2e-5, rtol=0)

    querying = QueryTransformer(EYE, QUERIES, WIDTH, LAYERS, HEADS, INNER, text=True)
    settings = {name.removeprefix("pretraining."): v for name, v in report.settings.items() if name.startswith("pretraining.")}
    assert settings == {"vocab_size": 11, "start_id": 10, "longest_text": 8, "shared_width": 6}
    pretraining = QFormerPretraining(querying, **settings).eval()
    pretraining.load_state_dict(pretraining_state(state))
    assert float(pretraining.temperature) == pytest.approx(0.05)

    # The oracle of text and matching: transformers' own model, filled by hand from the names of LAVIS.
    eye = Blip2VisionConfig(hidden_size=EYE, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
                            image_size=GRID * PATCH, patch_size=PATCH)
    former = Blip2QFormerConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=INNER,
        encoder_hidden_size=EYE, vocab_size=11, max_position_embeddings=8, use_qformer_text_input=True,
    )
    oracle = Blip2ForImageTextRetrieval(Blip2Config(
        vision_config=eye.to_dict(), qformer_config=former.to_dict(), image_text_hidden_size=6, num_query_tokens=QUERIES,
    )).eval()
    names = oracle.state_dict()
    for name in names:
        theirs = name
        if name.startswith("qformer."):
            theirs = name.replace("qformer.layernorm", "qformer.embeddings.LayerNorm").replace("qformer.", "Qformer.bert.")
            theirs = theirs.replace("attention.attention.", "attention.self.")
        elif name.startswith("embeddings."):
            theirs = f"Qformer.bert.{name}"
        theirs = theirs.replace("vision_projection", "vision_proj").replace("text_projection", "text_proj")
        if not name.startswith("vision_model."):
            names[name] = weights[theirs]
    oracle.load_state_dict(names)
    oracle.save_pretrained(tmp_path / "hf")
    theirs, told = load_foreign(tmp_path / "hf", layout="blip2-hf")
    kept = pretraining_state(theirs)
    for name, tensor in pretraining_state(state).items():
        if name.startswith(("temperature", "transform.", "word_bias")):
            assert "starting value" in told.missing[f"pretraining.{name}"]
        elif "ln_vision" not in name:
            assert torch.equal(kept[name], tensor), name
    picture = pictures(1)
    raw = oracle.vision_model.encoder(inputs_embeds=oracle.vision_model.embeddings(picture.x_BCHW)).last_hidden_state
    oracle.vision_model.post_layernorm.load_state_dict(part(weights, "ln_vision."))
    oracle.vision_model.post_layernorm.eps = 1e-5
    ids = torch.tensor([[3, 5, 1, 7]])
    memory = Memory(raw, torch.tensor([TOKENS]))
    for matching in (True, False):
        scores = oracle(
            picture.x_BCHW, ids, attention_mask=torch.ones_like(ids), use_image_text_matching_head=matching
        ).logits_per_image
        if matching:
            ours = pretraining.match_logits(memory, ids, torch.tensor([4]))
        else:
            images, texts = pretraining.embed(memory, ids, torch.tensor([4]))
            ours = (images[0] @ texts.T).amax(0, keepdim=True)
        torch.testing.assert_close(ours, scores, atol=2e-5, rtol=0)
    assert "same numbers" in report.ignored["Qformer.cls.predictions.decoder.weight"]


@torch.no_grad()
def test_generation_head_of_the_first_stage(tmp_path: Path) -> None:
    """Text sees the queries and itself up to each word; queries see queries."""
    from originals import apply_norm, bert_attention, bert_feedforward, gelu

    torch.manual_seed(3)
    weights = first_stage_weights()
    torch.save({"model": weights}, tmp_path / "first.pth")
    state, _ = load_foreign(tmp_path / "first.pth", layout="lavis")
    querying = QueryTransformer(EYE, QUERIES, WIDTH, LAYERS, HEADS, INNER, text=True)
    pretraining = QFormerPretraining(querying, 11, 10, 8, 6).eval()
    pretraining.load_state_dict(pretraining_state(state))
    features, ids = torch.randn(TOKENS, EYE), torch.tensor([[10, 2, 4]])
    found = pretraining.text_logits(Memory(features[None], torch.tensor([TOKENS])), ids)[0]

    stem = "Qformer.bert.embeddings."
    text = weights[f"{stem}word_embeddings.weight"][ids[0]] + weights[f"{stem}position_embeddings.weight"][:3]
    x = apply_norm(weights, f"{stem}LayerNorm", torch.cat([weights["query_tokens"][0], text]), 1e-12)
    memory = apply_norm(weights, "ln_vision", features, 1e-5)
    seen = torch.ones(QUERIES + 3, QUERIES + 3, dtype=torch.bool).tril()
    seen[:QUERIES, :QUERIES] = True
    for number in range(LAYERS):
        layer = f"Qformer.bert.encoder.layer.{number}."
        q, k, v = (apply_linear(weights, f"{layer}attention.self.{name}", x) for name in ("query", "key", "value"))
        out = apply_linear(weights, f"{layer}attention.output.dense", attend(q, k, v, HEADS, seen))
        x = apply_norm(weights, f"{layer}attention.output.LayerNorm", out + x, 1e-12)
        asked, said = x[:QUERIES], x[QUERIES:]
        if number % 2 == 0:
            asked = bert_attention(weights, f"{layer}crossattention", asked, memory, HEADS, 1e-12)
        branches = bert_feedforward(weights, layer, "_query", asked, 1e-12), bert_feedforward(weights, layer, "", said, 1e-12)
        x = torch.cat(branches)
    head = "Qformer.cls.predictions."
    x = apply_norm(weights, f"{head}transform.LayerNorm", gelu(apply_linear(weights, f"{head}transform.dense", x)), 1e-12)
    expected = (apply_linear(weights, f"{head}decoder", x))[QUERIES:]
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize("safe", [True, False])
@torch.no_grad()
def test_hugging_face_folder_in_shards(safe: bool, tmp_path: Path) -> None:
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2QFormerConfig, Blip2VisionConfig, OPTConfig

    torch.manual_seed(4)
    eye = Blip2VisionConfig(hidden_size=EYE, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
                            image_size=GRID * PATCH, patch_size=PATCH, initializer_range=0.3)
    former = Blip2QFormerConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=INNER, encoder_hidden_size=EYE
    )
    text = OPTConfig(hidden_size=LLM, ffn_dim=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=30,
                     word_embed_proj_dim=LLM)
    oracle = Blip2ForConditionalGeneration(Blip2Config(
        vision_config=eye.to_dict(), qformer_config=former.to_dict(), text_config=text.to_dict(), num_query_tokens=QUERIES,
    )).eval()
    for parameter in oracle.parameters():
        parameter.normal_(std=0.3)
    if safe:
        oracle.save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
    else:
        oracle.config.save_pretrained(tmp_path)
        torch.save(oracle.state_dict(), tmp_path / "pytorch_model.bin")
    state, report = load_foreign(tmp_path, layout="blip2-hf")
    assert report.settings["interfaces.image.qformer.heads"] == HEADS
    assert report.settings["vision.heads"] == 4
    interface = image_interface()
    interface.load_state_dict(part(state, "image."))
    pixels = pictures()
    features = load_vision_encoder("eva", str(tmp_path))(pixels)
    model = oracle.vision_model
    raw = model.encoder(inputs_embeds=model.embeddings(pixels.x_BCHW)).last_hidden_state
    torch.testing.assert_close(features.x_BND, raw, atol=2e-5, rtol=1e-5)
    model.post_layernorm.eps = 1e-5
    asked = oracle.qformer(
        query_embeds=oracle.query_tokens.expand(2, -1, -1), encoder_hidden_states=model.post_layernorm(raw)
    ).last_hidden_state
    expected = oracle.language_projection(asked)
    torch.testing.assert_close(interface(features).x_NQH, expected, atol=2e-5, rtol=0)
    assert report.used["vision_model.encoder.layers.0.self_attn.qkv.bias"] == [
        "vision.blocks.0.attn.q_bias", "vision.blocks.0.attn.v_bias"
    ]
    assert all(name.startswith("language_model.") for name in report.ignored)
    assert len(report.ignored) > 5
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(CheckpointError, match="model_type `blip`, not blip-2"):
        load_foreign(tmp_path, layout="blip2-hf")


@pytest.mark.parametrize(("change", "message"), [
    ({"Qformer.bert.encoder.layer.1.output_query.dense.weight": None}, r"layer\.1\.output_query\.dense\.weight is missing"),
    ({"ln_vision.bias": None}, r"ln_vision\.bias is missing .*image\.querying\.ln_vision\.bias is made of it"),
    ({"query_tokens": None}, r"query_tokens is missing"),
    ({"query_tokens": torch.zeros(3, 4)}, r"query_tokens is \[3, 4\], expected 3 dimensions"),
    ({"opt_proj.bias": None}, r"opt_proj\.bias is missing"),
    ({"opt_proj.weight": torch.zeros(LLM, 3)}, rf"opt_proj\.weight \[{LLM}, 3\]: .* needs \[{LLM}, {WIDTH}\]"),
    ({"ln_vision.weight": torch.zeros(3)}, rf"ln_vision\.weight \[3\]: .* needs \[{EYE}\]"),
    ({f"visual_encoder.blocks.{EYE_BLOCKS - 1}.norm1.bias": None}, r"1 weights .* are missing, first blocks\.2\.norm1\.bias"),
    ({"Qformer.bert.encoder.layer.900000000.x": torch.ones(1)}, "names a layer 900000000, but holds [0-9]+ tensors in all"),
    ({"query_tokens": torch.zeros(1, 4, 0)}, "its sizes make no network"),
    ({"visual_encoder.cls_token": torch.zeros(1, 1, 0)}, "its sizes make no EVA ViT"),
    ({"visual_encoder.pos_embed": torch.zeros(1, 0, EYE)}, "0 positions, not a square and one"),
    ({"visual_encoder.blocks.x.norm1.weight": torch.zeros(EYE)}, r"unknown to EVA ViT, first blocks\.x\.norm1"),
    ({"visual_encoder.pos_embed": torch.zeros(1, 7, EYE)}, "7 positions, not a square and one"),
])  # fmt: skip
def test_what_is_missing_or_does_not_fit_is_named(change: dict, message: str, tmp_path: Path) -> None:
    weights = qformer_weights() | eva_weights() | linear_weights("opt_proj", LLM, WIDTH) | change
    torch.save({"model": {name: value for name, value in weights.items() if value is not None}}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=message):
        load_foreign(tmp_path / "b.pth", layout="lavis")


def test_cross_attention_in_odd_places_is_refused(tmp_path: Path) -> None:
    weights = {n: v for n, v in qformer_weights().items() if "layer.2.cross" not in n} | {
        n.replace("layer.0.cross", "layer.1.cross"): v for n, v in qformer_weights().items() if "layer.0.cross" in n
    }
    weights = {name: value for name, value in weights.items() if "layer.2." not in name or "cross" not in name}
    extra = {n.replace("layer.0.", "layer.3."): v for n, v in qformer_weights().items() if "layer.0." in n}
    torch.save(weights | extra, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"cross-attention in layers \[0, 1, 3\], not in every n-th"):
        load_foreign(tmp_path / "b.pth", layout="lavis")

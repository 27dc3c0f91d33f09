"""The Q-Former beside the whole BLIP-2 of transformers with the same weights."""

from __future__ import annotations

import pytest
import torch
from transformers import Blip2Config, Blip2ForImageTextRetrieval

from xllm_speech.interfaces.qformer import QueryTransformer
from xllm_speech.interfaces.qformer_losses import QFormerPretraining
from xllm_speech.records import Memory

torch.set_num_threads(1)
WORDS, WIDTH, EYE, QUERIES, SHARED = 15, 8, 6, 3, 5


@pytest.fixture(scope="module")
def original() -> Blip2ForImageTextRetrieval:
    torch.manual_seed(0)
    vision = {
        "hidden_size": EYE, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
        "patch_size": 4, "layer_norm_eps": 1e-5, "initializer_range": 0.4,
    }
    qformer = {
        "vocab_size": WORDS, "hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16,
        "encoder_hidden_size": EYE, "use_qformer_text_input": True, "max_position_embeddings": 9, "initializer_range": 0.4,
    }
    model = Blip2ForImageTextRetrieval(
        Blip2Config(vision_config=vision, qformer_config=qformer, num_query_tokens=QUERIES, image_text_hidden_size=SHARED)
    ).eval()
    with torch.no_grad():  # chance values everywhere, so that no part is left out of the comparison
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


@pytest.fixture(scope="module")
def ours(original: Blip2ForImageTextRetrieval) -> QFormerPretraining:
    querying = QueryTransformer(EYE, QUERIES, WIDTH, 3, 2, 16, text=True)
    model = QFormerPretraining(querying, WORDS, 1, longest_text=9, shared_width=SHARED).eval()
    renamed = {
        "qformer.": "querying.qformer.", "embeddings.": "text_embeddings.", "itm_head.": "matching_head.",
        "vision_model.post_layernorm.": "querying.ln_vision.", "vision_projection.": "vision_projection.",
        "text_projection.": "text_projection.",
    }
    state = {"querying.queries": original.query_tokens[0]}
    for name, value in original.state_dict().items():
        for old, new in renamed.items():
            if name.startswith(old):
                state[new + name.removeprefix(old)] = value
    lost, surplus = model.load_state_dict(state, strict=False)
    assert surplus == []
    assert {name.split(".")[0] for name in lost} == {"transform", "word_bias", "temperature"}  # not in theirs
    return model


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def memory(original: Blip2ForImageTextRetrieval, pixels: torch.Tensor) -> Memory:
    vision = original.vision_model
    with torch.no_grad():
        tokens = vision.encoder(inputs_embeds=vision.embeddings(pixels)).last_hidden_state
    return Memory(tokens, torch.full((3,), tokens.shape[1]))


IDS = torch.tensor([[1, 3, 4, 5, 2], [1, 6, 2, 0, 0], [1, 7, 8, 2, 0]])
LENS = torch.tensor([5, 3, 4])


@torch.no_grad()
def test_queries_contrast_and_matching_are_theirs(
    original: Blip2ForImageTextRetrieval, ours: QFormerPretraining, pixels: torch.Tensor, memory: Memory
) -> None:
    mask = (torch.arange(5) < LENS[:, None]).long()
    contrast = original(pixels, IDS, mask, use_image_text_matching_head=False)
    pictures, texts = ours.embed(memory, IDS, LENS)
    torch.testing.assert_close(pictures, contrast.image_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(texts, contrast.text_embeds, rtol=1e-4, atol=1e-5)
    matching = original(pixels, IDS, mask, use_image_text_matching_head=True)
    torch.testing.assert_close(ours.match_logits(memory, IDS, LENS), matching.logits_per_image, rtol=1e-4, atol=1e-5)
    asked = original.qformer(
        query_embeds=original.query_tokens.expand(3, -1, -1),
        encoder_hidden_states=original.vision_model(pixels).last_hidden_state,
    ).last_hidden_state
    torch.testing.assert_close(ours.querying(memory), asked, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.querying.without_text()(memory), asked, rtol=1e-4, atol=1e-5)

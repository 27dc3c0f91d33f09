"""Starting from BERT: against transformers' own model, and with damaged folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForPreTraining

from xllm_speech.base.errors import CheckpointError
from xllm_speech.interfaces.pretrained import read_bert, start_qformer_from_bert, start_speech_from_bert
from xllm_speech.interfaces.qformer import QueryTransformer
from xllm_speech.interfaces.qformer_losses import QFormerPretraining
from xllm_speech.interfaces.speech import SpeechInterface

torch.set_num_threads(1)
WORDS, POSITIONS = 20, 9


@pytest.fixture(scope="module")
def bert() -> BertForPreTraining:
    torch.manual_seed(0)
    return BertForPreTraining(BertConfig(
        vocab_size=WORDS, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=POSITIONS, initializer_range=0.4,
    )).eval()


@pytest.fixture(params=["safetensors", "bin", "gamma"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, bert: BertForPreTraining) -> Path:
    weights = {name: value.clone() for name, value in bert.state_dict().items()}
    if request.param == "safetensors":
        save_file(weights, tmp_path / "model.safetensors")
    elif request.param == "bin":
        torch.save(weights, tmp_path / "pytorch_model.bin")
    else:
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, name in old.items():
            weights = {key.replace(new, name): value for key, value in weights.items()}
        torch.save(weights, tmp_path / "pytorch_model.bin")
    return tmp_path


def speech(**sizes: int) -> SpeechInterface:
    return SpeechInterface(5, 6, **{"width": 8, "layers": 2, "heads": 2, "feedforward": 16, "positions": POSITIONS, **sizes})


def test_the_c_former_computes_what_bert_does(folder: Path, bert: BertForPreTraining) -> None:
    interface = speech().eval()
    projection = interface.projection.weight.clone()
    start_speech_from_bert(interface, folder)
    x = torch.randn(2, 7, 8)
    assert torch.equal(interface.transformer(inputs_embeds=x).last_hidden_state, bert.bert(inputs_embeds=x).last_hidden_state)
    assert torch.equal(interface.projection.weight, projection)


def test_the_qformer_without_pictures_computes_what_bert_does(folder: Path, bert: BertForPreTraining) -> None:
    querying = QueryTransformer(6, 2, 8, 2, 2, 16, text=True)
    pretraining = QFormerPretraining(querying, WORDS + 1, WORDS, longest_text=POSITIONS).eval()
    queries = querying.queries.clone()
    count = start_qformer_from_bert(querying, folder, pretraining.text_embeddings)
    assert count == 2 + 2 * 22 + 2  # norm, layers with both branches, words and positions
    assert torch.equal(querying.queries, queries)
    with torch.no_grad():  # Q-Formers have no segments: BERT's is added to its words for the comparison
        pretraining.text_embeddings.word_embeddings.weight += bert.bert.embeddings.token_type_embeddings.weight[0]
    ids = torch.randint(1, WORDS, (2, 7))
    found = querying.qformer(query_embeds=pretraining.text_embeddings(ids), query_length=0).last_hidden_state
    torch.testing.assert_close(found, bert.bert(input_ids=ids).last_hidden_state, rtol=1e-4, atol=1e-5)
    layer = querying.qformer.encoder.layer[1]
    assert torch.equal(layer.intermediate_query.dense.weight, layer.intermediate.dense.weight)


def test_another_size_or_a_lost_weight_is_refused_and_nothing_filled(folder: Path) -> None:
    interface = speech(feedforward=12)
    before = {name: value.clone() for name, value in interface.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"of other sizes .*dense\.bias: \[16\] stored, \[12\] configured"):
        start_speech_from_bert(interface, folder)
    assert all(torch.equal(value, before[name]) for name, value in interface.state_dict().items())
    with pytest.raises(CheckpointError, match=r"16 weights of BERT are missing, among them encoder\.layer\.2\."):
        start_speech_from_bert(speech(layers=3), folder)


def test_folders_without_bert_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors or pytorch_model\.bin"):
        read_bert(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: cannot be read"):
        read_bert(tmp_path)
    save_file({"cls.bias": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds no weights of BERT"):
        read_bert(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"{")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        read_bert(tmp_path)

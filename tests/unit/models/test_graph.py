"""Words and a word model from files become a graph whose texts hold nothing but these words."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import replace

import pytest
import torch

from xllm_speech.base.errors import ConfigError
from xllm_speech.decoders.ctc import ctc_greedy, ctc_loss
from xllm_speech.decoders.graph import GraphResult, SearchGraph
from xllm_speech.decoders.ngram_estimate import count_ngrams, estimate_ngram, write_arpa
from xllm_speech.models import asr
from xllm_speech.models.asr import SearchConfig, build_asr_model
from xllm_speech.models.asr_config import AsrModelConfig, CifConfig, DecoderConfig, EncoderConfig, LossConfig
from xllm_speech.models.graph import load_graph
from xllm_speech.records import AsrBatch, FbankBatch
from xllm_speech.text.tokens import TokenTable

needs_graphs = pytest.mark.skipif(
    importlib.util.find_spec("kaldifst") is None or importlib.util.find_spec("kaldi_decoder") is None,
    reason="the optional packages kaldifst and kaldi-decoder are not installed",
)


def make_model(table):
    torch.manual_seed(0)
    config = AsrModelConfig(
        encoder=EncoderConfig(channels=4, width=32, heads=2, feedforward=48, kernel=5, blocks=3, pool_after=[1, 2]),
        cif=CifConfig(channels=16),
        decoder=DecoderConfig(heads=2, feedforward=48, blocks=2, visual_blocks=[1], linguistic_blocks=[2]),
    )
    model = build_asr_model(config, table.size, table.sos_id).eval()
    torch.nn.init.normal_(model.ctc_head.weight, std=0.3)
    batch = AsrBatch(["a", "b"], FbankBatch(torch.randn(2, 240, 80) * 2, torch.tensor([240, 130])), 4.0)
    return model, batch


def test_k2_searches_for_the_model_with_a_graph_and_without(monkeypatch):
    """Without k2 itself: stand-ins that are asked what it would be asked."""
    table = TokenTable.train(["天地玄黄"], "char")
    model, batch = make_model(table)
    graph = SearchGraph(None, None, ["天"], table.size)

    def of_words(given, log_probs_BSV, lens_B):
        assert given is graph
        return [GraphResult(["天"], -1.5, [0, 2, 2, *[0] * (length - 3)]) for length in lens_B.tolist()]

    def of_tokens(log_probs_BSV, lens_B):
        assert (log_probs_BSV.argmax(-1) != table.sos_id).all()
        return [GraphResult([], 0.0, log_probs_BSV[row, :length].argmax(-1).tolist()) for row, length in enumerate(lens_B)]

    monkeypatch.setattr(asr, "search_graph_k2", of_words)
    monkeypatch.setattr(asr, "search_tokens_k2", of_tokens)
    results, cif = model.recognise(batch, SearchConfig("graph-k2", graph=graph))
    assert [(result.tokens, result.score) for result in results] == [([2], -1.5)] * 2
    assert cif.start_BU.tolist() == [[1.0]] * 2
    with torch.no_grad():
        model.ctc_head.bias[table.sos_id] += 50
        encoded, _ = model.find_units(batch.fbank)
        logits = model.ctc_head(encoded.x_BSD)
    logits[..., table.sos_id] = -1e9
    results, _ = model.recognise(batch, SearchConfig("graph-k2"))
    assert [result.tokens for result in results] == ctc_greedy(logits, encoded.lens_B)


def test_the_loss_is_made_by_the_configured_library(monkeypatch):
    asked = []

    def stand_in(*arguments):
        asked.append([argument.shape[0] for argument in arguments])
        return ctc_loss(*arguments)

    monkeypatch.setattr(asr, "ctc_loss_k2", stand_in)
    table = TokenTable.train(["天地玄黄"], "char")
    model, batch = make_model(table)
    batch = replace(batch, tokens_BL=torch.tensor([[2, 3], [3, 0]]), token_lens_B=torch.tensor([2, 1]))
    losses = []
    for model.ctc_by in ("torch", "k2"):
        losses.append(float(model(batch).parts["ctc"]))
    assert losses[0] == losses[1] > 0
    assert asked == [[2, 2, 2, 2]]
    with pytest.raises(ConfigError, match=r"loss.ctc_by.*k3"):
        LossConfig(ctc_by="k3")


@needs_graphs
def test_texts_are_made_of_the_lexicons_words(tmp_path, caplog):
    table = TokenTable.train(["天地玄黄宇宙洪荒"], "char")
    (tmp_path / "lexicon.txt").write_text("天地\n玄黄 玄 黄\n宇宙\n天空\n")
    sentences = [["天地", "玄黄"], ["宇宙"], ["天地", "宇宙"], ["玄黄", "玄黄"]]
    write_arpa(tmp_path / "words.arpa", estimate_ngram(count_ngrams(sentences, 2)).grams)
    with caplog.at_level(logging.WARNING):
        graph = load_graph(table, tmp_path / "lexicon.txt", tmp_path / "words.arpa", 0.5)
    assert graph.words == sorted(["天地", "玄黄", "宇宙"])
    assert "1 words have no spelling in the model's tokens, first 天空 (line 4)" in caplog.text
    model, batch = make_model(table)
    results, cif = model.recognise(batch, SearchConfig("graph", graph=graph))
    for row, result in enumerate(results):
        text = table.decode(result.tokens)
        for word in graph.words:
            text = text.replace(word, "")
        assert len(text) <= 1  # a word that the end cuts off
        assert int(cif.lens_B[row]) == len(result.tokens) > 1
    with pytest.raises(ConfigError, match=r"goes with search.method graph"):
        SearchConfig("ctc", graph=graph)
    with pytest.raises(ConfigError, match=r"goes with search.method graph"):
        SearchConfig("graph")

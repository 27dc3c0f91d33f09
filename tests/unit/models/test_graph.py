"""Words and a word model from files become a graph whose texts hold nothing but these words."""

from __future__ import annotations

import logging

import pytest
import torch

from xllm_speech.base.errors import ConfigError
from xllm_speech.decoders.ngram_estimate import count_ngrams, estimate_ngram, write_arpa
from xllm_speech.models.asr import SearchConfig, build_asr_model
from xllm_speech.models.asr_config import AsrModelConfig, CifConfig, DecoderConfig, EncoderConfig
from xllm_speech.models.graph import load_graph
from xllm_speech.records import AsrBatch, FbankBatch
from xllm_speech.text.tokens import TokenTable

pytest.importorskip("kaldifst", reason="the optional package kaldifst is not installed")
pytest.importorskip("kaldi_decoder", reason="the optional package kaldi-decoder is not installed")


def test_texts_are_made_of_the_lexicons_words(tmp_path, caplog):
    table = TokenTable.train(["天地玄黄宇宙洪荒"], "char")
    (tmp_path / "lexicon.txt").write_text("天地\n玄黄 玄 黄\n宇宙\n天空\n")
    sentences = [["天地", "玄黄"], ["宇宙"], ["天地", "宇宙"], ["玄黄", "玄黄"]]
    write_arpa(tmp_path / "words.arpa", estimate_ngram(count_ngrams(sentences, 2)).grams)
    with caplog.at_level(logging.WARNING):
        graph = load_graph(table, tmp_path / "lexicon.txt", tmp_path / "words.arpa", 0.5)
    assert graph.words == sorted(["天地", "玄黄", "宇宙"])
    assert "1 words have no spelling in the model's tokens, first 天空 (line 4)" in caplog.text
    torch.manual_seed(0)
    config = AsrModelConfig(
        encoder=EncoderConfig(channels=4, width=32, heads=2, feedforward=48, kernel=5, blocks=3, pool_after=[1, 2]),
        cif=CifConfig(channels=16),
        decoder=DecoderConfig(heads=2, feedforward=48, blocks=2, visual_blocks=[1], linguistic_blocks=[2]),
    )
    model = build_asr_model(config, table.size, table.sos_id).eval()
    torch.nn.init.normal_(model.ctc_head.weight, std=0.3)
    batch = AsrBatch(["a", "b"], FbankBatch(torch.randn(2, 240, 80) * 2, torch.tensor([240, 130])), 4.0)
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

"""Language models and hotwords from files, in the tokens of a model, and what they do to its texts."""

from __future__ import annotations

import logging

import pytest
import torch

from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.metrics.hotwords import score_hotwords
from xllm_speech.models.asr import SearchConfig, build_asr_model
from xllm_speech.models.asr_config import AsrModelConfig, CifConfig, DecoderConfig, EncoderConfig, LossConfig
from xllm_speech.models.fusion import build_fusion
from xllm_speech.models.ngram import make_ngram
from xllm_speech.records import AsrBatch, FbankBatch
from xllm_speech.text.tokens import TokenTable

TEXTS = ["天地玄黄", "宇宙洪荒", "日月盈昃", "辰宿列张"]


@pytest.fixture(scope="module")
def table():
    return TokenTable.train(TEXTS, "char")


@pytest.fixture(scope="module")
def model(table):
    torch.manual_seed(0)
    config = AsrModelConfig(
        encoder=EncoderConfig(channels=4, width=32, heads=2, feedforward=48, kernel=5, blocks=3, pool_after=[1, 2]),
        cif=CifConfig(channels=16), loss=LossConfig(unit_weight=0.3),
        decoder=DecoderConfig(heads=2, feedforward=48, blocks=2, visual_blocks=[1], linguistic_blocks=[2]),
    )
    model = build_asr_model(config, table.size, table.sos_id).eval()
    torch.nn.init.normal_(model.decoder.vocabulary.weight, std=0.3)
    torch.nn.init.normal_(model.ctc_head.weight, std=0.3)
    return model


@pytest.fixture(scope="module")
def batch():
    x = torch.randn(6, 240, 80, generator=torch.Generator().manual_seed(0)) * 2
    lens = torch.tensor([240, 200, 160, 120, 80, 8])
    return AsrBatch([str(n) for n in range(6)], FbankBatch(x, lens), 8.0)


def texts(model, table, batch, search):
    results, cif = model.recognise(batch, search)
    for row, result in enumerate(results):
        assert len(result.tokens) == len(result.log_probs) == int(cif.lens_B[row])
        fires = cif.fire_BU[row, : len(result.tokens)].tolist()
        assert fires == sorted(fires)
    return [table.decode(result.tokens) for result in results]


@pytest.mark.parametrize("method", ["greedy", "beam", "ctc"])
def test_hotwords_raise_recall_and_leave_other_texts_alone(model, table, batch, method):
    """Two characters that stand in one text of the plain search, but not next to each other."""
    plain = texts(model, table, batch, SearchConfig(method))
    long = max(plain, key=len)
    phrase = long[0] + long[2]
    weak, strong = (
        texts(model, table, batch, SearchConfig(method, fusion=build_fusion(table, hotwords=[phrase], hotword_bonus=bonus)))
        for bonus in (0.0, 4.0)
    )
    assert weak == plain
    reference = [phrase] * len(plain)
    found = [score_hotwords({phrase: list(phrase)}, zip(map(list, reference), map(list, rows), strict=True)).total.written
             for rows in (plain, strong)]
    assert found[1] > found[0]
    absent = build_fusion(table, hotwords=["张张张张张张张张"], hotword_bonus=0.3)
    assert texts(model, table, batch, SearchConfig(method, fusion=absent)) == plain


def test_a_language_model_draws_texts_to_its_own(model, table, batch, tmp_path):
    lines = tmp_path / "lines"
    lines.write_text("\n".join(["天地玄黄宇宙洪荒"] * 20))
    made = make_ngram([lines], True, _saved(table, tmp_path), 2, (), tmp_path / "lm.arpa")
    assert made.sentences == 20
    plain = "".join(texts(model, table, batch, SearchConfig("beam")))
    fusion = build_fusion(table, tmp_path / "lm.arpa", lm_weight=2.0)
    drawn = "".join(texts(model, table, batch, SearchConfig("beam", fusion=fusion)))
    pairs = {"天地", "地玄", "玄黄", "黄宇", "宇宙", "宙洪", "洪荒"}

    def count(text):
        return sum(text[i : i + 2] in pairs for i in range(len(text)))

    assert count(drawn) > count(plain) + 5
    assert fusion.source.startswith(f"lm {tmp_path / 'lm.arpa'} (")


def _saved(table, folder):
    table.save(folder / "tokens")
    return folder / "tokens"


def test_a_length_bonus_makes_texts_of_ctc_longer(model, table, batch):
    short, long = (
        sum(map(len, texts(model, table, batch, SearchConfig("ctc", length_bonus=bonus)))) for bonus in (-2.0, 2.0)
    )
    assert long > short


def test_results_with_fusion_do_not_depend_on_the_batch(model, table, batch):
    fusion = build_fusion(table, hotwords=["天地", "日月"])
    for method in ("greedy", "beam", "ctc"):
        search = SearchConfig(method, fusion=fusion)
        together = texts(model, table, batch, search)
        for row, text in enumerate(together):
            length = int(batch.fbank.lens_B[row])
            lens = batch.fbank.lens_B[row : row + 1]
            single = AsrBatch(["x"], FbankBatch(batch.fbank.x_BTF[row : row + 1, :length], lens), 1.0)
            assert texts(model, table, single, search) == [text]


def test_a_phrase_that_cannot_be_written_is_named_and_left_out(table, tmp_path, caplog):
    path = tmp_path / "words.txt"
    path.write_text("# of the day\n天地\n\n天空\n，\n日月\n")
    with caplog.at_level(logging.WARNING):
        fusion = build_fusion(table, hotwords=path)
    assert len(fusion.hotwords) == 2
    assert f"{path}:4: hotword `天空` is left out: the model has no token for 空" in caplog.text
    assert f"{path}:5: hotword `，`" in caplog.text
    with pytest.raises(DataError, match=r"hotwords: none of 1 phrases"):
        build_fusion(table, hotwords=["空空"])


def test_wrong_options_are_refused(table):
    assert build_fusion(table) is None
    with pytest.raises(ConfigError, match="lm_weight -1"):
        build_fusion(table, lm_weight=-1)
    with pytest.raises(ConfigError, match="hotword_bonus -1"):
        build_fusion(table, hotword_bonus=-1)
    with pytest.raises(ConfigError, match=r"search.method fast.*takes no n-gram model"):
        SearchConfig("fast", fusion=build_fusion(table, hotwords=["天地"]))

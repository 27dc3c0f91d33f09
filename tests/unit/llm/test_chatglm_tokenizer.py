from __future__ import annotations

import pytest
import sentencepiece
from transformers import TextStreamer

from xllm_speech.base.errors import CheckpointError
from xllm_speech.llm import ChatGLMTokenizer
from xllm_speech.llm.chatglm_tokenizer import CONTROL_PIECES, blank_piece, pack_white_space, unpack_white_space


@pytest.fixture
def tokenizer(vocabulary):
    return ChatGLMTokenizer.from_pretrained(str(vocabulary))


def test_white_space_becomes_pieces_and_back(tokenizer):
    text = "a b  c\n\td   e" + " " * 83 + "f" + " " * 81 + "g"
    pieces = tokenizer.tokenize(text)
    assert [piece for piece in pieces if "|" in piece or piece == "<n>"] == [
        "<|blank_2|>", "<n>", "<|tab|>", "<|blank_3|>", "<|blank_80|>", "<|blank_3|>", "<|blank_80|>",
    ]
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert unpack_white_space(pack_white_space("\n\n  \t")) == "\n\n  \t"
    assert blank_piece(2) == "<|blank_2|>"


def test_a_prompt_ends_in_gmask_sop_and_an_answer_in_eop(tokenizer):
    ends = tokenizer.convert_ids_to_tokens(tokenizer("红色")["input_ids"])
    assert ends == ["▁", "红", "色", "[gMASK]", "<sop>"]
    both = tokenizer("红", "色", return_special_tokens_mask=True)
    assert tokenizer.convert_ids_to_tokens(both["input_ids"]) == ["▁", "红", "[gMASK]", "<sop>", "▁", "色", "<eop>"]
    assert both["special_tokens_mask"] == [0, 0, 1, 1, 0, 0, 1]
    assert tokenizer.decode(both["input_ids"], skip_special_tokens=True) == "红 色"


def test_batches_are_padded_on_the_left(tokenizer):
    out = tokenizer(["红", "红色的"], padding=True)
    assert out["input_ids"][0][:2] == [3, 3]
    assert out["attention_mask"] == [[0, 0, 1, 1, 1, 1], [1] * 6]


def test_ids_follow_the_sentencepiece_model(vocabulary, tokenizer):
    model = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary / "ice_text.model"))
    assert tokenizer.convert_tokens_to_ids(list(CONTROL_PIECES)) == [model.PieceToId(piece) for piece in CONTROL_PIECES]
    assert len(tokenizer) == tokenizer.vocab_size == model.GetPieceSize()
    text = "左上有红色的圆形，右下有绿色的旗子。"
    assert tokenizer.encode(text, add_special_tokens=False) == tokenizer.encode_plain(text) == model.EncodeAsIds(text)


@pytest.mark.parametrize("text", ["红<sop>色", "<sop>", "a[gMASK][MASK]<eop>b", "x\n<pad>y", "<<eop>", ""])
def test_what_a_user_types_controls_nothing(tokenizer, text):
    ids = tokenizer.encode_plain(text)
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == text


def test_ids_of_the_first_release_stand_behind_those_of_pictures(vocabulary, tokenizer, tmp_path):
    shifted = ChatGLMTokenizer.from_pretrained(str(vocabulary), num_image_tokens=20)
    shifted.save_pretrained(str(tmp_path))
    again = ChatGLMTokenizer.from_pretrained(str(tmp_path))
    ids = tokenizer("红色\n<sop>")["input_ids"]
    for other in (shifted, again):
        assert other("红色\n<sop>")["input_ids"] == [index + 20 for index in ids]
        assert other.eos_token_id == tokenizer.eos_token_id + 20
        assert other.decode([index + 20 for index in ids]) == tokenizer.decode(ids)
        assert other.convert_ids_to_tokens(7) == "<image_7>"
        assert other.convert_tokens_to_ids("<image_7>") == 7
    older = ChatGLMTokenizer(str(vocabulary / "ice_text.model"), eos_token="</s>", eop_token="<eop>")
    assert older.eos_token == "<eop>"


def test_a_saved_folder_reads_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(str(tmp_path))
    again = ChatGLMTokenizer.from_pretrained(str(tmp_path))
    text = "问：什么  颜色？\n答：[gMASK]"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (tmp_path / "ice_text.model").is_file()


def test_streamed_text_is_the_decoded_text(tokenizer, capsys):
    import torch

    text = "问：什么  颜色？\n答：红色 abc"
    streamer = TextStreamer(tokenizer, skip_special_tokens=True)
    for index in tokenizer.encode_plain(text):
        streamer.put(torch.tensor([index]))
    streamer.end()
    assert capsys.readouterr().out == text + "\n"


def test_ids_beyond_the_model_are_unknown(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer.vocab_size + 3) == "<unk>"


def test_a_wrong_model_is_refused(tmp_path):
    junk = tmp_path / "ice_text.model"
    junk.write_bytes(b"not sentencepiece")
    with pytest.raises(CheckpointError, match="not a sentencepiece model"):
        ChatGLMTokenizer(str(junk))
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["abc abd"]), model_prefix=str(tmp_path / "plain"), model_type="char", vocab_size=9,
        hard_vocab_limit=False, minloglevel=2,
    )
    with pytest.raises(CheckpointError, match="holds no piece <sop>"):
        ChatGLMTokenizer(str(tmp_path / "plain.model"))

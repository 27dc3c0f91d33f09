from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.text.normalise import normalise
from xllm_speech.text.tokens import TokenTable

TEXTS = [
    "用python写hello world程序", "hello 你好", "world peace", "don't stop it", "今天天气 hello, hello world",
    "旗子是什么颜色", "棋子在哪里", "play the music now", "打开 music player", "3.14 是圆周率",
]  # fmt: skip
MIXED = "用python写hello world程序"


@pytest.fixture(params=["char", "sentencepiece", "mixed"])
def table(request: pytest.FixtureRequest) -> TokenTable:
    return TokenTable.train(TEXTS, request.param)


def test_special_tokens_stand_where_espnet_has_them(table: TokenTable) -> None:
    assert (table.piece(0), table.piece(1), table.piece(table.size - 1)) == ("<blank>", "<unk>", "<sos/eos>")
    assert (table.blank_id, table.unk_id, table.eos_id, table.sos_id) == (0, 1, table.size - 1, table.size - 1)


def test_round_trip_of_every_text(table: TokenTable) -> None:
    for text in TEXTS:
        ids = table.encode(text)
        assert not {0, 1, table.eos_id} & set(ids)
        assert table.decode(ids) == normalise(text)
    assert table.encode("") == [] == table.encode("，。")
    assert table.decode([]) == ""


def test_blank_and_eos_are_left_out_of_text_and_unknown_is_visible(table: TokenTable) -> None:
    ids = table.encode(MIXED)
    assert table.decode([0, table.eos_id, *ids, 0, table.eos_id]) == MIXED
    assert table.decode([*table.encode("你好"), 1]) == "你好�"


def test_each_unknown_character_is_one_unk(table: TokenTable) -> None:
    ids = table.encode("你龘龘齉好ж")
    assert ids.count(table.unk_id) == 4
    assert table.count_unknown("你龘龘齉好ж") == {"龘": 2, "齉": 1, "ж": 1}
    assert not table.count_unknown(MIXED)
    assert table.encode("�") == [table.unk_id]


def test_kinds_cut_mixed_text_differently() -> None:
    def cut(kind: str) -> list[str]:
        table = TokenTable.train(TEXTS * 3, kind)
        return [table.piece(index) for index in table.encode(MIXED)]

    assert cut("char") == [*"用python写hello", "<space>", *"world程序"]
    for kind in ("mixed", "sentencepiece"):
        tokens = cut(kind)
        assert tokens[0] == "用"
        assert tokens[-1] == ("序" if kind == "mixed" else "程序")
        assert "▁hello" in tokens
        assert "▁" not in tokens


def test_mixed_table_never_glues_chinese_characters() -> None:
    table = TokenTable.train(["今天天气很好"] * 50 + ["hello world"] * 50, "mixed")
    assert all(len(token) == 1 for token in table.tokens[2:-1] if not token.isascii() and "▁" not in token)
    assert len(table.encode("今天天气很好")) == 6
    assert TokenTable.train(["只有汉字"], "mixed").spm_model is None


def test_training_does_not_depend_on_the_order_of_texts() -> None:
    shuffled = TEXTS * 4
    random.Random(3).shuffle(shuffled)
    for kind in ("char", "sentencepiece", "mixed"):
        first, second = TokenTable.train(TEXTS * 4, kind), TokenTable.train(iter(shuffled), kind)
        assert first.tokens == second.tokens
        assert first.spm_model == second.spm_model


def test_save_and_load_agree_and_leave_other_files_alone(table: TokenTable, tmp_path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    table.save(tmp_path)
    loaded = TokenTable.load(tmp_path)
    assert (loaded.kind, loaded.tokens, loaded.encode(MIXED)) == (table.kind, table.tokens, table.encode(MIXED))
    assert (tmp_path / "model.safetensors").read_bytes() == b"weights"
    assert (tmp_path / "tokens.txt").read_text(encoding="utf-8").splitlines() == list(table.tokens)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("form", ["{token}\n", "{token} {index}\n", "{token}\t{index}\n"])
def test_bare_tokens_file_of_other_toolkits(form: str, tmp_path) -> None:
    tokens = ["<blank>", "<unk>", "你", "好", "<sos/eos>"]
    path = tmp_path / "tokens.txt"
    path.write_text("".join(form.format(token=token, index=index) for index, token in enumerate(tokens)), encoding="utf-8")
    table = TokenTable.load(path)
    assert (table.kind, table.size, table.encode("你 好 吗")) == ("char", 5, [2, 3, 1])
    assert table.encode("a b") == [1, 1]  # no <space> in the table: the space is left out, not unknown


def test_loading_says_what_is_wrong(tmp_path, caplog) -> None:
    table = TokenTable.train(TEXTS, "mixed")

    def fresh(name: str):
        table.save(tmp_path / name)
        return tmp_path / name

    with pytest.raises(DataError, match=r"no tokens\.txt here"):
        TokenTable.load(tmp_path / "absent")
    directory = fresh("short")
    lines = (directory / "tokens.txt").read_text(encoding="utf-8").splitlines()
    (directory / "tokens.txt").write_text("\n".join(lines[:5] + lines[6:]) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"holds {table.size - 1} tokens, tokenizer.json says {table.size}"):
        TokenTable.load(directory)
    lines[5] = lines[6]
    (directory / "tokens.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"token `{lines[6]}` occurs twice"):
        TokenTable.load(directory)
    directory = fresh("no_model")
    (directory / "sentencepiece.model").unlink()
    with pytest.raises(DataError, match=r"sentencepiece\.model cannot be read"):
        TokenTable.load(directory)
    directory = fresh("other_model")
    (directory / "sentencepiece.model").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"not the one"):
        TokenTable.load(directory)
    path = tmp_path / "gap.txt"
    path.write_text("<blank> 0\n<unk> 1\n你 3\n<sos/eos> 4\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"gap\.txt:3: token `你` has id 3, expected 2"):
        TokenTable.load(path)
    path.write_text("<eps> 0\n你 1\n", encoding="utf-8")
    with pytest.raises(DataError, match="begins with <blank>"):
        TokenTable.load(path)
    path.write_text("<blank>\n<unk>\n▁the\n<sos/eos>\n", encoding="utf-8")
    TokenTable.load(path)
    assert "1 longer tokens are never used, first `▁the`" in caplog.text


def test_vocabulary_limits(caplog) -> None:
    table = TokenTable.train(["好好好你你他"], "char", vocab_size=5)
    assert table.tokens == ("<blank>", "<unk>", "好", "你", "<sos/eos>")
    assert "1 rarer characters become <unk>, first 他" in caplog.text
    for kind in ("sentencepiece", "mixed"):
        caplog.clear()
        assert TokenTable.train(TEXTS, kind, vocab_size=5000).size < 200
        assert "the text holds no more" in caplog.text
        with pytest.raises(ConfigError, match="raise it by at least"):
            TokenTable.train(TEXTS, kind, vocab_size=12)
        assert TokenTable.train(TEXTS * 20, kind, vocab_size=75).size <= 75


def test_training_refuses_nothing_and_unknown_kinds() -> None:
    with pytest.raises(ConfigError, match="every transcript is empty"):
        TokenTable.train(["", "，。"])
    with pytest.raises(ConfigError, match="`bpe` is not one of char, sentencepiece, mixed"):
        TokenTable.train(TEXTS, "bpe")
    with pytest.raises(ConfigError, match="at least 4"):
        TokenTable.train(TEXTS, vocab_size=3)


def test_ids_outside_the_table_are_refused(table: TokenTable) -> None:
    for index in (-1, table.size):
        with pytest.raises(ConfigError, match=f"outside the table of {table.size} tokens"):
            table.decode([index])


@given(st.text(alphabet="你好旗子是 helowrd'.,31", max_size=25))
@settings(max_examples=200, deadline=None)
def test_round_trip_of_any_text_over_known_characters(text: str) -> None:
    for table in TABLES.values():
        assert table.decode(table.encode(text)) == normalise(text)


TABLES = {kind: TokenTable.train([*TEXTS, *"'.1349"], kind) for kind in ("char", "sentencepiece", "mixed")}


def test_real_transcripts_round_trip(shared_data) -> None:
    lines = (shared_data / "aishell1_sample_S0150" / "kaldi" / "text").read_text(encoding="utf-8").splitlines()
    texts = [line.split(maxsplit=1)[1] for line in lines]
    for kind, size in (("char", None), ("sentencepiece", 1500), ("mixed", None)):
        table = TokenTable.train(texts, kind, size)
        for text in texts:
            assert table.decode(table.encode(text)) == normalise(text)

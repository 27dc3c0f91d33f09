"""Translation: three back-ends behind one interface, answers kept by content, kills and refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from xllm_speech.base.errors import CheckpointError, DataError, UserError
from xllm_speech.base.files import read_jsonl, write_jsonl
from xllm_speech.datasets.translation import (
    CHINESE,
    ENGLISH,
    EndpointTranslator,
    MbartTranslator,
    TableTranslator,
    TranslationCache,
    translate_file,
    translate_texts,
)


class Shouting:
    """A back-end that counts what it is asked; words in `refused` have no answer."""

    name = "shouting"

    def __init__(self, refused: Sequence[str] = ()) -> None:
        self.asked: list[str] = []
        self.refused = refused

    def translate(self, texts: Sequence[str]) -> list[str | None]:
        self.asked += texts
        return [None if text in self.refused else text.upper() for text in texts]


def cache_at(path: Path, backend: str = "shouting") -> TranslationCache:
    return TranslationCache(path, ENGLISH, CHINESE, backend)


def test_every_text_is_asked_for_once_and_never_again(tmp_path: Path) -> None:
    texts = ["b c", "a", " b  c", "", "d" * 50, "a"]
    wanted = [("b c", "B C"), ("a", "A"), ("d" * 50, "D" * 50)]
    first = Shouting()
    assert list(translate_texts(texts, first, cache_at(tmp_path / "c.sqlite"), batch_size=2)) == wanted
    assert sorted(first.asked) == ["a", "b c", "d" * 50]
    again = Shouting()
    assert list(translate_texts([*texts, "e"], again, cache_at(tmp_path / "c.sqlite"))) == [*wanted, ("e", "E")]
    assert again.asked == ["e"]
    # Another back-end, or other languages, have answers of their own.
    other = Shouting()
    list(translate_texts(texts, other, cache_at(tmp_path / "c.sqlite", "whispering")))
    list(translate_texts(texts, other, TranslationCache(tmp_path / "c.sqlite", ENGLISH, "it_IT", "shouting")))
    assert len(other.asked) == 6


def test_a_table_from_texts(tmp_path: Path) -> None:
    rows = [{"text": text, "roles": ["question"], "count": 1} for text in ("one", "two", "three")]
    write_jsonl(tmp_path / "texts.jsonl", rows)
    counts = translate_file(tmp_path / "texts.jsonl", tmp_path / "table.jsonl", Shouting(["two"]), cache_at(tmp_path / "c"))
    assert counts == {"texts": 2, "rejected": 1}
    assert list(read_jsonl(tmp_path / "table.jsonl")) == [
        (1, {"source": "one", "target": "ONE"}), (2, {"source": "three", "target": "THREE"}),
    ]  # fmt: skip
    ((_, row),) = read_jsonl(tmp_path / "table.rejected.jsonl")
    assert (row["kind"], row["reason"]) == ("no-translation", "no translation of 'two'")
    translator = TableTranslator(tmp_path / "table.jsonl")
    assert translator.translate(["three", " one", "four"]) == ["THREE", "ONE", None]
    with pytest.raises(DataError, match="1 rejected"):
        translate_file(
            tmp_path / "texts.jsonl", tmp_path / "again.jsonl", translator, cache_at(tmp_path / "d", "table"), max_rejected=0.0
        )
    assert not (tmp_path / "again.jsonl").exists()


def test_a_manifest_of_conversations(tmp_path: Path) -> None:
    def row(name: str, question: str, answer: str) -> dict[str, Any]:
        content = [{"type": "image", "path": "a dog.jpg"}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        return {"id": name, "task": "vl", "messages": messages, "custom": {"note": "stays"}}

    rows = [row("a", "描述图片", "a dog"), row("b", "what", "no way"), row("c", "what", "a dog")]
    write_jsonl(tmp_path / "in.jsonl.gz", rows)
    counts = translate_file(tmp_path / "in.jsonl.gz", tmp_path / "out.jsonl.gz", Shouting(["no way"]), cache_at(tmp_path / "c"))
    assert counts == {"conversations": 2, "texts": 3, "rejected": 1}
    wanted = [row("a", "描述图片", "A DOG"), row("c", "WHAT", "A DOG")]
    assert [value for _, value in read_jsonl(tmp_path / "out.jsonl.gz")] == wanted


def test_a_killed_run_keeps_what_it_had(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom xllm_speech.datasets.translation import *\n"
        "class Slow:\n    name = 'shouting'\n    def translate(self, texts):\n"
        "        time.sleep(0.05)\n        return [t.upper() for t in texts]\n"
        "cache = TranslationCache(sys.argv[1], ENGLISH, CHINESE, 'shouting')\n"
        "for text, _ in translate_texts((f'text {n}' for n in range(4000)), Slow(), cache, 2): pass\n"
    )
    path = tmp_path / "c.sqlite"
    child = subprocess.Popen([sys.executable, "-c", script, str(path)])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not path.is_file() or cache_at(path).get("text 5") is None):
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    translator = Shouting()
    assert len(list(translate_texts((f"text {n}" for n in range(200)), translator, cache_at(path)))) == 200
    assert 0 < len(translator.asked) <= 194


@pytest.fixture
def server() -> Iterator[tuple[str, list[Any], list[tuple[int, Any]]]]:
    """(url, requests so far, answers to give first): later requests are answered with the text in capitals."""
    requests: list[Any] = []
    first: list[tuple[int, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, dict(self.headers), body))
            text = body["messages"][1]["content"].upper()
            status, answer = first.pop(0) if first else (200, {"choices": [{"message": {"content": f" {text}\n"}}]})
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}/v1", requests, first
    http.shutdown()
    http.server_close()


def test_an_endpoint(server: tuple[str, list[Any], list[tuple[int, Any]]]) -> None:
    url, requests, first = server
    first.append((503, {"error": "busy"}))
    translator = EndpointTranslator(url, "glm", api_key="secret", jobs=1, waits_sec=(0.01,))
    assert translator.translate(["one", "two"]) == ["ONE", "TWO"]
    assert len(requests) == 3
    path, headers, body = requests[0]
    assert (path, headers["Authorization"], body["model"]) == ("/v1/chat/completions", "Bearer secret", "glm")
    assert "from English into Simplified Chinese" in body["messages"][0]["content"]
    assert "secret" not in translator.name
    first += [(200, {"choices": [{"message": {"content": "cut"}, "finish_reason": "length"}]})]
    assert translator.translate(["long"]) == [None]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([(401, {"error": "who are you"})], "answers 401: .*who are you.*a rerun goes on"),
        ([(200, {"a": 1})], "not an answer"), ([(429, {}), (429, {})], "answers 429"),
    ],
)
def test_an_endpoint_that_refuses(
    server: tuple[str, list[Any], list[tuple[int, Any]]], answers: list[tuple[int, Any]], message: str
) -> None:
    url, _, first = server
    first += answers
    with pytest.raises(UserError, match=message):
        EndpointTranslator(url, "glm", waits_sec=(0.01,)).translate(["one"])


def test_an_endpoint_that_is_not_there() -> None:
    with pytest.raises(UserError, match="cannot be reached"):
        EndpointTranslator("http://127.0.0.1:9/v1", "glm", waits_sec=()).translate(["one"])


PAIRS = {"is it sunny": "天晴吗", "how many people": "有几个人"}


@pytest.fixture(scope="module")
def mbart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny mBART-50 in the form of the published folder, taught two sentences."""
    import torch
    from transformers import MBart50Tokenizer, MBartConfig, MBartForConditionalGeneration

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("mbart")
    letters = "▁abcdefghijklmnopqrstuvwxyz天晴吗有几个人"
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)] + [(one, -1.0) for one in letters]
    tokenizer = MBart50Tokenizer(vocab=vocab, src_lang=ENGLISH, tgt_lang=CHINESE)
    model = MBartForConditionalGeneration(MBartConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32,
        encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=64, dropout=0.0,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id, forced_eos_token_id=None,
    ))  # fmt: skip
    batch = tokenizer(list(PAIRS), text_target=list(PAIRS.values()), return_tensors="pt", padding=True)
    batch["labels"][batch["labels"] == tokenizer.pad_token_id] = -100
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(80):
        model(**batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_mbart_from_a_folder(mbart: Path) -> None:
    translator = MbartTranslator(mbart, beams=2, max_new_tokens=12)
    assert translator.translate(list(PAIRS)) == list(PAIRS.values())
    assert translator.translate(["how many people"]) == ["有几个人"]
    short = MbartTranslator(mbart, beams=1, max_new_tokens=3)
    assert short.translate(["how many people"]) == [None]  # it did not end


def test_folders_that_are_no_mbart(mbart: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        MbartTranslator(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not an mBART-50 model"):
        MbartTranslator(tmp_path)
    with pytest.raises(CheckpointError, match="does not know the languages en_XX and zh_TW"):
        MbartTranslator(mbart, target="zh_TW")


def test_caches_and_inputs_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("this is no sqlite file, and long enough to be told from one" * 10)
    with pytest.raises(DataError, match="not a translation cache"):
        cache_at(tmp_path / "c")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="nothing to translate"):
        translate_file(tmp_path / "empty.jsonl", tmp_path / "o.jsonl", Shouting(), cache_at(tmp_path / "d"))
    (tmp_path / "odd.jsonl").write_text('{"text": "a"}\n{"b": 1}\n')
    with pytest.raises(DataError, match=r"odd\.jsonl:2: neither `text` nor `messages`"):
        translate_file(tmp_path / "odd.jsonl", tmp_path / "o.jsonl", Shouting(), cache_at(tmp_path / "d"))

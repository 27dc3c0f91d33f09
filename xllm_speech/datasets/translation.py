"""Translation of texts through one interface, each text once: a table that outlives a kill (data.md, Corpora).

    mBART-50    a local folder of `facebook/mbart-large-50-many-to-many-mmt` (paper, A.1), read by transformers
    endpoint    any server that answers OpenAI's `/chat/completions`
    table       jsonl of {"source", "target"} that somebody made

Answers are kept in an sqlite file, by content: the text, the back-end with whatever its answers depend on, and the two
languages. A rerun asks only for what is not there. Every batch is committed when it comes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from xllm_speech.base.errors import CheckpointError, DataError, UserError, first_line
from xllm_speech.base.files import read_jsonl, write_jsonl
from xllm_speech.base.quiet import quiet_transformers
from xllm_speech.base.rejects import DEFAULT_MAX_SHARE, Rejects
from xllm_speech.manifests.pictures import clean_text
from xllm_speech.manifests.vsdial_cn import read_table

log = logging.getLogger(__name__)

ENGLISH, CHINESE = "en_XX", "zh_CN"
LANGUAGE_NAMES = {"en_XX": "English", "zh_CN": "Simplified Chinese", "it_IT": "Italian"}
INSTRUCTION = "Translate the user's text from {source} into {target}. Answer with the translation alone."
RETRY_WAITS_SEC = (1.0, 4.0, 15.0)
REPORT_SEC = 30.0
REJECTED_NAME = "rejected.jsonl"


class Translator(Protocol):
    """A back-end. `name` tells whatever its answers depend on; `translate` gives None for a text that it has none for."""

    name: str

    def translate(self, texts: Sequence[str]) -> list[str | None]:
        """One answer per text, in order."""


class TableTranslator:
    """A ready table, as exact as it is."""

    def __init__(self, path: str | Path) -> None:
        self.table = read_table(path)
        self.name = f"table {hashlib.sha256(json.dumps(self.table, sort_keys=True).encode()).hexdigest()[:16]}"

    def translate(self, texts: Sequence[str]) -> list[str | None]:
        """What the table has."""
        return [self.table.get(clean_text(text)) or None for text in texts]


class MbartTranslator:
    """mBART-50 from a local folder.

    Args:
        folder: config.json, weights and tokenizer as Hugging Face saves them. source, target: mBART's language codes.
        beams: of the search. device: torch's name.

    Raises:
        CheckpointError: not such a folder, or a tokenizer without these languages.
    """

    def __init__(
        self, folder: str | Path, source: str = ENGLISH, target: str = CHINESE, beams: int = 5, device: str = "cpu",
        max_new_tokens: int = 200,
    ) -> None:
        import torch
        from transformers import AutoTokenizer, MBartForConditionalGeneration

        if not (Path(folder) / "config.json").is_file():
            raise CheckpointError(f"{folder}: no config.json; name the folder of a downloaded mBART-50 model")
        try:
            with quiet_transformers():
                self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
                model: Any = MBartForConditionalGeneration.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers raises OSError, ValueError, KeyError ... by what is missing
            raise CheckpointError(f"{folder}: not an mBART-50 model that transformers reads ({first_line(error)})") from error
        codes: Any = self.tokenizer.convert_tokens_to_ids([source, target])
        if self.tokenizer.unk_token_id in codes or None in codes:
            raise CheckpointError(f"{folder}: its tokenizer does not know the languages {source} and {target}")
        self.tokenizer.src_lang = source
        self._model: Any = model.to(device).eval()
        self._torch, self._device, self._target = torch, device, codes[1]
        self.beams, self.max_new_tokens = beams, max_new_tokens
        weights = sorted(path for path in Path(folder).glob("*") if path.suffix in (".safetensors", ".bin"))
        sizes = [(path.name, path.stat().st_size) for path in weights]
        self.name = f"mbart {Path(folder).name} {sizes} beams {beams}"

    def translate(self, texts: Sequence[str]) -> list[str | None]:
        """The best of the beam; None for a text whose answer did not end (a loop) or is empty."""
        batch = self.tokenizer(list(texts), return_tensors="pt", padding=True).to(self._device)
        with self._torch.inference_mode():
            tokens_BL = self._model.generate(
                **batch, forced_bos_token_id=self._target, num_beams=self.beams, max_new_tokens=self.max_new_tokens
            )
        end = self.tokenizer.eos_token_id
        ended = [end in row[1:].tolist() for row in tokens_BL]  # generation begins with the end token, too
        answers = self.tokenizer.batch_decode(tokens_BL, skip_special_tokens=True)
        return [clean_text(text) or None if done else None for text, done in zip(answers, ended, strict=True)]


class EndpointTranslator:
    """A server with OpenAI's chat completions.

    Args:
        url: up to and with `/v1`. model: its name there. api_key: sent as a bearer token, never written anywhere.
        jobs: requests at a time. instruction: the system message, with {source} and {target}.

    A request that fails for a while (429, 5xx, no connection) is tried again after 1, 4 and 15 s.
    """

    def __init__(
        self, url: str, model: str, api_key: str | None = None, jobs: int = 4, source: str = ENGLISH, target: str = CHINESE,
        instruction: str = INSTRUCTION, timeout_sec: float = 60.0, waits_sec: Sequence[float] = RETRY_WAITS_SEC,
    ) -> None:
        self.url = url.rstrip("/") + "/chat/completions"
        self.model, self.api_key, self.jobs = model, api_key, jobs
        self.timeout_sec, self.waits_sec = timeout_sec, tuple(waits_sec)
        names = [LANGUAGE_NAMES.get(code, code) for code in (source, target)]
        self.system = instruction.format(source=names[0], target=names[1])
        self.name = f"endpoint {model} {self.system}"

    def translate(self, texts: Sequence[str]) -> list[str | None]:
        """Answers of the server, several at a time; `UserError` where it refuses or cannot be reached."""
        with ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(self._ask, texts))

    def _ask(self, text: str) -> str | None:
        import requests

        messages = [{"role": "system", "content": self.system}, {"role": "user", "content": text}]
        body: Any = {"model": self.model, "messages": messages, "temperature": 0}
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        problem = ""
        for wait_sec in (*self.waits_sec, None):
            try:
                response = requests.post(self.url, json=body, headers=headers, timeout=self.timeout_sec)
            except requests.RequestException as error:
                problem = f"cannot be reached ({type(error).__name__})"
            else:
                if response.ok:
                    return self._read(response)
                problem = f"answers {response.status_code}: {response.text.strip()[:200]}"
                if response.status_code != 429 and response.status_code < 500:
                    break
            if wait_sec is not None:
                time.sleep(wait_sec)
        raise UserError(f"{self.url}: {problem}; what was translated so far is kept, a rerun goes on from there")

    def _read(self, response: Any) -> str | None:
        try:
            choice = response.json()["choices"][0]
            content = choice["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise UserError(f"{self.url}: not an answer of a chat completion: {response.text.strip()[:200]}") from error
        # An answer that was cut off at the server's limit is none.
        return None if choice.get("finish_reason") == "length" else clean_text(content or "") or None


class TranslationCache:
    """Answers by content in an sqlite file; safe after a kill, and for several processes at a time."""

    def __init__(self, path: str | Path, source: str, target: str, backend: str) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._prefix = f"{source}\n{target}\n{backend}\n"
        try:
            self._base = sqlite3.connect(self.path, timeout=60)
            self._base.execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, source TEXT, target TEXT)")
        except sqlite3.DatabaseError as error:
            raise DataError(f"{path}: not a translation cache ({error}); name another file with --cache") from error

    def _key(self, text: str) -> bytes:
        return hashlib.sha256((self._prefix + text).encode()).digest()

    def get(self, text: str) -> str | None:
        """The answer to a text, None where there is none yet."""
        row = self._base.execute("SELECT target FROM answers WHERE key = ?", (self._key(text),)).fetchone()
        return None if row is None else str(row[0])

    def put(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Keep (text, answer) pairs, all or none of them."""
        with self._base:
            rows = [(self._key(text), text, answer) for text, answer in pairs]
            self._base.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", rows)

    def close(self) -> None:
        """Close the file."""
        self._base.close()


def translate_texts(
    texts: Iterable[str], translator: Translator, cache: TranslationCache, batch_size: int = 16
) -> Iterator[tuple[str, str | None]]:
    """(text, answer) of every different text, in order of first occurrence; None where the back-end has no answer.

    Only texts that the cache lacks are asked for, `batch_size` at a time.
    """
    seen: set[str] = set()
    asked, begun, told = 0, time.monotonic(), time.monotonic()

    def different() -> Iterator[str]:
        for text in map(clean_text, texts):
            if text and text not in seen:
                seen.add(text)
                yield text

    source = different()
    while window := list(itertools.islice(source, 64 * batch_size)):
        answers = {text: cache.get(text) for text in window}
        # Texts of like length share a batch: little padding.
        missing = sorted((text for text, answer in answers.items() if answer is None), key=len)
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            found = translator.translate(batch)
            if len(found) != len(batch):
                raise DataError(f"{translator.name}: {len(found)} answers to {len(batch)} texts")
            pairs = [(text, answer) for text, answer in zip(batch, found, strict=True) if answer]
            cache.put(pairs)
            answers.update(pairs)
            asked += len(batch)
            if time.monotonic() - told > REPORT_SEC:
                told = time.monotonic()
                log.info("%d texts, %d asked for, %.1f a second", len(seen), asked, asked / (told - begun))
        yield from ((text, answers[text]) for text in window)
    log.info("%d different texts, %d of them asked for now", len(seen), asked)


def read_texts(path: Path) -> Iterator[str]:
    """The texts of a file: jsonl with `text`, or the answers and questions of a conversation manifest."""
    for number, row in read_jsonl(path):
        if isinstance(row.get("text"), str):
            yield row["text"]
        elif isinstance(row.get("messages"), list):
            yield from (text for text, _, _ in _parts(row))
        else:
            raise DataError(f"{path}:{number}: neither `text` nor `messages`")


def _parts(row: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(text, the object and the key that hold it) of each text of a conversation."""
    for message in row["messages"]:
        content = message.get("content")
        for holder, key in [(message, "content")] if isinstance(content, str) else [(item, "text") for item in content or []]:
            if isinstance(holder.get(key), str):
                yield holder[key], holder, key


def translate_file(
    source: str | Path, out: str | Path, translator: Translator, cache: TranslationCache, batch_size: int = 16,
    max_rejected: float = DEFAULT_MAX_SHARE, keep_chinese: bool = True,
) -> dict[str, float]:
    """Translate `texts.jsonl` into a table (`source`, `target`), or a conversation manifest into another of its kind.

    Args:
        keep_chinese: texts of a conversation that have Chinese characters stay as they are (questions of ours beside
            descriptions in English).

    Returns: `texts` (or `conversations`) and `rejected`; `<out>.rejected.jsonl` tells what has no answer.

    Raises:
        DataError: too many texts without an answer; there is no output then, but the cache keeps what was done.
    """
    source, out = Path(source), Path(out)
    first = next((row for _, row in read_jsonl(source)), None)
    if first is None:
        raise DataError(f"{source}: nothing to translate")
    rejects = Rejects(max_rejected)
    wanted = (text for text in read_texts(source) if not (keep_chinese and "messages" in first and has_han(text)))
    total = 0
    table: dict[str, str] = {}
    for text, answer in translate_texts(wanted, translator, cache, batch_size):
        total += 1
        if answer is None:
            rejects.add(text[:60], source, f"no translation of {text[:200]!r}", "no-translation")
        elif "messages" not in first:
            table[text] = answer
    rejected_path = out.with_name(f"{out.name.split('.')[0]}.{REJECTED_NAME}")
    rejects.write(rejected_path)
    rejects.check(total, rejected_path)
    if "messages" not in first:
        count = write_jsonl(out, ({"source": text, "target": answer} for text, answer in table.items()))
        return {"texts": count, "rejected": len(rejects.rows)}
    count = write_jsonl(out, _translated(source, cache, keep_chinese))
    return {"conversations": count, "texts": total, "rejected": len(rejects.rows)}


def has_han(text: str) -> bool:
    """Whether a text has a Chinese character."""
    return any("\u3400" <= char <= "\u9fff" for char in text)


def _translated(source: Path, cache: TranslationCache, keep_chinese: bool) -> Iterator[dict[str, Any]]:
    """The conversations with their texts in the other language; one that lacks an answer is left out."""
    for _, row in read_jsonl(source):
        whole = True
        for text, holder, key in list(_parts(row)):
            if keep_chinese and has_han(text):
                continue
            answer = cache.get(clean_text(text)) if text.strip() else text
            if answer is None:
                whole = False
                break
            holder[key] = answer
        if whole:
            yield row

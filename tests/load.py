"""Many clients on one server for a while: is every request answered rightly or refused, and does the memory stay bounded?

    python tests/load.py MODEL_DIR [--clients 64] [--sec 120]

starts `xllm-speech serve` on the model, asks each question alone first, and then lets every client ask one after another. It
prints one JSON object, and ends with 1 when an answer was lost or differs from the one given alone.
"""

from __future__ import annotations

import argparse
import base64
import collections
import concurrent.futures
import io
import json
import random
import re
import subprocess
import sys
import time
from typing import Any

import httpx
import numpy as np
import psutil
import soundfile
from PIL import Image

WORDS = ("是什么颜色", "在哪里", "有几个", "图里有什么")


def questions() -> list[list[dict[str, Any]]]:
    """Texts, pictures and recordings in every combination."""
    chance = np.random.default_rng(0)

    def encoded(content: io.BytesIO) -> str:
        return base64.b64encode(content.getvalue()).decode()

    found: list[list[dict[str, Any]]] = []
    for number in range(8):
        picture, sound = io.BytesIO(), io.BytesIO()
        Image.fromarray(chance.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(picture, "PNG")
        soundfile.write(sound, 0.1 * chance.standard_normal(8000 + 2000 * number), 16000, format="WAV")
        seen = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded(picture)}"}}
        heard = {"type": "input_audio", "input_audio": {"data": encoded(sound), "format": "wav"}}
        text = {"type": "text", "text": WORDS[number % len(WORDS)]}
        found += [[text], [seen, text], [heard], [seen, heard]]
    return found


def client(url: str, number: int, asked: list[Any], alone: list[str], end: float) -> collections.Counter[str]:
    """One client until `end`: how its requests went."""
    chance, went = random.Random(number), collections.Counter[str]()
    with httpx.Client(timeout=60) as link:
        while time.monotonic() < end:
            place = chance.randrange(len(asked))
            stream = chance.random() < 0.5
            try:
                status, text = ask(link, url, asked[place], stream)
            except httpx.HTTPError as error:
                went[f"lost ({type(error).__name__})"] += 1
                continue
            if status == 200:
                went["right" if text == alone[place] else "wrong"] += 1
            else:
                went[f"refused {status}" if status in (429, 503) else f"failed {status}"] += 1
                time.sleep(0.2)
    return went


def ask(link: httpx.Client, url: str, content: list[Any], stream: bool) -> tuple[int, str]:
    """(status, text) of one question."""
    body = {"model": "xllm", "max_tokens": 16, "stream": stream, "messages": [{"role": "user", "content": content}]}
    answer = link.post(f"{url}/v1/chat/completions", json=body)
    if answer.status_code != 200:
        return answer.status_code, ""
    if not stream:
        return 200, answer.json()["choices"][0]["message"]["content"]
    lines = [line[6:] for line in answer.text.split("\n") if line.startswith("data: ")]
    if lines[-1] != "[DONE]":
        return 200, "(unfinished)"
    return 200, "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines[:-1])


def main() -> int:
    """Measure; see above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--sec", type=float, default=120)
    args = parser.parse_args()
    command = [sys.executable, "-m", "xllm_speech.bin.main", "serve", "--model", args.model, "--port", "0", "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        match = None
        while match is None:
            line = process.stdout.readline()
            if not line:
                raise SystemExit("the server did not start; run `xllm-speech serve` by hand to see why")
            match = re.search(r"http://127\.0\.0\.1:\d+", line)
        url, asked = match.group(), questions()
        with httpx.Client(timeout=60) as link:
            alone = [ask(link, url, content, False)[1] for content in asked]
        watched, sizes = psutil.Process(process.pid), []
        end = time.monotonic() + args.sec
        with concurrent.futures.ThreadPoolExecutor(args.clients) as pool:
            running = [pool.submit(client, url, number, asked, alone, end) for number in range(args.clients)]
            while time.monotonic() < end:
                sizes.append(watched.memory_info().rss >> 20)
                time.sleep(1)
            went = sum((one.result() for one in running), collections.Counter[str]())
        tenth = max(1, len(sizes) // 10)
        print(json.dumps({
            "clients": args.clients, "sec": args.sec, "requests": dict(went),
            "per_sec": round(sum(went.values()) / args.sec, 1),
            "rss_mib": {"first": max(sizes[:tenth]), "last": max(sizes[-tenth:]), "most": max(sizes)},
        }))
        return int(any(name.startswith(("lost", "wrong", "failed")) for name in went))
    finally:
        process.terminate()
        process.wait(70)


if __name__ == "__main__":
    sys.exit(main())

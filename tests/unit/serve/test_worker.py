"""The queue in front of the model: batches by key, its bounds, time limits, clients that leave, and the end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest
from serving import picture, running, user

from xllm_speech.infer.generation import AnswerOptions
from xllm_speech.serve.engine import StopText
from xllm_speech.serve.jobs import ChatJob, Done
from xllm_speech.serve.metrics import Metrics
from xllm_speech.serve.refusal import Refusal
from xllm_speech.serve.worker import Worker


class Runner:
    """Remembers batches; each waits for `go`."""

    def __init__(self):
        self.batches, self.go = [], threading.Event()

    def run(self, jobs):
        self.batches.append([job.conversation for job in jobs])
        self.go.wait(10)
        for job in jobs:
            job.put(Done(str(job.conversation), 1, 1, "stop"))


def job(name, seed=None, timeout_sec=10.0, **options):
    return ChatJob(name, {}, AnswerOptions(**options), (), seed, timeout_sec=timeout_sec)


def run_jobs(make, size=100, batch_size=4):
    """`make(worker, runner)` in a loop of its own."""

    async def work():
        runner, metrics = Runner(), Metrics()
        worker = Worker(runner, size, batch_size, metrics)
        try:
            return await make(worker, runner), metrics.text()
        finally:
            runner.go.set()
            worker.close(5)

    return asyncio.run(work())


def test_batches_are_of_one_key_the_oldest_first():
    async def work(worker, runner):
        jobs = [
            job("first"), job("a"), job("long", max_new_tokens=9), job("b"), job("seeded", seed=1), job("c"), job("d"),
            job("e"), job("longer", max_new_tokens=9), job("also seeded", seed=1),
        ]
        worker.submit(jobs[0])
        while not runner.batches:
            await asyncio.sleep(0.01)
        for one in jobs[1:]:
            worker.submit(one)
        runner.go.set()
        done = [await one.result() for one in jobs]
        assert [one.text for one in done] == [one.conversation for one in jobs]
        return runner.batches

    batches, metrics = run_jobs(work)
    assert batches == [["first"], ["a", "b", "c", "d"], ["long", "longer"], ["seeded"], ["e"], ["also seeded"]]
    assert "xllm_batches_total 6" in metrics
    assert "xllm_waiting 0" in metrics


def test_a_full_queue_says_when_to_come_again():
    async def work(worker, runner):
        worker.submit(job("running"))
        while not runner.batches:
            await asyncio.sleep(0.01)
        worker.submit(job("1"))
        worker.submit(job("2"))
        with pytest.raises(Refusal) as caught:
            worker.submit(job("3"))
        assert (caught.value.status, caught.value.retry_after_sec) == (429, 1)
        assert caught.value.headers == {"Retry-After": "1"}

    _, metrics = run_jobs(work, size=2)
    assert 'xllm_refused_total{reason="busy"} 1' in metrics


def test_what_waited_too_long_or_for_nobody_does_not_run():
    async def work(worker, runner):
        worker.submit(job("running"))
        while not runner.batches:
            await asyncio.sleep(0.01)
        late, left, good = job("late", timeout_sec=0.05), job("left"), job("good")
        for one in (late, left, good):
            worker.submit(one)
        left.cancelled.set()
        await asyncio.sleep(0.1)
        runner.go.set()
        with pytest.raises(Refusal, match="did not finish this request in its time"):
            await late.result()
        await good.result()
        return runner.batches

    batches, _ = run_jobs(work)
    assert batches == [["running"], ["good"]]


def test_a_closing_worker_finishes_and_takes_nothing_new():
    async def work(worker, runner):
        first, second = job("first"), job("second")
        worker.submit(first)
        worker.submit(second)
        closing = threading.Thread(target=worker.close, args=(5,))
        closing.start()
        await asyncio.sleep(0.05)
        with pytest.raises(Refusal, match="shutting down"):
            worker.submit(job("third"))
        runner.go.set()
        assert [(await one.result()).text for one in (first, second)] == ["first", "second"]
        closing.join(5)
        assert not worker.alive

    run_jobs(work)


@pytest.mark.parametrize(("pieces", "stop", "shown"), [
    (["ab", "cd"], [], ["ab", "cd"]),
    (["ab", "cXY", "Zd"], ["XYZ"], ["ab", "c", ""]),
    (["ab", "cXY", "d"], ["XYZ"], ["ab", "c", "XYd"]),
    (["X", "X", "Y"], ["XY"], ["", "X", ""]),
    (["one two"], ["two", "one"], [""]),
])
def test_stop_texts(pieces, stop, shown):
    rule = StopText(stop)
    assert [rule.add(piece) for piece in pieces] == shown
    if not rule.met:
        assert rule.add("", end=True) == ""


def slow(server, sec):
    """The model takes at least this long for a token."""
    llm = server.application.service.model.checkpoint.model.llm
    return llm.model.register_forward_pre_hook(lambda *_: time.sleep(sec)).remove


CHAT = {"model": "xllm", "messages": user("红绿蓝"), "max_tokens": 60}


def lines_of(response):
    return [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]


def test_time_limits_of_answers_streamed_or_not(model):
    with running(model, timeout_sec=0.5) as server:
        mend = slow(server, 0.2)
        try:
            plain = httpx.post(server.chat, json=CHAT, timeout=20)
            with httpx.stream("POST", server.chat, json=CHAT | {"stream": True}, timeout=20) as response:
                events = lines_of(response)
        finally:
            mend()
        assert plain.status_code == 503
        assert plain.headers["retry-after"] == "5"
        assert plain.json()["error"]["code"] == "timeout"
        assert events[-1]["error"]["code"] == "timeout"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_answer(model, stream):
    with running(model) as server:
        mend = slow(server, 0.1)
        worker = server.application.worker
        try:
            if stream:
                with httpx.stream("POST", server.chat, json=CHAT | {"stream": True}) as response:
                    next(response.iter_lines())
                    assert not worker.idle
            else:
                with pytest.raises(httpx.ReadTimeout):
                    httpx.post(server.chat, json=CHAT, timeout=0.5)
            end = time.monotonic() + 3  # the whole answer would take ten seconds
            while not worker.idle or server.application.guard.running:
                assert time.monotonic() < end, "the answer goes on without its client"
                time.sleep(0.02)
        finally:
            mend()


def test_more_requests_than_allowed_are_refused_at_once(model):
    with running(model, max_requests=2, batch_size=1) as server:
        mend = slow(server, 0.05)
        try:
            with concurrent.futures.ThreadPoolExecutor(6) as pool:
                body = CHAT | {"max_tokens": 10}
                answers = list(pool.map(lambda _: httpx.post(server.chat, json=body, timeout=30), range(6)))
        finally:
            mend()
    codes = sorted(answer.status_code for answer in answers)
    assert set(codes) == {200, 429}
    assert codes.count(200) >= 2
    assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in answers if answer.status_code == 429)


def test_sixty_four_clients_get_their_own_answers(model, world):
    """Each asks about another medium or in other words; none is lost, and each answer is the one given alone."""
    images = [picture(world.folder / f"images/{number}.png") for number in range(4)]
    words = "是什么颜色在哪里有几个"
    asked = [user(*([images[number % 4]] if number % 3 else []), words[number % 7 :]) for number in range(64)]
    with running(model, max_requests=48) as server:

        def ask(messages, tries=50):
            for _ in range(tries):
                body = {"model": "xllm", "messages": messages, "max_tokens": 8}
                answer = httpx.post(server.chat, json=body, timeout=60)
                if answer.status_code == 200:
                    return answer.json()["choices"][0]["message"]["content"]
                assert answer.status_code == 429
                time.sleep(0.2)
            raise AssertionError("never answered")

        alone = [ask(messages) for messages in asked]
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            assert list(pool.map(ask, asked)) == alone
    assert len(set(alone)) > 8


def test_told_to_stop_it_finishes_what_runs(served_dir, top):
    """A real process: Ctrl-C in the middle of a streamed answer, with a page open that keeps its connection."""
    command = [
        sys.executable, "-m", "xllm_speech.bin.main", "serve", "--model", str(served_dir), "--port", "0", "--threads", "1",
        "--device", "cpu", "--demo",
    ]
    process = subprocess.Popen(
        command, cwd=top, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    try:
        line = ""
        while "listening on" not in line:
            line = process.stdout.readline() or pytest.fail(process.stderr.read())
        url = re.search(r"http://127\.0\.0\.1:\d+", line).group()
        body = CHAT | {"stream": True}
        whole = lines_of(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30))
        with httpx.stream("GET", f"{url}/demo/gradio_api/heartbeat/page", timeout=30) as page:
            assert "ALIVE" in next(page.iter_lines())
            with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as response:
                lines = response.iter_lines()
                first = next(lines)
                process.send_signal(signal.SIGINT)
                rest = [json.loads(one[6:]) for one in [first, *lines] if one.startswith("data: {")]
            assert [one["choices"] for one in rest] == [one["choices"] for one in whole]
            assert process.wait(20) == 0
        log = process.stderr.read()
        assert "finishing what runs" in log
        assert "Traceback" not in log
    finally:
        process.kill()
        process.wait()

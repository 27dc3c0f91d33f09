"""The stock `openai` client against a server on a tiny X-LLM."""

from __future__ import annotations

import concurrent.futures
import functools
import io
import time

import httpx
import numpy as np
import pytest
import soundfile
from serving import clip, data_uri, picture, running, sound, user

openai = pytest.importorskip("openai", reason="the `openai` package is the test client; pip install openai")


def ask(client, messages, **more):
    return client.chat.completions.create(model="xllm", messages=messages, **{"max_tokens": 12, **more})


def said(client, messages, **more):
    return ask(client, messages, **more).choices[0].message.content


@pytest.fixture(scope="session")
def questions(world):
    """(messages in OpenAI's form, the same for `XLLM.chat`)."""
    image, wave, video = paths = [world.folder / name for name in ("images/1.png", "speech/u2.wav", "clips/3.mp4")]
    kinds = ("image", "speech", "video")
    seen, heard, shown = ({"type": kind, "path": str(path)} for kind, path in zip(kinds, paths, strict=True))
    text = {"type": "text", "text": "是什么颜色"}
    said = (("system", "红"), ("user", "在哪里"), ("assistant", "左"))
    history = [{"role": role, "content": words} for role, words in said]
    return {
        "text": (user("是什么颜色"), [{"role": "user", "content": [text]}]),
        "image": (user(picture(image), "是什么颜色"), [{"role": "user", "content": [seen, text]}]),
        "speech": (user(sound(wave)), [{"role": "user", "content": [heard]}]),
        "spoken question": (user(picture(image), sound(wave)), [{"role": "user", "content": [seen, heard]}]),
        "clip": (user(clip(video)), [{"role": "user", "content": [shown]}]),
        "rounds": (history + user(picture(image), "有几个"), [
            *history, {"role": "user", "content": [seen, {"type": "text", "text": "有几个"}]},
        ]),
    }


def test_chat_says_what_the_model_says_alone_streamed_or_not(client, model, questions):
    answers = {}
    for name, (messages, plain) in questions.items():
        alone = model.chat(plain, max_new_tokens=12)
        answer = ask(client, messages)
        assert answer.choices[0].message.content == alone, name
        assert answer.choices[0].finish_reason in ("stop", "length")
        chunks = list(ask(client, messages, stream=True, stream_options={"include_usage": True}))
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(pieces) == alone, name
        assert chunks[-1].usage == answer.usage
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        assert chunks[-2].choices[0].finish_reason == answer.choices[0].finish_reason
        answers[name] = alone, len([piece for piece in pieces if piece])
    assert len({text for text, _ in answers.values()}) > 3
    assert max(pieces for _, pieces in answers.values()) > 1  # not all at once


def test_answers_of_a_batch_are_those_given_alone(model, questions):
    """Everybody asks at once while the worker is held up, so that the requests do go together."""
    with running(model, batch_size=8) as server, server.client() as client:
        alone = {name: said(client, messages) for name, (messages, _) in questions.items()}
        before = batches(server)
        engine = server.application.worker.engine
        run = engine.run

        def slow(jobs):
            time.sleep(0.3)
            run(jobs)

        engine.run = slow
        with concurrent.futures.ThreadPoolExecutor(18) as pool:
            asked = [(name, pool.submit(said, client, questions[name][0])) for name in list(questions) * 3]
            for name, answer in asked:
                assert answer.result() == alone[name], name
        after = batches(server)
        assert after["xllm_batched_requests_total"] - before["xllm_batched_requests_total"] == 18
        assert after["xllm_batches_total"] - before["xllm_batches_total"] <= 6


def batches(server):
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith("xllm_batch")}


def test_settings_of_an_answer(client, questions):
    messages = questions["image"][0]
    whole = said(client, messages)
    short = ask(client, messages, max_tokens=2)
    assert short.choices[0].finish_reason == "length"
    assert short.usage.completion_tokens == 2
    assert whole.startswith(short.choices[0].message.content)
    stop = whole[2]
    assert said(client, messages, stop=[stop, "不会出现"]) == whole[: whole.index(stop)]
    streamed = ask(client, messages, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == whole[: whole.index(stop)]
    drawn = [said(client, messages, temperature=1.5, seed=seed) for seed in (1, 2, 3, 1)]
    assert drawn[0] == drawn[3]
    assert len(set(drawn)) > 1
    assert said(client, messages, temperature=0) == whole


@pytest.mark.parametrize(("change", "status", "words"), [
    ({"model": "gpt-4"}, 404, "there are xllm, xllm-cif"),
    ({"model": "xllm-cif"}, 400, "only transcribes"),
    ({"messages": []}, 400, "messages"),
    ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, 400, "messages[0]"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "last message must be the user's"),
    ({"messages": user("x") + user("y")}, 400, "alternate"),
    ({"messages": user({"type": "file", "file": {"file_id": "1"}})}, 400, "messages[0].content"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"max_tokens": 1_000_000}, 400, "leaves no room"),
    ({"temperature": 3}, 400, "temperature"),
    ({"n": 2}, 400, "`n` is not served"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "`tools` is not served"),
    ({"response_format": {"type": "json_object"}}, 400, "`response_format` is not served"),
    ({"messages": user("x" * 40_000)}, 400, "more than 32000 characters"),
    ({"messages": [*user("x"), {"role": "assistant", "content": "y"}] * 64 + user("z")}, 400, "129 messages"),
])
def test_mistakes_are_told(client, change, status, words):
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, **{"messages": user("是什么颜色"), **change}) if "model" not in change else client.chat.completions.create(
            messages=user("x"), **change
        )
    assert caught.value.status_code == status
    assert words in caught.value.body["message"]
    assert set(caught.value.body) == {"message", "type", "param", "code"}


def test_models_and_health(client, server):
    assert [one.id for one in client.models.list()] == ["xllm", "xllm-cif"]
    assert client.models.retrieve("xllm").id == "xllm"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("../../etc/passwd")
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{server.url}/nowhere").json()["error"]["message"] == "Not Found"
    assert httpx.get(f"{server.url}/v1/chat/completions").status_code == 405


def hear(client, path, **more):
    return client.audio.transcriptions.create(file=path, **{"model": "xllm-cif", **more})


def test_transcripts_of_the_cif_model(client, world, server):
    from xllm_speech import CifAsr

    path = world.folder / "speech/u3.wav"
    alone = CifAsr.from_pretrained(world.asr).transcribe(path)[0]
    assert alone.text
    assert hear(client, path).text == alone.text
    assert hear(client, path, response_format="text").strip() == alone.text
    verbose = hear(client, path, response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert verbose.text == alone.text
    assert verbose.duration == pytest.approx(0.8)
    assert "".join(word.word for word in verbose.words) == alone.text
    times = [(word.start, word.end) for word in verbose.words]
    assert times == [(token.start_sec, token.end_sec) for token in alone.tokens]
    assert "".join(one.text for one in verbose.segments) == alone.text
    srt, vtt = (hear(client, path, response_format=form) for form in ("srt", "vtt"))
    assert srt.startswith("1\n00:00:0")
    assert "," in srt.splitlines()[1]
    assert vtt.startswith("WEBVTT\n\n00:00:0")
    assert "," not in vtt.splitlines()[2]
    assert srt.splitlines()[2] == vtt.splitlines()[3]


@pytest.mark.parametrize("name", ["xllm-cif", "xllm"])
def test_a_long_recording_is_cut_by_voice_activity(model, name):
    pytest.importorskip("silero_vad", reason="voice activity needs silero-vad; pip install silero-vad")
    content = io.BytesIO()
    soundfile.write(content, np.zeros(16000 * 31), 16000, format="FLAC")
    with running(model, limits={"transcribe_sec": 60.0, "audio_sec": 60.0}) as server, server.client() as client:
        heard = hear(client, ("a.flac", content.getvalue()), model=name, response_format="verbose_json")
    assert (heard.text, heard.segments, heard.duration) == ("", [], 31)  # silence has no segment


def test_transcripts_through_the_llm_with_an_image(client, world, model, monkeypatch):
    wave, image = world.folder / "speech/u3.wav", world.folder / "images/1.png"
    monkeypatch.setattr(model, "stream", functools.partial(model.stream, guard=False))  # it sees that the model is untrained
    plain, seen = (next(model.stream(wave, image=shown, wording=0)).text for shown in (None, image))
    assert hear(client, wave, model="xllm").text == plain
    assert hear(client, wave, model="xllm", extra_body={"image": data_uri(image)}).text == seen
    assert plain != seen
    segment = hear(client, wave, model="xllm", response_format="verbose_json").segments[0]
    assert segment.text == plain
    assert 0 <= segment.start < segment.end <= 0.8


@pytest.mark.parametrize(("more", "status", "words"), [
    ({"model": "whisper-1"}, 404, "there are xllm"),
    ({"file": ("a.wav", b"no sound")}, 400, "file: not a recording that is known here: WAV"),
    ({"response_format": "diarized_json"}, 400, "response_format"),
    ({"timestamp_granularities": ["word"]}, 400, "verbose_json"),
    ({"extra_body": {"image": "data:image/png;base64,AAAA"}}, 400, "takes no pictures"),
    ({"model": "xllm", "extra_body": {"image": "data:image/png;base64,AAAA"}}, 400, "image: not a picture"),
    ({"model": "xllm", "extra_body": {"image": "data:image/png;base64,AAAA"}, "temperature": 0.5}, 400, "not drawn"),
])
def test_transcriptions_that_cannot_be(client, world, more, status, words):
    with pytest.raises(openai.APIStatusError) as caught:
        hear(client, more.pop("file", world.folder / "speech/u3.wav"), **more)
    assert caught.value.status_code == status
    assert words in caught.value.body["message"]


def test_a_long_recording_is_refused_before_it_is_read(client):
    content = io.BytesIO()
    soundfile.write(content, np.zeros(16000 * 9), 16000, format="WAV")
    with pytest.raises(openai.BadRequestError, match="9 s long, more than 8 s"):
        hear(client, ("a.wav", content.getvalue()))
    with pytest.raises(openai.BadRequestError, match="9 s long, more than 5 s"):
        hear(client, ("a.wav", content.getvalue()), model="xllm")

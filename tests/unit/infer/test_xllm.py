"""Answers, transcripts and chats of a tiny X-LLM: the same in any company, streamed or not, here or moved elsewhere."""

from __future__ import annotations

import functools
import json
import shutil
import threading

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet

from xllm_speech import XLLM
from xllm_speech.base.errors import CheckpointError, ConfigError, DataError
from xllm_speech.features.audio import load_file
from xllm_speech.infer.answers import AnsweringReport, prepare, reference_of
from xllm_speech.infer.asr import DecodingReport
from xllm_speech.infer.generation import AnswerOptions
from xllm_speech.infer.messages import conversation_from_messages
from xllm_speech.manifests.cuts import save_cuts
from xllm_speech.models.checkpoints import WEIGHTS
from xllm_speech.prompts import INSTRUCTIONS
from xllm_speech.records import Conversation, ConversationItem, LlmInput, Message


@pytest.fixture(scope="module")
def model(xllm_dir):
    return XLLM.from_pretrained(xllm_dir)


def ask(name, media, files=(), text="什么颜色", task="vl", answer=None):
    """One question about files such as red.png or long.wav."""
    kinds = {"png": "image", "mp4": "video", "wav": "speech"}
    items = [ConversationItem(kinds[file.rpartition(".")[2]], path=str(media / file)) for file in files]
    words = [ConversationItem("text", text=text)] if text else []
    messages = [Message("user", (*items, *words))]
    if answer is not None:
        messages.append(Message("assistant", (ConversationItem("text", text=answer),)))
    return Conversation(name, task, tuple(messages))


def mixed(media):
    return [
        ask("a", media, ["long.wav"], None, "asr", "红色的圆形"),
        ask("b", media, ["red.png", "short.wav"], None, "vsd"),
        ask("c", media, ["clip.mp4"], None, "video"),
        ask("d", media),
        ask("e", media, ["green.png"]),
        ask("f", media, ["red.png"], "左上有什么，右下有什么颜色的旗子"),
        ask("g", media, ["middle.wav"], None, "asr"),
    ]


def texts(answers):
    return {answer.id: answer.text for answer in answers}


def test_answers_come_in_order_and_do_not_depend_on_batches(model, media):
    talks = mixed(media)
    together = list(model.answer(talks, max_new_tokens=8))
    assert [answer.id for answer in together] == list("abcdefg")
    assert all(answer.error is None and answer.tokens <= 8 for answer in together)
    assert len(set(texts(together).values())) > 3
    for size in (1, 2, 3):
        assert list(model.answer(talks, max_new_tokens=8, batch_size=size)) == together
    assert texts(model.answer(talks[::-1], max_new_tokens=8)) == texts(together)
    assert texts(model.answer(talks[:2], max_new_tokens=8, num_beams=2, batch_size=2)) == {
        one.id: text for one in talks[:2] for text in texts(model.answer([one], max_new_tokens=8, num_beams=2)).values()
    }


def test_the_side_of_the_padding_changes_nothing(model, media):
    talks = [prepare(talk, wording=0) for talk in mixed(media)]
    spliced, rejected = model.answerer.splice(talks, 8, model.readers)
    left, llm = spliced.llm_input, model.checkpoint.model.llm
    assert not rejected
    assert not left.mask_BL.all()
    order_BL = (~left.mask_BL).long().argsort(dim=1, stable=True)
    right = LlmInput(
        left.ids_BL.gather(1, order_BL), left.embeds_BLH.gather(1, order_BL[..., None].expand_as(left.embeds_BLH)),
        left.mask_BL.gather(1, order_BL), left.slots_BL.gather(1, order_BL),
    )
    assert not right.mask_BL[:, -1].all()
    expected = [answer.text for answer in model.answer(mixed(media), 8, wording=0)]
    for prompt in (left, right):
        assert [llm.decode(ids) for ids in llm.generate(prompt, max_new_tokens=8)] == expected


def test_rounds_are_written_into_the_prompt(model, media):
    messages = [
        {"role": "user", "content": [{"type": "image", "path": media / "red.png"}, {"type": "text", "text": "什么颜色"}]},
        {"role": "assistant", "content": "红色"}, {"role": "user", "content": "左上有什么"},
    ]
    spliced, _ = model.answerer.splice([conversation_from_messages(messages)], 8, model.readers)
    text = model.checkpoint.model.llm.decode(list(spliced.plans[0].ids))
    expected = "<Image></Image>[Round 0]\n问：什么颜色\n答：红色\n[Round 1]\n问：左上有什么\n答："
    assert text.replace("⁇", "").replace(" ", "") == expected.replace(" ", "")


def test_the_order_of_leading_media_changes_nothing(model, media):
    there = ask("x", media, ["red.png", "clip.mp4", "long.wav"])
    back = ask("x", media, ["long.wav", "clip.mp4", "red.png"])
    assert texts(model.answer([there], 8)) == texts(model.answer([back], 8))


def test_media_matter_and_may_be_left_out(model, media):
    red, green = (next(model.answer([ask("x", media, [f"{name}.png"])], 12)).text for name in ("red", "green"))
    blind = [next(model.answer([ask("x", media, [f"{name}.png"])], 12, without=["image"])).text for name in ("red", "green")]
    nothing = next(model.answer([ask("x", media)], 12)).text
    assert red != green
    assert blind == [nothing, nothing]
    # a message of media alone keeps its instruction
    deaf = prepare(ask("x", media, ["red.png", "long.wav"], None, "vsd"), wording=1, without=["speech"])
    assert [item.type for item in deaf.messages[0].items] == ["image", "text"]
    assert deaf.messages[0].items[1].text == INSTRUCTIONS["vsd"][1]


def test_a_reference_is_not_read(model, media):
    talks = [ask("x", media, ["red.png"], answer=answer) for answer in ("红", "绿色的旗子")] + [ask("x", media, ["red.png"])]
    assert len({next(model.answer([talk], 8)).text for talk in talks}) == 1
    assert [reference_of(talk) for talk in talks] == ["红", "绿色的旗子", None]


def test_what_cannot_be_answered_is_named_and_costs_only_itself(model, media):
    talks = mixed(media)
    bad = [
        ask("absent", media, ["nowhere.png"]), ask("broken", media, ["broken.wav"], None, "asr"),
        ask("wordless", media, ["red.png"], None, "vl"), ask("long", media, ["red.png"], "什么颜色" * 100),
        Conversation("sound", "vl", (Message("user", (ConversationItem("audio", path="x.wav"),
                                                      ConversationItem("text", text="什么"))),)),
    ]
    report = AnsweringReport()
    order = [talks[0], bad[0], talks[1], *bad[1:], *talks[2:]]
    answers = list(model.answer(order, 8, report=report))
    assert [answer.id for answer in answers] == [talk.id for talk in order]
    assert [answer for answer in answers if answer.error is None] == list(model.answer(talks, 8))
    errors = {answer.id: answer.error for answer in answers if answer.error is not None}
    assert set(errors) == {"absent", "broken", "wordless", "long", "sound"}
    assert "nowhere.png: no such picture" in errors["absent"]
    assert "broken.wav" in errors["broken"]
    assert "no instructions" in errors["wordless"]
    assert "max_tokens is 256" in errors["long"]
    assert "no interface for" in errors["sound"]
    assert sorted(report.failed) == sorted(errors.items())
    assert report.conversations == len(order)


def test_a_batch_that_fails_as_a_whole_is_taken_apart(model, media, monkeypatch):
    talks = mixed(media)
    expected = list(model.answer(talks, 8))
    llm = model.checkpoint.model.llm.model
    forward, sizes = llm.forward, []

    def small_memory(**options):
        sizes.append(len(options["inputs_embeds"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\nand more")
        return forward(**options)

    monkeypatch.setattr(llm, "forward", small_memory)
    assert list(model.answer(talks, 8)) == expected
    assert max(sizes) > 2
    monkeypatch.setattr(llm, "forward", lambda **_: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory")))
    assert [answer.error for answer in model.answer(talks[:2], 8)] == ["out of memory"] * 2


def test_dropped_history_and_cut_answers_are_told(model, media, caplog):
    rounds = [
        {"role": role, "content": content}
        for number in range(9)
        for role, content in (("user", f"左上有什么颜色的圆形{number}"), ("assistant", "红色的圆形，绿色的旗子"))
    ]
    report = AnsweringReport()
    messages = [*rounds, {"role": "user", "content": "什么颜色"}]
    text = model.chat(messages, max_new_tokens=8, report=report)
    assert "oldest of 9 rounds of history" in report.notes[0][1]
    assert report.cut == (["chat"] if report.tokens == 8 else [])
    assert not caplog.records
    assert model.chat(messages, max_new_tokens=8) == text
    assert any("oldest of 9 rounds" in record.message for record in caplog.records)


def test_options_out_of_range_are_refused(model, media):
    for options, message in (
        ({"max_new_tokens": 0}, "max_new_tokens 0"), ({"max_new_tokens": 256}, "no room for a question"),
        ({"num_beams": 0}, "num_beams 0"), ({"temperature": 0.5}, "no effect"),
        ({"do_sample": True, "temperature": 0.0}, "temperature 0.0"), ({"do_sample": True, "top_p": 1.5}, "top_p 1.5"),
    ):
        with pytest.raises(ConfigError, match=message):
            model.chat([{"role": "user", "content": "什么"}], **options)
    with pytest.raises(ConfigError, match="batch_size 0"):
        list(model.answer([], batch_size=0))
    with pytest.raises(DataError, match="`d` occurs twice"):
        list(model.answer([ask("d", media), ask("d", media)], 4))
    with pytest.raises(ConfigError, match="wording 9"):
        list(model.answer(mixed(media), 4, wording=9))


def test_transcripts_in_order_with_bad_files_named(model, media, tmp_path):
    transcribe = functools.partial(model.transcribe, guard=False)  # of a chance model it would leave nothing
    again = tmp_path / "short.wav"
    soundfile.write(again, 0.1 * np.random.default_rng(5).standard_normal(12000), 16000)
    files = [media / "short.wav", media / "broken.wav", media / "long.wav", tmp_path / "nothing.wav", again]
    hypotheses = transcribe(files, wording=0, max_new_tokens=8)
    assert [h.id for h in hypotheses] == ["short", "broken", "long", "nothing", "short"]
    assert [h.error is None for h in hypotheses] == [True, False, True, False, True]
    assert hypotheses[2].duration_sec == 2.0
    for place in (0, 2, 4):
        alone = transcribe(files[place], wording=0, max_new_tokens=8)
        assert alone == [hypotheses[place]]
        asked = ask("x", files[place].parent, [files[place].name], INSTRUCTIONS["asr"][0], "asr")
        assert alone[0].text == next(model.answer([asked], 8)).text
    assert len({h.text for h in hypotheses if h.error is None}) > 1
    other = transcribe(files[2], wording=2, max_new_tokens=8)[0].text
    assert other == next(model.answer([ask("x", media, ["long.wav"], INSTRUCTIONS["asr"][2], "asr")], 8)).text
    assert [h.text for h in transcribe(files, wording=0, max_new_tokens=8, batch_sec=0.1)] == [h.text for h in hypotheses]


def test_transcripts_with_a_picture(model, media):
    transcribe = functools.partial(model.transcribe, guard=False)  # of a chance model it would leave nothing
    cut = load_file(media / "long.wav")
    cut.custom = {"image": str(media / "red.png")}
    expected = next(model.answer([ask("x", media, ["red.png", "long.wav"], INSTRUCTIONS["masr"][0], "masr")], 8)).text
    assert transcribe(CutSet([cut]), wording=0, max_new_tokens=8)[0].text == expected
    assert transcribe(media / "long.wav", media / "red.png", wording=0, max_new_tokens=8)[0].text == expected
    heard = transcribe(media / "long.wav", wording=0, max_new_tokens=8)[0].text
    assert transcribe(cut, use_images=False, wording=0, max_new_tokens=8)[0].text == heard
    report = DecodingReport()
    picture = media / "broken.png"
    blind = list(model.stream(media / "long.wav", AnswerOptions(8), picture, wording=0, report=report, guard=False))
    assert blind[0].text == heard
    assert "used without its picture" in report.notes[0][1]
    assert "broken.png" in report.notes[0][1]
    assert report.utterances == 1
    assert report.audio_sec == 2.0


def test_transcripts_with_a_caption_in_the_prompt(model, media):
    cut = load_file(media / "long.wav")
    cut.custom = {"image": str(media / "red.png"), "caption": "红色的圆形"}
    asked = f"图片的内容：红色的圆形\n{INSTRUCTIONS['asr'][0]}"
    expected = next(model.answer([ask("x", media, ["long.wav"], asked, "asr")], 8)).text
    options = {"wording": 0, "guard": False, "use_images": False}
    assert next(model.stream(cut, AnswerOptions(8), **options, use_captions=True)).text == expected
    assert next(model.stream(cut, AnswerOptions(8), **options)).text != expected
    cut.custom["image"] = str(media / "broken.png")  # without its picture it keeps its caption
    assert next(model.stream(cut, AnswerOptions(8), **options | {"use_images": True}, use_captions=True)).text == expected


def test_a_part_of_a_recording_and_silence(model, media, tmp_path):
    transcribe = functools.partial(model.transcribe, guard=False)  # of a chance model it would leave nothing
    cut = load_file(media / "long.wav")
    part = cut.truncate(offset=0.5, duration=1.0, preserve_id=True)
    samples, rate = soundfile.read(media / "long.wav", dtype="int16")
    soundfile.write(tmp_path / "part.wav", samples[8000:24000], rate)
    found, alone = transcribe([part, tmp_path / "part.wav"], wording=0, max_new_tokens=8)
    assert (found.start_sec, found.duration_sec, found.id) == (0.5, 1.0, "long")
    assert found.text == alone.text
    soundfile.write(tmp_path / "silence.wav", np.zeros(8000), 16000)
    soundfile.write(tmp_path / "tiny.wav", np.zeros(20), 16000)
    silence, tiny = transcribe([tmp_path / "silence.wav", tmp_path / "tiny.wav"], max_new_tokens=8)
    assert silence.error is None
    assert "too short" in tiny.error


def test_speech_named_by_cut_and_a_unit_cache(model, media, tmp_path):
    from xllm_speech.infer.units import store_units

    cuts = tmp_path / "cuts.jsonl.gz"
    save_cuts([load_file(media / f"{name}.wav") for name in ("short", "long")], cuts)
    talk = Conversation("x", "asr", (Message("user", (ConversationItem("speech", cut="long"),)),))
    expected = next(model.answer([ask("x", media, ["long.wav"], None, "asr")], 8, wording=0)).text
    assert "no cuts are known" in next(model.answer([talk], 8)).error
    assert next(model.answer([talk], 8, wording=0, readers=model.make_readers([str(cuts)]))).text == expected
    store_units(model.checkpoint.description.model.encoders.asr, [cuts], tmp_path / "units", device=torch.device("cpu"))
    readers = model.make_readers(units=tmp_path / "units")
    assert next(model.answer([talk], 8, wording=0, readers=readers)).text == expected
    summary = tmp_path / "units" / "units.json"
    summary.write_text(summary.read_text().replace('"model_sha256": "', '"model_sha256": "f'))
    with pytest.raises(CheckpointError, match="stale"):
        model.make_readers(units=tmp_path / "units")


def test_chat_streams_what_it_would_say_at_once(model, media):
    messages = [
        {"role": "user", "content": [{"type": "image", "path": media / "red.png"}, {"type": "text", "text": "什么颜色"}]},
        {"role": "assistant", "content": "红色"},
        {"role": "user", "content": [{"type": "speech", "path": str(media / "long.wav")}]},
    ]
    whole = model.chat(messages, max_new_tokens=12)
    pieces = list(model.chat(messages, stream=True, max_new_tokens=12))
    assert "".join(pieces) == whole
    assert len(pieces) > 1
    assert whole != model.chat(messages[-1:], max_new_tokens=12)  # the history counts
    items = (
        Message("user", (ConversationItem("image", path=str(media / "red.png")), ConversationItem("text", text="什么颜色"))),
        Message("assistant", (ConversationItem("text", text="红色"),)),
        Message("user", (ConversationItem("speech", path=str(media / "long.wav")),
                         ConversationItem("text", text=INSTRUCTIONS["vsd"][0]))),
    )
    assert next(model.answer([Conversation("x", "vl", items)], 12)).text == whole
    assert list(model.chat(messages, stream=True, max_new_tokens=12, num_beams=2)) == [
        model.chat(messages, max_new_tokens=12, num_beams=2)
    ]


def test_sampling_follows_the_generator(model):
    messages = [{"role": "user", "content": "什么颜色"}]
    said = []
    for seed in (0, 0, 1, 2):
        torch.manual_seed(seed)
        said.append(model.chat(messages, max_new_tokens=12, do_sample=True, temperature=1.5, top_p=0.9))
    assert said[0] == said[1]
    assert len(set(said)) > 1


def test_closing_a_stream_ends_the_generation(model, monkeypatch):
    steps = []
    llm = model.checkpoint.model.llm
    forward = llm.model.transformer.forward
    gate = threading.Event()

    def counted(*args, **options):
        steps.append(1)
        if len(steps) > 3:
            gate.wait(10)
        return forward(*args, **options)

    monkeypatch.setattr(llm.model.transformer, "forward", counted)
    pieces = model.chat([{"role": "user", "content": "什么颜色"}], stream=True, max_new_tokens=100)
    next(pieces)
    threading.Timer(0.2, gate.set).start()
    pieces.close()
    assert len(steps) < 8
    assert not [thread for thread in threading.enumerate() if thread.name == "answer"]


def test_what_breaks_while_streaming_reaches_the_caller(model, monkeypatch):
    monkeypatch.setattr(model.checkpoint.model.llm.model.transformer, "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(model.chat([{"role": "user", "content": "什么颜色"}], stream=True))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "last message must be the user's"),
        ([{"role": "user", "content": "什么"}, {"role": "assistant", "content": "红"}], "last message must be the user's"),
        ([{"role": "user", "content": [{"type": "smell", "path": "x"}]}], "item type `smell`"),
        ([{"role": "user", "content": [{"type": "image"}]}], "needs `path`"),
        ([{"role": "user", "content": [{"type": "image", "path": "nowhere.png"}]}], "nowhere.png: no such picture"),
        ([{"role": "user", "content": [{"type": "audio", "path": "x.wav"}]}], "say in words"),
    ],
)
def test_messages_that_cannot_be_answered_say_why(model, messages, message):
    with pytest.raises(DataError, match=message):
        model.chat(messages)


def test_a_saved_model_works_anywhere(model, media, tmp_path, monkeypatch, xllm_parts):
    talks = mixed(media)
    expected = list(model.answer(talks, 8))
    model.save_pretrained(tmp_path / "made" / "whole")
    shutil.move(tmp_path / "made", tmp_path / "moved")
    (tmp_path / "elsewhere" / "llm").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    moved = XLLM.from_pretrained(tmp_path / "moved" / "whole")
    config = moved.checkpoint.description.model
    for path in (config.llm.path, config.encoders.vision.path, config.encoders.asr):
        assert str(path).startswith(str(tmp_path / "moved" / "whole"))
    assert list(moved.answer(talks, 8)) == expected
    names = {path.name for path in (tmp_path / "moved" / "whole").iterdir()}
    assert names == {"model.yaml", "model.safetensors", "README.md", "llm", "vision", "asr"}
    model.save_pretrained(tmp_path / "light", include_frozen=False)
    assert {path.name for path in (tmp_path / "light").iterdir()} == {"model.yaml", "model.safetensors", "README.md"}
    assert list(XLLM.from_pretrained(tmp_path / "light").answer(talks, 8)) == expected
    with pytest.raises(CheckpointError, match="choose another folder"):
        model.save_pretrained(xllm_parts["llm"].parent)


def test_a_model_without_speech_does_not_transcribe(tmp_path, make_xllm, media):
    model = XLLM.from_pretrained(make_xllm(tmp_path / "model", ["image"], phase=2))
    with pytest.raises(ConfigError, match="none for speech"):
        model.transcribe(media / "long.wav")
    model = XLLM.from_pretrained(make_xllm(tmp_path / "deaf", ["speech"], phase=2))
    with pytest.raises(ConfigError, match="none for images"):
        model.transcribe(media / "long.wav", image=media / "red.png")
    assert json.dumps(model.describe(1), ensure_ascii=False)
    assert model.describe(1)["prompt"]["instructions"]["asr"] == [INSTRUCTIONS["asr"][1]]
    assert model.describe()["checkpoint_sha256"] == model.weights_sha256
    assert (model.folder / WEIGHTS).is_file()

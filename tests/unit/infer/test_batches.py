"""Sixteen mixed utterances or questions together give what each gives alone, by every method, also where memory is short."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from xllm_speech import XLLM, CifAsr
from xllm_speech.infer.answers import AnsweringReport
from xllm_speech.infer.asr import DecodingReport
from xllm_speech.infer.generation import AnswerOptions
from xllm_speech.infer.guard import GuardConfig
from xllm_speech.infer.llm_hotwords import Hotwords
from xllm_speech.models.asr import SearchConfig
from xllm_speech.records import Conversation, ConversationItem, Message

# A chance model hears nothing sensible: bounds under which its transcripts pass.
OPEN = GuardConfig(heard_per_unit=0.0, shortest=0.0, longest=99.0, furthest=1.0, slack=99)
METHODS = (
    "cif greedy", "cif beam", "cif fast", "cif ctc", "llm draft", "llm plain", "llm beam", "llm hotwords", "answer greedy",
    "answer beam",
)
SIXTEEN = 1000.0  # seconds, more than all of them have
TOO_MANY = 5


@pytest.fixture(scope="module")
def cif(model_dir):
    return CifAsr.from_pretrained(model_dir)


@pytest.fixture(scope="module")
def xllm(xllm_dir):
    return XLLM.from_pretrained(xllm_dir)


@pytest.fixture(scope="module")
def talks(mixed_cuts, media):
    """Sixteen conversations about nothing, speech, pictures, clips, and several of them."""
    kinds = itertools.cycle((
        [], ["speech"], ["image"], ["video"], ["image", "speech"], ["image", "image"], ["video", "speech"],
    ))
    found = []
    for number, (cut, wanted) in enumerate(zip(mixed_cuts, kinds, strict=False)):
        paths = {"speech": cut.recording.sources[0].source, "image": media / "red.png", "video": media / "clip.mp4"}
        items = [ConversationItem(kind, path=str(paths[kind])) for kind in wanted]
        text = ConversationItem("text", text="什么颜色" + "右下有绿色的旗子" * (number % 4))
        found.append(Conversation(f"t{number:02d}", "vl", (Message("user", (*items, text)),)))
    return found


def decode(method, cif, xllm, mixed_cuts, talks):
    """What a method makes of some of the sixteen, all in one batch: hypotheses or answers, and what failed."""
    kind, way = method.split()
    if kind == "cif":
        report = DecodingReport()
        return list(cif.stream(mixed_cuts, SearchConfig(way, beam=3), batch_sec=SIXTEEN, report=report)), report.failed
    if kind == "answer":
        told = AnsweringReport()
        return list(xllm.answer(talks, 10, 2 if way == "beam" else 1, batch_size=16, report=told)), told.failed
    report = DecodingReport()
    found = list(xllm.stream(
        mixed_cuts, AnswerOptions(10, 2 if way == "beam" else 1), batch_sec=SIXTEEN, report=report, guard=OPEN,
        draft="none" if way == "plain" else "cif", hotwords=Hotwords(["绿色的旗子"], 3.0) if way == "hotwords" else None,
    ))
    return found, report.failed


def comparable(one):
    """Without probabilities, which rounding reaches."""
    if not hasattr(one, "tokens") or isinstance(one.tokens, int):
        return one
    guard = one.extra.get("guard", {}).get("decision")
    return replace(one, tokens=[replace(token, confidence=None) for token in one.tokens], score=None, extra={"guard": guard})


@pytest.mark.parametrize("method", METHODS)
def test_sixteen_together_are_sixteen_apart(method, cif, xllm, mixed_cuts, talks):
    together, failed = decode(method, cif, xllm, mixed_cuts, talks)
    apart = [decode(method, cif, xllm, [cut], [talk])[0][0] for cut, talk in zip(mixed_cuts, talks, strict=True)]
    assert [one.id for one in together] == [item.id for item in (talks if method.startswith("answer") else mixed_cuts)]
    assert not failed
    assert [comparable(one) for one in together] == [comparable(one) for one in apart]
    assert len({one.text for one in together}) > 4
    if method.startswith("llm"):
        assert any(one.score is not None for one in together) == (method != "llm beam")


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_too_big_for_the_memory_is_halved_and_lost_to_nobody(method, cif, xllm, mixed_cuts, talks, monkeypatch):
    expected = decode(method, cif, xllm, mixed_cuts, talks)
    sizes = []

    def limit(owner, name, count):
        real = getattr(owner, name)

        def limited(batch, *args, **options):
            sizes.append(count(batch))
            if sizes[-1] > TOO_MANY:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
            return real(batch, *args, **options)

        monkeypatch.setattr(owner, name, limited)

    if method.startswith("cif"):
        limit(cif.model, "find_units", lambda fbank: len(fbank.lens_B))
    else:
        limit(xllm.checkpoint.model, "splice", lambda batch: len(batch.conversations))
    found = decode(method, cif, xllm, mixed_cuts, talks)
    assert (max(sizes), sum(size <= TOO_MANY for size in sizes)) == (16, 4)
    assert found[1] == []
    assert [comparable(one) for one in found[0]] == [comparable(one) for one in expected[0]]


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory"), MemoryError("no memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
])
def test_what_does_not_fit_alone_is_named(cif, mixed_cuts, monkeypatch, error):
    find, widest = cif.model.find_units, max(cut.duration for cut in mixed_cuts)

    def limited(fbank):
        if max(fbank.lens_B) > 100 * widest - 3:
            raise error
        return find(fbank)

    monkeypatch.setattr(cif.model, "find_units", limited)
    report = DecodingReport()
    found = list(cif.stream(mixed_cuts, batch_sec=SIXTEEN, report=report))
    assert [cut.id for cut, one in zip(mixed_cuts, found, strict=True) if one.error] == [name for name, _ in report.failed]
    assert len(report.failed) == 1
    assert "memory" in report.failed[0][1]
    monkeypatch.setattr(cif.model, "find_units", lambda fbank: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cif.transcribe(mixed_cuts[:2])

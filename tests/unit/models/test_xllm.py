"""The X-LLM around a tiny ChatGLM: who trains when, answers that do not depend on company, and something learnt."""

from __future__ import annotations

import copy

import pytest
import torch

from xllm_speech.base.errors import ConfigError
from xllm_speech.interfaces.build import build_interfaces
from xllm_speech.interfaces.config import (
    ImageInterfaceConfig,
    InterfacesConfig,
    QFormerConfig,
    SpeechInterfaceConfig,
)
from xllm_speech.interfaces.vision import ClipFeatures
from xllm_speech.llm import ChatGLMConfig, ChatGLMForConditionalGeneration
from xllm_speech.llm.chatglm_tokenizer import train_chatglm_tokenizer
from xllm_speech.llm.loading import load_llm
from xllm_speech.models.xllm import XllmModel
from xllm_speech.records import Conversation, ConversationBatch, ConversationItem, Memory, Message

TEXT = "左上有红色的圆形，右下有绿色的旗子。问：答：什么颜色请将这段语音转化为文字<>/SpeechImageVido"
WIDTH = 12  # of the frozen encoders


@pytest.fixture(scope="module")
def llm_dir(tmp_path_factory):
    """An untrained ChatGLM of two layers in an official folder."""
    folder = tmp_path_factory.mktemp("llm")
    tokenizer = train_chatglm_tokenizer([TEXT], folder)
    torch.manual_seed(0)
    config = ChatGLMConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_layers=2, num_attention_heads=4, inner_hidden_size=64,
        max_sequence_length=256, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        mask_token_id=tokenizer.mask_token_id, gmask_token_id=tokenizer.convert_tokens_to_ids("[gMASK]"),
        pad_token_id=tokenizer.pad_token_id, deepnorm_depth=2,
    )
    ChatGLMForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    return folder


@pytest.fixture
def model(llm_dir):
    torch.manual_seed(1)
    llm = load_llm(llm_dir)
    qformer = QFormerConfig(
        encoder_width=WIDTH, queries=3, width=16, layers=2, heads=2, feedforward=24, positions=0, dropout=0.1, init_std=0.2
    )
    config = InterfacesConfig(
        kinds=["image", "video", "speech"], image=ImageInterfaceConfig(qformer=qformer),
        speech=SpeechInterfaceConfig(unit_width=WIDTH, width=16, layers=1, heads=2, feedforward=24, positions=32, init_std=0.2),
    )
    return XllmModel(llm, build_interfaces(config, llm.width)).eval()


def talk(name, kinds, question, answer):
    items = [ConversationItem(kind, path=f"{name}.{kind}") for kind in kinds] + [ConversationItem("text", text=question)]
    return Conversation(
        name, "asr", (Message("user", tuple(items)), Message("assistant", (ConversationItem("text", text=answer),)))
    )


def features(kind, numbers, seed=0):
    """Features of the items with these numbers; an item's own do not depend on the others."""
    def one(number, length):
        return torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(1000 * seed + 10 * number + len(kind)))

    match kind:
        case "image":
            rows = [one(number, 5) for number in numbers]
            return Memory(torch.stack(rows), torch.full((len(rows),), 5))
        case "speech":
            rows = [one(number, 2 + number % 4) for number in numbers]
            lens = torch.tensor([len(row) for row in rows])
            return Memory(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lens)
    counts = [1 + number % 3 for number in numbers]
    frames = [one(number * 10 + frame, 5) for number, count in zip(numbers, counts, strict=True) for frame in range(count)]
    return ClipFeatures(Memory(torch.stack(frames), torch.full((len(frames),), 5)), torch.tensor(counts))


MIXED = [
    ("a", ("speech",), "请将这段语音转化为文字", "红色的圆形"),
    ("b", ("image", "speech"), "什么颜色", "绿色"),
    ("c", ("video",), "什么", "旗子"),
    ("d", (), "什么颜色", "红"),
    ("e", ("image",), "什么颜色的旗子", "右下有绿色的旗子"),
]


def make_batch(rows=MIXED, order=None):
    order = list(range(len(rows))) if order is None else order
    talks = [talk(*rows[place]) for place in order]
    found = {}
    for kind in ("image", "video", "speech"):
        numbers = [place for place in order if kind in rows[place][1]]
        if numbers:
            found[kind] = features(kind, numbers)
    return ConversationBatch(talks, found, seconds=1.0)


def test_loss_of_a_batch_is_the_sum_of_its_conversations_in_any_order(model):
    together = model(make_batch())
    assert together.tokens == sum(len(model.llm.encode(row[3])) + 1 for row in MIXED)  # the answer and its end
    alone = [model(make_batch(order=[place])) for place in range(5)]
    torch.testing.assert_close(together.total, sum(one.total for one in alone), atol=1e-4, rtol=1e-5)
    shuffled = model(make_batch(order=[3, 1, 4, 0, 2]))
    torch.testing.assert_close(together.total, shuffled.total, atol=1e-4, rtol=1e-5)


def test_every_answer_may_weigh_the_same(model):
    by_answer = XllmModel(model.llm, dict(model.interfaces.items()), loss_unit="answer")
    one = by_answer(make_batch(order=[0]))
    assert one.tokens == 1
    whole = model(make_batch(order=[0]))
    torch.testing.assert_close(one.total, whole.total / whole.tokens)


def enliven(model):
    """An untrained LLM says the same whatever it is given; with larger weights it does not."""
    with torch.no_grad():
        for weight in model.llm.model.parameters():
            if weight.dim() == 2:
                weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(weight.numel()))


def test_answers_do_not_depend_on_company(model):
    enliven(model)
    together = model.answer(make_batch(), max_new_tokens=6)
    assert set(together) == set("abcde")
    assert len(set(together.values())) > 1
    for place, row in enumerate(MIXED):
        assert model.answer(make_batch(order=[place]), max_new_tokens=6) == {row[0]: together[row[0]]}
    assert model.answer(make_batch(order=[4, 2, 0]), max_new_tokens=6) == {name: together[name] for name in "eca"}


@pytest.mark.parametrize(
    ("phase", "kinds", "trains"),
    [
        (2, ["speech"], ("interfaces.speech.",)),
        (2, ["image"], ("interfaces.image.",)),
        (2, ["video"], ("interfaces.video.",)),
        (3, None, ("interfaces.image.adapter.", "interfaces.video.adapter.", "interfaces.speech.adapter.")),
    ],
)
def test_exactly_what_the_table_says_changes_in_a_phase(model, phase, kinds, trains):
    model.start_phase(phase, kinds)
    model.train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(2):
        model(make_batch()).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith(trains) for name in changed)
    learnable = {name for name, p in model.named_parameters() if name.startswith(trains)}
    idle = {name for name in learnable - changed if "key.bias" not in name}  # a key's bias never matters to a softmax
    assert not idle
    for name, module in model.named_modules():
        inside = f"{name}.".startswith(trains)
        assert not module.training or inside or name in ("", "llm", "interfaces"), name


def test_frozen_dropout_is_silent_in_phase_3(model):
    model.start_phase(3)
    model.train()
    assert torch.equal(model(make_batch()).total, model(make_batch()).total)


def test_the_speech_interface_learns_to_be_read(model):
    enliven(model)
    model.start_phase(2, ["speech"])
    rows = [(str(n), ("speech",), "请将这段语音转化为文字", text) for n, text in enumerate(["红", "绿", "圆", "旗"])]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    first = None
    for _ in range(60):
        losses = model.eval()(make_batch(rows))
        (losses.total / losses.tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
        first = float(losses.total.detach()) if first is None else first
    assert float(losses.total.detach()) < 0.6 * first


def test_mistakes_are_refused(model):
    interfaces = dict(model.interfaces.items())
    with pytest.raises(ConfigError, match="holds an interface for speech"):
        XllmModel(model.llm, {"image": interfaces["speech"]})
    with pytest.raises(ConfigError, match="not image, speech"):
        model.start_phase(2, ["image", "speech"])
    with pytest.raises(ConfigError, match="no interface of kind smell"):
        model.start_phase(3, ["smell"])
    with pytest.raises(ConfigError, match="phase 1"):
        model.start_phase(1)
    with pytest.raises(ConfigError, match="no interface for smell"):
        model(ConversationBatch([talk("x", (), "什么", "红")], {"smell": features("image", [1])}))


def test_what_cannot_be_used_is_named_and_costs_only_itself(model):
    batch = make_batch([*MIXED, ("f", (), "什么", " ")])
    losses = model(batch)
    assert [name for name, _ in losses.rejected] == ["f"]
    torch.testing.assert_close(losses.total, model(make_batch()).total, atol=1e-4, rtol=1e-5)
    model.start_phase(3)
    nothing = model(make_batch([("f", ("speech",), "什么", " ")]))
    nothing.total.backward()
    assert float(nothing.total.detach()) == 0
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)

"""The recipe's own language model: prompts drawn from text, the loss per prompt, and the folder that training leaves."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from xllm_speech.base.config import load_config
from xllm_speech.base.errors import ConfigError, DataError
from xllm_speech.bin import train as verb
from xllm_speech.datasets.lm import (
    IGNORED_LABEL,
    LmDataConfig,
    LmFrame,
    LmMix,
    LmSamples,
    TextRow,
    hold_out,
    read_texts,
    train_batches,
)
from xllm_speech.llm import load_llm
from xllm_speech.llm.chatglm_model import _rotate, rotary_table
from xllm_speech.models.lm_config import look_at_neighbours
from xllm_speech.prompts.instructions import INSTRUCTIONS
from xllm_speech.train.lm import LmExperiment, LmTask

TWINS = [["旗子", "棋子"]]
SHAPES, COLOURS, CELLS = ("圆形", "旗子", "棋子", "星形"), ("红", "蓝", "绿"), ("左上", "右下")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = []
    for cell in CELLS:
        for colour in COLOURS:
            for shape in SHAPES:
                turns = ((f"{shape}是什么颜色", f"{colour}色"), ("有几个东西", "一个"))
                dialog = [{"question": question, "answer": answer} for question, answer in turns]
                caption = f"{cell}有{colour}色的{shape}"
                rows.append({"id": f"t{len(rows)}", "kind": "scene", "caption": caption, "dialog": dialog})
    turn = {"question": "它向哪边移动", "answer": "向左"}
    rows.append({"id": "clip", "kind": "clip", "caption": "红色的圆形向左移动", "dialog": [turn]})
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def config(tmp_path: Path, texts: Path) -> Path:
    path = tmp_path / "lm.yaml"
    path.write_text(f"""task: lm
model: {{hidden_size: 32, num_layers: 2, num_attention_heads: 2, inner_hidden_size: 64, words: ["问：", 语音]}}
data: {{texts: {texts}, twins: [[旗子, 棋子]], held_out: 4, batch_size: 4, epoch_batches: 6, pool_batches: 4}}
optim: {{lr: 0.003, schedule: constant, warmup_steps: 1}}
train: {{max_steps: 4, max_epochs: 0, save_every: 2, eval_every: 4, num_threads: 1, tensorboard: false, device: cpu}}
eval_items: 3
""", encoding="utf-8")
    return path


def make_task(config: Path, *overrides: str) -> LmTask:
    torch.manual_seed(0)
    fabric: Any = SimpleNamespace(device=torch.device("cpu"))
    return LmTask(load_config(config, LmExperiment, overrides), config.parent, fabric)


def train(config: Path, out: Path, *overrides: str) -> None:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    assert verb.run(parser.parse_args(["--config", str(config), "--out", str(out), *overrides])) == 0


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


FRAME = LmFrame(letters, gmask_id=1, sop_id=2, eop_id=3, pad_id=0)


# ---------------------------------------------------------------- prompts

def test_prompts_hold_the_recipe_template_and_every_kind_of_medium(texts: Path) -> None:
    samples = LmSamples(read_texts(texts), TWINS)
    rng = random.Random(1)
    scene, clip = samples.rows[0], samples.rows[-1]
    assert samples.question(scene, scene.dialog[0]).prompt == "<Image>左上有红色的圆形</Image>问：圆形是什么颜色\n答："
    assert samples.question(clip, clip.dialog[0]).prompt == "<Video>红色的圆形向左移动</Video>问：它向哪边移动\n答："
    wordings = set()
    for _ in range(60):
        sample = samples.copy("x", "有几个东西", rng)
        assert sample.prompt.startswith("<Speech>有几个东西</Speech>问：")
        wordings.add(sample.prompt.removeprefix("<Speech>有几个东西</Speech>问：").removesuffix("\n答："))
    assert wordings == set(INSTRUCTIONS["asr"])
    spoken = samples.spoken(scene, ("有几个东西", "一个"), rng)
    assert spoken.prompt.startswith("<Image>左上有红色的圆形</Image><Speech>有几个东西</Speech>问：请")
    assert samples.caption(clip, rng).prompt.split("问：")[1].removesuffix("\n答：") in INSTRUCTIONS["video"]


def test_signs_stand_for_the_words_of_a_caption_and_for_nothing_else(texts: Path) -> None:
    signs = ["形", "左上", "右下", *COLOURS, *SHAPES, "向左"]
    samples, rng = LmSamples(read_texts(texts), TWINS, signs=signs), random.Random(1)
    scene, clip = samples.rows[0], samples.rows[-1]
    assert samples.question(scene, scene.dialog[0]).prompt == "<Image><左上><红><圆形></Image>问：圆形是什么颜色\n答："
    assert samples.caption(clip, rng).prompt.startswith("<Video><红><圆形><向左></Video>问：")
    assert samples.caption(clip, rng).answer == "红色的圆形向左移动"
    assert samples.copy("x", scene.caption, rng).prompt.startswith(f"<Speech>{scene.caption}</Speech>")
    sample = samples.questions(scene, scene.dialog)
    asked = [sample.prompt[:end] for end, _ in sample.hints]
    assert all(text.endswith(turn[0]) for text, turn in zip(asked, scene.dialog, strict=True))
    with pytest.raises(DataError, match=r"clip: the caption 红色的圆形向左移动 holds none of data.signs \(左上\)"):
        LmSamples([clip], signs=["左上"])


def test_signs_are_one_token_each(config: Path) -> None:
    task = make_task(config, "data.signs=[左上, 右下, 红, 蓝, 绿, 圆形, 旗子, 棋子, 星形]")
    assert task.tokenizer.convert_ids_to_tokens(task.frame.encode("<左上><红>红")) == ["<左上>", "<红>", "红"]


def test_several_questions_are_answered_in_their_order(texts: Path) -> None:
    samples = LmSamples(read_texts(texts))
    for seed in range(20):
        sample = samples.draw("questions", random.Random(seed))
        caption = sample.prompt.split(">")[1].split("<")[0]
        dialog = dict(next(row for row in samples.rows if row.caption == caption).dialog)
        questions = sample.prompt.split("问：")[1].removesuffix("\n答：").split("，")
        assert sample.answer == "，".join(dialog[question] for question in questions)


def test_every_question_hints_at_its_answer_where_it_ends(texts: Path) -> None:
    samples, rng = LmSamples(read_texts(texts), TWINS, twin_share=1.0), random.Random(4)
    row = next(row for row in samples.rows if "旗子" in row.caption)
    (first, second), colour = row.dialog, row.dialog[0][1]
    several = samples.questions(row, [second, first])
    typed, spoken = samples.question(row, first), samples.spoken(row, first, rng)
    assert [(several.prompt[:end][-2:], answer) for end, answer in several.hints] == [("东西", "一个"), ("颜色", colour)]
    assert [sample.prompt[:end][-8:] for sample in (typed, spoken) for end, _ in sample.hints] == [
        "：旗子是什么颜色", ">棋子是什么颜色"]
    assert (typed.task, several.task) == ("question", "questions")
    copied = [samples.draw(task, rng) for task in ("copy", "scramble", "caption", "multimodal")]
    assert not any(sample.hints for sample in copied)
    hints_BL = FRAME.batch([several, typed, spoken, *copied]).hints_BL
    for row_L, sample in zip(hints_BL, [several, typed, spoken, *copied], strict=True):
        found = {int(place) + 1: chr(int(row_L[place])) for place in (row_L != IGNORED_LABEL).nonzero()[:, 0]}
        assert found == {end: answer[0] for end, answer in sample.hints}


def test_a_twin_is_misheard_at_its_share_and_always_spelt_right_in_the_answer(texts: Path) -> None:
    rows = read_texts(texts)
    row = next(row for row in rows if "旗子" in row.caption)
    for share, low, high in ((0.0, 0, 0), (1.0, 200, 200), (0.5, 70, 130)):
        samples, rng = LmSamples(rows, TWINS, twin_share=share), random.Random(3)
        drawn = [samples.multimodal(row, "旗子是什么颜色", rng) for _ in range(200)]
        assert {sample.answer for sample in drawn} == {"旗子是什么颜色"}
        assert low <= sum("<Speech>棋子" in sample.prompt for sample in drawn) <= high
        assert all("旗子" in sample.prompt.split("</Image>")[0] for sample in drawn), "the caption keeps the right word"


def test_held_out_captions_are_never_trained_on(texts: Path) -> None:
    rows = [*read_texts(texts), *read_texts(texts)]  # every caption twice
    training, held = hold_out(rows, 5, seed=3)
    assert len({row.caption for row in held}) == len(held) == 5
    assert not {row.caption for row in held} & {row.caption for row in training}
    assert len(training) == len(rows) - 10
    assert hold_out(rows, 5, seed=3)[1] == held
    assert hold_out(rows, 5, seed=4)[1] != held
    with pytest.raises(DataError, match=r"25 captions.*held_out keeps 25"):
        hold_out(rows, 25, seed=3)


def test_a_broken_text_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    good = '{"id": "a", "kind": "scene", "caption": "红", "dialog": [{"question": "几个", "answer": "一个"}]}\n'
    for bad, message in (
        (good.replace("scene", "song"), r"jsonl:2: needs id, kind \(scene or clip\)"),
        (good.replace("answer", "reply"), r"jsonl:2: needs id.*answer"),
        (good.replace('"一个"', '""'), r"jsonl:2: a has an empty"),
    ):
        path.write_text(good + bad, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            read_texts(path)
    path.write_text("")
    with pytest.raises(DataError, match="holds no text"):
        read_texts(path)


# ---------------------------------------------------------------- batches

def test_labels_are_the_answer_and_its_end_only(texts: Path) -> None:
    samples = LmSamples(read_texts(texts))
    rng = random.Random(2)
    drawn = [samples.draw(task, rng) for task in LmMix().shares()]
    batch = FRAME.batch(drawn)
    for row, sample in enumerate(drawn):
        wanted = [*letters(sample.prompt), 1, 2, *letters(sample.answer), 3]
        padding = batch.ids_BL.shape[1] - len(wanted)
        assert batch.ids_BL[row].tolist() == wanted + [0] * padding
        assert batch.mask_BL[row].tolist() == [True] * len(wanted) + [False] * padding
        answer = [*letters(sample.answer), 3]
        before = [IGNORED_LABEL] * (len(wanted) - len(answer))
        assert batch.labels_BL[row].tolist() == before + answer + [IGNORED_LABEL] * padding


def test_batches_follow_from_the_seed_and_skip_as_if_drawn(texts: Path) -> None:
    samples = LmSamples(read_texts(texts), TWINS)
    config = LmDataConfig(batch_size=3, epoch_batches=10, pool_batches=4)

    def draw(epoch: int, **where: int) -> list[list[list[int]]]:
        return [batch.ids_BL.tolist() for batch in train_batches(samples, FRAME, config, epoch, **where)]

    whole = draw(0)
    assert len(whole) == 10
    assert whole == draw(0) != draw(1)
    for skip in (1, 4, 7, 10):
        assert draw(0, skip=skip) == whole[skip:]
    first, second = draw(0, rank=0, world_size=2), draw(0, rank=1, world_size=2)
    assert len(first) == len(second) == 5
    assert not any(batch in second for batch in first)
    assert draw(0, rank=1, world_size=2, skip=3) == second[3:]


def test_prompts_of_like_length_stand_together(texts: Path) -> None:
    samples = LmSamples(read_texts(texts))

    def padding(pool: int) -> int:
        config = LmDataConfig(batch_size=8, epoch_batches=20, pool_batches=pool)
        return sum(int((~batch.mask_BL).sum()) for batch in train_batches(samples, FRAME, config, 0))

    assert padding(20) < 0.5 * padding(1)


def test_the_mix_decides_what_is_drawn(texts: Path) -> None:
    samples = LmSamples(read_texts(texts))
    only = LmMix(copy=0, scramble=0, caption=0, question=0, questions=0, spoken=1, multimodal=0)
    config = LmDataConfig(batch_size=4, epoch_batches=5, mix=only)
    instructions = {tuple(letters(wording)) for wording in INSTRUCTIONS["vsd"]}
    for batch in train_batches(samples, FRAME, config, 0):
        for row in batch.ids_BL.tolist():
            assert any(tuple(letters("问：")) + wording == tuple(row)[row.index(ord("问")):][: len(wording) + 2]
                       for wording in instructions)
    with pytest.raises(ConfigError, match="must not be negative"):
        LmMix(copy=-1)
    with pytest.raises(ConfigError, match="at least one share"):
        LmMix(0, 0, 0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match=r"task chat is not one of copy, .*multimodal"):
        samples.draw("chat", random.Random(0))


# ---------------------------------------------------------------- model, task and verb

def test_every_text_is_covered_and_has_one_spelling_however_it_is_cut(config: Path) -> None:
    tokenizer = make_task(config).tokenizer
    unknown = tokenizer.unk_token_id
    instructions = [wording for wordings in INSTRUCTIONS.values() for wording in wordings]
    ascii_text = "Question: what is it?\n Answer: [Round 0]\n"
    for text in (*instructions, "<Image>左上有红色的圆形</Image>问：有几个东西\n答：一个", ascii_text):
        ids = tokenizer.encode_plain(text)
        assert unknown not in ids
        assert tokenizer.decode(ids) == text
    cut = ["<Image>", "左上有红色的圆形", "</Image><Speech>", "有几个", "</Speech>问：请回答语音中的问题\n答："]
    assert [index for piece in cut for index in tokenizer.encode_plain(piece)] == tokenizer.encode_plain("".join(cut))
    assert len(tokenizer.encode_plain("<Image></Image>问：语音")) == 4
    assert unknown in tokenizer.encode_plain("龘")


@pytest.mark.parametrize("distance", [-1, 1, -2, 3])
def test_a_head_may_begin_by_looking_at_a_neighbour(distance: int) -> None:
    """Scores of a layer whose weights say nothing, by the rotation that the model itself applies."""
    heads, width, length = 2, 32, 60
    bias = torch.zeros(heads * 3 * width)
    look_at_neighbours(bias, heads, [distance])
    query, key, value = bias.view(heads, 1, 3 * width).expand(heads, length, 3 * width).chunk(3, dim=-1)
    positions = torch.arange(length)
    for row in (0, 1):  # of positions; the other stands still
        half = slice(row * width // 2, (row + 1) * width // 2)
        cos, sin = rotary_table(positions[None], width // 2, "exact", torch.float32)
        turned = [_rotate(x[..., half], cos, sin) for x in (query, key)]
        weights = (turned[0] @ turned[1].transpose(1, 2) / width**0.5).softmax(-1)
        middle = positions[5:-5]
        assert torch.equal(weights[0].argmax(-1)[5:-5], middle + distance)
        assert float(weights[0, middle, middle + distance].min()) > 0.5
        assert torch.allclose(weights[1], torch.full((length, length), 1 / length)), "the second head is left alone"
    assert not value.any()


def test_the_loss_is_the_mean_over_each_answer_summed_over_prompts(config: Path) -> None:
    task = make_task(config)
    batch = next(iter(task.train_batches(0, 0, 0, 1)))
    losses = task.model(batch)
    total, correct = 0.0, 0
    for row in range(len(batch.ids)):
        length = int(batch.mask_BL[row].sum())
        ids, labels = batch.ids_BL[row : row + 1, :length], batch.labels_BL[row, :length]
        logits = task.model.glm(input_ids=ids, use_cache=False).logits[0, :-1]  # alone, without padding
        wanted = labels[1:] != IGNORED_LABEL
        total += float(F.cross_entropy(logits[wanted], labels[1:][wanted]).detach())
        correct += bool((logits[wanted].argmax(1) == labels[1:][wanted]).all())
    assert float(losses.total.detach()) == pytest.approx(total, rel=1e-4)
    assert (losses.tokens, losses.correct) == (task.token_count(batch), correct)
    losses.total.backward()
    assert all(parameter.grad is not None for parameter in task.model.parameters())


@pytest.mark.parametrize("layer", [1, 2])
def test_hints_add_their_own_loss_in_training_only(config: Path, layer: int) -> None:
    """Against logits that the model itself gives, one prompt at a time without padding."""
    task = make_task(config, "hint_weight=0.5", f"hint_layer={layer}", "data.mix.questions=9")
    batch = next(iter(task.train_batches(0, 0, 0, 1)))
    hint = 0.0
    for row in range(len(batch.ids)):
        length = int(batch.mask_BL[row].sum())
        ids, hints = batch.ids_BL[row : row + 1, :length], batch.hints_BL[row, :length]
        x_LH = task.model.glm(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[layer][0]
        if layer == 1:
            x_LH = task.model.transformer.final_layernorm(x_LH)
        if (hints != IGNORED_LABEL).any():
            hint += float(F.cross_entropy(task.model.glm.lm_head(x_LH), hints, ignore_index=IGNORED_LABEL).detach())
    losses = task.model.train()(batch)
    plain = task.model.eval()(batch)
    assert hint > 0
    assert float(losses.parts["hint"]) == pytest.approx(hint, rel=1e-4)
    assert float(losses.total.detach()) == pytest.approx(float(plain.total.detach()) + 0.5 * hint, rel=1e-4)
    assert set(plain.parts) == {"answer"}


def test_hints_beyond_the_model_are_refused(config: Path) -> None:
    with pytest.raises(ConfigError, match=r"hint_layer 3 must lie in 1\.\.2 \(model\.num_layers\)"):
        make_task(config, "hint_layer=3")
    with pytest.raises(ConfigError, match=r"hint_weight -1\.0 must not be negative"):
        make_task(config, "hint_weight=-1")


def test_the_final_folder_is_a_chatglm_that_answers_as_the_task_does(config: Path, tmp_path: Path) -> None:
    train(config, tmp_path / "out")
    folder = tmp_path / "out" / "final"
    assert {"config.json", "ice_text.model", "model.safetensors", "tokenizer_config.json"} <= {p.name for p in folder.iterdir()}
    llm = load_llm(folder)
    assert (llm.family, llm.width, llm.dtype) == ("chatglm", 32, torch.float32)
    assert json.loads((folder / "config.json").read_text())["deepnorm_depth"] == llm.model.config.deepnorm_depth == 4
    task = make_task(config)
    task.model.transformer.load_state_dict(llm.model.transformer.state_dict())
    task.model.eval()
    batch = next(iter(task.train_batches(1, 0, 0, 1)))
    with torch.no_grad():
        x_BLH = task.model.transformer(
            task.model.transformer.word_embeddings(batch.ids_BL), batch.mask_BL, task.model.glm.find_prefix(batch.ids_BL)
        ).last_hidden_state
        logits = llm.model(input_ids=batch.ids_BL, attention_mask=batch.mask_BL.long(), use_cache=False).logits
    assert torch.allclose(F.linear(x_BLH, llm.model.lm_head.weight), logits, atol=1e-5)
    text = "<Image>左上有红色的圆形</Image>问：有几个东西\n答："
    assert llm.encode(text) == task.tokenizer.encode_plain(text)
    metrics = json.loads((folder / "state.json").read_text())["metrics"]
    names = ("caption", "copy", "question", "spoken", "multimodal")
    assert metrics["error"] == pytest.approx(sum(metrics[f"{name}_error"] for name in names) / len(names))


def test_a_resumed_run_ends_in_the_same_weights_and_other_texts_are_refused(config: Path, texts: Path, tmp_path: Path) -> None:
    train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", "train.max_steps=2")
    train(config, tmp_path / "parts")
    weights = [(tmp_path / name / "final/model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]
    texts.write_text(texts.read_text(encoding="utf-8").replace("一个", "两个"), encoding="utf-8")
    with pytest.raises(ConfigError, match="texts_sha256"):
        train(config, tmp_path / "parts", "train.max_steps=6")


def test_evaluation_counts_exact_answers(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(config)
    monkeypatch.setattr(task, "answer", lambda samples: [samples[0].answer, *["错" for _ in samples[1:]]])
    rates = task.evaluate(task.model)
    assert all(rate == pytest.approx(200 / 3) for rate in rates.values())
    assert {sample.task for sample in task.questions["copy"]} == {"copy", "scramble"}


def test_a_tiny_model_learns_to_answer(config: Path) -> None:
    """Trained on one kind of question it answers what it has seen; its answers end by themselves."""
    task = make_task(config, "data.batch_size=16", "model.hidden_size=64", "data.epoch_batches=60", "data.pool_batches=1")
    rows = [TextRow("a", "image", "左上有红色的圆形", (("圆形是什么颜色", "红色"), ("有几个东西", "一个")))]
    task.samples = LmSamples(rows)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=3e-3)
    for batch in task.train_batches(0, 0, 0, 1):
        losses = task.model(batch)
        (losses.total / losses.tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    task.model.glm.eval()
    asked = [task.samples.question(rows[0], turn) for turn in rows[0].dialog]
    assert task.answer(asked) == ["红色", "一个"]


def test_an_unknown_task_is_refused_with_the_choices(config: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task `chat` is not one of asr, .*lm"):
        train(config, tmp_path / "out", "task=chat")
    config.write_text("task: lm\nmodel: {hiden_size: 3}\n")
    with pytest.raises(ConfigError, match=r"model\.hiden_size`; did you mean `model\.hidden_size"):
        train(config, tmp_path / "out")
    config.write_text("task: lm\n")
    with pytest.raises(ConfigError, match=r"data\.texts is needed"):
        train(config, tmp_path / "out")

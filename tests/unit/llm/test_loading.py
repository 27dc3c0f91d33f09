from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, TextStreamer

from xllm_speech.base.errors import CheckpointError, ConfigError, MissingDependency
from xllm_speech.llm import ChatGLMConfig, ChatGLMForConditionalGeneration, ChatGLMTokenizer, load_llm
from xllm_speech.llm.loaded import left_padded
from xllm_speech.records import LlmInput

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": 128, "tie_word_embeddings": False,
}
WORDS = ["<unk>", "<pad>", "<s>", "<|user|>", "<|assistant|>", "<|end|>", *(f"w{number}" for number in range(50))]
TEMPLATE = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content | trim }}"
    "{% else %}<|assistant|>{{ m.content }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FAMILIES = ("llama", "qwen3", "glm4")


def causal_folder(folder, family, template=TEMPLATE):
    """A tiny random model of `family` with a word tokenizer of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import Glm4Config, Glm4ForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    table = {name: number for number, name in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="<|end|>",
        extra_special_tokens=["<|user|>", "<|assistant|>"],
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(str(folder))
    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "glm4": (Glm4Config, Glm4ForCausalLM),
    }[family]
    torch.manual_seed(4)
    ids = {"bos_token_id": 2, "eos_token_id": [5], "pad_token_id": 1}
    model = model_class(config_class(**SIZES, **ids, vocab_size=len(WORDS)))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(0, 0.3)
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module", params=("chatglm", *FAMILIES))
def llm(request, official, tmp_path_factory):
    if request.param == "chatglm":
        return load_llm(official[0], dtype="float32")
    return load_llm(causal_folder(tmp_path_factory.mktemp(request.param), request.param))


def prompts(llm, side, answers=True):
    """Three prompts with a medium of two vectors after the first piece of framing, and answers of several lengths."""
    before, after = llm.framing.frame(("user",))
    said = [llm.encode(text) for text in ("w1 w2 w3 w4", "w5", "w6 w7")]
    replies = [[*llm.encode(text), llm.framing.answer_end_id] for text in ("w8 w9 w10", "w11", "w12 w13")]
    replies = replies if answers else [[], [], []]
    rows = [[*before, llm.filler_id, llm.filler_id, *text, *after, *reply] for text, reply in zip(said, replies, strict=True)]
    slots = [[0] * len(before) + [1, 1] + [0] * (len(row) - len(before) - 2) for row in rows]
    labels = [[-100] * (len(row) - len(reply)) + reply for row, reply in zip(rows, replies, strict=True)]
    longest = max(len(row) for row in rows)

    def pad(values, fill):
        blank = [[fill] * (longest - len(row)) for row in values]
        return torch.tensor([b + row if side == "left" else row + b for b, row in zip(blank, values, strict=True)])

    ids = pad(rows, llm.pad_id)
    slots_BL = pad(slots, 0).bool()
    torch.manual_seed(9)
    media = torch.randn(3, 2, llm.width)
    embeds = llm.embed(ids).clone()
    embeds[slots_BL] = media.flatten(0, 1)
    mask = pad([[1] * len(row) for row in rows], 0).bool()
    return LlmInput(ids, embeds, mask, slots_BL, pad(labels, -100) if answers else None)


def row_of(prompt, row):
    kept = prompt.mask_BL[row]
    parts = (prompt.ids_BL, prompt.embeds_BLH, prompt.mask_BL, prompt.slots_BL)
    labels = None if prompt.labels_BL is None else prompt.labels_BL[row][kept][None]
    return LlmInput(*(part[row][kept][None] for part in parts), labels)


def test_a_training_step_reaches_the_embeddings_only(llm):
    before = {name: weight.clone() for name, weight in llm.state_dict().items()}
    llm.train()
    assert not any(module.training for module in llm.model.modules())
    gradients = {}
    for side in ("left", "right"):
        prompt = prompts(llm, side)
        prompt.embeds_BLH.requires_grad_()
        loss = llm.answer_loss(prompt)
        loss.mean_over_items().backward()
        gradients[side] = prompt.embeds_BLH.grad[prompt.slots_BL]
        assert bool(prompt.embeds_BLH.grad[~prompt.mask_BL].eq(0).all())
        alone = [llm.answer_loss(row_of(prompt, row)) for row in range(3)]
        torch.testing.assert_close(loss.nll_B, torch.cat([one.nll_B for one in alone]), atol=1e-4, rtol=1e-4)
        assert loss.count_B.tolist() == [one.count_B.item() for one in alone] == prompt.labels_BL.ne(-100).sum(1).tolist()
        logits = llm(prompt)[:, :-1].transpose(1, 2)
        plain = torch.nn.functional.cross_entropy(logits, prompt.labels_BL[:, 1:])
        torch.testing.assert_close(loss.mean_over_tokens(), plain)
    assert float(gradients["left"].abs().sum()) > 0
    torch.testing.assert_close(gradients["left"], gradients["right"], atol=1e-4, rtol=1e-3)
    assert all(weight.grad is None and not weight.requires_grad for weight in llm.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in llm.state_dict().items())


def test_per_item_means_weigh_items_alike(llm):
    prompt = prompts(llm, "right")
    labels = prompt.labels_BL.clone()
    labels[2] = -100
    loss = llm.answer_loss(LlmInput(prompt.ids_BL, prompt.embeds_BLH, prompt.mask_BL, prompt.slots_BL, labels))
    assert loss.count_B[2] == 0
    expected = (loss.nll_B[0] / loss.count_B[0] + loss.nll_B[1] / loss.count_B[1]) / 2
    torch.testing.assert_close(loss.mean_over_items(), expected)
    with pytest.raises(ValueError, match="no labels"):
        llm.answer_loss(prompts(llm, "right", answers=False))


@pytest.mark.parametrize("beams", [1, 2])
def test_answers_do_not_depend_on_padding_or_company(llm, beams):
    left, right = (prompts(llm, side, answers=False) for side in ("left", "right"))
    answers = llm.generate(left, max_new_tokens=8, num_beams=beams)
    assert answers == llm.generate(right, max_new_tokens=8, num_beams=beams)
    assert answers == [llm.generate(row_of(right, row), max_new_tokens=8, num_beams=beams)[0] for row in range(3)]
    assert len({tuple(answer) for answer in answers}) > 1
    assert torch.equal(left_padded(right).embeds_BLH[left.mask_BL], left.embeds_BLH[left.mask_BL])


def test_answers_from_embeddings_are_those_from_ids(llm):
    before, after = llm.framing.frame(("user",))
    ids = torch.tensor([[*before, *llm.encode("w1 w2 w3"), *after]])
    mask = torch.ones_like(ids)
    plain = llm.model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :].tolist()
    found = llm.generate(LlmInput(ids, llm.embed(ids), mask.bool(), torch.zeros_like(mask).bool()), max_new_tokens=8)[0]
    assert found == plain[: len(found)]
    assert len(found) == 8 or plain[len(found)] in llm.framing.end_ids


def test_an_answer_stops_at_its_end(llm):
    prompt = row_of(prompts(llm, "left", answers=False), 0)
    free = llm.generate(prompt, max_new_tokens=6, suppress_tokens=list(llm.framing.end_ids))[0]
    assert len(free) == 6
    forced = llm.generate(prompt, max_new_tokens=6, forced_eos_token_id=llm.framing.answer_end_id)[0]
    assert len(forced) <= 5
    assert isinstance(llm.decode(free), str)


def test_an_answer_can_be_watched_as_it_grows(llm, capsys):
    prompt = row_of(prompts(llm, "left", answers=False), 0)
    answer = llm.generate(prompt, max_new_tokens=6, streamer=TextStreamer(llm.tokenizer, skip_special_tokens=True))[0]
    assert capsys.readouterr().out.rstrip("\n") == llm.decode(answer).rstrip("\n")
    assert answer


def test_embeddings_of_another_width_are_refused(llm):
    prompt = prompts(llm, "left")
    wrong = LlmInput(prompt.ids_BL, prompt.embeds_BLH[..., :-1], prompt.mask_BL, prompt.slots_BL, prompt.labels_BL)
    with pytest.raises(ValueError, match="width 31 for a language model of width 32"):
        llm(wrong)


def test_the_official_folder_loads_as_it_is(official):
    folder, weights = official
    llm = load_llm(folder)
    assert (llm.family, llm.width, llm.dtype, llm.max_length) == ("chatglm", 32, torch.float16, 2048)
    held = llm.model.state_dict()
    for name, weight in weights.items():
        assert name.endswith("inv_freq") or torch.equal(held[name].float(), weight), name
    assert llm.model.lm_head.weight is llm.model.transformer.word_embeddings.weight
    assert llm.model.generation_config.eos_token_id == llm.framing.answer_end_id
    assert llm.encode("红<sop>") == llm.tokenizer.encode_plain("红<sop>")
    assert load_llm(folder, dtype="bfloat16").dtype == torch.bfloat16
    model = ChatGLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    tokenizer = ChatGLMTokenizer.from_pretrained(folder)
    made = model.generate(**tokenizer(["红色", "什么颜色？"], padding=True, return_tensors="pt"), max_new_tokens=4)
    assert made.shape[0] == 2


@torch.no_grad()
def test_safetensors_in_shards_hold_the_same_model(official, tmp_path):
    model = ChatGLMForConditionalGeneration.from_pretrained(official[0], dtype=torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shutil.copy(official[0] / "ice_text.model", tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = load_llm(tmp_path).model
    ids = torch.tensor([[9, 10, model.config.gmask_token_id, model.config.bos_token_id]])
    assert torch.equal(model(ids).logits, again(ids).logits)


def test_a_folder_of_the_first_release_gets_its_ids(official, tmp_path):
    folder = shutil.copytree(official[0], tmp_path / "old")
    described = json.loads((folder / "config.json").read_text())
    names = [name for name in described if name.endswith("_token_id")]
    described = {**described, **{name: described[name] + 9 for name in names}, "image_token_count": 9}
    described["vocab_size"] += 9
    (folder / "config.json").write_text(json.dumps(described))
    torch.manual_seed(0)
    model = ChatGLMForConditionalGeneration(ChatGLMConfig(**described))
    for old in folder.glob("pytorch_model*"):
        old.unlink()
    model.save_pretrained(folder)
    llm = load_llm(folder)
    assert min(llm.encode("红色")) >= 9
    assert llm.framing.frame(("user",)) == [(), (described["gmask_token_id"], described["bos_token_id"])]


def spoil_missing(folder):
    (folder / "pytorch_model-00002-of-00002.bin").unlink()


def spoil_incomplete(folder):
    index = json.loads((folder / "pytorch_model.bin.index.json").read_text())
    shard = index["weight_map"].pop("transformer.layers.1.mlp.dense_h_to_4h.bias")
    inside = torch.load(folder / shard, weights_only=True)
    del inside["transformer.layers.1.mlp.dense_h_to_4h.bias"]
    torch.save(inside, folder / shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def spoil_code(folder):
    class Evil:
        def __reduce__(self):
            return (print, ("code of a checkpoint was run",))

    torch.save({"x": Evil()}, folder / "pytorch_model-00001-of-00002.bin")


def change(key, value):
    def spoil(folder):
        described = json.loads((folder / "config.json").read_text())
        described[key] = value
        if value is None:
            del described[key]
        (folder / "config.json").write_text(json.dumps(described))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: shutil.rmtree(folder), "no such folder"),
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a language model"),
        (lambda folder: (folder / "ice_text.model").unlink(), "holds no ice_text.model"),
        (spoil_missing, "cannot be loaded"),
        (spoil_incomplete, "1 weights are missing, among them transformer.layers.1.mlp.dense_h_to_4h.bias"),
        (spoil_code, "cannot be loaded"),
        (change("inner_hidden_size", 128), "weights do not fit its config.json"),
        (change("inner_hidden_size", None), "not ChatGLM-6B of the first generation"),
        (change("quantization_bit", 8), "quantization_bit"),
        (change("gmask_token_id", 7), r"\[gMASK\] has id \d+ in ice_text.model but 7 in config.json"),
        (change("model_type", "no_such_model"), "cannot be loaded"),
    ],
)
def test_a_broken_folder_is_refused_in_one_line(official, tmp_path, capsys, spoil, words):
    folder = shutil.copytree(official[0], tmp_path / "broken")
    spoil(folder)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_llm(folder, dtype="float32")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "code of a checkpoint" not in capsys.readouterr().out


def test_choices_are_checked(official):
    with pytest.raises(ConfigError, match="dtype: `half` is not one of auto, float32, bfloat16, float16"):
        load_llm(official[0], dtype="half")
    with pytest.raises(ConfigError, match="quantization: `2bit` is not one of none, 8bit, 4bit"):
        load_llm(official[0], quantization="2bit")
    with pytest.raises(MissingDependency, match="runs on CUDA only"):
        load_llm(official[0], quantization="8bit")


def test_the_chat_template_frames_turns(tmp_path):
    llm = load_llm(causal_folder(tmp_path / "a", "llama"))
    user, assistant, end, begin = 3, 4, 5, 2
    assert llm.framing.frame(("user",)) == [(begin, user), (assistant,)]
    assert llm.framing.frame(("user", "assistant", "user")) == [(begin, user), (assistant,), (end, user), (assistant,)]
    assert (llm.framing.answer_end_id, llm.framing.end_ids, llm.pad_id, llm.filler_id) == (end, (end,), 1, 0)
    assert not {user, end} & set(llm.encode("w1 <|user|> w2 <|end|>"))
    bare = load_llm(causal_folder(tmp_path / "b", "llama", template=None))
    assert bare.framing.frame(("user",)) == [(begin,), ()]
    with pytest.raises(CheckpointError, match="drops or reorders"):
        load_llm(causal_folder(tmp_path / "c", "llama", template="<s>{{ messages[0].content }}"))
    refusing = "{{ raise_exception('no turns today') }}"
    with pytest.raises(CheckpointError, match=r"refuses the turns user, assistant .*no turns today"):
        load_llm(causal_folder(tmp_path / "d", "llama", template=refusing))


def test_a_chatglm_takes_its_history_as_text(official):
    with pytest.raises(ValueError, match="one turn of the user"):
        load_llm(official[0]).framing.frame(("user", "assistant", "user"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_precision_model_takes_and_returns_float32(official, dtype):
    exact, half = load_llm(official[0], dtype="float32"), load_llm(official[0], dtype=dtype)
    gradients = []
    for llm in (exact, half):
        prompt = prompts(exact, "left")
        prompt.embeds_BLH.requires_grad_()
        loss = llm.answer_loss(prompt)
        assert loss.nll_B.dtype == torch.float32
        loss.mean_over_items().backward()
        gradients.append(prompt.embeds_BLH.grad[prompt.slots_BL])
    assert gradients[1].dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(*(gradient.flatten() for gradient in gradients), dim=0)
    assert float(cosine) > 0.95

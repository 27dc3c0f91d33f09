"""LoRA on a frozen LLM: off by default, the LLM's own weights untouched, merging, saving adapters alone."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from xllm_speech.base.errors import CheckpointError, ConfigError
from xllm_speech.llm import load_llm
from xllm_speech.llm.lora import LoraConfig, add_lora, load_lora, lora_parameters, merge_lora, save_lora, set_lora_mode
from xllm_speech.records import LlmInput

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": 64, "vocab_size": 40,
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llama")
    words = ["<unk>", "<pad>", "<s>", "<|user|>", "<|assistant|>", "<|end|>", *(f"w{number}" for number in range(30))]
    table = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    table.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=table, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="<|end|>",
        extra_special_tokens=["<|user|>", "<|assistant|>"],
    )
    tokenizer.chat_template = (
        "<s>{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}{% else %}<|assistant|>"
        "{{ m.content }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer.save_pretrained(str(folder))
    torch.manual_seed(4)
    LlamaForCausalLM(LlamaConfig(**SIZES, bos_token_id=2, eos_token_id=5, pad_token_id=1)).save_pretrained(str(folder))
    return folder


@pytest.fixture(params=["chatglm", "llama"])
def llm(request, official, llama):
    return load_llm(official[0] if request.param == "chatglm" else llama, dtype="float32")


def prompt(llm) -> LlmInput:
    before, after = llm.framing.frame(("user",))
    said, reply = llm.encode("w1 w2 w3"), [*llm.encode("w4 w5"), llm.framing.answer_end_id]
    row = [*before, *said, *after, *reply]
    ids = torch.tensor([row])
    labels = torch.tensor([[-100] * (len(row) - len(reply)) + reply])
    return LlmInput(ids, llm.embed(ids), torch.ones_like(ids).bool(), torch.zeros_like(ids).bool(), labels)


def train(llm, steps: int = 3) -> None:
    optimiser = torch.optim.AdamW(lora_parameters(llm).values(), lr=0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        llm.answer_loss(prompt(llm)).mean_over_tokens().backward()
        optimiser.step()


def test_no_adapter_unless_asked_for(llm) -> None:
    names = list(llm.state_dict())
    assert add_lora(llm, LoraConfig()) == []
    assert list(llm.state_dict()) == names
    assert not any(parameter.requires_grad for parameter in llm.parameters())


def test_only_adapters_train_and_the_llm_stays_bit_for_bit(llm) -> None:
    before = {name: tensor.clone() for name, tensor in llm.state_dict().items()}
    with torch.no_grad():
        logits = llm(prompt(llm))
    names = add_lora(llm, LoraConfig(rank=2))
    targets = {name.split(".lora_")[0].rpartition(".")[2] for name in names}
    assert targets == ({"query_key_value"} if llm.family == "chatglm" else {"q_proj", "v_proj"})
    assert names == [name for name, parameter in llm.named_parameters() if parameter.requires_grad]
    with torch.no_grad():
        torch.testing.assert_close(llm(prompt(llm)), logits, rtol=0, atol=0)
    adapters = {name: parameter.detach().clone() for name, parameter in lora_parameters(llm).items()}
    loss = llm.answer_loss(prompt(llm)).mean_over_tokens().item()
    llm.train()
    train(llm)
    assert llm.answer_loss(prompt(llm)).mean_over_tokens().item() < loss
    after = {name.replace(".base_layer", ""): tensor for name, tensor in llm.state_dict().items() if ".lora_" not in name}
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(not torch.equal(parameter, adapters[name]) for name, parameter in lora_parameters(llm).items())


def test_merging_keeps_what_it_computes_and_its_names(llm) -> None:
    names = list(llm.state_dict())
    add_lora(llm, LoraConfig(rank=2, alpha=8))
    train(llm)
    with torch.no_grad():
        adapted = llm(prompt(llm))
    assert merge_lora(llm) == (2 if llm.family == "chatglm" else 4)
    assert list(llm.state_dict()) == names
    assert lora_parameters(llm) == {}
    assert not any(parameter.requires_grad for parameter in llm.parameters())
    with torch.no_grad():
        torch.testing.assert_close(llm(prompt(llm)), adapted, rtol=1e-4, atol=1e-5)


def test_adapters_alone_are_saved_and_come_back(llm, official, llama, tmp_path) -> None:
    config = LoraConfig(rank=2, alpha=8, dropout=0.1)
    add_lora(llm, config)
    train(llm)
    save_lora(tmp_path / "lora", llm, config)
    tensors = load_file(tmp_path / "lora/adapter_model.safetensors")
    assert len(tensors) == len(lora_parameters(llm))
    assert all(".lora_" in name for name in tensors)
    fresh = load_llm(official[0] if llm.family == "chatglm" else llama, dtype="float32")
    found = load_lora(fresh, tmp_path / "lora")
    assert (found.rank, found.alpha, found.dropout) == (2, 8.0, 0.1)
    with torch.no_grad():
        torch.testing.assert_close(fresh(prompt(fresh)), llm(prompt(llm)), rtol=0, atol=0)


def test_peft_reads_what_we_save(llama, tmp_path) -> None:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    llm = load_llm(llama, dtype="float32")
    config = LoraConfig(rank=3)
    add_lora(llm, config)
    train(llm)
    save_lora(tmp_path, llm, config)
    theirs = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(str(llama)), str(tmp_path)).eval()
    ids = prompt(llm).ids_BL
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, llm.model(ids).logits)


def test_a_half_precision_llm_has_float32_adapters(llama) -> None:
    llm = load_llm(llama, dtype="bfloat16")
    add_lora(llm, LoraConfig(rank=2))
    assert {parameter.dtype for parameter in lora_parameters(llm).values()} == {torch.float32}
    train(llm, 1)
    assert llm(prompt(llm)).dtype == torch.bfloat16


def test_dropout_is_the_callers_to_switch(llama) -> None:
    llm = load_llm(llama, dtype="float32")
    add_lora(llm, LoraConfig(rank=2, dropout=0.5))
    train(llm)
    llm.train()
    with torch.no_grad():
        assert torch.equal(llm(prompt(llm)), llm(prompt(llm)))
        set_lora_mode(llm, True)
        assert not torch.equal(llm(prompt(llm)), llm(prompt(llm)))
        set_lora_mode(llm, False)
        assert torch.equal(llm(prompt(llm)), llm(prompt(llm)))


def test_wrong_wishes_are_refused(llama) -> None:
    llm = load_llm(llama, dtype="float32")
    with pytest.raises(ConfigError, match=r"no linear layer called query_key_value in this llama; there are down_proj"):
        add_lora(llm, LoraConfig(rank=2, targets=["query_key_value"]))
    add_lora(llm, LoraConfig(rank=2, targets=["o_proj"]))
    assert all(".o_proj." in name for name in lora_parameters(llm))
    with pytest.raises(ConfigError, match="adapters already"):
        add_lora(llm, LoraConfig(rank=2))
    for wrong, words in (({"rank": -1}, "rank -1"), ({"alpha": 0.0}, "alpha 0"), ({"dropout": 1.0}, "dropout 1")):
        with pytest.raises(ConfigError, match=words):
            LoraConfig(**wrong)


def test_attention_of_unknown_names_is_said(llama) -> None:
    llm = load_llm(llama, dtype="float32")
    for layer in llm.model.model.layers:
        layer.self_attn = torch.nn.ModuleDict({"strange": torch.nn.Linear(2, 2)})
    with pytest.raises(ConfigError, match=r"attention of llama has unknown names; choose among .*strange"):
        add_lora(llm, LoraConfig(rank=2))


def test_folders_that_do_not_fit_are_refused(llama, official, tmp_path) -> None:
    llm = load_llm(llama, dtype="float32")
    with pytest.raises(ConfigError, match="no LoRA adapters to save"):
        save_lora(tmp_path / "none", llm, LoraConfig(rank=2))
    assert not (tmp_path / "none").exists()
    config = LoraConfig(rank=2)
    add_lora(llm, config)
    save_lora(tmp_path, llm, config)
    with pytest.raises(CheckpointError, match="made for another LLM"):
        load_lora(load_llm(official[0], dtype="float32"), tmp_path)
    described = json.loads((tmp_path / "adapter_config.json").read_text())
    for changes, words in (
        ({"r": 3}, "tensors of another shape"), ({"target_modules": ["q_proj"]}, "4 tensors surplus"),
        ({"peft_type": "IA3"}, "only LORA is read"), ({"use_dora": True}, "use_dora"), ({"r": "many"}, "not a configuration"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**described, **changes}))
        fresh = load_llm(llama, dtype="float32")
        with pytest.raises(CheckpointError, match=words):
            load_lora(fresh, tmp_path)
        assert not [name for name in fresh.state_dict() if "lora" in name or "base_layer" in name]
    (tmp_path / "adapter_config.json").write_text(json.dumps(described))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_lora(load_llm(llama, dtype="float32"), tmp_path)
    with pytest.raises(CheckpointError, match=r"holds adapter_config\.json"):
        load_lora(llm, tmp_path / "nowhere")

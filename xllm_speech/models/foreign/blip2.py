"""BLIP-2 by the names of LAVIS and of Hugging Face: Q-Former, queries, ln_vision, projection, EVA, and the first stage's heads.

The rows of the tables are those of the two published layouts; everything goes by our names, and what each checkpoint lacks is
either needed, and its absence an error, or reported as missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from xllm_speech.base.errors import CheckpointError
from xllm_speech.encoders.eva import check_eva, pick_eva, read_heads
from xllm_speech.interfaces.base import Adapter
from xllm_speech.interfaces.qformer import QueryTransformer
from xllm_speech.interfaces.qformer_losses import QFormerPretraining
from xllm_speech.models.foreign.intake import Intake

BERT_HEADS = {768: 12, 1024: 16}  # of BERT-base and -large by width; no file of weights tells the number of heads
TEXT_BRANCH = (".intermediate.", ".output.dense", ".output.LayerNorm")
PRETRAINING = "pretraining."


@dataclass(frozen=True)
class Blip2Names:
    """One of the two sets of names.

    of_querying, of_pretraining: name in our `QueryTransformer`, or in `QFormerPretraining` outside of it, -> foreign name.
    stem: in front of the Q-Former's layers. words: table of words, which only the first stage has. projections: names that
    the layer before the LLM goes by.
    """

    of_querying: Callable[[str], str]
    of_pretraining: Callable[[str], str]
    stem: str
    words: str
    projections: tuple[str, ...]


def _lavis_querying(name: str) -> str:
    if name == "queries":
        return "query_tokens"
    name = name.replace("attention.attention.", "attention.self.").replace(".layernorm.", ".embeddings.LayerNorm.")
    return name.replace("qformer.", "Qformer.bert.", 1)


def _lavis_pretraining(name: str) -> str:
    for ours, theirs in (
        ("text_embeddings.", "Qformer.bert.embeddings."), ("transform.", "Qformer.cls.predictions.transform."),
        ("word_bias", "Qformer.cls.predictions.bias"), ("vision_projection.", "vision_proj."),
        ("text_projection.", "text_proj."), ("matching_head.", "itm_head."), ("temperature", "temp"),
    ):
        name = name.replace(ours, theirs)
    return name


def _hugging_face_querying(name: str) -> str:
    return "query_tokens" if name == "queries" else name.replace("ln_vision.", "vision_model.post_layernorm.")


def _hugging_face_pretraining(name: str) -> str:
    return name.replace("text_embeddings.", "embeddings.").replace("matching_head.", "itm_head.")


LAVIS = Blip2Names(
    _lavis_querying, _lavis_pretraining, "Qformer.bert.", "Qformer.bert.embeddings.word_embeddings.weight",
    ("opt_proj", "t5_proj"),
)
HUGGING_FACE = Blip2Names(
    _hugging_face_querying, _hugging_face_pretraining, "qformer.", "embeddings.word_embeddings.weight",
    ("language_projection",),
)


def is_text_branch(name: str) -> bool:
    """Whether a weight of the Q-Former belongs to the branch of text, which phase 2 has not."""
    layer = name.partition(".layer.")[2].partition(".")[2]
    return f".{layer}".startswith(TEXT_BRANCH)


def take_querying(intake: Intake, names: Blip2Names, prefix: str, text: bool = False) -> QueryTransformer:
    """Q-Former, queries and ln_vision under `prefix`; the module comes back without values, on the meta device.

    Args:
        text: the branch of text is expected too; it goes under `PRETRAINING`.

    Raises:
        CheckpointError: a weight is missing or does not fit the others.
    """
    _, queries, width = intake.shape("query_tokens", 3)
    layer = f"{names.stem}encoder.layer."
    first = f"{layer}0.crossattention.{'self' if names is LAVIS else 'attention'}.key.weight"
    encoder_width = intake.shape(first, 2)[1]
    feedforward = intake.shape(f"{layer}0.intermediate_query.dense.weight", 2)[0]
    pattern = layer.replace(".", r"\.") + r"(\d+)\."
    layers = intake.count(pattern)
    crossed = {number for number in range(layers) if intake.has(f"{layer}{number}.crossattention.")}
    every = next((n for n in (2, *range(1, layers + 1)) if crossed == set(range(0, layers, n))), 0)
    if not every:
        raise CheckpointError(f"{intake.source}: cross-attention in layers {sorted(crossed)}, not in every n-th from the first")
    module = intake.build(
        lambda: QueryTransformer(encoder_width, queries, width, layers, 1, feedforward, every, text=text)
    )
    intake.take_module(
        prefix, module, names.of_querying, skip=is_text_branch,
        convert=lambda name: (lambda tensor: tensor.squeeze(0)) if name == "queries" else None,
    )
    if text:
        intake.take_module(
            f"{PRETRAINING}querying.", module, names.of_querying, skip=lambda name: not is_text_branch(name)
        )
    sizes = {
        "encoder_width": encoder_width, "queries": queries, "width": width, "layers": layers, "feedforward": feedforward,
        "cross_attention_every": every,
    }
    if width in BERT_HEADS:
        sizes["heads"] = BERT_HEADS[width]
    intake.report.settings |= {f"interfaces.image.qformer.{name}": value for name, value in sizes.items()}
    return module


def take_adapter(intake: Intake, foreign: str, prefix: str, width: int | None = None, activation: str = "none") -> None:
    """A linear layer before the LLM; `prefix` is our interface's. width: that it must take in."""
    llm_width, inputs = intake.shape(f"{foreign}.weight", 2)
    adapter = intake.build(lambda: Adapter(inputs if width is None else width, llm_width))
    intake.take_module(f"{prefix}.adapter.", adapter, lambda name: f"{foreign}.{name}")
    intake.report.settings |= {f"interfaces.{prefix}.activation": activation, "llm_width": llm_width}


def take_vision(intake: Intake) -> None:
    """EVA, where the source holds it, under `vision.`."""
    weights = pick_eva(intake.tensors)
    intake.report.ignored |= weights.ignored
    if not weights.state:
        return
    sizes = check_eva(weights, intake.source)
    intake.state |= {f"vision.{name}": tensor for name, tensor in weights.state.items()}
    intake.report.used |= {foreign: [f"vision.{name}" for name in ours] for foreign, ours in weights.used.items()}
    intake.report.settings |= {"encoders.vision.kind": "eva", "vision.image_size": sizes.image_size}
    heads = read_heads(Path(intake.source), sizes.width)
    if heads is not None:
        intake.report.settings["vision.heads"] = heads


def take_blip2(intake: Intake, names: Blip2Names) -> dict[str, torch.Tensor]:
    """A whole BLIP-2 of either stage -> `image.*`, `vision.*` where it holds EVA, `pretraining.*` of the first stage."""
    report = intake.report
    first_stage = names.words in intake and intake.has(names.of_pretraining("vision_projection."))
    querying = take_querying(intake, names, "image.querying.", text=first_stage)
    projection = next((name for name in names.projections if intake.has(f"{name}.")), None)
    if projection is not None:
        take_adapter(intake, projection, "image", querying.width)
    else:
        reason = "the first stage has no projection to an LLM; the adapter keeps its starting values"
        report.missing |= {"image.adapter.weight": reason, "image.adapter.bias": reason}
    if first_stage:
        _take_pretraining(intake, names, querying)
    take_vision(intake)
    intake.ignore(
        "the text side of the Q-Former; interfaces have none", re.escape(names.stem) + ".*", r"embeddings\..*",
        r"Qformer\.cls\..*", "(vision_proj|text_proj|vision_projection|text_projection|itm_head)\\..*", "temp",
    )
    intake.ignore("the language model, which is frozen and loaded by itself", r"(opt_model|t5_model|language_model)\..*")
    return intake.finish()


def pretraining_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a `QFormerPretraining` out of a first-stage checkpoint's `image.*` and `pretraining.*`."""
    found = {}
    for name, tensor in state.items():
        if name.startswith("image.querying."):
            found[name.removeprefix("image.")] = tensor
        elif name.startswith(PRETRAINING):
            found[name.removeprefix(PRETRAINING)] = tensor
    return found


def _take_pretraining(intake: Intake, names: Blip2Names, querying: QueryTransformer) -> None:
    """The heads of the first stage. Hugging Face keeps neither temperature nor the head that writes text."""
    words = intake.shape(names.words, 2)[0]
    places = intake.shape(names.of_pretraining("text_embeddings.position_embeddings.weight"), 2)[0]
    shared = intake.shape(names.of_pretraining("vision_projection.weight"), 2)[0]
    module = intake.build(lambda: QFormerPretraining(querying, words, words - 1, places, shared))
    optional = ("transform.", "word_bias", "temperature")

    def skip(name: str) -> bool:
        absent = name.startswith(optional) and names.of_pretraining(name) not in intake
        if absent:
            intake.report.missing[PRETRAINING + name] = "not in this file; it keeps its starting value"
        return absent or name.startswith("querying.")

    intake.take_module(PRETRAINING, module, names.of_pretraining, skip)
    table = intake.tensors[names.words]
    for name in ("Qformer.cls.predictions.decoder.weight", "Qformer.cls.predictions.decoder.bias"):
        if name in intake:
            own = table if name.endswith("weight") else intake.tensors.get("Qformer.cls.predictions.bias")
            same = own is not None and torch.equal(intake.tensors[name], own)
            text = "the same numbers as its own name has" if same else "differs from the table of words that ours uses instead"
            intake.report.ignored[name] = text
    settings = {"vocab_size": words, "start_id": words - 1, "longest_text": places, "shared_width": shared}
    intake.report.settings |= {f"{PRETRAINING}{name}": value for name, value in settings.items()}

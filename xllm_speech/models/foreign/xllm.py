"""The checkpoints of the authors of X-LLM (image, video, speech, stage 3, and files in which several were merged).

Each holds what was trained, and beside it parameters that were there but not trained; of several files that are given
together, each of ours comes from the one that trained it, whatever their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from xllm_speech.base.errors import CheckpointError
from xllm_speech.base.safe_load import read_tensors
from xllm_speech.interfaces.speech import SpeechInterface
from xllm_speech.models.foreign.blip2 import BERT_HEADS, LAVIS, take_adapter, take_querying
from xllm_speech.models.foreign.intake import Intake
from xllm_speech.models.foreign.report import ForeignReport

BERT = "speech_bert_adaptor."
# Files by what they trained; a later one counts more: stage 3 trained the adapters again.
TRAINED = ("image", "video", "speech", "stage 3")
SHARED = ("image.querying.qformer.", "image.querying.ln_vision.")  # of the image interface, used by the video interface


def read_released(paths: Iterable[str | Path], report: ForeignReport) -> dict[str, torch.Tensor]:
    """`image.*`, `video.*` and `speech.*` of one or several of the authors' files.

    Raises:
        CheckpointError: a file cannot be read, or lacks what it must hold.
    """
    intakes = [Intake(str(path), read_tensors(path), report) for path in paths]
    names = [Path(intake.source).name for intake in intakes]
    distinct = len(set(names)) == len(names)
    state: dict[str, torch.Tensor] = {}
    origins: dict[str, str] = {}
    for kind, intake in sorted(((_kind(intake), intake) for intake in intakes), key=lambda row: TRAINED.index(row[0])):
        own = ForeignReport(report.layout)
        intake.report = own
        _take(kind, intake)
        taken = intake.finish()
        if not taken:
            raise CheckpointError(
                f"{intake.source}: holds nothing of an X-LLM (none of query_tokens, video_query_tokens, post_bert_proj.*)"
            )
        label = "" if len(intakes) == 1 else f"{Path(intake.source).name if distinct else intake.source}: "
        for name in taken.keys() & origins.keys():
            _give_way(report, name, origins[name], f"trained further in {Path(intake.source).name}")
        origins |= dict.fromkeys(taken, label)
        state |= taken
        report.used |= {label + name: ours for name, ours in own.used.items()}
        report.ignored |= {label + name: reason for name, reason in own.ignored.items()}
        report.settings |= own.settings
        report.notes += [label + note for note in own.notes]
    _share_querying(state, report)
    _note_missing(state, report)
    return state


def _kind(intake: Intake) -> str:
    """What a file trained. A merged file counts as the first of its parts, since all of it is used."""
    if intake.has("Qformer."):
        return "image"
    if intake.has(BERT) or intake.has("pre_bert_proj.") or intake.has("speech_feat_proj."):
        return "speech"
    if intake.has("video_query_tokens") and not intake.has("post_bert_proj."):
        return "video"
    return "stage 3"


def _take(kind: str, intake: Intake) -> None:
    merged = kind == "image"  # a file with the Q-Former may have had others merged into it
    if kind == "image":
        querying = take_querying(intake, LAVIS, "image.querying.")
        take_adapter(intake, "opt_proj", "image", querying.width)
    elif kind == "stage 3" and (intake.has("query_tokens") or intake.has("opt_proj.")):
        intake.take("image.querying.queries", "query_tokens", convert=lambda tensor: tensor.squeeze(0))
        take_adapter(intake, "opt_proj", "image")
    if "video_query_tokens" in intake and (merged or kind in ("video", "stage 3")):
        width = intake.shape("video_query_tokens", 3)[2]
        intake.take("video.querying.queries", "video_query_tokens", convert=lambda tensor: tensor.squeeze(0))
        take_adapter(intake, "video_proj", "video", width)
    if kind == "speech" or (merged and (intake.has(BERT) or intake.has("speech_feat_proj."))):
        _take_speech(intake)
    elif kind == "stage 3" and intake.has("post_bert_proj."):
        take_adapter(intake, "post_bert_proj", "speech", activation="relu")
    intake.ignore("not of this model: the LLM computes it", r"opt_model\..*rotary_emb\.inv_freq")
    if kind != "image":
        intake.ignore(
            f"was there but not trained in a {kind} checkpoint; that of its own phase 2 has it", "query_tokens",
            "video_query_tokens", r"(opt_proj|video_proj|ln_vision)\..*",
        )
    elif merged and ("video_query_tokens" in intake or intake.has(BERT)):
        intake.report.notes.append(
            "several checkpoints were merged into this file; its query_tokens and opt_proj may be untrained ones of the video "
            "or speech checkpoint: convert the files that it was merged from if you have them"
        )
    intake.ignore("the frozen LLM, loaded by itself", r"opt_model\..*")
    intake.ignore("the frozen vision encoder, loaded by itself", r"visual_encoder\..*")


def _take_speech(intake: Intake) -> None:
    """The C-Former after `pre_bert_proj`, or one linear layer; a ReLU follows the first and the last layer."""
    if intake.has("speech_feat_proj."):
        take_adapter(intake, "speech_feat_proj", "speech", activation="relu")
        intake.report.notes.append(
            "this speech interface is one linear layer from unit to LLM (speech.adapter); it has no C-Former, and fits an "
            "interface that is an adapter alone"
        )
        return
    width, unit_width = intake.shape("pre_bert_proj.weight", 2)
    llm_width = intake.shape("post_bert_proj.weight", 2)[0]
    positions = intake.shape(f"{BERT}embeddings.position_embeddings.weight", 2)[0]
    layers = intake.count(r"speech_bert_adaptor\.encoder\.layer\.(\d+)\.")
    feedforward = intake.shape(f"{BERT}encoder.layer.0.intermediate.dense.weight", 2)[0]
    module = intake.build(lambda: SpeechInterface(llm_width, unit_width, width, layers, 1, feedforward, positions))
    parts = (("projection.", "pre_bert_proj."), ("adapter.", "post_bert_proj."), ("transformer.", BERT))

    def name_of(name: str) -> str:
        ours, theirs = next(part for part in parts if name.startswith(part[0]))
        return theirs + name.removeprefix(ours)

    intake.take_module("speech.", module, name_of)
    intake.ignore("words and pooler of BERT, which units do not need", rf"{BERT}(embeddings\.word_|pooler\.).*",
                  rf"{BERT}embeddings\.position_ids")
    sizes = {"unit_width": unit_width, "width": width, "layers": layers, "feedforward": feedforward, "positions": positions}
    if width in BERT_HEADS:
        sizes["heads"] = BERT_HEADS[width]
    intake.report.settings |= {f"interfaces.speech.{name}": value for name, value in sizes.items()}
    intake.report.settings |= {
        "interfaces.speech.projection_activation": "relu", "interfaces.speech.activation": "relu", "llm_width": llm_width,
    }


def _give_way(report: ForeignReport, ours: str, label: str, reason: str) -> None:
    """Of two files that hold the same of ours, the earlier gives way."""
    for foreign, names in list(report.used.items()):
        if foreign.startswith(label) and ours in names:
            names.remove(ours)
            if not names:
                del report.used[foreign]
                report.ignored[foreign] = reason


def _share_querying(state: dict[str, torch.Tensor], report: ForeignReport) -> None:
    """The release's video interface asks with its own queries, but through the image interface's Q-Former and ln_vision."""
    if "video.querying.queries" not in state:
        return
    report.settings["interfaces.video.share"] = False
    shared = {name: tensor for name, tensor in state.items() if name.startswith(SHARED)}
    if not shared:
        reason = "the release shares the image checkpoint's; convert both files in one call"
        report.missing |= {f"{name.replace('image', 'video')}*": reason for name in SHARED}
        return
    for name, tensor in shared.items():
        copy = name.replace("image.", "video.", 1)
        state[copy] = tensor
        for ours in report.used.values():
            if name in ours:
                ours.append(copy)
    report.notes.append("video.querying is a copy of image.querying but for its queries, as the release shares one Q-Former")


def _note_missing(state: Mapping[str, torch.Tensor], report: ForeignReport) -> None:
    rest = {"image.": ("image.querying.qformer.*", "image.querying.ln_vision.*")}
    if not any(name.endswith("speech_feat_proj.weight") for name in report.used):
        rest["speech."] = ("speech.projection.*", "speech.transformer.*")
    for kind, names in rest.items():
        for name in names if any(key.startswith(kind) for key in state) else ():
            if not any(key.startswith(name[:-1]) for key in state):
                report.missing[name] = "not in the files given; the checkpoint of phase 2 for this interface has it"

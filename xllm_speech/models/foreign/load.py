"""From a layout's name to its reader, and what a conversion leaves on the disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from xllm_speech.base.errors import CheckpointError, ConfigError
from xllm_speech.base.files import atomic_dir, write_json
from xllm_speech.base.safe_load import read_tensors
from xllm_speech.encoders.eva import SIZES_FILE
from xllm_speech.models.foreign.blip2 import LAVIS, take_blip2
from xllm_speech.models.foreign.encoders import read_bert, read_clip, read_espnet, read_eva
from xllm_speech.models.foreign.intake import Intake
from xllm_speech.models.foreign.report import ForeignReport
from xllm_speech.models.foreign.xllm import read_released

LAYOUTS = {
    "lavis": "BLIP-2 of LAVIS, either stage (blip2_pretrained*.pth)",
    "blip2-hf": "BLIP-2 as a Hugging Face folder",
    "xllm": "the X-LLM authors' image, video, speech and stage 3 checkpoints, one or several",
    "eva": "EVA ViT-g of LAVIS (eva_vit_g.pth) or timm",
    "bert": "BERT folder, for the C-Former",
    "clip": "CLIP folder",
    "chatglm": "official folder of ChatGLM-6B",
    "espnet": "ASR model of ESPnet2 with a conformer",
}
WEIGHTS = "model.safetensors"
REPORT = "report.json"


def load_foreign(
    path: str | Path | Sequence[str | Path], layout: str
) -> tuple[dict[str, torch.Tensor], ForeignReport]:
    """Weights that others wrote, by our names, and an account of every tensor; nothing in the files is run.

    Names are those of `XllmModel.interfaces` (`image.querying...`, `video...`, `speech...`), with `vision.` in front for
    a vision encoder (what `load_vision_encoder` reads), `pretraining.` for what only the first stage of BLIP-2 has
    (`blip2.pretraining_state`), `encoder.` of `CifAsrModel` for espnet; a ChatGLM keeps its official names. Tensors stay in
    the type that they were stored in, and are mapped from the file.

    Args:
        path: file or folder; for layout xllm also several files, in any order. layout: one of `LAYOUTS`.

    Raises:
        CheckpointError: a file cannot be read, or lacks what the layout must hold; the text names the key.
        ConfigError: an unknown layout.
    """
    paths = [path] if isinstance(path, str | Path) else list(path)
    report = ForeignReport(layout, [str(source) for source in paths])
    if layout == "xllm" and paths:
        return read_released(paths, report), report
    if layout in LAYOUTS and len(paths) != 1:
        raise ConfigError(f"layout {layout}: one file or folder is needed, {len(paths)} given; only xllm takes several")
    match layout:
        case "lavis":
            state = take_blip2(Intake(str(paths[0]), read_tensors(paths[0]), report), LAVIS)
        case "blip2-hf":
            from xllm_speech.models.foreign.hugging_face import read_blip2_hf  # brings transformers, which takes seconds

            state = read_blip2_hf(paths[0], report)
        case "eva":
            state = read_eva(paths[0], report)
        case "bert":
            state = read_bert(paths[0], report)
        case "clip":
            state = read_clip(paths[0], report)
        case "chatglm":
            from xllm_speech.models.foreign.hugging_face import read_chatglm

            state = read_chatglm(paths[0], report)
        case "espnet":
            state = read_espnet(paths[0], report)
        case _:
            raise ConfigError(f"layout: `{layout}` is not one of {', '.join(LAYOUTS)}")
    return state, report


def save_converted(folder: str | Path, state: dict[str, torch.Tensor], report: ForeignReport) -> Path:
    """Write model.safetensors and report.json, and eva.json beside a vision encoder; all of it or nothing.

    Raises:
        CheckpointError: `folder` holds something that no conversion wrote, or one of the sources.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / REPORT).is_file())):
        raise CheckpointError(f"{folder}: exists and is no earlier conversion; name another --out")
    for source in report.sources:
        if Path(source).resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(f"{folder}: holds {source}, which is being converted; name another --out")
    with atomic_dir(folder) as part:
        weights = part / WEIGHTS
        save_file(_separate(state), weights, metadata={"format": "pt"})
        weights.chmod(part.stat().st_mode & 0o666)  # save_file lets nobody else read it
        if "vision.heads" in report.settings:
            write_json(part / SIZES_FILE, {"heads": report.settings["vision.heads"]})
        write_json(part / REPORT, report.to_dict())
    return folder


def _separate(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors, contiguous, those that overlap others in memory copied, as safetensors asks."""
    apart = {name: tensor.contiguous() for name, tensor in state.items()}
    ends: dict[int, int] = {}
    for name, tensor in sorted(apart.items(), key=lambda row: row[1].data_ptr()):
        storage, begin = tensor.untyped_storage().data_ptr(), tensor.data_ptr()
        if begin < ends.get(storage, 0):
            apart[name] = tensor.clone()
        ends[storage] = max(ends.get(storage, 0), begin + tensor.nbytes)
    return apart

"""How well pictures and their texts agree, by CLIP or Chinese-CLIP: the scores that filter Wukong (paper, A.1).

The paper keeps pairs of 0.45 and more by CLIP, the release 0.475 by Chinese-CLIP ViT-B/16. One line `id<TAB>score` per
conversation, the cosine of the two embeddings; `nan` where the picture cannot be read. A killed run goes on after the last
whole batch.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from xllm_speech.base.errors import CheckpointError, DataError, first_line
from xllm_speech.base.files import open_text
from xllm_speech.base.quiet import quiet_transformers
from xllm_speech.manifests.conversations import read_conversations

log = logging.getLogger(__name__)


class ClipScorer:
    """A local folder of `openai/clip-vit-*` or `OFA-Sys/chinese-clip-vit-*` in the form of transformers.

    Raises:
        CheckpointError: neither of the two.
    """

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, ChineseCLIPModel, CLIPModel

        try:
            with quiet_transformers():
                kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
                model_class: Any = {"clip": CLIPModel, "chinese_clip": ChineseCLIPModel}.get(kind)
                if model_class is None:
                    raise CheckpointError(f"{folder}: a model of type `{kind}`, expected clip or chinese_clip")
                self._model: Any = model_class.from_pretrained(folder, local_files_only=True).to(device).eval()
                self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
                self._pixels: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        except CheckpointError:
            raise
        except Exception as error:  # transformers raises OSError, ValueError, KeyError ... by what is missing
            raise CheckpointError(f"{folder}: not a CLIP model that transformers reads ({first_line(error)})") from error
        self._length = int(self._model.config.text_config.max_position_embeddings)
        self._device = device

    @torch.inference_mode()
    def score(self, paths: Sequence[str], texts: Sequence[str]) -> list[float]:
        """Cosine of each picture with its text; NaN where the picture cannot be read. Long texts are cut for the score."""
        pictures = [_open(path) for path in paths]
        good = [place for place, picture in enumerate(pictures) if picture is not None]
        scores = [float("nan")] * len(paths)
        if good:
            words = self._tokenizer(
                [texts[place] for place in good], return_tensors="pt", padding=True, truncation=True, max_length=self._length
            )
            pixels = self._pixels(images=[pictures[place] for place in good], return_tensors="pt")
            inputs = {key: value.to(self._device) for key, value in {**words, **pixels}.items()}
            out = self._model(**inputs)
            cosine_N = torch.nn.functional.cosine_similarity(out.image_embeds.float(), out.text_embeds.float())
            for place, value in zip(good, cosine_N.tolist(), strict=True):
                scores[place] = value
        return scores


def _open(path: str) -> Image.Image | None:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def score_manifest(manifest: str | Path, out: str | Path, scorer: ClipScorer, batch_size: int = 64) -> dict[str, float]:
    """Write the score of every conversation about a picture, in order; returns `scores`, `unreadable` and `mean`.

    Raises:
        DataError: a broken manifest, or nothing about a picture in it.
    """
    out = Path(out)
    part = out.with_name(f".{out.name}.part")
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = _kept_lines(part, (name for name, _, _ in _pairs(manifest)))
    if kept:
        log.info("%s: going on after %d scores", out, kept)
    with open(part, "a", encoding="utf-8") as stream:
        rest = itertools.islice(_pairs(manifest), kept, None)
        while batch := list(itertools.islice(rest, batch_size)):
            scores = scorer.score([path for _, path, _ in batch], [text for _, _, text in batch])
            stream.writelines(f"{name}\t{score:.6f}\n" for (name, _, _), score in zip(batch, scores, strict=True))
            stream.flush()
        os.fsync(stream.fileno())
    count, unreadable, total = 0, 0, 0.0
    with open_text(part) as stream:
        for line in stream:
            score = float(line.rpartition("\t")[2])
            count += 1
            unreadable += score != score
            total += score if score == score else 0.0
    if not count:
        part.unlink()
        raise DataError(f"{manifest}: no conversation about a picture in it")
    os.replace(part, out)
    return {"scores": count, "unreadable": unreadable, "mean": round(total / max(1, count - unreadable), 4)}


def _pairs(manifest: str | Path) -> Iterator[tuple[str, str, str]]:
    """(id, picture, text) of each conversation whose first item is a picture; the text is its first answer."""
    for item in read_conversations(manifest):
        first = item.messages[0].items[0]
        if first.type == "image" and first.path and len(item.messages) > 1:
            yield item.id, first.path, str(item.messages[1].items[0].text)


def _kept_lines(part: Path, names: Iterable[str]) -> int:
    """How many whole lines of an interrupted run hold for these ids; what follows them is cut off."""
    if not part.is_file():
        return 0
    count = size = 0
    with open(part, "rb") as stream:
        for line, name in zip(stream, names, strict=False):
            if not line.endswith(b"\n") or line.rpartition(b"\t")[0].decode("utf-8", "replace") != name:
                break
            count, size = count + 1, size + len(line)
    os.truncate(part, size)
    return count

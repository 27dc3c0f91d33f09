#!/usr/bin/env python
"""Train the recipe's picture encoder: a small ViT that tells colour and shape of what lies under each of its patches.

    train_vision.py --corpus data/corpus --out exp/vision [--steps 400 --batch 64 --lr 1.5e-3 --seed 2023 --threads 1]

It learns from the training pictures of `scenes.jsonl` alone; then it is judged on all others and stays frozen. The same
seed, corpus and machine give the same bytes with one thread. A folder that is complete with the same settings is left
alone; an interrupted run leaves nothing and begins anew.

    model.safetensors, vit.json   the encoder for `visual: {kind: vit, path: exp/vision, width: 128}`
    metrics.json                  settings, and per object of unseen pictures: colour, shape and both right, in per cent
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from drawing import SIDE
from scenes import CELLS, COLOURS, HELD_OUT, SHAPES, TWINS
from torch import nn

from xllm_speech.base.errors import DataError, UserError
from xllm_speech.base.files import atomic_dir, read_json, read_jsonl, write_json
from xllm_speech.encoders.vision import VIT_CONFIG, VIT_WEIGHTS, VisionEncoder, build_vit, save_vit
from xllm_speech.features.images import load_pixels

METRICS = "metrics.json"
VIT: dict[str, int | str] = {
    "image_size": SIDE, "patch_size": 16, "width": 128, "depth": 3, "heads": 4, "stem": "conv",
}
WARM_UP_STEPS = 50
WEIGHT_DECAY = 0.05
LARGEST_NORM = 1.0
NAMES = (("", *COLOURS), ("", *SHAPES))  # class 0: nothing lies there
# The cell that each patch of the 4 x 4 grid lies in: an object never leaves its cell and reaches all four patches of it.
CELL_OF_PATCH = torch.tensor([row // 2 * 2 + column // 2 for row in range(4) for column in range(4)])


def log(words: str) -> None:
    """One line of progress, at once."""
    print(f"train_vision: {words}", flush=True)


@dataclass(frozen=True)
class Pictures:
    """Pictures and what they show. x_BCHW: pixels as the ASR dataset feeds them. labels_BK2: colour, shape of each cell."""

    x_BCHW: torch.Tensor
    labels_BK2: torch.Tensor


def load_pictures(corpus: Path, rows: list[dict[str, Any]]) -> Pictures:
    """Read the pictures of some rows of `scenes.jsonl`.

    Raises:
        DataError: a picture is missing or unreadable, or a row names what the mini corpus does not have.
    """
    x_BCHW = torch.empty(len(rows), 3, SIDE, SIDE)
    labels_BK2 = torch.zeros(len(rows), len(CELLS), 2, dtype=torch.long)
    table = corpus / "scenes.jsonl"
    for place, row in enumerate(rows):
        try:
            x_BCHW[place] = load_pixels(corpus / row["path"], SIDE)
            for thing in row["objects"]:
                names = (thing["colour"], thing["shape"])
                labels = [classes.index(name) for classes, name in zip(NAMES, names, strict=True)]
                labels_BK2[place, thing["cell"]] = torch.tensor(labels)
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise DataError(f"{table}: picture {row.get('image_id')}: a row of another form ({error!r})") from error
    return Pictures(x_BCHW, labels_BK2)


def shuffle_cells(pictures: Pictures, generator: torch.Generator) -> Pictures:
    """The same pictures with their four cells in an order of chance: every object is seen everywhere."""
    half = SIDE // 2
    order_BK = torch.rand(len(pictures.x_BCHW), len(CELLS), generator=generator).argsort(1)
    cells = pictures.x_BCHW.unflatten(3, (2, half)).unflatten(2, (2, half)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    cells = cells.gather(1, order_BK[:, :, None, None, None].expand_as(cells))
    x_BCHW = cells.unflatten(1, (2, 2)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    labels_BK2 = pictures.labels_BK2.gather(1, order_BK[:, :, None].expand_as(pictures.labels_BK2))
    return Pictures(x_BCHW, labels_BK2)


class PatchClassifier(nn.Module):
    """The encoder with a linear head for colour and shape of every patch; the head is not kept."""

    def __init__(self, encoder: VisionEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.width, sum(map(len, NAMES)))

    def forward(self, x_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of colours [B, patches, colours + 1] and of shapes [B, patches, shapes + 1]."""
        tokens_BND = self.encoder.network(x_BCHW)[:, 1:]  # without the class token
        colours, shapes = self.head(tokens_BND).split([len(names) for names in NAMES], dim=-1)
        return colours.log_softmax(-1), shapes.log_softmax(-1)


def make_optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """AdamW; vectors (biases, norms) do not decay."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def lr_factor(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine to zero; `step` counts from 0."""
    return min(1.0, (step + 1) / WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))


def train(model: PatchClassifier, pictures: Pictures, steps: int, batch: int, lr: float, seed: int) -> None:
    """Train for `steps` updates over pictures in an order of chance."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = make_optimizer(model, lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, steps))
    order = torch.empty(0, dtype=torch.long)
    begun, seen_loss = time.process_time(), 0.0
    model.train()
    for step in range(1, steps + 1):
        while len(order) < batch:
            order = torch.cat([order, torch.randperm(len(pictures.x_BCHW), generator=generator)])
        chosen, order = order[:batch], order[batch:]
        drawn = shuffle_cells(Pictures(pictures.x_BCHW[chosen], pictures.labels_BK2[chosen]), generator)
        labels_BN2 = drawn.labels_BK2[:, CELL_OF_PATCH]
        loss = sum(
            functional.nll_loss(guess_BNV.flatten(0, 1), labels_BN2[..., kind].flatten())
            for kind, guess_BNV in enumerate(model(drawn.x_BCHW))
        )
        assert isinstance(loss, torch.Tensor)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), LARGEST_NORM)
        optimizer.step()
        schedule.step()
        seen_loss += float(loss.detach())
        if step % 50 == 0 or step == steps:
            since = (step - 1) % 50 + 1
            core_sec = time.process_time() - begun
            log(f"step {step:4d} of {steps}, loss {seen_loss / since:.3f}, {core_sec:.0f} core-s")
            if not math.isfinite(seen_loss):
                raise DataError(f"the loss is not a finite number at step {step}; try a smaller --lr than {lr:g}")
            seen_loss = 0.0


@torch.no_grad()
def recognise(model: PatchClassifier, pictures: Pictures) -> torch.Tensor:
    """Colour and shape of every cell [B, 4, 2]: the best of the log-probabilities summed over its patches."""
    model.eval()
    found = []
    for x_BCHW in pictures.x_BCHW.split(128):
        per_kind = []
        for guess_BNV in model(x_BCHW):
            of_cells = [guess_BNV[:, cell == CELL_OF_PATCH].sum(1) for cell in range(len(CELLS))]
            per_kind.append(torch.stack(of_cells, 1).argmax(-1))
        found.append(torch.stack(per_kind, -1))
    return torch.cat(found)


def evaluate(model: PatchClassifier, pictures: Pictures) -> dict[str, dict[str, float]]:
    """Per cent right over the objects of seen and of unseen pairs, those with a twin in sound (旗子/棋子, 钟/盅) among
    them, and empty cells.
    """
    found_BK2, true_BK2 = recognise(model, pictures).numpy(), pictures.labels_BK2.numpy()
    right_BK2 = found_BK2 == true_BK2
    thing_BK = true_BK2[..., 0] > 0
    unseen_pairs = {(NAMES[0].index(colour), NAMES[1].index(shape)) for colour, shape in HELD_OUT}
    unseen_BK = np.array([[tuple(cell) in unseen_pairs for cell in scene] for scene in true_BK2.tolist()], dtype=bool)
    twin_BK = np.isin(true_BK2[..., 1], [NAMES[1].index(shape) for shape in TWINS])
    groups = {
        "seen": thing_BK & ~unseen_BK,
        "unseen": thing_BK & unseen_BK,
        "twins": thing_BK & twin_BK & ~unseen_BK,
        "unseen_twins": thing_BK & twin_BK & unseen_BK,
        "empty": ~thing_BK,
    }
    return {name: _shares(right_BK2[chosen]) for name, chosen in groups.items()}


def _shares(right_N2: np.ndarray) -> dict[str, float]:
    if not len(right_N2):
        return {"count": 0}
    colour, shape, both = (100 * part.mean() for part in (right_N2[:, 0], right_N2[:, 1], right_N2.all(1)))
    return {"count": len(right_N2), "colour": round(colour, 2), "shape": round(shape, 2), "both": round(both, 2)}


def corpus_hash(corpus: Path) -> str:
    """Hash of the whole corpus, from its manifest.

    Raises:
        DataError: the corpus is missing or not complete.
    """
    path = corpus / "manifest.json"
    if not path.is_file():
        raise DataError(f"{corpus}: no complete corpus (no manifest.json); make it with local/make_corpus.py, stage 0")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or "sha256" not in manifest:
        raise DataError(f"{path}: not a manifest of local/make_corpus.py; make the corpus anew")
    return str(manifest["sha256"])


def is_up_to_date(out: Path, settings: dict[str, Any]) -> bool:
    """Whether `out` is complete with the same settings.

    Raises:
        DataError: the folder holds something that this program did not make.
    """
    if not out.exists():
        return False
    if not out.is_dir() or ({path.name for path in out.iterdir()} - {VIT_CONFIG, VIT_WEIGHTS, METRICS}):
        raise DataError(f"{out}: holds what this program did not make; name another --out or empty it")
    if not all((out / name).is_file() for name in (VIT_CONFIG, VIT_WEIGHTS, METRICS)):
        return False
    try:
        metrics = read_json(out / METRICS)
    except DataError:
        return False
    return isinstance(metrics, dict) and metrics.get("settings") == settings


def train_vision(corpus: Path, out: Path, steps: int, batch: int, lr: float, seed: int) -> dict[str, Any]:
    """Train, judge and save the encoder; returns what metrics.json says."""
    code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    settings = {
        "steps": steps, "batch": batch, "lr": lr, "seed": seed, "vit": VIT, "corpus": corpus_hash(corpus), "code": code,
        "torch": torch.__version__,
    }
    if is_up_to_date(out, settings):
        log(f"{out}: complete and up to date")
        return dict(read_json(out / METRICS))
    begun, begun_core = time.monotonic(), time.process_time()
    rows = [row for _, row in read_jsonl(corpus / "scenes.jsonl")]
    train_rows = [row for row in rows if row.get("split") == "train"]
    test_rows = [row for row in rows if row.get("split") != "train"]
    if not train_rows or not test_rows:
        counts = f"{len(train_rows)} training and {len(test_rows)} other pictures"
        raise DataError(f"{corpus / 'scenes.jsonl'}: {counts}; both are needed")
    pictures, test_pictures = load_pictures(corpus, train_rows), load_pictures(corpus, test_rows)
    log(f"{len(train_rows)} training and {len(test_rows)} test pictures read, {time.monotonic() - begun:.0f} s")
    torch.manual_seed(seed)
    encoder = build_vit(**VIT)  # type: ignore[arg-type]
    model = PatchClassifier(encoder)
    train(model, pictures, steps, batch, lr, seed)
    shares = evaluate(model, test_pictures)
    metrics = {"settings": settings, "right": shares, "core_sec": round(time.process_time() - begun_core, 1)}
    with atomic_dir(out) as part:
        save_vit(encoder, part, **VIT)
        write_json(part / METRICS, metrics)
    for name, share in shares.items():
        if share["count"]:
            parts = ", ".join(f"{key} {share[key]:.1f} %" for key in ("colour", "shape", "both"))
            log(f"{name.replace('_', ' '):12s} {share['count']:5d}: right {parts}")
    log(f"{out}: {metrics['core_sec']:.0f} core-s, {time.monotonic() - begun:.0f} s")
    return metrics


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def _rate(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{value:g} does not lie between 0 and 1")
    return value


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder made by make_corpus.py")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--steps", type=_positive, default=400, help="updates (%(default)s)")
    parser.add_argument("--batch", type=_positive, default=64, help="pictures per update (%(default)s)")
    parser.add_argument("--lr", type=_rate, default=1.5e-3, help="largest learning rate (%(default)s)")
    parser.add_argument("--seed", type=int, default=2023)
    parser.add_argument("--threads", type=_positive, default=1, help="of torch; more than 1 may change the last bits")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        train_vision(args.corpus, args.out, args.steps, args.batch, args.lr, args.seed)
    except UserError as error:
        print(f"train_vision: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("train_vision: interrupted; run again to begin anew", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"train_vision: {error.filename or args.out}: {error.strerror}; run again", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

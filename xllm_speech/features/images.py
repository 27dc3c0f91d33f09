"""Pictures as normalised pixel tensors for a frozen CLIP encoder (system.md section 1)."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from xllm_speech.base.errors import DataError
from xllm_speech.features.augment import hashed_fraction

# Statistics that OpenAI's CLIP was trained with.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Above this a picture is refused unread: a few kilobytes can unpack to gigabytes.
MAX_PIXELS = 100_000_000


# How far from square a crop by chance may be.
ASPECTS = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class View:
    """What training shows of a picture (system.md section 5): a crop by chance, mirrored or not.

    share: of the picture's area. shape, left, top: numbers in 0..1 that choose the crop's aspect within `ASPECTS` and its
    place. flip: mirrored left to right.
    """

    share: float = 1.0
    shape: float = 0.5
    left: float = 0.5
    top: float = 0.5
    flip: bool = False

    def box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of the crop in pixels: of `share` of the area; less only in pictures too long for it."""
        area, own = self.share * width * height, width / height
        low, high = max(ASPECTS[0], own * self.share), min(ASPECTS[1], own / self.share)
        aspect = low * (high / low) ** self.shape if low <= high else min(max(own, ASPECTS[0]), ASPECTS[1])
        tall = min(height, math.sqrt(area / aspect), width / aspect)
        wide = min(width, tall * aspect)
        left, top = self.left * (width - wide), self.top * (height - tall)
        return left, top, left + wide, top + tall


def draw_view(seed: int, epoch: int, name: str, least_share: float = 1.0, flip_share: float = 0.0) -> View:
    """The view of the picture `name` in an epoch, the same in every process.

    least_share: of the area, what a crop keeps at least. flip_share: of the pictures, how many are mirrored.
    """
    share, shape, left, top, turn = (
        hashed_fraction(f"view-{part}", seed, epoch, name) for part in ("share", "shape", "left", "top", "flip")
    )
    return View(least_share + (1 - least_share) * share, shape, left, top, turn < flip_share)


def load_pixels(path: str | Path, size: int, center_crop: bool = True, view: View | None = None) -> torch.Tensor:
    """Picture file -> float32 [3, size, size], RGB, CLIP-normalised, upright as its EXIF says; transparency on white.

    center_crop: the shorter side becomes `size` and the middle is cut out; otherwise both sides are squeezed to `size`.
    view: what training shows of it, in place of either.

    Raises:
        DataError: missing, not a picture, truncated, or of more than MAX_PIXELS pixels; names the file.
    """
    return normalise_pixels(read_picture(path), size, center_crop, view)


def read_picture(path: str | Path) -> Image.Image:
    """Picture file -> RGB of its own size, upright as its EXIF says; transparency on white.

    Raises:
        DataError: missing, not a picture, truncated, or of more than MAX_PIXELS pixels; names the file.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # judged by MAX_PIXELS just below
            with Image.open(path) as opened:
                refuse_large(path, *opened.size)
                return _to_rgb(ImageOps.exif_transpose(opened))
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such picture") from error
    except Exception as error:  # PIL's plugins raise OSError, SyntaxError, ValueError, struct.error, ...
        raise DataError(f"{path}: unreadable picture ({str(error).splitlines()[0] if str(error) else error!r})") from error


def refuse_large(path: Path, width: int, height: int) -> None:
    """`DataError` where a picture or a frame has more than MAX_PIXELS pixels."""
    if width * height > MAX_PIXELS:
        raise DataError(f"{path}: {width} x {height} pixels, more than {MAX_PIXELS}")


def normalise_pixels(image: Image.Image, size: int, center_crop: bool = True, view: View | None = None) -> torch.Tensor:
    """RGB picture -> float32 [3, size, size], CLIP-normalised; arguments as in `load_pixels`."""
    if view is not None:
        image = image.resize((size, size), Image.Resampling.BICUBIC, box=view.box(*image.size))
        image = ImageOps.mirror(image) if view.flip else image
    elif center_crop:
        image = ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC)
    else:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    pixels_CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255.0
    return ((pixels_CHW - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]).contiguous()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    if image.mode in ("I;16", "I", "F"):  # 16-bit greys: PIL's own conversion clips them to white
        grey = np.asarray(image, dtype=np.float32)
        top = float(grey.max(initial=0.0))
        grey = grey * (255.0 / (65535.0 if top > 255 else 255.0))
        return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")

"""Pictures as normalised pixel tensors for a frozen CLIP encoder (system.md section 1)."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from xllm_speech.base.errors import DataError

# Statistics that OpenAI's CLIP was trained with.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Above this a picture is refused unread: a few kilobytes can unpack to gigabytes.
MAX_PIXELS = 100_000_000


def load_pixels(path: str | Path, size: int, center_crop: bool = True) -> torch.Tensor:
    """Picture file -> float32 [3, size, size], RGB, CLIP-normalised, upright as its EXIF says; transparency on white.

    center_crop: the shorter side becomes `size` and the middle is cut out; otherwise both sides are squeezed to `size`.

    Raises:
        DataError: missing, not a picture, truncated, or of more than MAX_PIXELS pixels; names the file.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # judged by MAX_PIXELS just below
            with Image.open(path) as opened:
                width, height = opened.size
                if width * height > MAX_PIXELS:
                    raise DataError(f"{path}: {width} x {height} pixels, more than {MAX_PIXELS}")
                image = _to_rgb(ImageOps.exif_transpose(opened))
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such picture") from error
    except Exception as error:  # PIL's plugins raise OSError, SyntaxError, ValueError, struct.error, ...
        raise DataError(f"{path}: unreadable picture ({str(error).splitlines()[0] if str(error) else error!r})") from error
    if center_crop:
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

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xllm_speech.base.errors import DataError
from xllm_speech.features import images
from xllm_speech.features.images import CLIP_MEAN, CLIP_STD, load_pixels


def colour(*rgb: int) -> torch.Tensor:
    return (torch.tensor(rgb) / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)


@pytest.mark.parametrize(("mode", "value", "rgb"), [
    ("RGB", (10, 20, 30), (10, 20, 30)), ("L", 77, (77, 77, 77)), ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
    ("CMYK", (0, 0, 0, 0), (255, 255, 255)), ("1", 1, (255, 255, 255)), ("I;16", 65535, (255, 255, 255)),
])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, value: object, rgb: tuple[int, ...]) -> None:
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    Image.new(mode, (40, 20), value).save(path)  # type: ignore[arg-type]
    pixels = load_pixels(path, 16)
    assert pixels.shape == (3, 16, 16)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels[:, 8, 8], colour(*rgb), atol=1e-3, rtol=0)


def test_crop_or_squeeze(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, :20, 0], wide[:, 20:40, 1], wide[:, 40:, 2] = 255, 255, 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    cropped = load_pixels(tmp_path / "wide.png", 20)
    torch.testing.assert_close(cropped[:, 10, 3], colour(0, 255, 0))
    torch.testing.assert_close(cropped[:, 10, 16], colour(0, 255, 0))
    squeezed = load_pixels(tmp_path / "wide.png", 30, center_crop=False)
    torch.testing.assert_close(squeezed[:, 15, 2], colour(255, 0, 0))
    torch.testing.assert_close(squeezed[:, 15, 27], colour(0, 0, 255))


def test_exif_orientation(tmp_path: Path) -> None:
    picture = Image.new("RGB", (32, 32), "black")
    picture.paste("white", (0, 0, 32, 16))
    exif = picture.getexif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "turned.png", exif=exif)
    pixels = load_pixels(tmp_path / "turned.png", 32)
    assert pixels[0, 4, 16] < pixels[0, 28, 16]


def test_real_pictures(shared_data: Path) -> None:
    paths = sorted((shared_data / "seedlingo" / "pics").iterdir())[:10]
    for path in paths:
        pixels = load_pixels(path, 224)
        assert pixels.shape == (3, 224, 224)
        assert torch.isfinite(pixels).all()
        assert pixels.std() > 0.01


def test_bad_pictures_name_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = tmp_path / "good.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(good)
    (tmp_path / "half.jpg").write_bytes(good.read_bytes()[:900])
    (tmp_path / "text.png").write_text("this is text")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("half.jpg", "text.png", "empty.png", "missing.png"):
        with pytest.raises(DataError, match=name):
            load_pixels(tmp_path / name, 16)
    with pytest.raises(DataError):
        load_pixels(tmp_path, 16)
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    with pytest.raises(DataError, match="64 x 64"):
        load_pixels(good, 16)

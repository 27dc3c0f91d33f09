from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xllm_speech.base.errors import DataError
from xllm_speech.features import images
from xllm_speech.features.images import CLIP_MEAN, CLIP_STD, View, draw_view, load_pixels


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


@pytest.mark.parametrize("size", [(64, 64), (640, 480), (300, 900), (7, 1)])
@pytest.mark.parametrize("least", [0.08, 0.5, 0.9, 1.0])
def test_crops_lie_inside_and_keep_their_share(size: tuple[int, int], least: float) -> None:
    width, height = size
    for number in range(60):
        view = draw_view(1, 2, str(number), least)
        assert least <= view.share <= 1
        left, top, right, bottom = view.box(width, height)
        assert -1e-6 <= left < right <= width + 1e-6
        assert -1e-6 <= top < bottom <= height + 1e-6
        aspect, share = (right - left) / (bottom - top), (right - left) * (bottom - top) / (width * height)
        assert 3 / 4 - 1e-6 <= aspect <= 4 / 3 + 1e-6
        possible = min(1.0, 4 / 3 * height / width, 4 / 3 * width / height)  # of a picture too long for the whole of it
        assert share == pytest.approx(min(view.share, possible), rel=1e-6)


def test_views_differ_evenly_and_are_the_same_again() -> None:
    views = [draw_view(0, 0, str(number), 0.5, 0.3) for number in range(1000)]
    assert views == [draw_view(0, 0, str(number), 0.5, 0.3) for number in range(1000)]
    assert 0.73 < sum(view.share for view in views) / 1000 < 0.77
    assert 0.25 < sum(view.flip for view in views) / 1000 < 0.35
    assert len({view.left for view in views} | {view.top for view in views}) == 2000
    assert not any(draw_view(0, 0, str(number)).flip for number in range(100))


def test_a_view_shows_its_part(tmp_path: Path) -> None:
    quarters = np.zeros((40, 40, 3), np.uint8)
    quarters[:20, :20, 0], quarters[:20, 20:, 1], quarters[20:, :20, 2] = 255, 255, 255
    Image.fromarray(quarters).save(tmp_path / "quarters.png")
    for (left, top), rgb in {(0.0, 0.0): (255, 0, 0), (1.0, 0.0): (0, 255, 0), (0.0, 1.0): (0, 0, 255)}.items():
        seen = load_pixels(tmp_path / "quarters.png", 16, view=View(share=0.2, left=left, top=top))
        torch.testing.assert_close(seen, colour(*rgb)[:, None, None].expand(3, 16, 16), atol=1e-3, rtol=0)
    whole = load_pixels(tmp_path / "quarters.png", 40)
    torch.testing.assert_close(load_pixels(tmp_path / "quarters.png", 40, view=View()), whole)
    torch.testing.assert_close(load_pixels(tmp_path / "quarters.png", 40, view=View(flip=True)), whole.flip(-1))

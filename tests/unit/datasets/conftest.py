"""A small spoken corpus with pictures, made of noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import SupervisionSegment
from lhotse.cut import Cut
from PIL import Image

from xllm_speech.manifests.cuts import make_recording

WORDS = ("红色的旗子", "蓝色的棋子", "a green bell", "三个方块", "what colour", "圆在哪里")


@pytest.fixture
def make_cuts(tmp_path: Path) -> Callable[[int], list[Cut]]:
    """make_cuts(n): n utterances of 0.3 to 2 s, every second one with a picture and a caption."""

    def make(number: int) -> list[Cut]:
        (tmp_path / "wav").mkdir(exist_ok=True)
        made = []
        for place in range(number):
            rng = np.random.default_rng(place)
            path = tmp_path / "wav" / f"u{place:03d}.wav"
            rate_hz = 8000 if place % 5 == 0 else 16000
            soundfile.write(path, rng.uniform(-0.5, 0.5, int(rate_hz * rng.uniform(0.3, 2))), rate_hz)
            cut = make_recording(path.stem, path).to_cut()
            text = WORDS[place % len(WORDS)]
            cut.supervisions = [SupervisionSegment(cut.id, cut.id, 0, cut.duration, text=text, speaker=f"s{place % 3}")]
            if place % 2 == 0:
                picture = tmp_path / f"picture{place % 4}.png"
                Image.new("RGB", (32, 32), (place % 4 * 60, 10, 10)).save(picture)
                cut.custom = {"image": str(picture), "caption": f"图{place}"}
            made.append(cut)
        return made

    return make

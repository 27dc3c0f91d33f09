"""The 30 pictures of COCO val2014 that LLaVA-test asks about: never in any training data (data.md, Corpora).

Source: the image names of `question90.jsonl` in the evaluation folder of the X-LLM release, which are those of LLaVA's
`qa90_questions.jsonl`; 90 questions, three to a picture. COCO's ids are the same in its 2014 and 2017 splits, in VisDial,
and in `coco_id` of Visual Genome's image_data.json.
"""

from __future__ import annotations

import re

LLAVA_TEST_COCO_IDS = frozenset({
    20650, 34096, 52312, 56013, 66144, 81552, 92109, 97131, 109532, 164255,
    203629, 205183, 210299, 225738, 258285, 293505, 319432, 353536, 367571, 385873,
    408439, 431165, 441147, 460149, 506095, 506483, 514915, 515716, 525439, 534270,
})  # fmt: skip

LEFT_OUT_KIND = "llava-test-image"
# COCO_val2014_000000441147.jpg, VisualDialog_..., 000000441147.jpg: twelve digits at the end of the name.
_COCO_NAME = re.compile(r"(?:^|[_/\\])(\d{12})(?:\.[A-Za-z]+)?$")


def is_llava_test_image(image: int | str) -> bool:
    """Whether a COCO image id, or the name of a file that carries one, is among the 30."""
    if isinstance(image, int):
        return image in LLAVA_TEST_COCO_IDS
    match = _COCO_NAME.search(image)
    return match is not None and int(match[1]) in LLAVA_TEST_COCO_IDS

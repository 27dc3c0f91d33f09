"""LLaVA-test: its pictures under the names that the questions use, and answers as the judge reads them.

    python3 llava_test.py pictures --questions question90_zh.json --coco DIR --out data/llava_test/images
    python3 llava_test.py texts --answers exp/answers/llava.jsonl --out exp/answers/llava_texts.jsonl       to be translated
    python3 llava_test.py answers --answers exp/answers/llava.jsonl --table FILE --out exp/answers/llava_judged.jsonl

The questions call a picture 000000441147.jpg, COCO's val2014 COCO_val2014_000000441147.jpg. GPT-4's answers are in English:
ours are held against them in English too, by a table of translations; without --table they stay Chinese.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from xllm_speech.base.errors import DataError, UserError
from xllm_speech.base.files import atomic_dir, read_json, read_jsonl, write_jsonl
from xllm_speech.manifests.pictures import clean_text
from xllm_speech.manifests.vsdial_cn import picture_names, read_table


def link_pictures(questions: Path, coco: list[Path], out: Path) -> int:
    """Links to the pictures that are asked about; `DataError` names one that is nowhere."""
    rows = read_json(questions)
    if not isinstance(rows, list) or not all(isinstance(row, dict) and isinstance(row.get("image"), str) for row in rows):
        raise DataError(f"{questions}: not an array of questions with `image`")
    names = sorted({row["image"] for row in rows})
    with atomic_dir(out) as folder:
        for name in names:
            stem = Path(name).stem
            wanted = [name, *(picture_names(int(stem)) if stem.isdigit() else ())]
            found = next((place / one for place in coco for one in wanted if (place / one).is_file()), None)
            if found is None:
                raise DataError(f"{questions}: no picture {name} in {', '.join(map(str, coco))} (COCO val2014)")
            (folder / name).symlink_to(found.resolve())
    return len(names)


def main() -> int:
    """Entry; the exit status is 1 where a file is broken."""
    parser = argparse.ArgumentParser(description="LLaVA-test: pictures and answers.")
    parser.add_argument("action", choices=("pictures", "texts", "answers"))
    parser.add_argument("--questions", type=Path, metavar="FILE", help="pictures: question90_zh.json")
    parser.add_argument("--coco", type=Path, nargs="*", default=[], metavar="DIR", help="pictures: folders of COCO")
    parser.add_argument("--answers", type=Path, metavar="FILE", help="texts, answers: what `xllm-speech answer` wrote")
    parser.add_argument("--table", type=Path, metavar="FILE", help="answers: their translations")
    parser.add_argument("--out", type=Path, required=True, help="folder of pictures, or file")
    args = parser.parse_args()
    if (args.questions if args.action == "pictures" else args.answers) is None:
        parser.error(f"{args.action} needs {'--questions' if args.action == 'pictures' else '--answers'}")
    try:
        if args.action == "pictures":
            print(f"{args.out}: {link_pictures(args.questions, args.coco, args.out)} pictures")
            return 0
        rows = [row for _, row in read_jsonl(args.answers)]
        if args.action == "texts":
            write_jsonl(args.out, ({"text": row["text"]} for row in rows if row["text"].strip()))
            return 0
        table = read_table(args.table) if args.table is not None else {}
        write_jsonl(args.out, (
            {"question_id": int(row["id"].removeprefix("question-")), "text": table.get(clean_text(row["text"]), row["text"])}
            for row in rows
        ))
    except UserError as error:
        print(f"llava_test: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

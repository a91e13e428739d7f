"""A small data set in LLaVA's format, as somebody would bring it along: JSON beside a folder of pictures."""

import json
from pathlib import Path

from picture_files import picture

NUM_SAMPLES = 20


def llava_rows() -> list[dict]:
    """Twenty samples: questions in one or two turns, drawings, a text; pictures 0.png to 9.png in two folders."""
    rows = []
    for number in range(NUM_SAMPLES):
        image = {"id": f"s{number}", "image": f"{'ab'[number % 2]}/{number % 10}.png"}
        turns = ["<image>\nWhat is in the picture?", "a red apple"]
        if number % 4 == 1:
            turns = ["Is there a dog in the image?\n<image>", "yes", "What color is it?", "green and blue"]
        elif number % 4 == 2:
            turns = [f"a photo of {number} dogs", "<image>"]
        elif number == 7:
            image, turns = {"id": "s7"}, ["What color is the apple?", "red"]
        speakers = ["human", "gpt"] * 2
        values = [{"from": who, "value": text} for who, text in zip(speakers, turns, strict=False)]
        rows.append(image | {"conversations": values})
    return rows


def write_llava(folder: Path) -> Path:
    """The JSON, and the pictures below folder/images."""
    for number in range(10):
        path = folder / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(25 * number, (20 + number, 16)).save(path)
    path = folder / "data.json"
    path.write_text(json.dumps(llava_rows(), indent=1))
    return path

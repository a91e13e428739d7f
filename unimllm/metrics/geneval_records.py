"""GenEval on files: its folders of pictures, records of what a detector saw in them, and the summary of its scores.

A record is one JSON line for each picture, so pictures are looked at once and can be scored again:

    {"file": "00000/samples/0000.png", "detector": "...", "boxes": [[x0, y0, x1, y1], ...], "scores": [...],
     "classes": [index in OBJECT_NAMES, ...], "colors": ["red", null, ...], "sha256": "0123456789abcdef"}

A color is null where the prompt asks for none of that box's class; sha256 tells the picture from others of its name.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from semhitok.errors import first_line
from unimllm.errors import UserError
from unimllm.fingerprint import fingerprint, json_fingerprint
from unimllm.json_rows import read_rows
from unimllm.metrics.geneval import RELATIONS, TAGS, THRESHOLD, Box, Detection, failures, summarize
from unimllm.metrics.intervals import percentiles, resampled_sums, wilson

# GenEval's object_names.txt (github.com/djghosh13/geneval, MIT): COCO's 80 classes in COCO's order, a few by a fuller
# name. A detector's classes are told by their index, never by its own names ("mouse", "remote", "keyboard").
OBJECT_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
NUM_PROMPTS, IMAGES_PER_PROMPT = 553, 4
OWN_PROMPTS = "69543e7b3811a1dd"  # `prompts_digest` of GenEval's evaluation_metadata.jsonl
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
PICTURE = re.compile(r"\d+\.png")  # what GenEval's evaluator takes for a picture


@dataclass(frozen=True)
class Record:
    """What a detector saw in a picture; see the file's docstring.

    Args:
        file: below the folder of pictures, with forward slashes.
        detector: what looked, for the report.
        sha256: of the picture's file, see `fingerprint`; empty if unknown, as in records of earlier versions.
    """

    file: str
    detector: str
    boxes: list[Box]
    scores: list[float]
    classes: list[int]
    colors: list[str | None]
    sha256: str = ""

    def detections(self) -> list[Detection]:
        """The boxes that can count under any prompt."""
        rows = zip(self.classes, self.boxes, self.scores, self.colors, strict=True)
        return [Detection(OBJECT_NAMES[c], box, score, color) for c, box, score, color in rows if score > THRESHOLD]

    def line(self) -> bytes:
        """As it stands in a file."""
        return (json.dumps(asdict(self)) + "\n").encode()


def is_number(value) -> bool:
    """Whether a value out of JSON is a number."""
    return type(value) in (int, float)


# The lists of a record: what a wrong value in one is, and whether a value is right.
COLUMNS = {
    "boxes": ("no box of four numbers", lambda v: isinstance(v, list) and len(v) == 4 and all(map(is_number, v))),
    "scores": ("no number", is_number),
    "classes": (f"no index of {len(OBJECT_NAMES)} names", lambda v: type(v) is int and 0 <= v < len(OBJECT_NAMES)),
    "colors": ("neither null nor one of GenEval's colours", lambda v: v is None or v in COLORS),
}


# ---- folders -------------------------------------------------------------------------------------------------------


def read_prompts(path: Path) -> list[dict]:
    """GenEval's evaluation_metadata.jsonl, or any part of it.

    Raises:
        UserError: a row that is no prompt of GenEval's.
    """
    rows = read_rows(path, ("tag", "include", "prompt"))
    for number, row in enumerate(rows, 1):
        check_prompt(row, f"{path}, row {number}")
    return rows


def check_prompt(metadata: dict, where: str) -> None:
    """UserError if a prompt names what GenEval does not know: then no picture could be right."""
    for name in ("tag", "prompt"):
        if not isinstance(metadata[name], str):
            raise UserError(f"{where}: {name!r} is {metadata[name]!r}, no text")
    try:
        for number, clause in enumerate(metadata["include"]):
            if clause.get("color", COLORS[0]) not in COLORS:
                raise UserError(f"{where}: {clause['color']!r} is none of GenEval's colours, {', '.join(COLORS)}")
            if "position" in clause:
                check_position(clause["position"], number, where)
        for clause in (*metadata["include"], *metadata.get("exclude", [])):
            if clause["class"] not in OBJECT_NAMES:
                raise UserError(f"{where}: {clause['class']!r} is none of GenEval's {len(OBJECT_NAMES)} object names")
            if type(clause["count"]) is not int or clause["count"] < 1:
                raise UserError(f"{where}: {clause['count']!r} is no count of {clause['class']}; it must be 1 or more")
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise UserError(f"{where} is no prompt of GenEval's: {first_line(error)}") from error


def check_position(position: list, number: int, where: str) -> None:
    """UserError if a position is not [relation, index] with an index below `number`, that of its own clause."""
    if not isinstance(position, list) or len(position) != 2:
        raise UserError(f"{where}: the position {position!r} is not [relation, index of an include clause]")
    relation, index = position
    if relation not in RELATIONS:
        raise UserError(f"{where}: {relation!r} is none of GenEval's relations, {', '.join(RELATIONS)}")
    if type(index) is not int or not 0 <= index < number:
        raise UserError(f"{where}: a position must refer to an earlier include clause, not to {index!r}")


def read_folder(folder: Path) -> dict[str, dict]:
    """The pictures of a folder in GenEval's layout: file below the folder -> its prompt, in order of their names.

    Raises:
        UserError: no pictures, or a prompt's folder without a prompt or without pictures.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    pictures: dict[str, dict] = {}
    for prompt in sorted((p for p in folder.iterdir() if p.is_dir() and p.name.isdecimal()), key=lambda p: int(p.name)):
        metadata = read_prompts(prompt / "metadata.jsonl")
        if len(metadata) != 1:
            raise UserError(f"{prompt / 'metadata.jsonl'} holds {len(metadata)} prompts, not one")
        samples = prompt / "samples"
        names = sorted(p.name for p in samples.iterdir() if PICTURE.fullmatch(p.name)) if samples.is_dir() else []
        if not names:
            raise UserError(f"{samples} holds no pictures named 0000.png, 0001.png, ...")
        pictures |= {f"{prompt.name}/samples/{name}": metadata[0] for name in names}
    if not pictures:
        raise UserError(f"{folder} holds no pictures in GenEval's layout: 00000/metadata.jsonl, 00000/samples/0000.png")
    return pictures


def write_folder(folder: Path, prompts: list[dict], pictures: list[Image.Image], images_per_prompt: int) -> list[str]:
    """A new folder in GenEval's layout: the pictures of the first prompt, then those of the next, ...; their files."""
    files = []
    for index, prompt in enumerate(prompts):
        samples = folder / f"{index:05d}" / "samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(json.dumps(prompt) + "\n", encoding="utf-8")
        for k in range(images_per_prompt):
            pictures[index * images_per_prompt + k].save(samples / f"{k:04d}.png")
            files.append(f"{index:05d}/samples/{k:04d}.png")
    return files


def read_records(path: Path) -> dict[str, Record]:
    """Records by file.

    Raises:
        UserError: a row that is no record, or two of one picture.
    """
    records: dict[str, Record] = {}
    for number, row in enumerate(read_rows(path, ("file", "detector", *COLUMNS)), 1):
        record = Record(**{name: row[name] for name in Record.__dataclass_fields__ if name in row})
        check_record(record, f"{path}, row {number}")
        if record.file in records:
            raise UserError(f"{path}, row {number}: {record.file} was recorded before")
        records[record.file] = record
    return records


def check_record(record: Record, where: str) -> None:
    """UserError if a value of a record is of another type, or its columns are of unequal lengths."""
    for name in ("file", "detector", "sha256"):
        if not isinstance(getattr(record, name), str):
            raise UserError(f"{where}: {name!r} is {getattr(record, name)!r}, no text")
    for name, (what, holds) in COLUMNS.items():
        column = getattr(record, name)
        if not isinstance(column, list):
            raise UserError(f"{where}: {name!r} is {column!r}, no list")
        wrong = [value for value in column if not holds(value)]
        if wrong:
            raise UserError(f"{where}: {wrong[0]!r} in {name!r} is {what}")
    if len({len(getattr(record, name)) for name in COLUMNS}) != 1:
        raise UserError(f"{where}: unequally many boxes, scores, classes and colors")


def check_pictures(records: dict[str, Record], folder: Path, pictures: dict[str, dict]) -> None:
    """UserError if a record of one of the pictures is not of the file that lies in the folder: of another model's."""
    for file in pictures:
        if file in records and records[file].sha256 != fingerprint(folder / file):
            what = "is of another picture" if records[file].sha256 else "lacks the sha256 of its picture"
            raise UserError(f"the record of {folder / file} {what}; give --detector and --clip to look again")


# ---- scores --------------------------------------------------------------------------------------------------------


def verdicts(records: dict[str, Record], pictures: dict[str, dict]) -> list[list[str]]:
    """What each picture lacks, see `geneval.failures`; nothing where it is right.

    Args:
        pictures: file -> prompt, see `read_folder`.

    Raises:
        UserError: a picture without a record, or a record without the colours that its prompt asks for.
    """
    unseen = [file for file in pictures if file not in records]
    if unseen:
        raise UserError(
            f"{len(unseen):,} of {len(pictures):,} pictures have no record of detections, {unseen[0]} first"
        )
    lacks = []
    for file, metadata in pictures.items():
        detections = records[file].detections()
        if uncolored(detections, metadata):
            raise UserError(
                f"the record of {file} lacks colours that its prompt asks for; give --detector and --clip to look again"
            )
        lacks.append(failures(detections, metadata))
    return lacks


def uncolored(detections: list[Detection], metadata: dict) -> bool:
    """Whether a box whose colour the prompt asks for was never looked at for it: then no verdict is possible."""
    asked = {clause["class"] for clause in metadata["include"] if "color" in clause}
    return any(d.name in asked and d.color is None for d in detections)


def prompts_digest(tags: list[str], prompts: list[str]) -> str:
    """What tells sets of prompts apart: rewritten ones, such as longer ones, are not comparable with GenEval's own.

    Args:
        tags, prompts: as in `summary`; of metadata in JSON their "prompt" alone counts.
    """
    return json_fingerprint(sorted({(tag, prompt_of(text)) for tag, text in zip(tags, prompts, strict=True)}))


def prompt_of(metadata: str) -> str:
    """The prompt out of metadata as text; the text itself where it holds none."""
    try:
        return str(json.loads(metadata)["prompt"])
    except (ValueError, TypeError, KeyError):
        return metadata


def summary(tags: list[str], prompts: list[str], correct: list[bool]) -> dict:
    """GenEval's summary_scores.py: shares of correct pictures and prompts, tags, and the mean of the tags if all occur.

    Args:
        tags: of each picture.
        prompts: of each picture, whatever tells prompts apart (the official script: its metadata as text).
    """
    num_prompts, digest = len(set(prompts)), prompts_digest(tags, prompts)
    return {
        "num_pictures": len(correct),
        "num_prompts": num_prompts,
        "prompts_digest": digest,
        "complete": digest == OWN_PROMPTS and len(correct) == NUM_PROMPTS * IMAGES_PER_PROMPT,
        "correct_pictures": sum(correct) / len(correct),
        "correct_prompts": len({p for p, c in zip(prompts, correct, strict=True) if c}) / num_prompts,
        "scores": summarize(tags, correct),
        "num_pictures_by_tag": {tag: tags.count(tag) for tag in dict.fromkeys(tags)},
    }


def intervals(
    tags: list[str], prompts: list[str], correct: list[bool], seed: int
) -> dict[str, tuple[float, float] | None]:
    """95 % intervals of `summary`: Wilson's for a tag, else the bootstrap over the prompts of each tag.

    All pictures of a prompt are one trial of Wilson's, see `geneval.intervals`.
    """
    rng, tag_intervals, shares, all_sums = np.random.default_rng(seed), {}, {}, 0
    right, names = np.array(correct, float), np.array(prompts)
    num_pictures = Counter(prompts)
    share = 1 / np.array([num_pictures[prompt] for prompt in prompts])  # of its prompt: those of one sum up to 1
    right_prompts = {prompt for prompt, c in zip(prompts, correct, strict=True) if c}
    in_right = np.array([prompt in right_prompts for prompt in prompts])
    counts = np.stack([right, np.ones(len(right)), in_right * share, share], 1)  # (pictures, 4)
    for tag in dict.fromkeys(tags):
        of_tag = np.array([t == tag for t in tags])
        sums = resampled_sums(counts[of_tag], names[of_tag], rng)
        shares[tag] = sums[:, 0] / sums[:, 1]
        num_prompts = len(set(names[of_tag]))
        tag_intervals[tag] = wilson(float(right[of_tag].mean()) * num_prompts, num_prompts)
        all_sums = all_sums + sums
    overall = percentiles(np.mean(list(shares.values()), 0)) if shares.keys() >= set(TAGS) else None
    of_all = {name: percentiles(all_sums[:, i] / all_sums[:, i + 1])
              for name, i in (("correct_pictures", 0), ("correct_prompts", 2))}  # fmt: skip
    return {"overall": overall} | of_all | tag_intervals


def read_official(path: Path) -> Iterator[tuple[str, str, bool]]:
    """(tag, metadata as text, correct) of each row that GenEval's evaluate_images.py wrote."""
    for row in read_rows(path, ("tag", "metadata", "correct")):
        if not isinstance(row["correct"], bool):
            raise UserError(f"{path}: 'correct' is {row['correct']!r}, not true or false")
        if not isinstance(row["tag"], str):
            raise UserError(f"{path}: 'tag' is {row['tag']!r}, no text")
        yield row["tag"], str(row["metadata"]), row["correct"]

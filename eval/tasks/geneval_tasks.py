"""lmms-eval's task over GenEval's prompts: the model draws, unimllm/metrics/geneval.py judges.

Environment variables name what the user has: GENEVAL_PROMPTS is GenEval's evaluation_metadata.jsonl, GENEVAL_DETECTOR
a Mask2Former and GENEVAL_CLIP a CLIP, by folder or hub id, as for `eval/geneval.py score`. An answer is what models
that draw give to lmms-eval: {"text": ..., "images": [path]} as JSON. Each picture is looked at once, by the process
that had it drawn.
"""

import json
import math
import os
from functools import partial
from pathlib import Path
from threading import Lock

from datasets import Dataset

from unimllm.distributed import local_gpu
from unimllm.errors import UserError, ending_lmms_eval
from unimllm.images import open_picture
from unimllm.metrics.geneval import TAGS, is_correct, summarize
from unimllm.metrics.geneval_records import read_prompts
from unimllm.scenes.examination import picture_seed

NEEDED = {
    "GENEVAL_PROMPTS": "GenEval's evaluation_metadata.jsonl",
    "GENEVAL_DETECTOR": "a Mask2Former, such as facebook/mask2former-swin-small-coco-instance",
    "GENEVAL_CLIP": "a CLIP, such as openai/clip-vit-large-patch14",
}
LOOKING = Lock()  # lmms-eval judges in several threads, the detector looks at one picture after the other


def needed(variable: str) -> str:
    """What an environment variable of NEEDED names; UserError where it is not set."""
    value = os.environ.get(variable)
    if not value:
        raise UserError(f"{variable} is not set: set it to {NEEDED[variable]}")
    return value


@ending_lmms_eval
def docs(rows: Dataset) -> Dataset:
    """One row `images_per_prompt` -> a row for each picture to be drawn; `set` is the prompt's tag.

    Seeds are those of `eval/geneval.py generate`, whose pictures a model draws here, too.

    Raises:
        UserError: one of NEEDED is missing or cannot be opened: told before hours of drawing.
    """
    prompts, *_ = (Path(needed(variable)) for variable in NEEDED)
    made = Dataset.from_list(
        [
            {
                "question_id": f"{index:05d}/{image:04d}", "set": metadata["tag"], "prompt": metadata["prompt"],
                "metadata": json.dumps(metadata), "picture_seed": picture_seed(0, index, image),
            }
            for row in rows
            for index, metadata in enumerate(read_prompts(prompts))
            for image in range(row["images_per_prompt"])
        ]
    )  # fmt: skip
    open_detector()
    return made


def doc_to_visual(doc: dict) -> list:
    return []


def open_detector():
    """The detector and the CLIP, on this process's device."""
    from unimllm.metrics.geneval_detector import load_once

    options = ("GENEVAL_DETECTOR", "GENEVAL_CLIP")
    return load_once(*map(needed, options), local_gpu(), options)


@ending_lmms_eval
def process_results(doc: dict, results: list[str]) -> dict[str, dict]:
    """Whether the picture is right, entered under every metric."""
    metadata, path = json.loads(doc["metadata"]), picture_of(doc, results[0])
    with LOOKING:
        seen = open_detector().look(open_picture(path), path, metadata).detections()
    entry = {"tag": metadata["tag"], "correct": is_correct(seen, metadata)}
    return dict.fromkeys([f"geneval_hf_{name}" for name in ("overall", *TAGS)], entry)


def picture_of(doc: dict, answer: str) -> str:
    """The path of the one picture in an answer; UserError where there is none."""
    try:
        (path,) = json.loads(answer)["images"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"geneval, {doc['question_id']}: the model answers {answer[:60]!r} and draws no picture; for unimllm add "
            "draw_into=FOLDER to --model_args"
        ) from error
    return path


def score(entries: list[dict], name: str) -> float:
    """A tag's share of right pictures, or `overall`, the mean of the tags; nan: --limit left the tag, or one, out."""
    value = summarize([e["tag"] for e in entries], [e["correct"] for e in entries]).get(name)
    return math.nan if value is None else value


overall = partial(score, name="overall")
single_object, two_object, counting, colors, position, color_attr = (partial(score, name=tag) for tag in TAGS)

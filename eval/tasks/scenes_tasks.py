"""lmms-eval's tasks over emoji scenes: pictures and questions are made when a task is loaded.

The file that a task names as its data holds one line for each set of questions: how many, and from which seed.
"""

from functools import cache

from datasets import Dataset, Features, Image, Value

from unimllm.scenes import GlyphAtlas, Renderer, World
from unimllm.scenes.examination import pope_set
from unimllm.scenes.reader import DEFAULT_READER, SceneReaderConfig

FEATURES = Features(
    {name: Value("string") for name in ("question_id", "set", "question", "answer")} | {"image": Image()}
)


@cache
def open_world() -> tuple[World, Renderer]:
    """The world of the reader that ships, which is that of the model that ships."""
    config = SceneReaderConfig.from_pretrained(DEFAULT_READER)
    names = tuple(config.class_names)
    atlas = GlyphAtlas.from_font(names)
    return World(atlas, config.image_size, names), Renderer(atlas, config.image_size)


def pope_docs(sets: Dataset) -> Dataset:
    """Rows `negatives`, `count`, `seed` -> one row for each question, on held-out compositions."""
    world, renderer = open_world()
    rows = []
    for wanted in sets:
        questions = pope_set(world, wanted["seed"], wanted["negatives"], wanted["count"])
        pictures = renderer.render_batch(questions.scenes)
        for number, (scene, question) in enumerate(questions.asked):
            rows.append(
                {
                    "question_id": f"{wanted['negatives']}-{number}",
                    "set": wanted["negatives"],
                    "question": question.text,
                    "answer": question.answer,
                    "image": pictures[scene],
                }
            )
    return Dataset.from_list(rows, features=FEATURES)


def doc_to_visual(doc: dict) -> list:
    return [doc["image"]]

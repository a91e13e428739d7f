"""lmms-eval's tasks over emoji scenes: pictures and questions are made when a task is loaded.

The file that a task names as its data holds one line for each set of questions: how many, and from which seed.
`picture` tells whose questions belong together.
"""

from functools import cache

from datasets import Dataset, Features, Image, Value

from unimllm.errors import ending_lmms_eval
from unimllm.scenes import GlyphAtlas, Renderer, World
from unimllm.scenes.examination import QuestionSet, kind_set, mme_set, pope_set, same_answer
from unimllm.scenes.reader import DEFAULT_READER, SceneReaderConfig

FEATURES = Features(
    {name: Value("string") for name in ("question_id", "set", "picture", "question", "answer")} | {"image": Image()}
)
MME_FEATURES = Features(FEATURES | {"num_questions": Value("int64")})


@cache
def open_world() -> tuple[World, Renderer]:
    """The world of the reader that ships, which is that of the model that ships."""
    config = SceneReaderConfig.from_pretrained(DEFAULT_READER)
    names = tuple(config.class_names)
    atlas = GlyphAtlas.from_font(names)
    return World(atlas, config.image_size, names), Renderer(atlas, config.image_size)


@ending_lmms_eval
def pope_docs(sets: Dataset) -> Dataset:
    """Rows `negatives`, `count`, `seed` -> one row for each question, on held-out compositions; `set` is the split."""
    docs = []
    for row in sets:
        questions = pope_set(open_world()[0], row["seed"], row["negatives"], row["count"])
        docs += docs_of(questions, row["negatives"], [row["negatives"]] * row["count"])
    return Dataset.from_list(docs, features=FEATURES)


@ending_lmms_eval
def mme_docs(sets: Dataset) -> Dataset:
    """Rows `task`, `num_pictures`, `seed` -> two rows for each picture; `set` is MME's sub-task.

    Every row knows the number of all, `num_questions`.
    """
    docs = []
    for row in sets:
        questions = mme_set(open_world()[0], row["seed"], row["task"], row["num_pictures"])
        docs += docs_of(questions, row["task"], [row["task"]] * len(questions.asked))
    return Dataset.from_list([doc | {"num_questions": len(docs)} for doc in docs], features=MME_FEATURES)


@ending_lmms_eval
def vqa_docs(sets: Dataset) -> Dataset:
    """Rows `count`, `seed` -> one row for each question, every kind equally often; `set` is its kind."""
    docs = []
    for row in sets:
        questions = kind_set(open_world()[0], row["seed"], row["count"])
        docs += docs_of(questions, f"seed {row['seed']}", [question.kind for _, question in questions.asked])
    return Dataset.from_list(docs, features=FEATURES)


def docs_of(questions: QuestionSet, name: str, sets: list[str]) -> list[dict]:
    """Rows of FEATURES, each with its picture."""
    pictures = open_world()[1].render_batch(questions.scenes)
    return [
        {
            "question_id": f"{name}-{number}", "set": member, "picture": f"{name}-{scene}", "question": question.text,
            "answer": question.answer, "image": pictures[scene],
        }
        for number, ((scene, question), member) in enumerate(zip(questions.asked, sets, strict=True))
    ]  # fmt: skip


def doc_to_visual(doc: dict) -> list:
    return [doc["image"]]


def vqa_results(doc: dict, results: list[str]) -> dict[str, float]:
    """1.0 for the right words, 0.0 for others, over all questions and over those of their kind."""
    right = float(same_answer(results[0], doc["answer"]))
    return {"accuracy": right, f"accuracy_{doc['set']}": right}

"""Examinations on one split of the compositions: what is drawn, which questions are asked, which prompts are set.

Every set is a function of (world, split, seed) alone, and a smaller set is the beginning of a larger one (prompts
apart), so two models that are examined with one seed see the same pictures and the same words.
"""

from dataclasses import dataclass

import numpy as np

from unimllm.metrics.geneval import TAGS, Detection
from unimllm.metrics.intervals import percentiles
from unimllm.metrics.pope import resampled_rates
from unimllm.scenes.language import KINDS, Question, ask, pope_questions
from unimllm.scenes.program import Scene, World
from unimllm.scenes.prompts import scene_for_prompt
from unimllm.scenes.reader import read_accuracy

POPE_SPLITS = ("random", "popular", "adversarial")
MME_KINDS = {  # sub-task of MME -> kind of our question
    "existence": "existence", "count": "count_yes_no", "position": "position_yes_no", "color": "color_yes_no",
}  # fmt: skip
PICTURES, POPE_SCENES, POPE_QUESTIONS, QUESTIONS, PROMPTED, MME = range(6)  # every set has its own random numbers


@dataclass(frozen=True)
class QuestionSet:
    """Scenes and what is asked about them.

    Args:
        scenes: the pictures' programs.
        asked: (index of the scene, question) in the order in which they were drawn.
    """

    scenes: list[Scene]
    asked: list[tuple[int, Question]]


def examined_scenes(world: World, seed: int, count: int, split: str = "test") -> list[Scene]:
    """`count` scenes of a split of the world."""
    return [world.sample(np.random.default_rng([seed, PICTURES, i]), split) for i in range(count)]


def pope_set(world: World, seed: int, negatives: str, count: int, split: str = "test") -> QuestionSet:
    """`count` POPE questions, half of them yes; those with other `negatives` share the scenes and the yes-questions.

    Args:
        world: of the scenes.
        seed: of scenes and questions.
        negatives: one of POPE_SPLITS: how POPE chooses what is not there.
        count: questions.
        split: of the world.
    """
    scenes: list[Scene] = []
    asked: list[tuple[int, Question]] = []
    while len(asked) < count:
        number = len(scenes)
        scenes.append(world.sample(np.random.default_rng([seed, POPE_SCENES, number]), split))
        rng = np.random.default_rng([seed, POPE_QUESTIONS, POPE_SPLITS.index(negatives), number])
        asked += [(number, q) for q in pope_questions(scenes[-1], world, rng, negatives)]
    return QuestionSet(scenes, asked[:count])


def pope_intervals(answered: list[tuple[list[str], list[str]]], scenes: list[int]) -> dict:
    """95 % intervals of every split's accuracy and F1 and of the mean F1, under both parsings.

    Args:
        answered: (labels, answers) of POPE_SPLITS.
        scenes: of each question, split after split; the splits share them.
    """
    intervals: dict = {"pope": {split: {} for split in POPE_SPLITS}}
    for parsing, mean in (("official", "pope_f1"), ("strict", "pope_f1_strict")):
        resampled = resampled_rates(answered, scenes, parsing, np.random.default_rng(0))
        intervals[mean] = percentiles(resampled["f1"].mean(1))
        for s, split in enumerate(POPE_SPLITS):
            intervals["pope"][split][parsing] = {n: percentiles(resampled[n][:, s]) for n in ("accuracy", "f1")}
    return intervals | {f"pope_f1_{split}": intervals["pope"][split]["official"]["f1"] for split in POPE_SPLITS}


def kind_set(world: World, seed: int, count: int, split: str = "test") -> QuestionSet:
    """`count` questions, equally many of every kind (to within one), one kind after the other in turn."""
    scenes: list[Scene] = []
    by_kind: list[list[tuple[int, Question]]] = []
    for index, kind in enumerate(KINDS):
        rng = np.random.default_rng([seed, QUESTIONS, index])
        asked: list[tuple[int, Question]] = []
        while len(asked) < -(-count // len(KINDS)):
            scene, questions = scene_to_ask(world, rng, kind, split)
            asked += [(len(scenes), q) for q in questions]
            scenes.append(scene)
        by_kind.append(asked)
    in_turn = [question for round_of_kinds in zip(*by_kind, strict=False) for question in round_of_kinds]
    return QuestionSet(scenes, in_turn[:count])


def mme_set(world: World, seed: int, task: str, num_pictures: int, split: str = "test") -> QuestionSet:
    """A sub-task of MME, one of MME_KINDS: two questions about each picture, one to be answered yes and one no."""
    rng = np.random.default_rng([seed, MME, list(MME_KINDS).index(task)])
    drawn = [scene_to_ask(world, rng, MME_KINDS[task], split) for _ in range(num_pictures)]
    asked = [(number, question) for number, (_, questions) in enumerate(drawn) for question in questions]
    return QuestionSet([scene for scene, _ in drawn], asked)


def scene_to_ask(world: World, rng: np.random.Generator, kind: str, split: str) -> tuple[Scene, list[Question]]:
    """The next scene that allows questions of a kind, and those."""
    while True:
        scene = world.sample(rng, split)
        questions = ask(scene, world, rng, kind)
        if questions:
            return scene, questions


def spread_prompts(prompts: list[dict], limit: int | None) -> list[dict]:
    """At most `limit` of the prompts, as many of each tag as of the others where there are so many, in their order."""
    if limit is None or limit >= len(prompts):
        return prompts
    by_tag = {tag: [i for i, p in enumerate(prompts) if p["tag"] == tag] for tag in TAGS}
    quota = dict.fromkeys(TAGS, 0)
    while sum(quota.values()) < limit:
        for tag in TAGS:
            if sum(quota.values()) < limit and quota[tag] < len(by_tag[tag]):
                quota[tag] += 1
    chosen = [by_tag[tag][len(by_tag[tag]) * k // quota[tag]] for tag in TAGS for k in range(quota[tag])]
    return [prompts[i] for i in sorted(chosen)]


def picture_seed(seed: int, prompt: int, image: int) -> int:
    """Seed of the picture number `image` of prompt number `prompt`: unlike that of any other in practice."""
    return int(np.random.SeedSequence([seed, prompt, image]).generate_state(1)[0])


def true_scenes(world: World, prompts: list[dict], seed: int, images_per_prompt: int = 1) -> list[Scene]:
    """Scenes that fulfil the prompts, `images_per_prompt` of each: what a perfect model would draw."""
    return [
        scene_for_prompt(world, prompt, np.random.default_rng([seed, PROMPTED, index, image]))
        for index, prompt in enumerate(prompts)
        for image in range(images_per_prompt)
    ]


def same_answer(said: str, right: str) -> bool:
    """Whether two answers are the same words: case, outer spaces and a final period do not matter."""
    return _normalize(said) == _normalize(right)


def answer_rows(questions: QuestionSet, said: list[str]) -> list[dict]:
    """Every question with its picture, the right answer and what was said; see `gallery.kept_questions`."""
    return [
        {"filename": picture_file(scene), "kind": q.kind, "question": q.text, "answer": q.answer, "said": text,
         "correct": same_answer(text, q.answer)}
        for (scene, q), text in zip(questions.asked, said, strict=True)
    ]  # fmt: skip


def picture_file(scene: int) -> str:
    """Where the picture of a question set's scene is kept."""
    return f"questions/{scene:05d}.png"


def _normalize(text: str) -> str:
    return text.strip().lower().removesuffix(".").rstrip()


def objects_right(scenes: list[Scene], detections: list[list[Detection]], image_size: int) -> np.ndarray:
    """(n,) how many objects of each scene the reader found in its picture with the right class and colour."""
    shares = [read_accuracy([s], [d], image_size)["class_and_color"] for s, d in zip(scenes, detections, strict=True)]
    return np.array([round(share * len(s.objects)) for share, s in zip(shares, scenes, strict=True)], np.int64)

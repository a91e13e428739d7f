"""Prompts in GenEval's format, and the sets of questions, prompts and pictures on which models are examined."""

from collections import Counter

import numpy as np
import pytest
from conftest import load_program
from hypothesis import given, settings
from hypothesis import strategies as st
from scene_grammar import answer_from_boxes

from unimllm.metrics.geneval import TAGS, is_correct
from unimllm.scenes import Scene, World
from unimllm.scenes import examination as exam
from unimllm.scenes.language import KINDS
from unimllm.scenes.objects import OBJECTS, plural, with_article
from unimllm.scenes.prompts import all_prompts, sample_prompts, scene_for_prompt, true_detections

# ---- prompts -------------------------------------------------------------------------------------------------------


def test_prompts_have_geneval_s_words_and_clauses(fake_atlas):
    world = World(fake_atlas, 64, tuple(OBJECTS))
    prompts = {p["prompt"]: p for tag in TAGS for split in ("train", "test") for p in all_prompts(world, tag, split)}
    # Lines of GenEval's evaluation_metadata.jsonl (MIT), word for word.
    official = [
        {"tag": "single_object", "include": [{"class": "elephant", "count": 1}], "prompt": "a photo of an elephant"},
        {"tag": "counting", "include": [{"class": "bus", "count": 4}], "exclude": [{"class": "bus", "count": 5}],
         "prompt": "a photo of four buses"},
        {"tag": "counting", "include": [{"class": "wine glass", "count": 2}],
         "exclude": [{"class": "wine glass", "count": 3}], "prompt": "a photo of two wine glasses"},
        {"tag": "counting", "include": [{"class": "person", "count": 3}], "exclude": [{"class": "person", "count": 4}],
         "prompt": "a photo of three persons"},
        {"tag": "colors", "include": [{"class": "orange", "count": 1, "color": "orange"}],
         "prompt": "a photo of an orange orange"},
        {"tag": "position", "include": [{"class": "tie", "count": 1},
                                        {"class": "dog", "count": 1, "position": ["right of", 0]}],
         "prompt": "a photo of a dog right of a tie"},
    ]  # fmt: skip
    for line in official:
        assert prompts[line["prompt"]] == line
    assert with_article("orange") == "an orange" and plural("knife") == "knifes" and plural("skis") == "skis"


def test_sampled_prompts_are_distinct_and_of_every_tag(fake_world):
    prompts = sample_prompts(fake_world, 0)
    assert len(prompts) == 500 and len({p["prompt"] for p in prompts}) == 500
    assert Counter(p["tag"] for p in prompts) == {
        "single_object": 24, "two_object": 72, "counting": 72, "colors": 48, "position": 142, "color_attr": 142,
    }  # fmt: skip
    assert prompts == sample_prompts(fake_world, 0) != sample_prompts(fake_world, 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_scenes_for_prompts_hold_what_is_asked_and_nothing_else(fake_world, seed):
    rng = np.random.default_rng(seed)
    tag = TAGS[int(rng.integers(len(TAGS)))]
    prompts = all_prompts(fake_world, tag)
    metadata = prompts[int(rng.integers(len(prompts)))]
    scene = scene_for_prompt(fake_world, metadata, rng)
    assert is_correct(true_detections(scene), metadata)
    assert Counter(o.name for o in scene.objects) == Counter({c["class"]: c["count"] for c in metadata["include"]})
    without = Scene(scene.objects[1:], scene.ground, scene.shading)
    assert not is_correct(true_detections(without), metadata)


def test_gallery_prompts_were_drawn_and_not_chosen(fake_world):
    gallery = load_program("eval/gallery.py")
    drawn = []
    for i, tag in enumerate(TAGS):
        for j, split in enumerate(("train", "test")):
            prompts = all_prompts(fake_world, tag, split)
            drawn.append(prompts[int(np.random.default_rng([i, j]).integers(len(prompts)))]["prompt"])
    assert list(gallery.PROMPTS) == drawn


# ---- examinations --------------------------------------------------------------------------------------------------


def test_question_sets_are_balanced_and_grow(fake_world):
    questions = exam.kind_set(fake_world, 0, 100)
    counts = Counter(q.kind for _, q in questions.asked)
    assert len(questions.asked) == 100 and set(counts) == set(KINDS) and max(counts.values()) <= 13
    for index, question in questions.asked:
        if question.kind != "identity":
            assert question.answer == answer_from_boxes(questions.scenes[index], question.text, 64)
    fewer = exam.kind_set(fake_world, 0, 10)
    assert [q for _, q in fewer.asked] == [q for _, q in questions.asked[:10]]
    assert [fewer.scenes[i] for i, _ in fewer.asked] == [questions.scenes[i] for i, _ in questions.asked[:10]]


@pytest.mark.parametrize("task", exam.MME_KINDS)
def test_mme_asks_one_yes_and_one_no_about_each_picture(fake_world, task):
    questions = exam.mme_set(fake_world, 0, task, 20)
    assert [scene for scene, _ in questions.asked] == [i // 2 for i in range(40)] and len(questions.scenes) == 20
    for (scene, first), (_, second) in zip(questions.asked[::2], questions.asked[1::2], strict=True):
        assert {first.answer, second.answer} == {"yes", "no"} and first.kind == second.kind == exam.MME_KINDS[task]
        for question in (first, second):
            assert answer_from_boxes(questions.scenes[scene], question.text, fake_world.image_size) == question.answer
    assert exam.mme_set(fake_world, 0, task, 5).asked == questions.asked[:10]


def test_pope_sets_share_pictures_and_halves(fake_world):
    sets = {split: exam.pope_set(fake_world, 0, split, 60) for split in exam.POPE_SPLITS}
    for questions in sets.values():
        assert [q.answer for _, q in questions.asked] == ["yes", "no"] * 30
        assert questions.scenes == sets["random"].scenes
        assert questions.asked[::2] == sets["random"].asked[::2]
    assert sets["random"].asked != sets["adversarial"].asked


def test_prompts_are_spread_over_the_tags(fake_world):
    prompts = sample_prompts(fake_world, 0)
    assert exam.spread_prompts(prompts, None) == exam.spread_prompts(prompts, 500) == prompts
    some = exam.spread_prompts(prompts, 200)
    counts = Counter(p["tag"] for p in some)
    assert len(some) == 200 and counts["single_object"] == 24 and min(counts.values()) == 24
    assert max(counts.values()) - sorted(counts.values())[1] <= 1
    few = exam.spread_prompts(prompts, 4)
    assert len({p["tag"] for p in few}) == 4
    assert [prompts.index(p) for p in some] == sorted(prompts.index(p) for p in some)


def test_pictures_have_seeds_of_their_own():
    seeds = {exam.picture_seed(s, p, k) for s in range(3) for p in range(300) for k in range(4)}
    assert len(seeds) == 3600 and exam.picture_seed(0, 7, 1) == exam.picture_seed(0, 7, 1)


def test_answers_are_compared_as_words():
    assert exam.same_answer(" A red Apple. ", "a red apple")
    assert not exam.same_answer("a red apple and a dog", "a red apple")
    assert not exam.same_answer("", "yes")


def test_objects_right_counts_class_and_colour(fake_world):
    scenes = exam.examined_scenes(fake_world, 0, 20)
    assert exam.examined_scenes(fake_world, 0, 5) == scenes[:5]
    seen = [true_detections(s) for s in scenes]
    totals = [len(s.objects) for s in scenes]
    assert exam.objects_right(scenes, seen, 64).tolist() == totals
    seen[0] = seen[0][1:]
    assert exam.objects_right(scenes, seen, 64).tolist() == [totals[0] - 1, *totals[1:]]

"""The emoji scenes: pictures, captions, questions and prompts agree with the scene program; the splits stay apart.

Whatever is said about a scene is read back by a grammar of its own (scene_grammar.py) and checked against the boxes.
"""

import itertools
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scene_grammar import answer_from_boxes, lies, named, read_caption, read_list, read_phrase

from unimllm.errors import UserError
from unimllm.metrics.geneval import TAGS
from unimllm.scenes import COLORS, GlyphAtlas, Renderer, Scene, World, glyphs, program
from unimllm.scenes import examination as exam
from unimllm.scenes.glyphs import FONT_ENV, FontNotFoundError, find_font, load_glyphs, resize_sprite, tint_sprite
from unimllm.scenes.language import KINDS, ask, caption, describe, pope_questions
from unimllm.scenes.objects import CLASSES_24, OBJECTS, theme_of
from unimllm.scenes.program import GROUNDS, KIND_WEIGHTS, MIN_CONTRAST, SIZES, Weighted
from unimllm.scenes.prompts import all_prompts
from unimllm.scenes.text import sentences, train_text_tokenizer

SEEDS = st.integers(0, 2**32 - 1)
SPLITS = st.sampled_from(["train", "validation", "test"])
MANY = settings(max_examples=150, deadline=None)


# ---- scenes and pictures -------------------------------------------------------------------------------------------


@MANY
@given(SEEDS, SPLITS)
def test_objects_lie_inside_and_apart(fake_world, seed, split):
    scene = fake_world.sample(np.random.default_rng(seed), split)
    size = fake_world.image_size
    assert 1 <= len(scene.objects) <= 4
    smallest, largest = SIZES[len(scene.objects)][0], SIZES[len(scene.objects)][1]
    taken = np.zeros((size, size), int)
    for item in scene.objects:
        x0, y0, x1, y1 = (int(v) for v in item.box)
        assert (x0, y0, x1, y1) == item.box and 0 <= x0 < x1 <= size and 0 <= y0 < y1 <= size
        assert max(x1 - x0, y1 - y0) == item.size
        assert round(size * smallest) <= item.size <= round(size * largest)
        taken[y0:y1, x0:x1] += 1
    assert taken.max() == 1


@MANY
@given(SEEDS, SPLITS)
def test_objects_stand_out_from_their_ground(fake_world, seed, split):
    scene = fake_world.sample(np.random.default_rng(seed), split)
    standing = []
    for ground in np.array(GROUNDS) / 255:
        shares = []
        for item in scene.objects:
            sprite = fake_world.atlas.sprite(item.name, item.color, 32)
            weight = sprite[..., 3]
            differs = np.abs(sprite[..., :3] / np.maximum(weight, 1e-3)[..., None] - ground).max(-1) > 0.18
            shares.append((differs * weight).sum() / weight.sum())
        standing.append(min(shares))
    if max(standing) >= MIN_CONTRAST:
        assert standing[scene.ground] >= MIN_CONTRAST
    else:
        assert standing[scene.ground] == pytest.approx(max(standing))
    if all(o.color == "white" for o in scene.objects):
        assert np.mean(GROUNDS[scene.ground]) < 180  # white never lies on a light ground
    if all(o.color == "black" for o in scene.objects):
        assert np.mean(GROUNDS[scene.ground]) > 100


def test_a_digest_tells_glyphs_of_other_pixels_and_other_names(fake_atlas):
    glyphs = fake_atlas.glyphs
    assert GlyphAtlas(dict(reversed(glyphs.items()))).digest() == fake_atlas.digest()
    brighter = glyphs | {"dog": glyphs["dog"] + np.float32(1 / 255)}
    renamed = {name + "s": glyph for name, glyph in glyphs.items()}
    assert len({GlyphAtlas(some).digest() for some in (glyphs, brighter, renamed)}) == 3


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_render_composes_the_sprites(fake_world, seed):
    scene = fake_world.sample(np.random.default_rng(seed))
    picture = Renderer(fake_world.atlas, 64).render(scene)
    empty = Renderer(fake_world.atlas, 64).render(Scene((), scene.ground, scene.shading))
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
    assert np.abs(empty.astype(int) - np.array(GROUNDS[scene.ground])).max() <= (0 if scene.shading == 0 else 8)
    expected = empty.astype(float)
    for item in scene.objects:
        x0, y0, x1, y1 = (int(v) for v in item.box)
        sprite = fake_world.atlas.sprite(item.name, item.color, item.size)
        covered = expected[y0:y1, x0:x1] * (1 - sprite[..., 3:]) + 255 * sprite[..., :3]
        expected[y0:y1, x0:x1] = covered
    assert np.abs(picture - expected).max() <= 1.01  # the ground of `expected` was rounded once more


def test_four_squares_always_find_room(fake_world):
    rng = np.random.default_rng(0)
    for _ in range(3000):  # with 200 tries at placing them, about one in 4,000 fails
        assert len(fake_world.compose([("apple", "green")] * 4, rng).objects) == 4


def test_same_seed_same_scene(fake_world):
    renderer = Renderer(fake_world.atlas, 64)
    first, again = (list(itertools.islice(fake_world.stream(5, "test"), 20)) for _ in range(2))
    assert first == again
    assert first != list(itertools.islice(fake_world.stream(6, "test"), 20))
    other_world = World(GlyphAtlas(fake_world.atlas.glyphs), 64)
    assert first == list(itertools.islice(other_world.stream(5, "test"), 20))  # nothing depends on what ran before
    assert np.array_equal(renderer.render_batch(first), np.stack([renderer.render(s) for s in again]))


def test_weighted_draws_what_numpy_chooses():
    for weights in (list(KIND_WEIGHTS.values()), np.linspace(2, 1, 24), [0, 3, 1, 0]):
        drawn, chosen, p = np.random.default_rng(1), np.random.default_rng(1), np.array(weights) / np.sum(weights)
        for _ in range(300):
            assert Weighted(weights).draw(drawn) == chosen.choice(len(p), p=p)
        assert drawn.random() == chosen.random()


def test_scenes_are_the_same_whatever_sprites_were_kept(fake_world, monkeypatch):
    monkeypatch.setattr(glyphs, "KEPT_SPRITES", 3)
    atlas = GlyphAtlas(fake_world.atlas.glyphs)
    world = World(atlas, 64)
    scenes = list(itertools.islice(world.stream(8), 30))
    assert scenes == list(itertools.islice(fake_world.stream(8), 30))
    pictures = Renderer(fake_world.atlas, 64).render_batch(scenes)
    assert np.array_equal(Renderer(atlas, 64).render_batch(scenes), pictures)
    assert atlas.sprite.cache_info().currsize == 3
    for name, size in itertools.product(CLASSES_24, (2, 17, 35, 70)):
        assert atlas.sprite(name, "red", size).shape[1::-1] == atlas.box_size(name, size)


@pytest.mark.parametrize("color", COLORS)
def test_tint_keeps_the_mean_colour_and_the_outline(fake_atlas, color):
    for name in ("car", "dog", "apple"):
        sprite = fake_atlas.sprite(name, color, 30)
        assert np.array_equal(sprite[..., 3], fake_atlas.sprite(name, None, 30)[..., 3])
        mean = sprite[..., :3].sum((0, 1)) / sprite[..., 3].sum()
        distance = {c: np.abs(mean - np.array(rgb) / 255).sum() for c, rgb in COLORS.items()}
        assert min(distance, key=distance.get) == color
        assert (sprite[..., :3] <= sprite[..., 3:] + 1e-6).all()  # premultiplied


def test_sprites_by_hand():
    sprite = np.zeros((4, 8, 4), np.float32)
    sprite[:, :4] = (0.5, 0.25, 0, 0.5)  # the left half, half transparent
    small = resize_sprite(sprite, 4)
    assert small.shape == (2, 4, 4)
    assert small[0, 0].tolist() == [0.5, 0.25, 0, 0.5] and small[0, 3].tolist() == [0, 0, 0, 0]
    flat = np.full((3, 3, 4), 0.5, np.float32)
    flat[..., 3] = 1
    assert tint_sprite(flat, (255, 0, 0))[1, 1].tolist() == pytest.approx([1, 0, 0, 1])  # no shading: the colour itself


def test_world_refuses_unknown_objects(fake_atlas):
    with pytest.raises(ValueError, match="dragon"):
        World(fake_atlas, 64, (*CLASSES_24, "dragon"))
    with pytest.raises(ValueError, match="at least 8"):
        World(fake_atlas, 64, CLASSES_24[:7])


def test_a_missing_or_wrong_font_is_the_user_s_to_mend(monkeypatch, tmp_path):
    monkeypatch.setenv(FONT_ENV, str(tmp_path / "none.ttf"))
    with pytest.raises(UserError, match="fonts-noto-color-emoji"):
        GlyphAtlas.from_font(CLASSES_24)
    (tmp_path / "none.ttf").write_text("no font")
    with pytest.raises(UserError, match="cannot be used"):
        GlyphAtlas.from_font(CLASSES_24)


BOX, APPLE, PEAR = np.zeros((3, 9, 9, 4), np.uint8)
BOX[2:6, 2:6] = 255  # as a font without the emoji draws it
APPLE[2:6, 2:6], PEAR[2:6, 2:5] = (200, 0, 0, 255), (0, 200, 0, 255)
APPLE[2], PEAR[2] = APPLE[2] // 2, PEAR[2] // 2


@pytest.mark.parametrize(
    "pictures, reason",
    [
        ([APPLE, np.zeros_like(BOX)], "it draws nothing for 'banana'"),
        ([APPLE, BOX], "it draws 'banana' in one colour throughout"),
        ([APPLE, APPLE], "it draws 'banana' as it does 'apple'"),
    ],
)
def test_a_font_without_the_emoji_is_refused_with_the_one_to_take(monkeypatch, tmp_path, pictures, reason):
    drawing, pictures = glyphs.ImageDraw.ImageDraw, iter(pictures)
    monkeypatch.setattr(glyphs.ImageFont, "truetype", lambda path, size: None)
    monkeypatch.setattr(
        drawing, "text", lambda self, place, *_, **__: self._image.paste(Image.fromarray(next(pictures)), place)
    )
    with pytest.raises(FontNotFoundError, match=f"font.ttf cannot be used .*: {reason}; .*googlefonts/noto-emoji"):
        load_glyphs(("apple", "banana"), tmp_path / "font.ttf")


def test_the_emoji_of_every_object_are_taken():
    try:
        find_font()
    except FontNotFoundError as error:
        pytest.skip(str(error))
    assert set(load_glyphs(tuple(OBJECTS))) == set(OBJECTS)


# ---- captions and answers ------------------------------------------------------------------------------------------


@MANY
@given(SEEDS, SPLITS)
def test_captions_are_true_and_whole(fake_world, seed, split):
    rng = np.random.default_rng(seed)
    scene = fake_world.sample(rng, split)
    things, relation = read_caption(caption(scene, rng))
    true = named(scene)
    by_name = Counter(o.name for o in scene.objects)
    told = Counter()
    for name, color, count in things:
        told[name] += count
        if color:
            assert true[name, color] == count
    assert told == by_name  # every object, none twice, none besides
    if any(color for _, color, _ in things) and relation is None:
        assert all(true[name, color] == count for name, color, count in things)  # no colour said: its own
    if relation:
        (first,), (second,) = (scene.named(name) for name, _, _ in things)
        assert lies(first, second, relation)


@MANY
@given(SEEDS, SPLITS)
def test_describe_tells_everything_from_left_to_right(fake_world, seed, split):
    scene = fake_world.sample(np.random.default_rng(seed), split)
    things = read_list(describe(scene))
    assert Counter({(name, color): count for name, color, count in things}) == named(scene)
    leftmost = [min(o.box for o in scene.objects if (o.name, o.color) == thing[:2]) for thing in things]
    assert leftmost == sorted(leftmost)


@MANY
@given(SEEDS, SPLITS, st.sampled_from(KINDS))
def test_answers_follow_from_the_boxes(fake_world, seed, split, kind):
    rng = np.random.default_rng(seed)
    scene = fake_world.sample(rng, split)
    questions = ask(scene, fake_world, rng, kind)
    assert all(q.kind == kind for q in questions)
    for question in questions:
        if kind == "identity":
            assert question.answer == describe(scene)
            assert question.text != "What is this?" or len(scene.objects) == 1
        else:
            assert question.answer == answer_from_boxes(scene, question.text, fake_world.image_size), question
    if kind == "existence" or kind.endswith("yes_no"):
        assert sorted(q.answer for q in questions) in ([], ["no", "yes"])
    else:
        assert len(questions) <= 1


def test_every_kind_of_question_and_every_answer_occurs(fake_world):
    rng = np.random.default_rng(0)
    answers = {kind: set() for kind in KINDS}
    for _ in range(600):
        scene = fake_world.sample(rng)
        for kind in KINDS:
            answers[kind] |= {q.answer for q in ask(scene, fake_world, rng, kind)}
    assert answers["color"] == set(COLORS)
    assert answers["count"] == {"one", "two", "three", "four"}
    assert len(answers["where"]) == 9
    assert all(answers[k] == {"yes", "no"} for k in KINDS if k == "existence" or k.endswith("yes_no"))


@MANY
@given(SEEDS, st.sampled_from(exam.POPE_SPLITS))
def test_pope_asks_as_pope_does(fake_world, seed, how):
    rng = np.random.default_rng(seed)
    scene = fake_world.sample(rng, "test")
    questions = pope_questions(scene, fake_world, rng, how)
    assert [q.answer for q in questions] == ["yes", "no"] * len(scene.names)
    for question in questions:
        assert question.answer == answer_from_boxes(scene, question.text, 64)
    absent = [read_phrase(re.search("there (.+) in", q.text)[1])[0] for q in questions[1::2]]
    if how == "popular":
        allowed = [n for n in CLASSES_24 if n not in scene.names][:3]  # the world's list begins with the frequent ones
        assert set(absent) <= set(allowed)
    if how == "adversarial" and len(scene.names) == 1:
        (there,) = scene.names
        meets = {
            name: (2 - i / 23) * (3 if theme_of(name) == theme_of(there) else 1)
            for i, name in enumerate(CLASSES_24)
            if name != there and fake_world.split_of_pair(name, there) == "train"
        }
        assert set(absent) <= set(sorted(meets, key=meets.get)[-3:])  # what it most often meets in training


# ---- the splits ----------------------------------------------------------------------------------------------------


def compositions(scenes: list[Scene]) -> tuple[set, set]:
    """(name, colour) pairs, and unordered pairs of different names, that occur."""
    colored = {(o.name, o.color) for s in scenes for o in s.objects if o.color}
    pairs = {frozenset(p) for s in scenes for p in itertools.combinations(sorted(set(s.names)), 2)}
    return colored, pairs


def test_the_splits_share_no_composition(fake_world):
    found = {s: compositions(list(itertools.islice(fake_world.stream(1, s), 6000))) for s in program.SPLITS}
    for one, other in itertools.combinations(program.SPLITS, 2):
        assert not found[one][0] & found[other][0] and not found[one][1] & found[other][1]
    # Together they are everything: no hole that no split covers.
    assert {s: (len(tints), len(pairs)) for s, (tints, pairs) in found.items()} == {
        "train": (168, 192), "validation": (24, 48), "test": (48, 36),
    }  # fmt: skip


def prompt_compositions(prompts: list[dict]) -> tuple[set, set]:
    colored = {(c["class"], c["color"]) for p in prompts for c in p["include"] if "color" in c}
    pairs = {frozenset(c["class"] for c in p["include"]) for p in prompts if len(p["include"]) == 2}
    return colored, pairs


def test_the_prompts_keep_to_the_splits_of_the_scenes(fake_world):
    of_scenes = {s: compositions(list(itertools.islice(fake_world.stream(2, s), 6000))) for s in program.SPLITS}
    for split, other in itertools.permutations(program.SPLITS, 2):
        colored, pairs = prompt_compositions([p for tag in TAGS for p in all_prompts(fake_world, tag, split)])
        assert not colored & of_scenes[other][0] and not pairs & of_scenes[other][1]
        assert colored <= of_scenes[split][0] and pairs <= of_scenes[split][1]
    for tag in ("colors", "two_object", "position", "color_attr"):
        texts = [{p["prompt"] for p in all_prompts(fake_world, tag, s)} for s in program.SPLITS]
        assert all(texts) and len(set.union(*texts)) == sum(map(len, texts))


# ---- the text tokenizer --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text_tokenizer(fake_world):
    return train_text_tokenizer(sentences(fake_world, count=2000))


@MANY
@given(st.text(max_size=60))
def test_any_text_comes_back_from_the_tokenizer(text_tokenizer, text):
    ids = text_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert all(0 <= i < len(text_tokenizer) for i in ids)
    assert text_tokenizer.decode(ids) == text


def test_the_tokenizer_is_the_same_every_time_and_short(fake_world, text_tokenizer):
    again = train_text_tokenizer(sentences(fake_world, count=2000))
    assert again.get_vocab() == text_tokenizer.get_vocab()
    rng = np.random.default_rng(3)
    for _ in range(300):
        scene = fake_world.sample(rng, "test")
        text = caption(scene, rng)
        ids = text_tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(ids) <= 32  # what the teacher's text tower holds
        assert text_tokenizer.decode(ids) == text

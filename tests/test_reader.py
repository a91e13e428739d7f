"""The reader of the emoji scenes: peaks, targets, losses and accuracy by hand; the shipped weights on true renders."""

import argparse

import numpy as np
import pytest
import torch
from conftest import load_program

from unimllm.metrics.geneval import RELATIONS, Detection, is_correct, relations
from unimllm.scenes import CLASSES_24, GlyphAtlas, Renderer, Scene, SceneObject, World
from unimllm.scenes.glyphs import FontNotFoundError, find_font
from unimllm.scenes.prompts import scene_for_prompt, true_detections
from unimllm.scenes.reader import (
    COLOR_NAMES,
    DEFAULT_READER,
    SceneReader,
    SceneReaderConfig,
    SceneReaderOutput,
    decode,
    find_peaks,
    heatmap_loss,
    iou,
    make_targets,
    match,
    presence,
    read_accuracy,
    reader_losses,
)

NAMES = CLASSES_24[:8]


def tiny_config(**changes) -> SceneReaderConfig:
    return SceneReaderConfig(
        **{"image_size": 32, "class_names": NAMES[:3], "widths": (4, 6, 8), "num_blocks": (1, 1)} | changes
    )


@pytest.fixture
def world() -> World:
    """Eight objects, drawn as hand-made blocks of pixels: needs no font."""
    rng = np.random.default_rng(0)
    glyphs = {name: np.concatenate([rng.random((16, 16, 3)), np.ones((16, 16, 1))], -1) for name in NAMES}
    return World(GlyphAtlas({k: v.astype(np.float32) for k, v in glyphs.items()}), 64, NAMES)


def thing(name: str, color: str | None, *box: float) -> SceneObject:
    return SceneObject(name, color, box, int(max(box[2] - box[0], box[3] - box[1])))


def empty_outputs(num_classes: int = 3, cells: int = 8) -> SceneReaderOutput:
    """Heads that see nothing in one picture, and boxes of 8 x 8 pixels everywhere."""
    heatmap = torch.full((1, num_classes, cells, cells), -9.0)
    log_size = torch.full((1, 2, cells, cells), float(np.log(2.0)))
    return SceneReaderOutput(heatmap, torch.zeros(1, 11, cells, cells), log_size, torch.zeros(1, 2, cells, cells))


def test_peaks_are_local_maxima_of_their_own_class():
    scores = torch.zeros(2, 2, 5, 5)
    scores[0, 0, 1, 1], scores[0, 0, 1, 2] = 0.9, 0.8  # a neighbour of a higher peak is none ...
    scores[0, 0, 1, 4] = 0.7  # ... three cells further is one,
    scores[0, 1, 1, 2] = 0.6  # and so is the neighbour in another class.
    scores[1, 1, 4, 0] = 0.5
    scores[1, 1, 0, 0] = 0.2  # too weak
    peaks = [tuple(p) for p in torch.stack(find_peaks(scores, scores, 0.3), -1).tolist()]
    assert peaks == [(0, 0, 1, 1), (0, 0, 1, 4), (0, 1, 1, 2), (1, 1, 4, 0)]


def test_presence_adds_what_neighbouring_cells_share():
    heatmap = torch.zeros(1, 1, 5, 5)
    heatmap[0, 0, 0, 1], heatmap[0, 0, 1, 2] = 0.5, 0.4
    assert presence(heatmap)[0, 0, 0].tolist() == pytest.approx([0.5, 0.9, 0.9, 0.4, 0.0])
    assert presence(heatmap)[0, 0, 3].tolist() == pytest.approx([0.0] * 5)


def test_decode_reads_box_colour_and_score():
    outputs = empty_outputs()
    outputs.heatmap_logits[0, 2, 3, 5] = 2.0
    outputs.color_logits[0, COLOR_NAMES.index("blue"), 3, 5] = 1.0
    outputs.log_size[0, :, 3, 5] = torch.tensor([3.0, 2.0]).log()
    outputs.offset[0, :, 3, 5] = torch.tensor([0.25, -0.5])
    (found,) = decode(outputs, tiny_config(score_scale=2.0, score_bias=-1.0), min_score=0.1)
    # Centre: column 5 + 0.5 + 0.25, row 3 + 0.5 - 0.5, four pixels each; size 3 x 2 cells.
    assert [(d.name, d.color) for d in found] == [(NAMES[2], "blue")]
    assert found[0].box == pytest.approx((17, 8, 29, 16))
    present = 1 / (1 + np.exp(-2.0)) + 8 / (1 + np.exp(9.0))
    assert found[0].score == pytest.approx(1 / (1 + np.exp(1 - 2 * np.log(present))), rel=1e-5)


def test_decode_reports_one_object_per_place():
    outputs = empty_outputs()
    outputs.heatmap_logits[0, 0, 3, 3] = 2.0
    outputs.heatmap_logits[0, 1, 3, 3] = 3.0  # the same place, likelier
    outputs.heatmap_logits[0, 0, 3, 6] = 1.0  # boxes that touch without overlapping by half are two objects
    outputs.color_logits[0, COLOR_NAMES.index(None)] = 1.0
    (found,) = decode(outputs, tiny_config(), min_score=0.3)
    assert [(d.name, d.color) for d in found] == [(NAMES[1], None), (NAMES[0], None)]
    (strict,) = decode(outputs, tiny_config(score_scale=4.0, score_bias=3.0), min_score=0.9)
    assert [d.name for d in strict] == [NAMES[1]]


def test_iou_by_hand():
    assert iou((0, 0, 4, 2), (2, 0, 6, 2)) == pytest.approx(4 / 12)
    assert iou((0, 0, 4, 2), (4, 0, 6, 2)) == 0
    assert iou((1, 1, 1, 1), (1, 1, 1, 1)) == 0


def test_targets_by_hand():
    apple, box = NAMES[1], (8, 4, 24, 12)  # centre (16, 8): the corner of cell column 4, row 2; 4 x 2 cells
    targets = make_targets([Scene((thing(apple, "red", *box),), 0, 0), Scene((), 0, 0)], tiny_config())
    assert targets.heatmap.shape == (2, 3, 8, 8) and targets.log_size.shape == (2, 2, 8, 8)
    assert targets.heatmap[0, 1, 2, 4] == 1 and (targets.heatmap == 1).sum() == 1
    beside = np.exp(-1 / (2 * 0.6**2))  # one cell off, with the least sigma of 0.6 cells
    assert targets.heatmap[0, 1, 2, 5] == pytest.approx(beside, rel=1e-6)
    assert targets.heatmap[0, 0].sum() == 0 and targets.heatmap[1].sum() == 0
    # The centre and its four neighbours learn (beside = 0.249 > 0.2), each with its own offset; nothing else does.
    assert (targets.weight > 0).sum() == 5
    assert targets.weight[0, 1, 4] == pytest.approx(beside, rel=1e-6)
    assert targets.color[0, 2, 4] == COLOR_NAMES.index("red")
    assert targets.log_size[0, :, 2, 4].exp().tolist() == pytest.approx([4, 2])
    assert targets.offset[0, :, 2, 4].tolist() == [-0.5, -0.5]
    assert targets.offset[0, :, 2, 3].tolist() == [0.5, -0.5]


def test_two_of_a_class_side_by_side_stay_two_peaks():
    scene = Scene((thing(NAMES[0], None, 2, 10, 13, 27), thing(NAMES[0], None, 14, 10, 25, 27)), 0, 0)
    targets = make_targets([scene], tiny_config())
    assert len(find_peaks(targets.heatmap, targets.heatmap, 0.9)[0]) == 2


def test_decode_inverts_the_targets():
    scene = Scene((thing(NAMES[0], None, 1, 2, 12, 19), thing(NAMES[2], "pink", 15, 20, 32, 31)), 0, 0)
    targets = make_targets([scene], tiny_config())
    colors = torch.nn.functional.one_hot(targets.color, len(COLOR_NAMES)).permute(0, 3, 1, 2).float()
    outputs = SceneReaderOutput(torch.logit(targets.heatmap, 1e-4), colors, targets.log_size, targets.offset)
    (found,) = decode(outputs, tiny_config(), min_score=0.5)
    found.sort(key=lambda d: d.box)
    assert [(d.name, d.color) for d in found] == [(o.name, o.color) for o in scene.objects]
    for detection, item in zip(found, scene.objects, strict=True):
        assert detection.box == pytest.approx(item.box, abs=1e-4)


def test_losses_by_hand():
    heatmap = torch.tensor([[[[1.0, 0.5]]]])
    logits = torch.zeros(1, 1, 1, 2)  # p = 1/2 everywhere
    expected = np.log(2) / 4 + np.log(2) / 4 * 0.5**4
    assert heatmap_loss(logits, heatmap).item() == pytest.approx(expected, rel=1e-6)

    scene = Scene((thing(NAMES[0], "red", 8, 4, 24, 12),), 0, 0)
    losses = reader_losses(empty_outputs(), make_targets([scene], tiny_config()))
    assert losses["color"].item() == pytest.approx(np.log(11), rel=1e-5)
    assert losses["size"].item() == pytest.approx(np.log(2) / 2, rel=1e-5)  # 4 x 2 cells, told 2 x 2
    assert losses["offset"].item() > 0 and losses["heatmap"].item() > 0


def test_losses_of_empty_scenes_are_finite():
    losses = reader_losses(empty_outputs(), make_targets([Scene((), 0, 0)], tiny_config()))
    assert all(torch.isfinite(v) for v in losses.values())
    assert losses["color"] == losses["size"] == losses["offset"] == 0


@pytest.mark.parametrize("image_size", [32, 64, 128])
def test_saved_reader_is_the_same_reader(tmp_path, image_size):
    torch.manual_seed(0)
    reader = SceneReader(tiny_config(image_size=image_size, score_scale=1.7)).eval()
    pixel_values = torch.randn(2, 3, image_size, image_size)
    before = reader(pixel_values)
    assert before.heatmap_logits.shape == (2, 3, image_size // 4, image_size // 4)
    reader.save_pretrained(tmp_path)
    loaded = SceneReader.from_pretrained(tmp_path)
    assert loaded.config.score_scale == 1.7 and loaded.config.class_names == list(NAMES[:3])
    after = loaded(pixel_values)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_detect_does_not_depend_on_the_batch():
    torch.manual_seed(0)
    reader = SceneReader(tiny_config()).train()
    pictures = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    together, apart = (reader.detect(pictures, batch_size=b, min_score=0.0) for b in (5, 2))
    assert reader.training and len(together) == 5
    for first, second in zip(together, apart, strict=True):
        assert [d.name for d in first] == [d.name for d in second]
        assert [d.score for d in first] == pytest.approx([d.score for d in second], abs=1e-5)
    assert reader.detect(pictures[:0]) == []


def test_wrong_pictures_are_refused():
    reader = SceneReader(tiny_config())
    with pytest.raises(ValueError, match=r"\(n, 32, 32, 3\) uint8 pictures, got \(1, 64, 64, 3\)"):
        reader.detect(np.zeros((1, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="float32"):
        reader.detect(np.zeros((1, 32, 32, 3), np.float32))
    with pytest.raises(ValueError, match="image_size=60"):
        SceneReaderConfig(image_size=60)


def test_match_takes_the_nearest_once():
    scene = Scene((thing("cat", None, 0, 0, 20, 20), thing("cat", None, 22, 0, 42, 20)), 0, 0)
    far, near = Detection("cat", (6, 0, 26, 20)), Detection("cat", (1, 0, 21, 20))
    assert match(scene, [far, near], 100) == [(0, 1)]  # the first is 16 pixels from the second cat: more than 12
    assert match(scene, [near, Detection("cat", (12, 0, 32, 20))], 100) == [(0, 0), (1, 1)]


def test_read_accuracy_by_hand():
    scenes = [
        Scene((thing("cat", "red", 0, 0, 20, 20), thing("dog", None, 40, 40, 60, 60)), 0, 0),
        Scene((thing("cat", "blue", 0, 0, 20, 20), thing("car", None, 40, 0, 60, 20)), 0, 0),
    ]
    detections = [
        [
            Detection("cat", (1, 0, 21, 20), 0.95, "red"),  # right
            Detection("dog", (40, 40, 60, 60), 0.8, "white"),  # right class, wrong colour
            Detection("dog", (0, 40, 20, 60), 0.6, None),  # about nothing
            Detection("bus", (40, 0, 60, 20), 0.2, None),  # too weak to count
        ],
        [Detection("dog", (0, 0, 20, 20), 0.5, "blue")],  # wrong class, right colour; the car is missed
    ]
    expected = {"objects": 3 / 4, "class": 2 / 4, "color": 2 / 4, "class_and_color": 1 / 4, "extra": 1 / 2}
    assert read_accuracy(scenes, detections, 64) == pytest.approx(expected)
    strict = {"objects": 1 / 4, "class": 1 / 4, "color": 1 / 4, "class_and_color": 1 / 4, "extra": 0}
    assert read_accuracy(scenes, detections, 64, threshold=0.9) == pytest.approx(strict)
    assert read_accuracy([], [], 64)["objects"] == 0


def test_scenes_for_prompts_fulfil_them(world):
    rng = np.random.default_rng(0)
    first, second = NAMES[0], NAMES[3]
    for relation in RELATIONS:
        include = [{"class": second, "count": 1}, {"class": first, "count": 1, "position": [relation, 0]}]
        scene = scene_for_prompt(world, {"tag": "position", "include": include, "prompt": relation}, rng)
        assert scene.objects[1].name == first
        assert relation in relations(scene.objects[1].box, scene.objects[0].box)
    counted = {"tag": "counting", "include": [{"class": first, "count": 3}], "exclude": [{"class": first, "count": 4}]}
    scene = scene_for_prompt(world, counted | {"prompt": "three"}, rng)
    assert scene.names == (first,) and len(scene.objects) == 3
    assert is_correct(true_detections(scene), counted)
    with pytest.raises(ValueError, match="not every object"):
        scene_for_prompt(
            world, {"tag": "single_object", "include": [{"class": "toilet", "count": 1}], "prompt": ""}, rng
        )


# ---- the program ---------------------------------------------------------------------------------------------------


@pytest.fixture
def program():
    return load_program("train/reader.py")


def test_damage_moves_every_tile_and_drops_the_object(program):
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[2:14, 4:19] = np.arange(9).reshape(3, 3).repeat(4, 0).repeat(5, 1)[..., None] + 1
    scene = Scene((thing(NAMES[0], None, 4, 2, 19, 14),), 0, 0)
    damaged, shuffled = program.damage(scene, picture, np.random.default_rng(0))
    assert damaged.objects == ()
    before, after = picture[3:14:4, 5:19:5, 0], shuffled[3:14:4, 5:19:5, 0]
    assert (before != after).all() and sorted(after.ravel()) == list(range(1, 10))
    assert np.array_equal(np.sort(picture, axis=None), np.sort(shuffled, axis=None))


def test_interrupted_training_ends_as_if_it_never_stopped(program, world, tmp_path, monkeypatch):
    renderer = Renderer(world.atlas, 64)
    monkeypatch.setattr(program, "SAVE_SECONDS", 0)

    def run(folder: str) -> dict[str, torch.Tensor]:
        (tmp_path / folder).mkdir(exist_ok=True)
        args = argparse.Namespace(
            output_dir=tmp_path / folder, steps=4, batch_size=3, seed=0, image_size=64, log_every=2, threads=0
        )
        torch.manual_seed(0)
        reader = SceneReader(tiny_config(image_size=64, class_names=NAMES))
        return program.train(reader, world, renderer, args)

    whole = run("whole")

    def stop(step: int, steps: int) -> float:
        if step == 2:
            raise KeyboardInterrupt
        return learning_rate(step, steps)

    learning_rate = program.learning_rate
    monkeypatch.setattr(program, "learning_rate", stop)
    with pytest.raises(KeyboardInterrupt):
        run("parts")
    monkeypatch.setattr(program, "learning_rate", learning_rate)
    parts = run("parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    with pytest.raises(ValueError, match="new --output-dir"):
        program.load_state(tmp_path / "parts" / "state.pt", {"steps": 5})


# ---- the shipped weights -------------------------------------------------------------------------------------------


def test_shipped_reader_reads_true_renders():
    try:
        find_font()
    except FontNotFoundError as error:
        pytest.skip(str(error))
    if not (DEFAULT_READER / "model.safetensors").is_file():
        pytest.skip(f"the weights of the reader are absent: {DEFAULT_READER}")
    reader = SceneReader.from_pretrained(DEFAULT_READER)
    world = World(GlyphAtlas.from_font(CLASSES_24), reader.config.image_size, tuple(reader.config.class_names))
    rng = np.random.default_rng(20260)
    scenes = [world.sample(rng, "test") for _ in range(300)]
    detections = reader.detect(Renderer(world.atlas, world.image_size).render_batch(scenes))
    accuracy = read_accuracy(scenes, detections, world.image_size)
    assert accuracy["class_and_color"] >= 0.97, accuracy
    assert accuracy["extra"] < 0.03, accuracy

"""What surrounds the networks of GenEval's detector: pictures in, instances and colours out, by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import SiglipVisionConfig, SiglipVisionModel

from unimllm.errors import UserError
from unimllm.metrics.geneval_detector import (
    GREY,
    ColorClassifier,
    clip_pixels,
    cut_out,
    instances,
    load_named,
    prepare,
    scaled_size,
    tight_box,
)
from unimllm.metrics.geneval_records import COLORS


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


# ---- what enters the detector --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "scaled"),
    [
        ((512, 512), (800, 800)),
        ((1024, 1024), (800, 800)),
        ((640, 480), (1067, 800)),  # 1066.67
        ((480, 640), (800, 1067)),
        ((1000, 500), (1333, 667)),  # the longer side stops it; 666.5
        ((64, 64), (800, 800)),
    ],
)
def test_pictures_are_scaled_as_mmdet_does(size, scaled):
    assert scaled_size(*size) == scaled


def test_pixel_values_are_normalised_and_padded_below_and_to_the_right():
    image = Image.new("RGB", (640, 480), (124, 116, 104))
    pixel_values, scaled = prepare(image)
    assert pixel_values.shape == (1, 3, 800, 1088) and scaled == (800, 1067)
    expected = torch.tensor([(124 - 123.675) / 58.395, (116 - 116.28) / 57.12, (104 - 103.53) / 57.375])
    assert torch.allclose(pixel_values[0, :, 799, 1066], expected, atol=1e-5)
    assert (pixel_values[..., 1067:] == 0).all()


# ---- what leaves it ------------------------------------------------------------------------------------------------


def test_instances_by_hand():
    # Three classes, no object last. Query 0 is sure of class 2; query 1 divides itself between 0 and 1.
    third = float(np.log(1 / 3))
    class_logits = torch.tensor([[-50.0, -50, 0, third], [0, 0, -50, -50]])
    masks = torch.full((2, 8, 8), -30.0)
    masks[0, 2:6, 0:4] = 30  # rows 2..5, columns 0..3
    seen = instances(class_logits, masks, (8, 8), (8, 8), (8, 8))
    assert seen.classes[:3].tolist()[0] == 2 and set(seen.classes[1:3].tolist()) == {0, 1}
    assert len(seen.scores) == 6  # every pair of a query and a class: fewer than a hundred
    assert seen.boxes[0].tolist() == [0, 2, 4, 6] and seen.masks[0].sum() == 16
    assert seen.scores[0] == pytest.approx(3 / 4)  # 1 / (1 + 1/3), the mask being sure
    assert seen.boxes[1].tolist() == [0, 0, 0, 0] and seen.scores[1] == 0  # no mask, no object


def test_a_score_is_weighed_by_the_mean_inside_the_mask():
    class_logits = torch.tensor([[20.0, -20]])
    masks = torch.full((1, 4, 4), -3.0)
    masks[0, 0, 0], masks[0, 0, 1] = 1.0, 2.0
    seen = instances(class_logits, masks, (4, 4), (4, 4), (4, 4))
    sigmoid = 1 / (1 + np.exp(-np.array([1.0, 2.0])))
    assert seen.scores[0] == pytest.approx(sigmoid.mean(), abs=1e-5)
    assert seen.boxes[0].tolist() == [0, 0, 2, 1]


def test_masks_lose_their_padding_before_they_are_scaled_back():
    masks = torch.full((1, 4, 8), 30.0)
    masks[..., 4:] = -30  # the padding: without it the whole picture is the object
    seen = instances(torch.tensor([[20.0, -20]]), masks, (16, 32), (16, 14), (64, 56))
    assert seen.masks.shape == (1, 64, 56) and seen.masks.all()
    assert seen.boxes[0].tolist() == [0, 0, 56, 64]


def test_at_most_a_hundred_instances():
    generator = torch.Generator().manual_seed(0)
    class_logits, masks = torch.randn(5, 81, generator=generator), torch.randn(5, 4, 4, generator=generator)
    seen = instances(class_logits, masks, (16, 16), (16, 16), (8, 8))
    assert len(seen.classes) == 100
    assert seen.classes[0] == class_logits.softmax(-1)[:, :-1].argmax() % 80
    assert (seen.scores <= 1).all() and len({tuple(b) for b in seen.boxes.tolist()}) <= 5


def test_boxes_are_tight():
    mask = torch.zeros(6, 9, dtype=torch.bool)
    assert tight_box(mask).tolist() == [0, 0, 0, 0]
    mask[2, 3] = mask[4, 7] = True
    assert tight_box(mask).tolist() == [3, 2, 8, 5]


# ---- colours -------------------------------------------------------------------------------------------------------


def test_an_object_is_cut_out_of_grey():
    image, mask = noise(20, 10), np.zeros((10, 20), bool)
    mask[2:4, 5:8] = True
    mask[3, 6] = False
    crop = np.asarray(cut_out(image, mask, (5, 2, 8, 4)))
    assert crop.shape == (2, 3, 3) and tuple(crop[1, 1]) == GREY == (0x99, 0x99, 0x99)
    assert (crop[0, 0] == np.asarray(image)[2, 5]).all()


def test_clip_sees_the_centre():
    pixels = np.zeros((16, 40, 3), np.uint8)
    pixels[:, 12:28] = 255  # columns 12..27 are the centre 16 of 40
    white = clip_pixels(Image.fromarray(pixels), 16)
    assert white.shape == (3, 16, 16)
    assert torch.allclose(white[0], torch.tensor((1 - 0.48145466) / 0.26862954))
    assert clip_pixels(noise(3, 300), 16).shape == clip_pixels(noise(300, 3), 16).shape == (3, 16, 16)


class Colorful:
    """A CLIP by hand: a picture's features are its mean RGB, a text's are those of the first colour it names."""

    VALUES = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
    device = torch.device("cpu")

    class config:
        class vision_config:
            image_size = 8

    def get_image_features(self, pixel_values):
        return self._output(pixel_values.mean((2, 3)).clamp(0))

    def get_text_features(self, texts):
        return self._output(torch.tensor([self._value(text) for text in texts]))

    def _value(self, text: str) -> tuple[float, ...]:
        return next((v for c, v in self.VALUES.items() if f" {c} " in text or f" {c}-" in text), (0.1, 0.1, 0.1))

    def _output(self, features):
        return type("Output", (), {"pooler_output": features.float()})


class Texts(dict):
    """What a tokenizer would return: the texts themselves."""

    def to(self, device):
        return self


def test_colours_are_the_nearest_mean_of_templates():
    asked = []

    def tokenizer(texts, **kwargs):
        asked.append(texts)
        return Texts(texts=texts)

    classifier = ColorClassifier(Colorful(), tokenizer)
    crops = [Image.new("RGB", (9, 9), value) for value in ((0, 0, 255), (255, 0, 0), (0, 255, 0))]
    assert classifier.classify(crops, "tv remote") == ["blue", "red", "green"]
    assert classifier.classify(crops[:1], "tv remote") == ["blue"]
    assert len(asked) == len(COLORS)  # once for each colour, then remembered
    red = ["a photo of a red tv remote", "a photo of a red-colored tv remote", "a photo of a red object"]
    assert asked[0] == red


# ---- where they come from ------------------------------------------------------------------------------------------


def test_networks_may_hold_more_than_is_read_and_nothing_less_or_else(tmp_path):
    config = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    SiglipVisionModel(config).save_pretrained(tmp_path)  # of a size for tests, in the place of the networks
    state = load_file(tmp_path / "model.safetensors")
    norm = next(name for name in state if name.endswith("post_layernorm.weight"))
    save_file(state | {"more": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    load_named(SiglipVisionModel, str(tmp_path), "--clip")
    save_file(state | {norm: torch.ones(3)}, tmp_path / "model.safetensors", {"format": "pt"})
    told = r"^--clip .*, as a SiglipVisionModel: the checkpoint has in another shape 1 tensors: .* \(3,\) \(not \(16,"
    with pytest.raises(UserError, match=told):
        load_named(SiglipVisionModel, str(tmp_path), "--clip")

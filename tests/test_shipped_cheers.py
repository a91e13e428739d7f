"""The small CHEERS that ships: it loads whole, draws and answers. What it scores is measured by eval/, not here."""

import numpy as np
from PIL import Image

from unimllm import answer, draw, load


def test_the_shipped_cheers_draws_and_answers():
    model, processor = load("scenes-cheers", "cpu")
    assert model.config.model_type == "cheers" and model.config.inject_details
    assert model.flow_head.hi_gate.gate[-1].weight.any()  # trained: a new model's gate is closed
    drawn, again = (draw(model, processor, ["a photo of a red apple"], num_steps=1, guidance_scale=3.0) for _ in "12")
    pixels = np.asarray(drawn[0])
    assert pixels.shape == (64, 64, 3) and pixels.std() > 1 and np.array_equal(pixels, np.asarray(again[0]))
    picture = Image.new("RGB", (64, 64), "white")
    assert answer(model, processor, picture, "Is there a dog in the image?") == "no"

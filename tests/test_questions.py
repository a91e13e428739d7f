"""Many questions about few pictures: each is encoded once, and the answers are those of one by one."""

import pytest
import torch
from PIL import Image

from unimllm.inference import answer
from unimllm.questions import answer_questions

PICTURES = {name: Image.new("RGB", (16, 16), name) for name in ("red", "blue", "green")}
TEXTS = ("Is there a dog in the image?", "What is in the picture?", "What color is the apple?", "yes no")


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_each_picture_is_opened_and_encoded_once(loaded, monkeypatch, batch_size):
    model, processor = loaded
    questions = [(name, text) for text in TEXTS for name in PICTURES]
    alone = [answer(model, processor, PICTURES[name], text) for name, text in questions]
    opened, encoded, encode = [], [], model.image_tokenizer.encode

    def open_picture(name: str) -> Image.Image:
        opened.append(name)
        return PICTURES[name]

    def counted(pixel_values: torch.Tensor) -> torch.Tensor:
        encoded.append(len(pixel_values))
        return encode(pixel_values)

    monkeypatch.setattr(model.image_tokenizer, "encode", counted)
    answers = answer_questions(model, processor, questions, open_picture, batch_size)
    assert answers.texts == alone and len(set(alone)) > 3
    assert opened == sorted(PICTURES) and sum(encoded) == 3
    speed = answers.speed
    assert (speed["num_answers"], speed["num_pictures"], speed["batch_size"]) == (12, 3, batch_size)
    assert speed["questions_per_second"] == pytest.approx(4 * speed["pictures_per_second"])

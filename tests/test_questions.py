"""Many questions about few pictures: each is encoded once, and the answers are those of one by one."""

import pytest
import torch
from PIL import Image

import unimllm.fingerprint
from unimllm.inference import answer
from unimllm.questions import KeptAnswers, answer_questions

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


def test_the_state_of_the_code_is_that_of_its_files(monkeypatch, tmp_path):
    before = KeptAnswers(tmp_path, tmp_path, {}).path
    assert KeptAnswers(tmp_path, tmp_path, {}).path == before
    read = []
    monkeypatch.setattr(unimllm.fingerprint, "fingerprint", lambda *files: str(read.extend(files)))
    assert KeptAnswers(tmp_path, tmp_path, {}).path != before  # of files of another content
    names = {"/".join(path.parts[-2:]) for path in read}
    assert {"unimllm/questions.py", "discrete/modeling_unimllm.py", "semhitok/image_processing_semhitok.py"} <= names


def test_a_run_that_was_broken_off_asks_only_what_is_left(loaded, tmp_path, capsys):
    model, processor = loaded
    questions = [(name, text) for text in TEXTS for name in PICTURES] + [("red", TEXTS[0])]
    whole = answer_questions(model, processor, questions, PICTURES.__getitem__, 4)

    def opened_until(last: str):
        def open_picture(name: str) -> Image.Image:
            if name == last:
                raise KeyboardInterrupt
            return PICTURES[name]

        return open_picture

    template = tmp_path / "checkpoint" / "chat_template.jinja"
    template.parent.mkdir()
    template.write_text("one")
    keep = KeptAnswers(tmp_path / "answers", template.parent, {"fingerprint": "of these weights"})
    with pytest.raises(KeyboardInterrupt):
        answer_questions(model, processor, questions, opened_until("red"), 4, keep=keep)
    assert len(keep.read()) == 8
    keep.path.write_bytes(keep.path.read_bytes()[:-3])  # killed while it wrote the eighth
    with keep.path.open("a") as file:
        file.write('\n["red"]\nnull')
    assert len(keep.read()) == 7
    other = KeptAnswers(tmp_path / "answers", template.parent, {"fingerprint": "of other weights"})
    template.write_text("another")
    reworded = KeptAnswers(tmp_path / "answers", template.parent, {"fingerprint": "of these weights"})
    assert not other.read() and not reworded.read()

    resumed = answer_questions(model, processor, questions, PICTURES.__getitem__, 4, keep=keep)
    assert resumed.texts == whole.texts and resumed.speed["num_answers"] == 6
    assert "7 answers of a run that was broken off" in capsys.readouterr().err
    assert len(keep.read()) == 12
    keep.remove()
    assert not list(keep.path.parent.iterdir())

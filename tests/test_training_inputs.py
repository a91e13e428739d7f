"""`processor.for_training`: inputs with labels from conversations, those that train/ makes of the same."""

import json

import numpy as np
import pytest
import torch
from llava_files import write_llava
from PIL import Image

from unimllm import CheersProcessor, load
from unimllm.conversation import text_message
from unimllm.data.open_data import DataOptions, open_data
from unimllm.data.picture_ids import OnlinePixels
from unimllm.data.sample_tokens import SampleTokenizer
from unimllm.errors import UserError
from unimllm.training import cheers_family, discrete_family
from unimllm.training.cheers_sft import CheersTask
from unimllm.training.sft import SftTask
from unimllm.vocabulary import IGNORE

FAMILIES = {"tiny_checkpoint": discrete_family, "tiny_cheers": cheers_family}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """(model, processor, its verbs)."""
    return *load(request.getfixturevalue(request.param), "cpu"), FAMILIES[request.param]


def rows_of_training(place, processor, folder):
    """What the programs of train/ make of a file: the source, and its rows as batches of one."""
    options = DataOptions([str(place)], image_root=folder)
    pictures = OnlinePixels(processor.image_processor, processor.drawn_image_processor)
    source = open_data(options, SampleTokenizer(processor.conversation, 80), pictures, 80, 0.0, 0, 4, folder / "i")[0]
    return source, [source(range(number, number + 1)) for number in range(4)]


def messages_of(source, member) -> list[dict]:
    """A sample as one writes it in Python, its pictures by path."""
    found = source.indices[member[0]].read(member[1]).variants[0]
    parts = [[p if p["type"] == "text" else {"type": "image", "path": str(p["image"].path)} for p in m["content"]]
             for m in found]  # fmt: skip
    return [{"role": m["role"], "content": content} for m, content in zip(found, parts, strict=True)]


def test_inputs_are_those_of_the_packed_rows_of_training(family, tmp_path):
    model, processor, verbs = family
    source, rows = rows_of_training(write_llava(tmp_path), processor, tmp_path / "images")
    task = CheersTask(model, {}) if verbs is cheers_family else SftTask(model, {})
    kinds = set()
    for number, row in enumerate(rows):
        marked = row | task.mark_drawn(row) if verbs is cheers_family else row
        samples = [messages_of(source, member) for member in source.plan.row(number)]
        made = processor.for_training(samples)
        assert torch.equal(made["pixel_values"], row["pixel_values"])
        begin = 0
        for messages, ids, labels, mask in zip(
            samples, *(made[name] for name in ("input_ids", "labels", "attention_mask")), strict=True
        ):
            length = int(mask.sum())
            assert mask[:length].all() and (labels[length:] == IGNORE).all()
            assert (ids[length:] == processor.tokenizer.pad_token_id).all()
            assert torch.equal(ids[:length], marked["input_ids"][0, begin : begin + length])
            assert torch.equal(labels[:length], marked["labels"][0, begin : begin + length])
            begin += length
            kinds |= {(part["type"], message["role"]) for message in messages for part in message["content"]}
    assert len(kinds) == 4  # texts and pictures, asked and answered


def test_the_loss_is_that_of_the_training_task(family, tmp_path):
    model, processor, verbs = family
    source, rows = rows_of_training(write_llava(tmp_path), processor, tmp_path / "images")
    number = next(n for n, row in enumerate(rows) if (row["labels"] == processor.conversation.ids["image"]).any())
    made = processor.for_training([messages_of(source, member) for member in source.plan.row(number)])
    row = {name: value for name, value in rows[number].items() if name != "skipped"}
    with torch.no_grad():
        if verbs is cheers_family:
            task = CheersTask(model, {}).eval()
            outputs, packed = model(**made, **task.fixed_noise(row)), task(**row)
        else:
            outputs, packed = model(**made), SftTask(model, {}).eval()(**row)
    assert all(loss > 0 for loss in outputs.losses.values())
    for name in outputs.losses:
        torch.testing.assert_close(outputs.losses[name], packed[name], rtol=1e-4, atol=1e-4)


def test_what_is_drawn_is_prepared_otherwise_where_the_family_says_so(tiny_cheers):
    processor = CheersProcessor.from_pretrained(tiny_cheers)
    processor.image_processor.fit_on_black = True
    wall = {"type": "image", "image": Image.new("RGB", (32, 16), "white")}
    read = [{"role": "user", "content": [wall]}, text_message("assistant", "a wall")]
    drawn = [text_message("user", "a wall"), {"role": "assistant", "content": [wall]}]
    first, second = processor.for_training([read, drawn])["pixel_values"]
    assert (first[:, 0] == -1).all() and (second == 1).all()


def test_one_conversation_is_a_batch_of_one_and_text_needs_no_picture(family):
    _, processor, _ = family
    messages = [text_message("user", "What color is the apple?"), text_message("assistant", "red")]
    made = processor.for_training(messages)
    assert set(made) == {"input_ids", "labels", "attention_mask"}
    told = made["labels"][0]
    assert processor.tokenizer.decode(told[told != IGNORE]) == "red<|end|>"
    assert torch.equal(made["input_ids"], processor.for_training([messages])["input_ids"])


BAD = [
    ({"image": "a.png"}, "^a picture is given as str: .* or .*a file"),
    ({}, "^a picture is missing: "),
    ({"url": "https://a.org/b.png"}, r"^pictures are not fetched, https://a.org/b.png is a URL: download it and give"),
    ({"path": "nowhere.png"}, "^no such picture: nowhere.png"),
]


@pytest.mark.parametrize(("part", "message"), BAD)
def test_a_picture_that_cannot_be_had_is_told(family, part, message):
    _, processor, _ = family
    question = {"role": "user", "content": [{"type": "image"} | part]}
    for asked in (processor, processor.for_training):
        with pytest.raises(UserError, match=message):
            asked([[question, text_message("assistant", "a dog")]])


def test_a_picture_named_by_its_path_is_read_as_it_is_seen(family, tmp_path):
    _, processor, _ = family
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(path)
    by_path, given = ({"path": path}, {"image": Image.open(path)})
    made = [processor([{"role": "user", "content": [{"type": "image"} | part]}]) for part in (by_path, given)]
    assert torch.equal(made[0]["pixel_values"], made[1]["pixel_values"])


def test_conversations_without_an_answer_or_with_a_mark_are_refused(family):
    _, processor, _ = family
    good = [text_message("user", "a"), text_message("assistant", "b")]
    with pytest.raises(UserError, match="^conversation 2 of 2 has nothing to learn: no message of the assistant"):
        processor.for_training([good, good[:1]])
    with pytest.raises(
        UserError, match="^a text holds <image>, which stands for a picture: give the picture itself, as a part"
    ):
        processor.for_training([[text_message("user", "a <image>"), good[1]]])
    with pytest.raises(UserError, match="^the processor takes conversations, not text"):
        processor.for_training("a")


def test_json_of_conversations_can_be_given_as_it_is(family, tmp_path):
    _, processor, _ = family
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    line = json.dumps([{"role": "user", "content": [{"type": "image", "path": str(tmp_path / "a.png")}]},
                       {"role": "assistant", "content": "red"}])  # fmt: skip
    assert processor.for_training([json.loads(line)] * 2)["pixel_values"].shape == (2, 3, 16, 16)

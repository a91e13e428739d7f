"""Both families behind the same commands: what draws, answers and examines asks the model, never which family it is."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from backbones import qwen_tokenizer
from conftest import load_program
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache

from unimllm import CheersForConditionalGeneration, CheersProcessor, answer, chat, draw, generate, load
from unimllm.cheers.configuration_cheers import tiny_config
from unimllm.cheers.released_processor import write_processor
from unimllm.cheers.sampling import without_text
from unimllm.conversation import flatten_content, text_message
from unimllm.drawing import choose_drawing
from unimllm.errors import UserError
from unimllm.inference import answer_batch
from unimllm.lmms_eval_requests import Asked, continuation_losses
from unimllm.scenes import CLASSES_24, GlyphAtlas
from unimllm.scenes.reader import SceneReader, SceneReaderConfig

APPLE, DOGS = "a photo of a red apple", "a photo of two dogs and a blue car"


@pytest.fixture(scope="module")
def cheers(tiny_cheers):
    """(model, processor)."""
    return load(tiny_cheers, "cpu")


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def red() -> Image.Image:
    return Image.new("RGB", (20, 30), "red")


# ---- loading and drawing --------------------------------------------------------------------------------------------


def test_a_folder_of_cheers_opens_as_it_was_saved(cheers, tiny_cheers):
    model, processor = cheers
    assert isinstance(model, CheersForConditionalGeneration) and isinstance(processor, CheersProcessor)
    assert processor.num_positions == model.config.num_positions == 4
    assert [processor.conversation.ids[role] for role in CheersProcessor.image_tokens] == [4, 5, 6, 7, 8]
    saved = json.loads((tiny_cheers / "generation_config.json").read_text())["drawing"]
    assert saved == {"guidance_scale": 3.0, "num_steps": 5, "time_shift": 1.0} == choose_drawing(model, {})


def test_the_released_processor_puts_a_random_picture_before_prompts(cheers, tmp_path):
    model, plain = cheers
    plain.save_pretrained(tmp_path)
    processor = CheersProcessor.from_pretrained(tmp_path, stand_in_picture=True)
    processor.save_pretrained(tmp_path)
    processor = CheersProcessor.from_pretrained(tmp_path)
    inputs, without = processor.for_drawing([APPLE, DOGS]), plain.for_drawing([APPLE, DOGS])
    length, size = model.config.num_positions, model.config.image_size
    row = inputs["input_ids"][0][inputs["attention_mask"][0] == 1].tolist()
    assert row[:length] == [model.config.image_token_id] * length
    assert row[length:] == without["input_ids"][0][without["attention_mask"][0] == 1].tolist()
    assert inputs["pixel_values"].shape == (2, 3, size, size) and 0.5 < inputs["pixel_values"].abs().max() <= 1
    together, alone, bare = (
        draw(model, p, prompts, num_steps=2)[-1]
        for p, prompts in ((processor, [APPLE, DOGS]), (processor, [DOGS]), (plain, [DOGS]))
    )
    assert np.array_equal(together, alone) and not np.array_equal(alone, bare)


BAD_REQUESTS = [
    ([{"role": "user", "content": [{"type": "image", "image": "http://127.0.0.1/x"}, text("a")]}], "given as str"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}, text("a")]}], "it is a text or a list of"),
    ([{"role": "user", "content": None}], "it is a text or a list of parts"),
    ([{"content": "a"}], "a message has the role None; this model knows user, assistant"),
    ([{"role": "system", "content": "s"}, {"role": "user", "content": "a"}], "a message has the role 'system'"),
    ([{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (1, 40000))}, text("a")]}], "not read"),
    ([{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (0, 0))}, text("a")]}], "0 x 0 pixels"),
    (["a"], "give a list of messages for each"),
    ([], "give a list of messages for each"),
]


@pytest.mark.parametrize(("messages", "message"), BAD_REQUESTS)
def test_bad_requests_are_told_in_a_line(cheers, tiny_checkpoint, messages, message):
    for model, processor in (cheers, load(tiny_checkpoint, "cpu")):
        with pytest.raises(UserError, match=message):
            answer_batch(model, processor, [messages])


def test_an_answer_is_as_long_in_any_batch(cheers, tiny_checkpoint):
    for model, processor in (cheers, load(tiny_checkpoint, "cpu")):
        short, context = [text_message("user", "a")], model.config.text_config.max_position_embeddings
        first, second = (len(processor.conversation.prompt([text_message("user", words)])) for words in ("a", "a a"))
        count = (context - 1 - first) // (second - first)
        long = [text_message("user", "a" + " a" * count)]
        alone = answer_batch(model, processor, [short], eos_token_id=None)
        assert answer_batch(model, processor, [short, long], eos_token_id=None)[0] == alone[0]
        with pytest.raises(UserError, match="^max_length: one answer"):
            answer_batch(model, processor, [short], max_length=5)


def test_foreign_code_is_not_run(tiny_cheers, tmp_path):
    folder = shutil.copytree(tiny_cheers, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    foreign = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}
    (folder / "config.json").write_text(json.dumps(config | foreign))
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UserError, match="cannot load a model"):
        load(folder, "cpu")


def test_attention_is_the_language_model_s_choice(tiny_cheers, tiny_checkpoint):
    for folder in (tiny_cheers, tiny_checkpoint):
        model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="sdpa")
        assert model.language_model.config._attn_implementation == "sdpa"


def test_a_cache_goes_on_into_the_next_turn(cheers):
    model, processor = cheers
    turns = [{"role": "user", "content": [{"type": "image", "image": red()}, text("a")]}]
    first, cache = processor([turns]), DynamicCache()
    model(first["input_ids"][:, :-1], first["pixel_values"], cache=cache, use_cache=True)
    turns += [{"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    inputs = processor([turns])
    options = {"generation_mode": "text", "max_new_tokens": 3, "do_sample": False}
    went_on = model.generate(**inputs, cache=cache, **options)
    assert torch.equal(went_on, model.generate(**inputs, **options))


def test_the_cache_s_old_name_is_heard(cheers, tiny_checkpoint):
    """transformers has renamed it; in `kwargs` it would be passed over."""
    for model, processor in (cheers, load(tiny_checkpoint, "cpu")):
        ids = processor([[text_message("user", "What is it?")]])["input_ids"]
        caches = [model(ids[:, :-1], use_cache=True).cache for _ in range(2)]
        named = model(ids[:, -1:], cache=caches[0]).logits
        with pytest.warns(FutureWarning, match="past_key_values"):
            assert torch.equal(model(ids[:, -1:], past_key_values=caches[1]).logits, named)


def test_a_forward_gives_a_tuple_where_it_is_asked_to(cheers, tiny_checkpoint):
    for model, processor in (cheers, load(tiny_checkpoint, "cpu")):
        ids = processor([[text_message("user", "What is it?")]])["input_ids"]
        expected = model(ids)
        logits, *_ = model(ids, return_dict=False)
        assert torch.equal(logits, expected.logits)
        loss, _ = model(ids, labels=ids, return_dict=False)[:2]
        assert torch.equal(loss, model(ids, labels=ids).loss)


def test_the_released_processor_puts_a_random_picture_before_conversations_without_one(cheers):
    model, plain = cheers
    released = CheersProcessor(plain.image_processor, plain.tokenizer, plain.num_positions, stand_in_picture=True)
    shown = [{"role": "user", "content": [{"type": "image", "image": red()}, {"type": "text", "text": "What is it?"}]}]
    words = [text_message("user", "Is there a dog?")]
    inputs, without = released([words, shown, words]), plain([words, shown, words])
    placeholders = [model.config.image_token_id] * model.config.num_positions
    for number, first in enumerate((placeholders, [], placeholders)):
        rows = [i["input_ids"][number][i["attention_mask"][number] == 1].tolist() for i in (inputs, without)]
        assert rows[0] == first + rows[1]
    pixels = inputs["pixel_values"]
    assert torch.equal(pixels[1:2], without["pixel_values"]) and torch.equal(pixels[0], pixels[2])
    assert torch.equal(pixels[0], released.for_drawing([APPLE])["pixel_values"][0])
    assert released.prompt_length(words) == len(placeholders) + plain.prompt_length(words)
    assert released.prompt_length(shown) == plain.prompt_length(shown)
    together = answer_batch(model, released, [words, shown])
    assert together == [answer_batch(model, released, [asked])[0] for asked in (words, shown)]
    asked = Asked("a task", words, [], {})
    ((loss, _),) = continuation_losses(model, released, [(asked, "yes")], 1)
    sample = released.conversation([*words, text_message("assistant", "yes")])
    ids = torch.tensor([placeholders + sample.input_ids])
    labels = ids.where(torch.tensor([[False] * len(placeholders) + sample.is_target]), -100)
    with torch.no_grad():
        own = model(ids, pixels[:1], labels=labels, t=torch.ones(1)).losses["text"]
    assert loss == pytest.approx(own.item(), abs=1e-5)


def test_prompts_for_drawing_end_where_the_picture_begins(cheers):
    _, processor = cheers
    inputs = processor.for_drawing([APPLE, DOGS])
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert inputs["input_ids"][:, -1].tolist() == [processor.conversation.ids["image_start"]] * 2
    ids = processor([[{"role": "user", "content": [{"type": "image", "image": red()}]}]])["input_ids"][0].tolist()
    start = ids.index(processor.conversation.ids["image_start"])
    assert ids[start + 1 : start + 5] == [processor.conversation.ids["image"]] * 4


@pytest.mark.parametrize("family", ["tiny_checkpoint", "tiny_cheers"])
def test_processors_are_called_as_transformers_calls_them(request, family):
    processor = AutoProcessor.from_pretrained(request.getfixturevalue(family))
    image = {"type": "image", "image": red()}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": "What is in the picture?"}]}]
    other = [text_message("user", "Is there a dog?")]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text.count("<image>") == 1 and "<image>What is in the picture?" in text
    assert text == processor.tokenizer.apply_chat_template(flatten_content(messages), tokenize=False) + "<|assistant|>"
    without = processor.apply_chat_template([messages, other])
    assert [text[: len(without[0])], len(without)] == [without[0], 2] and len(text) > len(without[0])

    expected = processor([messages, other])
    options = {"add_generation_prompt": True, "tokenize": True, "return_tensors": "pt", "padding": True}
    found = processor.apply_chat_template([messages, other], **options)
    assert set(found) == set(expected) == {"input_ids", "attention_mask", "pixel_values"}
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    alone = processor(messages)["input_ids"]
    assert torch.equal(alone, processor([messages], return_tensors="pt")["input_ids"])
    assert torch.equal(processor.apply_chat_template(messages, return_dict=False, **options), alone)
    shorter = processor.apply_chat_template(messages, tokenize=True)["input_ids"]
    assert shorter.tolist()[0] == alone.tolist()[0][: shorter.shape[1]] and shorter.shape[1] < alone.shape[1]


@pytest.mark.parametrize("family", ["tiny_checkpoint", "tiny_cheers"])
def test_what_a_processor_would_not_heed_is_refused(request, family):
    processor = AutoProcessor.from_pretrained(request.getfixturevalue(family))
    messages = [text_message("user", "What is it?")]
    refused = {"truncation": True, "max_length": 10, "padding_side": "right", "padding": "max_length", "tools": []}
    for name, value in (refused | {"return_tensors": "np"}).items():
        for asked in (processor, processor.apply_chat_template):
            with pytest.raises(UserError, match=f"^the processor cannot be told {name}=.*leave it out$"):
                asked([messages], **{name: value})
    for wrong in ({"text": "What is it?", "images": red()}, {"conversations": "What is it?"}, {"conversations": []}):
        with pytest.raises(UserError, match=r"^the processor takes conversations, not text: processor\(\[messages\]\)"):
            processor(**wrong)
    assert processor(messages, padding="longest", tools=None, continue_final_message=False)["input_ids"].shape[0] == 1
    with pytest.raises(UserError, match="^a picture is missing"):
        processor([text_message("user", "What is it?", images=1)])


def test_a_batch_is_drawn_and_answered_as_one_by_one(cheers):
    together = draw(*cheers, [APPLE, DOGS, APPLE], [1, 2, 3])
    for prompt, seed, picture in zip([APPLE, DOGS, APPLE], [1, 2, 3], together, strict=True):
        (alone,) = draw(*cheers, [prompt], [seed])
        assert np.abs(np.asarray(alone, int) - np.asarray(picture, int)).max() <= 1  # sums of a batch round otherwise
    assert np.asarray(together[0]).tolist() != np.asarray(together[2]).tolist()
    questions = ["What is in the picture?", "Is there a dog in the image?"]
    asked = [
        [{"role": "user", "content": [{"type": "image", "image": red()}, {"type": "text", "text": question}]}]
        for question in questions
    ]
    assert answer_batch(*cheers, asked) == [answer(*cheers, red(), question) for question in questions]


def test_a_prompt_without_its_text_is_what_each_family_guides_with(cheers, tiny_checkpoint):
    messages = [text_message("user", APPLE), text_message("assistant", "", images=1)]
    model, processor = cheers
    whole, left = processor.conversation(messages), processor.conversation.without_text(messages)
    expected = without_text(model, torch.tensor([whole.input_ids]))[0].tolist()
    assert left.input_ids == expected and len(left) == len(whole)
    assert sum(left.is_target) == sum(whole.is_target) - 1  # all but the end of the answer
    other = AutoProcessor.from_pretrained(tiny_checkpoint)
    start = other.conversation.ids["image_start"]
    left = other.conversation.without_text(messages).input_ids
    assert left[: left.index(start) + 1] == other.for_drawing([APPLE])["unconditional_ids"].tolist()


def test_a_converted_folder_gets_a_processor_and_the_released_options(tiny_cheers, tmp_path, capsys):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_cheers / name, tmp_path / name)
    write_processor(tmp_path)
    model, processor = load(tmp_path, "cpu")
    assert choose_drawing(model, {}) == {"guidance_scale": 9.5, "num_steps": 80, "time_shift": 0.5}
    assert isinstance(processor, CheersProcessor) and processor.num_positions == 4
    assert processor.stand_in_picture and processor.image_processor.fit_on_black
    asked = [text_message("user", "Why?", images=1)]
    assert processor.conversation._render(flatten_content(asked), True) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<image>\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    drawn = [text_message("system", "s"), text_message("user", "a"), text_message("assistant", "", images=1)]
    assert processor.conversation._render(flatten_content(drawn), False) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<image><|im_end|>\n"
    )
    settings = json.loads((tmp_path / "config.json").read_text()) | {"no_text_token_id": 99}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    write_processor(tmp_path)
    assert "no processor was written, the text tokenizer cannot be used: its ids of no_text" in capsys.readouterr().out


def test_a_text_tokenizer_that_ends_before_the_tokens_of_pictures_gains_them(tmp_path, capsys):
    tokenizer = qwen_tokenizer()
    ids = {f"{role}_token_id": len(tokenizer) + i for i, role in enumerate(CheersProcessor.image_tokens)}
    tiny_config(**ids).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    write_processor(tmp_path)
    assert capsys.readouterr().out == ""
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert [processor.conversation.ids[role] for role in CheersProcessor.image_tokens] == list(ids.values())


def test_options_change_the_drawing_and_are_counted(cheers):
    model, processor = cheers
    steps = []
    first = draw(model, processor, [APPLE], on_step=lambda: steps.append(1), num_steps=3)[0]
    assert len(steps) == 3 == model.num_drawing_steps(choose_drawing(model, {"num_steps": 3}))
    assert first.tobytes() == draw(model, processor, [APPLE], [0], num_steps=3)[0].tobytes()
    for other in ({"num_steps": 4}, {"guidance_scale": 1.0}, {"time_shift": 0.5}):
        assert first.tobytes() != draw(model, processor, [APPLE], **{"num_steps": 3} | other)[0].tobytes(), other


def test_an_option_of_the_other_family_is_one_line(cheers, tiny_checkpoint):
    with pytest.raises(UserError, match=r"^this model cannot draw with top_k \(--top-k\), leave it out; it takes guid"):
        draw(*cheers, [APPLE], top_k=5)
    with pytest.raises(UserError, match=r"cannot draw with num_steps .*temperature \(--temperature\), top_k"):
        draw(*load(tiny_checkpoint, "cpu"), [APPLE], num_steps=5)


def test_an_option_that_a_checkpoint_has_by_mistake_is_told(tiny_checkpoint):
    model, _ = load(tiny_checkpoint, "cpu")
    assert choose_drawing(model, {"top_k": None}) == {"guidance_scale": 3.0, "temperature": 0.9, "top_k": 0}
    model.generation_config.drawing = {"guidance_scale": 2.0}
    assert choose_drawing(model, {})["guidance_scale"] == 2.0
    model.generation_config.drawing = {"guidance": 2.0}
    with pytest.raises(UserError, match="cannot draw with guidance, is in its generation_config.json"):
        choose_drawing(model, {})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("num_steps", "4", r"num_steps \(--num-steps\){} is '4'; it must be a whole number"),
        ("num_steps", 2.5, r"num_steps \(--num-steps\){} is 2.5; it must be a whole number"),
        ("guidance_scale", [3], r"guidance_scale \(--cfg-scale\){} is \[3\]; it must be a number"),
        ("time_shift", True, r"time_shift \(--time-shift\){} is True; it must be a number"),
    ],
)
def test_an_option_of_the_wrong_type_is_told_with_its_place(cheers, monkeypatch, name, value, words):
    model, processor = cheers
    with pytest.raises(UserError, match=f"^{words.format('')}$"):
        draw(model, processor, [APPLE], **{name: value})
    monkeypatch.setattr(model.generation_config, "drawing", {name: value})
    with pytest.raises(UserError, match=f"^{words.format(' of its generation_config.json')}$"):
        draw(model, processor, [APPLE])
    assert choose_drawing(model, {name: 2})[name] == 2


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("temperature", -1.0, r"temperature \(--temperature\){} is -1.0; it must be 0 or more"),
        ("temperature", 1e-30, r"temperature \(--temperature\){} is 1e-30, too small to divide by; 0 takes the .*"),
        ("top_k", -3, r"top_k \(--top-k\){} is -3; it must be 0 or more"),
    ],
)
def test_an_option_with_which_nothing_can_be_drawn_is_told(loaded, monkeypatch, name, value, words):
    model, processor = loaded
    with pytest.raises(UserError, match=f"^{words.format('')}$"):
        draw(model, processor, [APPLE], **{name: value})
    monkeypatch.setattr(model.generation_config, "drawing", {name: value})
    with pytest.raises(UserError, match=f"^{words.format(' of its generation_config.json')}$"):
        draw(model, processor, [APPLE])


@pytest.mark.parametrize("family", ["tiny_checkpoint", "tiny_cheers"])
def test_seeds_are_whole_numbers_one_for_each_prompt(request, family):
    model, processor = load(request.getfixturevalue(family), "cpu")
    options = {"num_steps": 1} if family == "tiny_cheers" else {}
    first, second = draw(model, processor, [APPLE, APPLE], np.array([3, 4]), **options)
    assert first.tobytes() != second.tobytes()
    assert first.tobytes() == draw(model, processor, [APPLE], [np.int64(3)], **options)[0].tobytes()
    wrong = [
        ([1], "1 seeds for 2 prompts; give one for each"), ([1, 2, 3], "3 seeds for 2 prompts"),
        ([], "0 seeds for 2 prompts"), ([1.5, 2], "the seeds are .*; they must be whole numbers"),
        ([1, 2**64], "the seed 18446744073709551616 is not within"),
    ]  # fmt: skip
    for seeds, words in wrong:
        with pytest.raises(UserError, match=f"^{words}"):
            draw(model, processor, [APPLE, DOGS], seeds, **options)


@pytest.mark.parametrize("family", ["tiny_checkpoint", "tiny_cheers"])
def test_weights_that_have_diverged_draw_nothing(request, family):
    model, processor = load(request.getfixturevalue(family), "cpu")
    with torch.no_grad():
        model.language_model.get_decoder().norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="^what the model computed is not finite, so nothing is drawn"):
        draw(model, processor, [APPLE], **({"num_steps": 1} if family == "tiny_cheers" else {}))


def test_without_a_prompt_nothing_is_drawn(cheers):
    with pytest.raises(UserError, match="there is no prompt"):
        draw(*cheers, [])


def test_one_text_is_no_list_of_prompts(cheers):
    with pytest.raises(UserError, match=r"^the prompts are one text: give a list of them, here \['a red apple'\]$"):
        draw(*cheers, "a red apple")


def test_a_picture_stands_before_its_prompt_and_the_drawing_begins_from_it(cheers, tiny_checkpoint, tmp_path):
    model, processor = cheers
    ids, blue = processor.conversation.ids, Image.new("RGB", (16, 16), "blue")
    for stands_in in (False, True):  # a conversation with a picture needs no other before it
        processor.save_pretrained(tmp_path)
        other = CheersProcessor.from_pretrained(tmp_path, stand_in_picture=stands_in)
        inputs = other.for_drawing([APPLE], [red()])
        asked = other([[{"role": "user", "content": [{"type": "image", "image": red()}, text(APPLE)]}]])
        length = asked["input_ids"].shape[1]
        assert torch.equal(inputs["input_ids"][:, :length], asked["input_ids"])
        assert inputs["input_ids"][0, -1] == ids["image_start"]
        assert torch.equal(inputs["pixel_values"], asked["pixel_values"])
        assert torch.equal(inputs["start_pictures"], asked["pixel_values"])
    two = draw(model, processor, [APPLE, DOGS], pictures=[red(), blue], start_time=0.5)
    alone = draw(model, processor, [DOGS], pictures=[blue], start_time=0.5)[0]
    assert np.abs(np.asarray(two[1], int) - np.asarray(alone)).max() <= 1
    own = draw(model, processor, [DOGS], pictures=[blue])[0]
    assert np.array_equal(own, draw(model, processor, [DOGS], pictures=[blue], start_time=0.1)[0])
    assert not np.array_equal(own, alone) and not np.array_equal(own, draw(model, processor, [DOGS])[0])
    steps = []
    draw(model, processor, [DOGS], None, lambda: steps.append(1), [blue], 0.5, num_steps=4)
    assert len(steps) == model.num_drawing_steps({"num_steps": 4, "start_time": 0.5}) == 2
    for options, message in (
        ({"start_time": 0.5}, "start_time is for drawings from a picture"),
        ({"pictures": [blue], "start_time": 1}, "start_time is 1; it must be at least 0"),
        ({"pictures": [blue, blue]}, "one for each prompt; there are 1 prompts"),
        ({"pictures": ["blue.png"]}, "a picture is given as str"),
        ({"prompts": ["word " * 60], "pictures": [blue]}, "is too long"),
    ):
        with pytest.raises(UserError, match=message):
            draw(model, processor, **{"prompts": [APPLE]} | options)
    with pytest.raises(UserError, match="^a unimllm model cannot draw from a picture; a cheers model can$"):
        draw(*load(tiny_checkpoint, "cpu"), [APPLE], pictures=[blue])


# ---- the commands ---------------------------------------------------------------------------------------------------


def test_generate_edits_a_picture_with_cheers(call, tiny_cheers, tiny_checkpoint, tmp_path):
    red().save(tmp_path / "red.png")
    common = ("--prompt", "make it green", "--image", tmp_path / "red.png", "--out")
    result = call(generate, *common, tmp_path / "a.png", "--model", tiny_cheers, "--start-time", 0.5, "--num-steps", 4)
    assert result.code == 0 and "2/2" in result.err
    assert "4/4" in call(generate, *common, tmp_path / "b.png", "--model", tiny_cheers).err  # 0.9 of its 5 steps
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()
    refused = call(generate, *common, tmp_path / "c.png", "--model", tiny_checkpoint).refusal()
    assert "a unimllm model cannot draw from a picture" in refused
    refused = call(generate, "--prompt", "x", "--out", tmp_path / "c.png", "--start-time", 0.5).refusal()
    assert "--start-time is for drawings from a picture" in refused
    assert "--start-time is 1.0; it must" in call(generate, *common, tmp_path / "c.png", "--start-time", 1).refusal()
    common = ("--prompt", "x", "--image", tmp_path / "none.png", "--out", tmp_path / "c.png")
    assert "no such picture" in call(generate, *common).refusal()


def test_chat_edits_the_picture_at_hand(call, tiny_cheers, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    red().save("red.png")
    lines = "/edit make it green\n/image red.png\n/edit make it green\n/draw make it green\n"
    result = call(chat, "--model", tiny_cheers, stdin=lines)
    assert "there is no picture to edit yet" in result.err and result.out.split() == ["drawing-1.png", "drawing-2.png"]
    assert Path("drawing-1.png").read_bytes() != Path("drawing-2.png").read_bytes()
    result = call(chat, "--model", tiny_checkpoint, "--image", "red.png", stdin="/edit make it green\n")
    assert "a unimllm model cannot draw from a picture" in result.err and result.out == ""


def test_generate_draws_with_cheers(call, tiny_cheers, tmp_path):
    common = ("--prompt", APPLE, "--model", tiny_cheers)
    result = call(generate, *common, "--out", tmp_path / "a.png", "--num-steps", 3)
    assert result.code == 0 and result.out == f"{tmp_path / 'a.png'}\n" and "3/3" in result.err
    assert "5/5" in call(generate, *common, "--out", tmp_path / "b.png").err  # the checkpoint's own
    call(generate, *common, "--out", tmp_path / "c.png", "--num-steps", 3, "--cfg-scale", 1)
    pictures = {(tmp_path / name).read_bytes() for name in ("a.png", "b.png", "c.png")}
    assert len(pictures) == 3 and Image.open(tmp_path / "a.png").size == (16, 16)
    refused = call(generate, *common, "--out", tmp_path / "new" / "d.png", "--temperature", 0.5).refusal()
    assert "cannot draw with temperature (--temperature), leave it out; it takes" in refused
    assert not (tmp_path / "new").exists()
    refused = call(generate, *common, "--out", tmp_path / "d.png", "--num-steps", 0).refusal()
    assert "argument --num-steps: '0' is not a whole number of 1 or more" in refused


def test_chat_talks_and_draws_with_cheers(call, tiny_cheers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    red().save("red.png")
    options = ("--image", "red.png", "--model", tiny_cheers)
    one = call(chat, *options, "--question", "What is in the picture?")
    assert one.code == 0 and one.err == "... (cut at 64 tokens; --max-new-tokens allows more)\n"
    several = call(chat, *options, stdin="What is in the picture?\n/draw a red apple\nIs there a dog?\n")
    assert several.code == 0 and several.out.startswith(one.out) and "drawing-1.png" in several.out
    assert Image.open("drawing-1.png").size == (16, 16)


def test_scenes_are_examined_with_cheers(tiny_cheers, fake_atlas, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(GlyphAtlas, "from_font", lambda names, font_path=None: fake_atlas)
    torch.manual_seed(0)
    config = SceneReaderConfig(image_size=16, class_names=CLASSES_24, widths=(4, 6, 8), num_blocks=(1, 1))
    SceneReader(config).save_pretrained(tmp_path / "reader")
    scenes = load_program("eval/scenes.py")
    options = ["--model", str(tiny_cheers), "--reader", str(tmp_path / "reader"), "--limit", "2", "--device", "cpu"]
    with pytest.raises(UserError, match="cannot draw with top_k"):
        scenes.main([*options, "--top-k", "2"])
    scenes.main([*options, "--num-steps", "2", "--json", str(tmp_path / "scores.json")])
    results = json.loads((tmp_path / "scores.json").read_text())
    assert results["sampling"] == {"guidance_scale": 3.0, "num_steps": 2, "time_shift": 1.0}
    assert results["geneval"] and results["pope"] and isinstance(results["psnr"], float)
    assert not {"num_positions", "flat_code_use"} & set(results) and "Code use" not in capsys.readouterr().out


def test_geneval_pictures_are_drawn_with_cheers(tiny_cheers, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    record = {"tag": "single_object", "include": [{"class": "apple", "count": 1}], "prompt": APPLE}
    prompts.write_text(json.dumps(record) + "\n")
    words = ["generate", "--model", str(tiny_cheers), "--prompts", str(prompts), "--out", str(tmp_path / "out")]
    load_program("eval/geneval.py").main([*words, "--images-per-prompt", "2", "--num-steps", "2"])
    assert len(list((tmp_path / "out").rglob("*.png"))) == 2
    settings = json.loads((tmp_path / "out" / "generation.json").read_text())
    assert settings["sampling"]["num_steps"] == 2


def test_the_losses_of_answers_are_those_of_the_model(cheers):
    """What lmms-eval's multiple choice asks for."""
    from unimllm.lmms_eval_requests import Asked, continuation_losses, user_turn

    asked = Asked("question 0", user_turn("question 0", "What color is the apple?", [red()]))
    together = continuation_losses(*cheers, [(asked, "red"), (asked, "green")], 2)
    for words, (loss, _) in zip(("red", "green"), together, strict=True):
        ((alone, _),) = continuation_losses(*cheers, [(asked, words)], 1)
        assert loss == pytest.approx(alone, rel=1e-5)

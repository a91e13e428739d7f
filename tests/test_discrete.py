"""The discrete family: masks, legal slices, guidance, caches, batches, saving."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from semhitok import SemHiTokModel
from semhitok.configuration_semhitok import tiny_config as tiny_tokenizer
from unimllm import UniMLLMForConditionalGeneration
from unimllm.data.packing import PackedRow, stack_rows
from unimllm.discrete.configuration_unimllm import UniMLLMConfig, tiny_config
from unimllm.discrete.sampling import Sampler, filtered_probabilities, guide, pick
from unimllm.errors import UserError
from unimllm.training.sft import SftTask, exchange_image_tokenizer

PAD, END, USER, ASSISTANT, START, STOP, IMAGE = range(7)
OFFSET = 40  # the tiny config's text vocabulary
PICTURE = [OFFSET + 3, OFFSET + 29, OFFSET, OFFSET + 14]


def make(image_head: str = "factorised", **changes) -> UniMLLMForConditionalGeneration:
    torch.manual_seed(0)
    model = UniMLLMForConditionalGeneration(tiny_config(image_head=image_head, **changes)).double().eval()
    model.image_tokenizer.pixel.codebook.bend.data.normal_()
    model.image_tokenizer.pixel.codebook.initialized.fill_(True)
    return model


@pytest.fixture(params=["factorised", "flat"])
def model(request) -> UniMLLMForConditionalGeneration:
    return make(request.param)


def row(*ids: int) -> torch.Tensor:
    return torch.tensor([ids])


def test_ids_and_codes_are_a_bijection_and_others_are_refused(model):
    ids = torch.arange(OFFSET, OFFSET + 30)
    assert torch.equal(model.codes_to_ids(model.ids_to_codes(ids)), ids)
    with pytest.raises(ValueError, match="not all image ids"):
        model.ids_to_codes(torch.tensor([OFFSET - 1]))
    with pytest.raises(ValueError, match="not all image ids"):
        model.ids_to_codes(torch.tensor([OFFSET + 30]))


def test_an_image_id_enters_as_its_code_vectors_and_a_text_id_as_its_row(model):
    embeds = model.embed(row(10, PICTURE[0]))
    torch.testing.assert_close(embeds[0, 0], model.get_input_embeddings().weight[10])
    vectors = model.image_tokenizer.code_vectors(model.ids_to_codes(torch.tensor([PICTURE[0]])))
    torch.testing.assert_close(embeds[0, 1:], model.adapter(*(v.double() for v in vectors)))


def test_no_loss_on_the_question(model):
    """Changing a label where there is none changes nothing; gradients reach only what the answer needs."""
    ids = row(USER, START, *PICTURE, STOP, 11, ASSISTANT, 12, END)
    labels = torch.full_like(ids, -100)
    labels[0, -2:] = ids[0, -2:]
    outputs = model(ids, labels=labels)
    assert {name for name, value in outputs.losses.items() if value != 0} == {"text"}
    logits = model(ids).logits[0]
    expected = torch.nn.functional.cross_entropy(logits[-3:-1], ids[0, -2:])
    torch.testing.assert_close(outputs.loss, expected, check_dtype=False, rtol=1e-5, atol=1e-6)


def test_the_loss_of_a_picture_uses_image_codes_only(model):
    ids = row(USER, 11, ASSISTANT, START, *PICTURE, STOP, END)
    labels = torch.full_like(ids, -100)
    labels[0, 4:8] = ids[0, 4:8]
    outputs = model(ids, labels=labels)
    parts = {k for k, v in outputs.losses.items() if v != 0}
    assert parts == ({"semantic", "pixel"} if model.config.image_head == "factorised" else {"image"})
    outputs.loss.backward()
    head = model.get_output_embeddings().weight.grad  # tied to the embeddings, which the input ids do touch
    assert head is None or torch.equal(head[20:], torch.zeros_like(head[20:]))


def test_text_logits_never_hold_an_image_id(model):
    assert model(row(USER, START, *PICTURE, STOP, 11)).logits.shape[-1] == OFFSET


def test_the_flat_and_the_factorised_loss_agree_with_hand_computed_probabilities():
    model = make("factorised")
    hidden, tables = torch.randn(5, 16, dtype=torch.double), model.code_tables()
    codes = torch.tensor([[1, 0], [2, 2], [9, 1], [0, 0], [3, 1]])
    semantic = model.image_head.semantic(hidden).log_softmax(-1)
    losses = model.image_head.loss(hidden, codes, tables)
    expected = -sum(semantic[i, codes[i, 0]] for i in range(5))
    torch.testing.assert_close(losses["semantic"], expected, check_dtype=False, rtol=1e-5, atol=1e-5)
    total = 0.0
    for i, (k, j) in enumerate(codes.tolist()):
        logits = model.image_head.pixel_logits(hidden[i : i + 1], torch.tensor([k]), tables)
        assert logits.shape == (1, 3)
        total -= float(logits.log_softmax(-1)[0, j])
    assert float(losses["pixel"]) == pytest.approx(total, rel=1e-5)


def draw(model, rows, seeds, **kwargs) -> torch.Tensor:
    longest = max(len(r) for r in rows)
    ids = torch.tensor([[PAD] * (longest - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows])
    return model.generate(ids, attention_mask=mask, generation_mode="image", seeds=seeds, **kwargs)


def test_drawn_ids_are_image_ids_and_depend_on_the_seed_alone(model):
    prompt = [USER, 11, 12, ASSISTANT, START]
    ids = draw(model, [prompt], [5])
    assert ids.shape == (1, 4) and ids.min() >= OFFSET and ids.max() < OFFSET + 30
    assert torch.equal(ids, draw(model, [prompt], [5]))
    many = draw(model, [prompt] * 30, list(range(30)))
    assert len({tuple(r) for r in many.tolist()}) > 20
    assert model.decode_image_tokens(ids).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_a_batch_of_different_prompts_equals_each_alone(model, scale):
    rows = [[USER, 11, ASSISTANT, START], [USER, 12, 13, 14, 15, ASSISTANT, START], [USER, 16, 17, ASSISTANT, START]]
    options = {"guidance_scale": scale, "unconditional_ids": torch.tensor([USER, ASSISTANT, START])}
    together = draw(model, rows, [1, 2, 3], **options)
    for number, prompt in enumerate(rows):
        assert torch.equal(together[number : number + 1], draw(model, [prompt], [number + 1], **options))


def test_prompts_that_no_picture_can_follow_are_refused(model):
    ids = torch.tensor([[USER, 11, ASSISTANT, START], [USER, START, PAD, PAD]])
    with pytest.raises(ValueError, match="a prompt is empty or ends with padding; pad on the left"):
        model.generate(ids, attention_mask=(ids != PAD).long(), generation_mode="image")
    with pytest.raises(ValueError, match="there is no prompt"):
        model.generate(ids[:0], generation_mode="image")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"guidance_scale": float("nan")}, "guidance_scale is nan; it must be a number"),
        ({"temperature": -1.0}, "temperature is -1.0; it must be 0 or more"),
        ({"temperature": 1e-45}, "too small to divide by"),
        ({"top_k": -1}, "top_k is -1; it must be 0 or more"),
        ({"top_k": 2.5}, "top_k is 2.5; it must be a whole number"),
        ({"seeds": [1, 2]}, "2 seeds for 1 prompts; give one for each"),
        ({"temperatur": 1.0}, "cannot draw with temperatur, leave it out; it takes guidance_scale"),
    ],
)
def test_impossible_drawings_are_refused(model, options, words):
    with pytest.raises(ValueError, match=words):
        model.generate(row(USER, START), generation_mode="image", **options)


def test_logits_that_are_not_finite_are_remembered():
    sampler = Sampler([1], 3, 1.0, 1.0, 0, "cpu")
    for logits, expected in ((0.0, True), (float("inf"), False), (0.0, False)):
        sampler.draw(torch.full((1, 4), logits))
        assert bool(sampler.is_finite) is expected


def test_guidance_scale_one_is_no_guidance(model):
    logits = torch.randn(6, 9)
    torch.testing.assert_close(guide(logits, 1.0), logits[:3].log_softmax(-1))
    prompt = [USER, 11, 12, ASSISTANT, START]
    unconditional = torch.tensor([USER, ASSISTANT, START])
    plain = draw(model, [prompt] * 4, [1, 2, 3, 4])
    assert torch.equal(
        plain, draw(model, [prompt] * 4, [1, 2, 3, 4], guidance_scale=1.0, unconditional_ids=unconditional)
    )
    close = draw(model, [prompt] * 4, [1, 2, 3, 4], guidance_scale=1.0 + 1e-9, unconditional_ids=unconditional)
    assert torch.equal(plain, close)


def test_cached_drawing_equals_drawing_without_a_cache(model):
    prompt = [USER, 11, 12, ASSISTANT, START]
    cached = draw(model, [prompt], [7])[0]
    sampler = Sampler([7], 8, 1.0, 1.0, 0, "cpu")
    ids = torch.tensor([prompt])
    for expected in cached:
        hidden = model.language_model.get_decoder()(inputs_embeds=model.embed(ids)).last_hidden_state[:, -1]
        drawn = model.codes_to_ids(model.image_head.sample(hidden, model.code_tables(), sampler))
        assert drawn == expected
        ids = torch.cat([ids, drawn.unsqueeze(0)], 1)


def test_cached_text_equals_uncached_and_stays_text(model):
    ids = row(USER, START, *PICTURE, STOP, 11, ASSISTANT)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": PAD, "eos_token_id": END}
    cached = model.generate(ids, **options)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **options))
    assert not set(cached[0, ids.shape[1] :].tolist()) & {START, STOP, IMAGE}
    assert cached[:, ids.shape[1] :].max() < OFFSET


@pytest.mark.parametrize("attention", ["sdpa", "eager", "varlen"])
def test_text_from_a_cache_of_fixed_length_is_the_same(attention):
    model = make()
    model.language_model.set_attn_implementation(attention)
    ids = torch.tensor([[PAD, PAD, USER, 11, ASSISTANT], [USER, 12, 13, 14, ASSISTANT]])
    options = {"attention_mask": (ids != PAD).long(), "max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    expected = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, cache_implementation="static", **options), expected)


def test_states_of_all_layers_are_returned_where_they_are_asked_for(model):
    ids, layers = row(USER, 11, ASSISTANT), model.config.text_config.num_hidden_layers
    outputs = model(ids, output_hidden_states=True)
    assert len(outputs.hidden_states) == layers + 1 and outputs.attentions is None
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    assert len(model(ids, labels=ids, output_hidden_states=True).hidden_states) == layers + 1
    model.language_model.set_attn_implementation("eager")
    asked = {"return_dict_in_generate": True, "output_hidden_states": True, "output_attentions": True}
    found = model.generate(inputs=ids, max_new_tokens=2, eos_token_id=None, **asked)
    assert [len(step) for step in found.hidden_states] == [layers + 1] * 2
    assert found.attentions[0][0].shape[-2:] == (3, 3)
    assert model(ids).hidden_states is None


def test_ids_are_needed_and_told_apart(model):
    vectors = model.embed(row(USER, 11, ASSISTANT))
    for asked in (model, model.generate):
        with pytest.raises(ValueError, match="^inputs_embeds cannot be read: .*; give input_ids$"):
            asked(inputs_embeds=vectors)
        with pytest.raises(ValueError, match="^no ids were given; give input_ids$"):
            asked()
    with pytest.raises(ValueError, match="^input_ids and inputs were given; give input_ids$"):
        model.generate(row(USER), inputs=row(USER))


def test_text_of_a_padded_batch_equals_each_alone(model):
    rows = [[USER, 11, ASSISTANT], [USER, START, *PICTURE, STOP, 12, ASSISTANT]]
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": PAD, "eos_token_id": END}
    ids = torch.tensor([[PAD] * 6 + rows[0], rows[1]])
    mask = (ids != PAD).long()
    together = model.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :]
    for number, prompt in enumerate(rows):
        alone = model.generate(torch.tensor([prompt]), **options)[:, len(prompt) :]
        assert torch.equal(alone[0], together[number, : alone.shape[1]])


def test_packed_rows_give_each_sample_the_loss_it_has_alone(model):
    first, second = [USER, 11, ASSISTANT, START, *PICTURE, STOP, END], [USER, 12, 13, ASSISTANT, 14, END]
    packed = torch.tensor([first + second])
    positions = torch.tensor([[*range(len(first)), *range(len(second))]])
    labels = packed.clone()
    labels[0, [0, len(first)]] = -100
    together = model(packed, labels=labels, position_ids=positions, num_items=1.0).loss
    alone = sum(model(torch.tensor([s]), labels=torch.tensor([s]), num_items=1.0).loss for s in (first, second))
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)


def test_branches_give_each_question_the_loss_it_has_alone(model):
    picture = [USER, START, *PICTURE, STOP]
    questions = [[11, ASSISTANT, 12, END], [13, 14, ASSISTANT, 15, END]]
    targets = [[False, False, True, True], [False, False, False, True, True]]
    row = PackedRow(32, pad_id=0)
    assert row.add([USER, 12, 13], [False, False, True])
    assert row.add_branches(picture, [False] * len(picture), list(zip(questions, targets, strict=True)))
    together = model(**stack_rows([row], with_mask=True), num_items=1.0).loss
    alone = model(torch.tensor([[USER, 12, 13]]), labels=torch.tensor([[-100, -100, 13]]), num_items=1.0).loss
    for question, target in zip(questions, targets, strict=True):
        labels = [-100] * len(picture) + [i if t else -100 for i, t in zip(question, target, strict=True)]
        alone += model(torch.tensor([picture + question]), labels=torch.tensor([labels]), num_items=1.0).loss
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)


def test_placeholders_take_the_pictures_codes_in_order(model):
    pictures = torch.rand(2, 3, 16, 16, dtype=torch.double) * 2 - 1
    ids = row(USER, START, *[IMAGE] * 4, STOP, 11, START, *[IMAGE] * 4, STOP)
    placed = model.place_images(ids, pictures)
    assert torch.equal(placed[0, [2, 3, 4, 5, 9, 10, 11, 12]], model.get_image_tokens(pictures).flatten())
    with pytest.raises(ValueError, match="8 image placeholders but 1 pictures of 4 positions"):
        model.place_images(ids, pictures[:1])


def test_targets_at_placeholders_are_the_pictures_codes(model):
    pixels = torch.rand(1, 3, 16, 16, dtype=torch.double) * 2 - 1
    ids = row(USER, START, *[IMAGE] * 4, STOP, END)
    placed = model.place_images(ids, pixels)
    assert model(ids, pixels, labels=ids).loss == model(placed, labels=placed).loss
    unread = ids.masked_fill(ids == IMAGE, -100)
    assert model(ids, pixels, labels=unread).losses.keys() == model(placed, labels=unread).losses.keys()
    assert model(ids, pixels, labels=unread).loss == model(placed, labels=unread).loss


def test_log_probabilities_are_those_of_the_heads_and_zero_where_there_is_no_target(model):
    """A drawn picture, then an answer: by hand, of each target its own head alone."""
    ids = row(USER, 11, ASSISTANT, START, *PICTURE, STOP, 12, END)
    labels = ids.clone()
    labels[0, [0, 1, 2, 3, 8]] = -100
    found = model.log_probs(ids, labels)
    hidden = model(ids).last_hidden_state[0]
    text, head, tables = model(ids).logits[0].log_softmax(-1), model.image_head, model.code_tables()
    expected = torch.zeros(10, dtype=torch.double)
    for place, (semantic, pixel) in enumerate(model.ids_to_codes(torch.tensor(PICTURE)).tolist(), 3):
        state = hidden[place : place + 1]
        if model.config.image_head == "flat":
            expected[place] = head.proj(state).log_softmax(-1)[0, PICTURE[place - 3] - OFFSET]
        else:
            expected[place] = head.semantic(state).log_softmax(-1)[0, semantic]
            expected[place] += head.pixel_logits(state, torch.tensor([semantic]), tables).log_softmax(-1)[0, pixel]
    expected[8], expected[9] = text[8, 12], text[9, END]
    assert found.shape == (1, 10) and found.dtype == torch.float32
    torch.testing.assert_close(found[0], expected, check_dtype=False, rtol=1e-5, atol=1e-5)
    assert (found[0] == 0).tolist() == [True] * 3 + [False] * 4 + [True] + [False] * 2


def test_log_probabilities_add_up_to_the_loss_with_its_gradients(model):
    pixels = torch.rand(1, 3, 16, 16, dtype=torch.double) * 2 - 1
    ids = torch.tensor(
        [[USER, 11, ASSISTANT, START, *[IMAGE] * 4, STOP, END], [USER, 12, ASSISTANT, 13, END, *[PAD] * 5]]
    )
    labels = ids.masked_fill(
        torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 1, 1, 1, 1, 1]]).bool(), -100
    )
    batch = {"input_ids": ids, "labels": labels, "pixel_values": pixels, "attention_mask": (ids != PAD).long()}
    own, of_loss = -model.log_probs(**batch).sum() / (labels[:, 1:] >= 0).sum(), model(**batch).loss
    torch.testing.assert_close(own, of_loss, rtol=1e-6, atol=1e-6)
    trained = [p for p in model.parameters() if p.requires_grad]
    for a, b in zip(*(torch.autograd.grad(x, trained, allow_unused=True) for x in (own, of_loss)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_log_probabilities_of_a_batch_padded_on_either_side_equal_each_alone(model):
    rows = [[USER, 11, ASSISTANT, 12, END], [USER, START, *PICTURE, STOP, 12, ASSISTANT, 13, 14, END]]
    alone = [model.log_probs(torch.tensor([r]), torch.tensor([r]))[0] for r in rows]
    empty = [PAD] * (len(rows[1]) - len(rows[0]))
    for first in (empty + rows[0], rows[0] + empty):
        ids = torch.tensor([first, rows[1]])
        labels = ids.masked_fill(ids == PAD, -100)
        if first[0] == PAD:
            labels[0, len(empty)] = -100  # nothing comes before it
        found = model.log_probs(ids, labels, attention_mask=(ids != PAD).long())
        torch.testing.assert_close(found[0][found[0] != 0], alone[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[1], alone[1], rtol=1e-5, atol=1e-5)


def test_drawing_takes_the_codes_that_log_probabilities_call_likely(model):
    """Without guidance a drawing's own probabilities are those of `log_probs`, prompt padded on the left or not."""
    prompts = torch.tensor([[PAD, USER, 11, ASSISTANT, START], [USER, 11, 12, ASSISTANT, START]])
    mask = (prompts != PAD).long()
    seen = []
    plain = Sampler.draw

    def draw_and_note(self, logits):
        index = plain(self, logits)
        seen.append(logits.log_softmax(-1).gather(-1, index.unsqueeze(-1))[:, 0])
        return index

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Sampler, "draw", draw_and_note)
        drawn = model.generate(prompts, attention_mask=mask, generation_mode="image", seeds=[3, 4])
    ids = torch.cat([prompts, drawn], 1)
    labels = torch.cat([torch.full_like(prompts, -100), drawn], 1)
    found = model.log_probs(ids, labels, attention_mask=torch.nn.functional.pad(mask, (0, 4), value=1))[:, -4:]
    draws = 1 if model.config.image_head == "flat" else 2
    expected = torch.stack([sum(seen[i : i + draws]) for i in range(0, len(seen), draws)], 1)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


def test_code_vectors_get_no_gradient_whatever_from_pretrained_made_trainable(model):
    model.requires_grad_(True)
    ids = row(USER, START, *PICTURE, STOP, 11, END)
    model(ids, labels=ids).loss.backward()
    assert all(parameter.grad is None for parameter in model.image_tokenizer.parameters())
    assert model.adapter.pixel[0].weight.grad is not None


def test_save_and_load_is_bit_equal_and_the_tokenizer_opens_alone(model, tmp_path):
    model = model.float()
    model.save_pretrained(tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert isinstance(loaded, UniMLLMForConditionalGeneration)
    state = loaded.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    alone = SemHiTokModel.from_pretrained(tmp_path)
    assert all(torch.equal(v, alone.state_dict()[k]) for k, v in model.image_tokenizer.state_dict().items())


@pytest.mark.parametrize("head", ["factorised", "flat"])
def test_one_batch_is_learnt_by_heart(head):
    model = make(head).float()
    task = SftTask(model, {"text": 1.0}).train()
    ids = row(USER, 11, ASSISTANT, START, *PICTURE, STOP, END)
    labels = ids.clone()
    labels[0, :3] = -100
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(120):
        loss = task(num_items=torch.tensor(7.0), input_ids=ids, labels=labels)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    drawn = model.eval().generate(ids[:, :4], generation_mode="image", temperature=0)
    assert drawn.tolist() == [PICTURE]


def test_a_loaded_models_image_tokenizer_is_not_trained(model, tmp_path):
    model.save_pretrained(tmp_path)
    task = SftTask(UniMLLMForConditionalGeneration.from_pretrained(tmp_path), {"text": 1.0})
    trained = [name for name, p in task.named_parameters() if p.requires_grad]
    assert trained and not any(name.startswith("model.image_tokenizer.") for name in trained)


def test_a_model_goes_on_over_a_tokenizer_whose_code_vectors_moved(model, tmp_path):
    other = SemHiTokModel(model.config.image_tokenizer_config).double()
    before = model.embed(row(10, PICTURE[0]))
    exchange_image_tokenizer(model, other)
    after = model.embed(row(10, PICTURE[0]))
    assert torch.equal(before[0, 0], after[0, 0]) and not torch.equal(before[0, 1], after[0, 1])
    assert not any(p.requires_grad for p in model.image_tokenizer.parameters())
    model.save_pretrained(tmp_path)
    alone = SemHiTokModel.from_pretrained(tmp_path)
    assert all(torch.equal(v, alone.state_dict()[k]) for k, v in other.state_dict().items())
    with pytest.raises(UserError, match="num_pixel_codes 5, that of --init-from 3"):
        exchange_image_tokenizer(model, SemHiTokModel(tiny_tokenizer(num_pixel_codes=5)))


def test_sampling_by_hand():
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert filtered_probabilities(logits, 0, 0).tolist() == [[0, 0, 0, 1]]
    assert filtered_probabilities(logits, 1.0, 2)[0, :2].tolist() == [0, 0]
    probabilities = torch.tensor([[0.25, 0.25, 0.5]]).expand(5, 3)
    assert pick(probabilities, torch.tensor([0.0, 0.2, 0.3, 0.5, 0.999])).tolist() == [0, 0, 1, 2, 2]


def test_unknown_heads_and_modes_are_refused():
    with pytest.raises(ValueError, match="flat, factorised"):
        UniMLLMConfig(image_head="both")
    with pytest.raises(ValueError, match="text or image"):
        make().generate(row(1, 2), generation_mode="video")
    with pytest.raises(ValueError, match="unconditional_ids"):
        make().generate(row(1, 2), generation_mode="image", guidance_scale=2.0)

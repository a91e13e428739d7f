"""The CHEERS model: losses, reading, drawing, batches, caches, quirks, saving."""

from functools import partial

import pytest
import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

from unimllm import CheersForConditionalGeneration
from unimllm.cheers.configuration_cheers import tiny_config
from unimllm.cheers.sampling import Prompt, noise_of, without_text
from unimllm.flow_matching import path

PAD, END, USER, ASSISTANT, START, STOP, IMAGE, DRAWN, NO_TEXT = range(9)
READ, DRAW = [START, *[IMAGE] * 4, STOP], [START, *[DRAWN] * 4, STOP]


def make(**changes) -> CheersForConditionalGeneration:
    """A model in double precision whose zero-initialised parts are open, so that everything reaches the output."""
    torch.manual_seed(0)
    model = CheersForConditionalGeneration(tiny_config(**changes)).double().eval()
    for name, parameter in model.named_parameters():
        if "adaLN_modulation" in name or "hi_gate" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.vision_tokenizer.vae_model.bn.running_mean.normal_()
    model.vision_tokenizer.start_decoder()
    return model


@pytest.fixture
def model() -> CheersForConditionalGeneration:
    return make()


def row(*ids: int) -> torch.Tensor:
    return torch.tensor([ids])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=seeded(1), dtype=torch.double) * 2 - 1


def only(ids: torch.Tensor, *kept: int) -> torch.Tensor:
    """Labels that are -100 but for some ids."""
    return torch.where(torch.isin(ids, torch.tensor(kept)), ids, -100)


# ---- training -------------------------------------------------------------------------------------------------------


def test_losses_are_the_cross_entropy_and_the_mean_squared_error_of_the_velocity(model):
    ids = row(USER, *READ, 9, ASSISTANT, 10, *DRAW, END)
    pixels, t = pictures(2), torch.tensor([1.0, 0.3]).double()
    noise = torch.randn(2, 16, 4, 4, dtype=torch.double)
    outputs = model(ids, pixels, labels=only(ids, 10, END), t=t, noise=noise, loss_weights={"flow": 2.0})
    text = torch.nn.functional.cross_entropy(model(ids, pixels, t=t, noise=noise).logits[0, [8, 15]], row(10, END)[0])
    torch.testing.assert_close(outputs.losses["text"].double(), text, rtol=1e-5, atol=1e-6)
    target = model.vision_tokenizer.encode(pixels)[1] - noise[1]
    error = (outputs.velocities[0] - target).square().mean()
    torch.testing.assert_close(outputs.losses["flow"].double(), error, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(outputs.loss.double(), text + 2 * error, rtol=1e-5, atol=1e-6)


def test_counts_of_the_whole_step_replace_those_of_the_batch(model):
    ids, noise = row(USER, 10, *DRAW, END), torch.zeros(1, 16, 4, 4)
    options = {"labels": only(ids, 10), "t": torch.tensor([0.5]), "noise": noise}
    outputs = model(ids, pictures(1), **options)
    halved = model(ids, pictures(1), **options, num_items={"text": 2, "flow": 4})
    torch.testing.assert_close(halved.loss, outputs.losses["text"] / 2 + outputs.losses["flow"] / 4)


def test_reading_has_no_noise_and_drawing_has(model):
    ids = row(USER, *READ, 9, ASSISTANT, *DRAW)
    first, second = (model.look(pictures(2), model.to_draw(ids, 2), None, None) for _ in range(2))
    assert float(first.t[0]) == 1 and 0 <= float(first.t[1]) < 1
    assert torch.equal(first.positions[0], second.positions[0]) and first.targets[0].abs().max() == 0
    assert not torch.allclose(first.positions[1], second.positions[1])
    latents = model.vision_tokenizer.encode(pictures(2))
    torch.testing.assert_close(first.positions[0], model.vision_tokenizer(latents)[0][0])


def test_the_noisy_picture_is_what_the_language_model_reads(model):
    """Hidden states of a drawn picture, and so its velocity, depend on its own z_t and on the text before."""
    noise, t = torch.randn(1, 16, 4, 4), torch.tensor([0.4]).double()
    velocities = [
        model(ids, pixels, labels=only(ids, END), t=t, noise=noise).velocities
        for ids, pixels in (
            (row(USER, 9, *DRAW, END), pictures(1)),
            (row(USER, 9, *DRAW, END), -pictures(1)),
            (row(USER, 10, *DRAW, END), pictures(1)),
            (row(USER, 9, *DRAW, 11), pictures(1)),
        )
    ]
    assert not torch.allclose(velocities[0], velocities[1]) and not torch.allclose(velocities[0], velocities[2])
    torch.testing.assert_close(velocities[0], velocities[3])  # what comes later does not matter


def test_a_batch_without_pictures_touches_every_trainable_parameter(model):
    ids = row(USER, 9, ASSISTANT, 10, END)
    outputs = model(ids, labels=only(ids, 10, END))
    outputs.loss.backward()
    assert float(outputs.losses["flow"]) == 0
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    head = [p.grad.abs().max() for p in model.flow_head.parameters()]
    assert max(head) == 0


def test_packed_samples_equal_each_alone(model):
    rows = [row(USER, *READ, 9, END), row(USER, 10, 11, *DRAW, END)]
    noise, t = torch.randn(2, 16, 4, 4), torch.tensor([1.0, 0.6])
    alone = [model(ids, pictures(2)[[i]], t=t[[i]], noise=noise[[i]]).last_hidden_state for i, ids in enumerate(rows)]
    position_ids = torch.cat([torch.arange(ids.shape[1]) for ids in rows])[None]
    packed = model(torch.cat(rows, 1), pictures(2), position_ids=position_ids, t=t, noise=noise).last_hidden_state
    torch.testing.assert_close(packed, torch.cat(alone, 1))


def test_gradient_checkpointing_changes_no_number(model):
    ids, noise = row(USER, *READ, 9, ASSISTANT, 10, *DRAW, END), torch.randn(2, 16, 4, 4)
    options = {"labels": only(ids, 10, END), "t": torch.tensor([1.0, 0.3]), "noise": noise}
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model.train()(ids, pictures(2), **options).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
        model.gradient_checkpointing_enable()
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("part", ["text", "flow"])
def test_one_batch_can_be_learnt_by_heart(part):
    torch.manual_seed(0)
    model = CheersForConditionalGeneration(tiny_config())
    ids = row(USER, *READ, 9, ASSISTANT, 10, 11, END) if part == "text" else row(USER, 9, *DRAW, END)
    inputs = {"labels": only(ids, 10, 11, END), "t": torch.tensor([1.0 if part == "text" else 0.5])}
    inputs |= {"noise": torch.randn(1, 16, 4, 4), "pixel_values": pictures(1).float()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(40):
        outputs = model(ids, **inputs)
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
        losses.append(float(outputs.losses[part]))
    assert losses[-1] < 0.05 * losses[0]


# ---- reading --------------------------------------------------------------------------------------------------------


def test_text_after_a_picture_comes_from_the_cache_as_without_it(model):
    prompt = row(USER, *READ, 9, ASSISTANT)
    ids = model.generate(prompt, pictures(1), attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False)
    for length in range(prompt.shape[1], ids.shape[1]):
        logits = model(ids[:, :length], pictures(1)).logits[0, -1]
        logits[model.config.picture_token_ids] = -torch.inf
        assert int(logits.argmax()) == int(ids[0, length])


def test_a_cache_of_fixed_length_and_states_of_all_layers_are_as_transformers_has_them(model):
    prompt, layers = row(PAD, USER, *READ, 9, ASSISTANT), model.config.text_config.num_hidden_layers
    options = {"attention_mask": (prompt != PAD).long(), "max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    expected = model.generate(prompt, pictures(1), **options)
    assert torch.equal(model.generate(prompt, pictures(1), cache_implementation="static", **options), expected)
    asked = {"return_dict_in_generate": True, "output_hidden_states": True}
    found = model.generate(inputs=prompt, pixel_values=pictures(1), **asked, **options)
    assert torch.equal(found.sequences, expected) and [len(step) for step in found.hidden_states] == [layers + 1] * 3
    outputs = model(prompt, pictures(1), labels=only(prompt, 9), output_hidden_states=True)
    assert len(outputs.hidden_states) == layers + 1
    for asked in (model, model.generate):
        with pytest.raises(ValueError, match="^inputs_embeds cannot be read"):
            asked(inputs_embeds=model.embed(prompt, None))


def test_a_padded_batch_is_answered_like_each_row_alone(model):
    rows = [[USER, *READ, 9, ASSISTANT], [USER, *READ, 9, 10, 11, 12, ASSISTANT]]
    ids = torch.tensor([[PAD] * 3 + rows[0], rows[1]])
    mask = (torch.arange(ids.shape[1]) >= torch.tensor([[3], [0]])).long()
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    together = model.generate(ids, pictures(2), attention_mask=mask, **options)[:, -3:]
    for i, ids in enumerate(rows):
        alone = model.generate(row(*ids), pictures(2)[[i]], attention_mask=torch.ones(1, len(ids)), **options)
        assert torch.equal(alone[0, -3:], together[i])


def test_pictures_that_were_looked_at_before_are_answered_alike(model):
    prompt = row(USER, *READ, 9, ASSISTANT)
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 4, "do_sample": False}
    state = torch.get_rng_state()
    seen = model.get_image_tokens(pictures(1))
    assert torch.equal(torch.get_rng_state(), state)  # no noise is drawn, which t = 1 would weigh with nothing
    assert torch.equal(seen, model.look(pictures(1), torch.tensor([False]), None, None).positions)
    assert seen.shape == (1, 4, model.config.text_config.hidden_size)
    assert torch.equal(
        model.generate(prompt, image_tokens=seen, **options), model.generate(prompt, pictures(1), **options)
    )
    with pytest.raises(ValueError, match="4 image placeholders but 2 pictures"):
        model.generate(prompt, image_tokens=seen.repeat(2, 1, 1), **options)


def test_pictures_of_a_row_stay_together_where_it_is_answered_twice(model):
    rows = torch.tensor([[USER, *READ, *READ, ASSISTANT], [USER, *READ, *READ, 9]])
    ids, given = model._expand_inputs_for_generation(2, input_ids=rows, pixel_values=pictures(4), image_tokens=None)
    assert torch.equal(ids, rows[[0, 0, 1, 1]])
    assert torch.equal(given["pixel_values"], pictures(4)[[0, 1, 0, 1, 2, 3, 2, 3]])
    options = {"attention_mask": torch.ones_like(rows), "max_new_tokens": 3, "eos_token_id": None}
    twice = model.generate(rows, pictures(4), do_sample=True, top_k=1, num_return_sequences=2, **options)
    expected = model.generate(rows, pictures(4), do_sample=False, **options)
    assert torch.equal(twice, expected[[0, 0, 1, 1]])


def test_a_picture_is_read_again_where_there_is_no_cache(model):
    prompt = row(USER, *READ, 9, ASSISTANT)
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 3, "do_sample": False}
    expected = model.generate(prompt, pictures(1), **options)
    assert torch.equal(model.generate(prompt, pictures(1), use_cache=False, **options), expected)


def test_placeholders_are_no_targets_of_the_text(model):
    ids = row(USER, *READ, 9, ASSISTANT, 10, *DRAW, END)
    options = {"t": torch.tensor([1.0, 0.3]).double(), "noise": torch.zeros(2, 16, 4, 4, dtype=torch.double)}
    everything, masked = model(ids, pictures(2), labels=ids, **options), ids.masked_fill(model.is_picture(ids), -100)
    assert everything.loss == model(ids, pictures(2), labels=masked, **options).loss


def test_eager_attention_reads_alike(model):
    ids = row(USER, *READ, 9, ASSISTANT)
    expected = model(ids, pictures(1)).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(ids, pictures(1)).logits, expected)


@torch.no_grad()  # on a CPU it knows no gradients
@torch.compiler.set_stance("force_eager")  # a minute of compilation
def test_flex_attention_reads_and_draws_alike(model):
    ids, rows = row(USER, *READ, 9, ASSISTANT, 10, *DRAW, END), [[USER, 9, 10, START], [USER, 11, START]]
    options = {"t": torch.tensor([1.0, 0.3]), "noise": torch.zeros(2, 16, 4, 4)}
    packed = options | {"position_ids": torch.tensor([[*range(9), *range(8)]])}
    expected = [model(ids, pictures(2), **kwargs).logits for kwargs in (options, packed)]
    drawn = draw(model, rows, guidance_scale=3.0)
    model.set_attn_implementation("flex_attention")
    for kwargs, logits in zip((options, packed), expected, strict=True):
        torch.testing.assert_close(model(ids, pictures(2), **kwargs).logits, logits)
    torch.testing.assert_close(draw(model, rows, guidance_scale=3.0), drawn)


def test_placeholders_that_do_not_fit_the_pictures_are_refused(model):
    with pytest.raises(ValueError, match="3 image placeholders but 1 pictures of 4 positions.*give 4 image_token_id"):
        model(row(USER, IMAGE, IMAGE, IMAGE), pictures(1))


@pytest.mark.parametrize(
    "ids",
    [
        row(*READ, IMAGE, IMAGE, 9, IMAGE, IMAGE),
        row(*READ, IMAGE, IMAGE, DRAWN, DRAWN),
        torch.tensor([[*READ, 9, IMAGE, IMAGE], [IMAGE, IMAGE, 9, 9, 9, 9, 9, 9, END]]),
    ],
)
def test_a_picture_is_one_run_of_one_kind(model, ids):
    with pytest.raises(ValueError, match="^picture 2 of 2 is no run of 4 equal placeholders in one row; nothing may"):
        model(ids, pictures(2))


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ([(3, 16, 16), (3, 8, 8)], r"a list of \(3, 8, 8\), \(3, 16, 16\); give one tensor \(pictures, 3, 16, 16\)"),
        ((2, 3, 8, 8), r"\(8, 8\); resize to 16 x 16, which this model reads"),
        ((2, 1, 16, 16), r"\(2, 1, 16, 16\); pictures are \(pictures, 3, 16, 16\)"),
        ((3, 16, 16), r"\(3, 16, 16\); pictures are"),
    ],
)
def test_pictures_of_another_shape_are_refused_everywhere(model, shapes, words):
    pixels = [torch.zeros(shape) for shape in shapes] if isinstance(shapes, list) else torch.zeros(shapes)
    ids, drawing = row(*READ, *READ, START), {"generation_mode": "image", "num_steps": 1}
    for asked in (model, partial(model.generate, max_new_tokens=1), partial(model.generate, **drawing)):
        with pytest.raises(ValueError, match=f"^pixel_values are {words}"):
            asked(ids, pixel_values=pixels)
    with pytest.raises(ValueError, match=f"^start_pictures are {words}"):
        model.generate(row(USER, START).expand(2, -1), start_pictures=pixels, **drawing)
    with pytest.raises(ValueError, match="^image_tokens are a list; give one tensor"):
        model(ids, image_tokens=[torch.zeros(4, 16)] * 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"t": torch.ones(2)}, r"t is \(2,\); it is one time for each of 1 pictures"),
        ({"t": torch.tensor(0.5)}, r"t is \(\); it is one time"),
        ({"t": torch.tensor([3.0])}, r"t is \[3.0\]; times are between 0 \(noise\) and 1"),
        ({"t": torch.tensor([float("nan")])}, r"t is \[nan\]; times are"),
        ({"noise": torch.zeros(1, 16, 2, 2)}, r"noise is \(1, 16, 2, 2\); it is \(1, 16, 4, 4\), as the latents are"),
    ],
)
def test_times_and_noise_that_do_not_fit_the_pictures_are_refused(model, options, words):
    ids = row(USER, *DRAW)
    with pytest.raises(ValueError, match=f"^{words}"):
        model(ids, pictures(1), labels=only(ids), **options)


def test_placeholders_without_pictures_are_refused_everywhere(model):
    prompt = row(USER, *READ, 9, START)
    for asked in (model, partial(model.generate, max_new_tokens=1), partial(model.generate, generation_mode="image")):
        with pytest.raises(ValueError, match="4 image placeholders but 0 pictures of 4 positions"):
            asked(prompt)


# ---- drawing --------------------------------------------------------------------------------------------------------


def draw(model, rows: list[list[int]], **kwargs) -> torch.Tensor:
    longest = max(len(r) for r in rows)
    ids = torch.tensor([[PAD] * (longest - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows])
    return model.generate(
        ids, attention_mask=mask, generation_mode="image", num_steps=3, **{"guidance_scale": 1} | kwargs
    )


def test_drawings_depend_on_the_seed_and_the_prompt_and_decode_to_pictures(model):
    prompt = [USER, 9, ASSISTANT, START]
    latents = draw(model, [prompt], seeds=[5])
    assert latents.shape == (1, 16, 4, 4) and torch.equal(latents, draw(model, [prompt], seeds=[5]))
    assert not torch.allclose(latents, draw(model, [prompt], seeds=[6]))
    assert not torch.allclose(latents, draw(model, [[USER, 10, ASSISTANT, START]], seeds=[5]))
    drawn = model.decode_image_tokens(latents)
    assert drawn.shape == (1, 3, 16, 16) and drawn.abs().max() <= 1


@pytest.mark.parametrize("scale", [1.0, 9.5])
def test_pictures_that_were_looked_at_before_are_drawn_from_alike(model, scale):
    rows, seen = [[USER, *READ, 9, START], [USER, 10, START]], model.get_image_tokens(pictures(1))
    expected = draw(model, rows, pixel_values=pictures(1), guidance_scale=scale)
    assert torch.equal(draw(model, rows, image_tokens=seen, guidance_scale=scale), expected)
    assert not torch.allclose(draw(model, rows, image_tokens=-seen, guidance_scale=scale)[0], expected[0])
    with pytest.raises(ValueError, match="4 image placeholders but 2 pictures"):
        draw(model, rows, image_tokens=seen.repeat(2, 1, 1), guidance_scale=scale)


@pytest.mark.parametrize("scale", [1.0, 9.5])
def test_a_batch_of_different_prompts_equals_each_alone(model, scale):
    rows = [[USER, 9, START], [USER, 9, 10, 11, 12, ASSISTANT, START], [USER, 13, ASSISTANT, START]]
    together = draw(model, rows, seeds=[1, 2, 3], guidance_scale=scale)
    for i, prompt in enumerate(rows):
        alone = draw(model, [prompt], seeds=[i + 1], guidance_scale=scale)[0]
        torch.testing.assert_close(together[i], alone, rtol=1e-6, atol=1e-6)


def test_a_velocity_behind_the_cached_prompt_is_that_of_the_whole_sequence(model):
    """Also the second and third of them: a step leaves the cache as it was."""
    ids = row(USER, *READ, 9, ASSISTANT, START)
    prompt = Prompt(model, ids, torch.ones_like(ids), model.get_image_tokens(pictures(2)[:1]), 1.0)
    whole = torch.cat([ids, row(*DRAW[1:-1])], 1)
    noise = torch.randn(2, 16, 4, 4, dtype=torch.double)
    for time in (0.2, 0.7):
        t = torch.tensor([1.0, time]).double()
        x_t = path(noise, model.vision_tokenizer.encode(pictures(2)), t)[1:]
        expected = model(whole, pictures(2), labels=only(whole, END), t=t, noise=noise).velocities
        torch.testing.assert_close(prompt.velocity(x_t, t[1]), expected)


@pytest.mark.parametrize("name", ["MistralConfig", "Phi3Config", "Gemma2Config", "Qwen2Config"])
def test_language_models_that_look_back_through_a_window_read_and_draw_as_without_a_cache(name):
    """Windows that end within the prompt, within a picture and before it; the window is seen to matter."""
    sizes = {
        "vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 1,
        "bos_token_id": None, "use_sliding_window": True, "max_window_layers": 1, "layer_types": None,
    }  # fmt: skip
    if name == "Gemma2Config":
        sizes["layer_types"] = ["sliding_attention", "full_attention"]
    velocities = []
    for window in (3, 6, 60):
        text = getattr(transformers, name)(**sizes, sliding_window=window)
        model = make(text_config=text)
        ids = row(USER, *READ, 9, ASSISTANT, START)
        prompt = Prompt(model, ids, torch.ones_like(ids), model.get_image_tokens(pictures(2)[:1]), 1.0)
        whole = torch.cat([ids, row(*DRAW[1:-1])], 1)
        t, noise = torch.tensor([1.0, 0.4]).double(), torch.randn(2, 16, 4, 4, dtype=torch.double, generator=seeded(2))
        x_t = path(noise, model.vision_tokenizer.encode(pictures(2)), t)[1:]
        expected = model(whole, pictures(2), labels=only(whole, END), t=t, noise=noise).velocities
        for _ in range(2):
            torch.testing.assert_close(prompt.velocity(x_t, t[1]), expected)
        velocities.append(expected)
        asked = row(USER, *READ, 9, ASSISTANT)
        said = model.generate(asked, pictures(1), max_new_tokens=6, do_sample=False, eos_token_id=-1)
        again = model(said[:, :-1], pictures(1)).logits[:, asked.shape[1] - 1 :, :]
        again[..., model.config.picture_token_ids] = -torch.inf
        assert again.argmax(-1).tolist() == said[:, asked.shape[1] :].tolist()
    assert not torch.allclose(velocities[0], velocities[2])


def test_the_picture_goes_on_counting_where_its_prompt_ends(model):
    ids = torch.tensor([[PAD, PAD, USER, START], [USER, 9, 10, START]])
    prompt = Prompt(model, ids, torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]), None, 1.0)
    assert prompt.position_ids.tolist() == [[2, 3, 4, 5], [4, 5, 6, 7]]
    assert prompt.mask[:, 0, 0].int().tolist() == [[0, 0, 1, 1, 1, 1, 1, 1], [1] * 8]


def test_the_unconditional_prompt_keeps_pictures_and_their_borders_alone(model):
    ids = row(PAD, USER, *READ, 9, ASSISTANT, START)
    assert without_text(model, ids).tolist() == [[NO_TEXT, NO_TEXT, *READ, NO_TEXT, NO_TEXT, START]]


def test_guidance_leads_from_the_unconditional_to_the_conditional_velocity_and_beyond(model):
    ids, x_t, t = row(USER, 9, 10, START), torch.randn(1, 16, 4, 4, dtype=torch.double), torch.tensor(0.3)
    conditional, unconditional, guided = (
        Prompt(model, i, torch.ones_like(i), None, scale).velocity(x_t, t)
        for i, scale in ((ids, 1.0), (without_text(model, ids), 1.0), (ids, 3.0))
    )
    torch.testing.assert_close(guided, unconditional + 3 * (conditional - unconditional))
    assert not torch.allclose(conditional, unconditional)


def test_each_step_looks_at_the_latent_once_and_asks_the_language_model_once(model):
    calls = []
    model.vision_tokenizer.register_forward_hook(lambda m, inputs, out: calls.append(("look", len(inputs[0]))))
    model.flow_head.register_forward_hook(lambda m, inputs, out: calls.append(("flow", len(inputs[0]))))
    draw(model, [[USER, 9, START], [USER, 10, START]], guidance_scale=2.0)
    assert calls == [("look", 2), ("flow", 4)] * 3


def test_editing_begins_from_the_picture(model):
    clean = model.vision_tokenizer.encode(pictures(1))
    start = path(noise_of([3], (16, 4, 4)).double(), clean, torch.tensor([0.7]))
    prompt = Prompt(model, row(USER, START), torch.ones(1, 2, dtype=torch.long), None, 1.0)
    expected = start + 0.3 * prompt.velocity(start, torch.tensor(0.7))  # 3 * 0.3 is less than one step
    edited = draw(model, [[USER, START]], seeds=[3], start_pictures=pictures(1), start_time=0.7)
    torch.testing.assert_close(edited, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_steps": 0}, "steps"),
        ({"num_steps": "4"}, "num_steps is '4'; it must be a whole number"),
        ({"num_steps": 2.5}, "num_steps is 2.5; it must be a whole number"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan; it must be a number"),
        ({"guidance_scale": "3"}, "guidance_scale is '3'"),
        ({"start_time": 0.1}, "start_time is for drawings from a picture, and there is none"),
        ({"start_time": 1, "start_pictures": torch.zeros(1, 3, 16, 16)}, "start_time is 1; it must be at least 0"),
        ({"start_time": 5.0, "start_pictures": torch.zeros(1, 3, 16, 16)}, "start_time is 5.0; it must be at least 0"),
        ({"time_shift": "0.5"}, "time_shift is '0.5'"),
        ({"start_time": "0.1", "start_pictures": torch.zeros(1, 3, 16, 16)}, "start_time is '0.1'"),
        ({"time_shift": 0}, "shift"),
        ({"seeds": [1, 2]}, "2 seeds for 1 prompts"),
        ({"start_pictures": torch.zeros(3, 3, 16, 16)}, "3 start_pictures for 1 prompts"),
        ({"start_pictures": torch.zeros(1, 3, 24, 24)}, "resize to 16 x 16"),
        ({"num_stepz": 1}, "cannot draw with num_stepz, leave it out; it takes guidance_scale"),
        ({"guidance_scale": 1e300, "num_steps": 2}, "not finite, .* guidance_scale is far too large"),
    ],
)
def test_impossible_drawings_are_refused(model, options, words):
    with pytest.raises(ValueError, match=words):
        model.generate(row(USER, START), generation_mode="image", **options)


def test_prompts_that_no_picture_can_follow_are_refused(model):
    with pytest.raises(ValueError, match="there is no prompt"):
        model.generate(row(USER, START)[:0], generation_mode="image")
    for ids, mask in ((row(USER, START)[:, :0], None), (row(USER, START, 0), torch.tensor([[1, 1, 0]]))):
        with pytest.raises(ValueError, match="a prompt is empty or ends with padding; pad on the left"):
            model.generate(ids, attention_mask=mask, generation_mode="image")
    with pytest.raises(ValueError, match=r"ends with the id 1; end each with image_start_token_id \(4\)"):
        model.generate(row(USER, END), generation_mode="image")


def test_a_drawing_is_as_the_checkpoint_has_it_unless_told_otherwise(model):
    model.generation_config.drawing = {"guidance_scale": 2.0, "num_steps": 3, "time_shift": 0.5}
    ids = row(USER, 9, START)
    own = model.generate(ids, generation_mode="image")
    torch.testing.assert_close(own, draw(model, [[USER, 9, START]], guidance_scale=2.0, time_shift=0.5))
    other = model.generate(ids, generation_mode="image", guidance_scale=1.0, time_shift=1.0)
    torch.testing.assert_close(other, draw(model, [[USER, 9, START]], time_shift=1.0))
    assert not torch.allclose(own, other)


def test_an_unknown_mode_is_refused(model):
    with pytest.raises(ValueError, match="choose text or image"):
        model.generate(row(USER, START), generation_mode="sound")


# ---- quirks of the released code ------------------------------------------------------------------------------------


def test_the_released_sampler_goes_a_step_too_far():
    clean, released = make(), make(extra_euler_step=True)
    x = noise_of([0], (16, 4, 4)).double()
    prompt = Prompt(clean, row(USER, START), torch.ones(1, 2, dtype=torch.long), None, 1.0)
    for t, step in ((0.0, 0.5), (0.5, 0.5), (1.0, 1 / 3)):
        x = x + step * prompt.velocity(x, torch.tensor(t))
    torch.testing.assert_close(draw(released, [[USER, START]]), x, rtol=1e-6, atol=1e-6)


def test_the_released_rotary_frequencies_are_rounded_with_the_weights(tmp_path):
    ids = row(USER, 9, 10, 11, 12, 13)
    text_config = tiny_config().text_config
    text_config.rope_parameters = {"rope_type": "default", "rope_theta": 10.0}
    clean, released = (make(text_config=text_config, round_rotary_frequencies=rounds) for rounds in (False, True))
    assert torch.equal(released(ids).logits, clean(ids).logits)  # as the released code before it casts the weights
    for name, model in (("clean", clean), ("released", released)):
        model.save_pretrained(tmp_path / name)
    clean, released = (  # unlike `model.bfloat16()`, this keeps the frequencies in float32
        CheersForConditionalGeneration.from_pretrained(tmp_path / name, dtype=torch.bfloat16).eval()
        for name in ("clean", "released")
    )
    exact = clean(ids).logits
    rounded = torch.tensor([1.0, 0.5625, 81 / 256, 182 / 1024])  # 10 ** -(0, 1/4, 1/2, 3/4) to 8 bits
    clean.language_model.model.rotary_emb.inv_freq.copy_(rounded)
    expected = clean(ids).logits
    assert not torch.equal(exact, expected) and torch.equal(released(ids).logits, expected)
    parts = released.vision_tokenizer
    language_model = AutoModelForCausalLM.from_config(text_config).bfloat16()
    CheersForConditionalGeneration.from_parts(
        released.config, language_model, parts.vision_representation, parts.vae_model
    ).bfloat16()(ids)
    assert torch.equal(language_model.model.rotary_emb.inv_freq.float(), rounded)
    assert released.flow_head.gen_projector.is_rounded and released.flow_head.hi_projector.is_rounded


def test_the_released_loss_pulls_read_pictures_to_velocity_zero():
    ids, noise = row(USER, *READ, *DRAW, END), torch.randn(2, 16, 4, 4, dtype=torch.double)
    options = {"labels": only(ids, END), "t": torch.tensor([1.0, 0.5]).double(), "noise": noise}
    clean = make()(ids, pictures(2), **options)
    released = make(flow_loss_on_read_pictures=True)(ids, pictures(2), **options)
    assert len(clean.velocities) == 1 and len(released.velocities) == 2
    torch.testing.assert_close(released.velocities[1:], clean.velocities)
    expected = (released.velocities[0].square().mean() + clean.losses["flow"]) / 2
    torch.testing.assert_close(released.losses["flow"].double(), expected.double(), rtol=1e-5, atol=1e-6)


def test_a_leading_picture_is_read_causally_where_the_quirk_says_so():
    """Its first position then knows nothing of the others; behind text it does."""
    for leading, ids in ((True, row(*[IMAGE] * 4, USER, 9)), (False, row(USER, *[IMAGE] * 4, 9))):
        for quirk in (False, True):
            model = make(leading_picture_is_causal=quirk)
            positions = model.vision_tokenizer(model.vision_tokenizer.encode(pictures(1)))[0]
            changed = positions.clone()
            changed[:, -1] += 1
            place = 0 if leading else 1
            first, second = (model.read(ids, p, None).last_hidden_state[0, place] for p in (positions, changed))
            assert torch.allclose(first, second) == (quirk and leading)


# ---- the ablations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("switch", "to"), [("decode_before_siglip", False), ("linear_details", True), ("inject_details", False)]
)
def test_a_model_of_other_parts_trains_draws_and_comes_back(switch, to, tmp_path):
    model = make(**{switch: to})
    ids, noise = row(USER, *READ, 9, ASSISTANT, 10, *DRAW, END), torch.randn(2, 16, 4, 4, dtype=torch.double)
    options = {"labels": only(ids, 10, END), "t": torch.tensor([1.0, 0.3]).double(), "noise": noise}
    outputs = model(ids, pictures(2), **options)
    outputs.loss.backward()
    error = (outputs.velocities[0] - (model.vision_tokenizer.encode(pictures(2))[1] - noise[1])).square().mean()
    torch.testing.assert_close(outputs.losses["flow"].double(), error, rtol=1e-5, atol=1e-6)
    untouched = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    gate = {f"flow_head.hi_gate.gate.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")}
    assert untouched == (gate if switch == "inject_details" else set())
    drawn = draw(model, [[USER, 9, START]], guidance_scale=2.0)
    assert drawn.shape == (1, 16, 4, 4) and drawn.isfinite().all()
    model.save_pretrained(tmp_path)
    opened = AutoModel.from_pretrained(tmp_path, dtype=torch.double).eval()
    assert getattr(opened.config, switch) is to
    torch.testing.assert_close(draw(opened, [[USER, 9, START]], guidance_scale=2.0), drawn)


def test_a_model_of_trained_parts_may_go_without_the_decoder(model):
    vision = model.vision_tokenizer
    config = tiny_config(decode_before_siglip=False)
    taken = CheersForConditionalGeneration.from_parts(
        config, model.language_model, vision.vision_representation, vision.vae_model
    )
    assert taken.vision_tokenizer.vision_representation.embeddings.patch_embedding.weight.shape == (24, 16, 1, 1)
    assert draw(taken.double(), [[USER, 9, START]]).shape == (1, 16, 4, 4)


# ---- saving ---------------------------------------------------------------------------------------------------------


def test_a_saved_model_opens_through_the_auto_classes_bit_for_bit(tmp_path):
    model = make().float()
    model.vision_tokenizer.vae_model.bn.running_var.fill_(2.5)
    model.save_pretrained(tmp_path)
    ids = row(USER, *READ, 9, ASSISTANT)
    model.double()  # memory is aligned then: mapped from a file it is not, and kernels round otherwise
    for auto in (AutoModel, AutoModelForImageTextToText):
        opened = auto.from_pretrained(tmp_path, dtype=torch.double)
        assert type(opened) is CheersForConditionalGeneration
        assert opened.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in opened.state_dict().items())
        assert torch.equal(draw(opened.eval(), [[USER, 9, START]]), draw(model, [[USER, 9, START]]))
        assert torch.equal(opened(ids, pictures(1)).logits, model(ids, pictures(1)).logits)
    assert opened.get_output_embeddings().weight is opened.get_input_embeddings().weight


def test_a_new_model_begins_with_closed_blocks_and_a_closed_gate():
    head = CheersForConditionalGeneration(tiny_config()).flow_head
    zeros = [head.hi_gate.gate[-1]] + [b.adaLN_modulation[-1] for b in head.gen_projector.diffusion_head_a]
    assert all(p.abs().max() == 0 for module in zeros for p in module.parameters())
    assert head.gen_projector.diffusion_head_b.linear.weight.std() > 0.1


def test_trained_parts_are_taken_as_they_are(model):
    vision = model.vision_tokenizer
    taken = CheersForConditionalGeneration.from_parts(
        model.config, model.language_model, vision.vision_representation, vision.vae_model
    )
    assert taken.vision_tokenizer.vae_model is vision.vae_model and taken.language_model is model.language_model
    decoder = taken.vision_tokenizer.vae_decoder_projector.decoder.state_dict()
    expected = vision.vae_model.decoder.state_dict()
    assert all(torch.equal(value.double(), expected[name]) for name, value in decoder.items())

"""Training CHEERS: rows of scenes with pixels, branches under its mask, targets counted apart, plans, the programs."""

import copy
import json
import re
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from llava_files import write_llava
from PIL import Image
from programs import Ended, run_program
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import SiglipVisionModel

import unimllm
from semhitok.image_processing_semhitok import to_pixel_values
from unimllm import CheersForConditionalGeneration
from unimllm.cheers.autoencoder import CheersVae
from unimllm.cheers.configuration_cheers import tiny_config
from unimllm.conversation import ConversationTokenizer
from unimllm.data.open_data import DataOptions, open_data
from unimllm.data.packing import PackedRow, stack_rows
from unimllm.data.sample_index import open_samples
from unimllm.data.sample_tokens import SampleTokenizer
from unimllm.data.survey import report, survey_samples
from unimllm.errors import UserError
from unimllm.flow_matching import time_shift
from unimllm.scenes import Renderer, World
from unimllm.scenes.conversations import PackedConversations
from unimllm.scenes.pictures import ScenePixels
from unimllm.scenes.text import sentences, train_text_tokenizer
from unimllm.training import checkpoint, cheers_family, loop
from unimllm.training.cheers_sft import CheersTask
from unimllm.training.families import family_of
from unimllm.training.language_options import check_options
from unimllm.training.language_plan import build_on_meta, language_model_plan
from unimllm.training.overrides import check_taken
from unimllm.training.plan import count
from unimllm.training.presets import PRETRAIN_PRESETS, SFT_PRESETS, VAE_PRESETS
from unimllm.training.start_model import freeze_language_model, start_model
from unimllm.vocabulary import CHEERS_TOKENS, IGNORE

PAD, END, USER, ASSISTANT, START, STOP, IMAGE, DRAWN, NO_TEXT = range(9)
READ = [START, *[IMAGE] * 4, STOP]
TESTS = Path(__file__).parent
beside_train = pytest.mark.skipif(
    not (TESTS.parent / "train").is_dir(), reason="train/ is not beside the tests (they run on an installed package)"
)


# ---- rows of scenes -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(fake_atlas) -> World:
    return World(fake_atlas, 16)


@pytest.fixture(scope="module")
def conversation(world) -> ConversationTokenizer:
    tokenizer = train_text_tokenizer(sentences(world, count=300), image_tokens=CHEERS_TOKENS)
    return ConversationTokenizer(tokenizer, 4, CHEERS_TOKENS)


def rows(world, conversation, **shares) -> PackedConversations:
    shares = {"drawing_share": 0.5, "text_drop": 0.0, "sequential_share": 0.2} | shares
    pictures = ScenePixels(Renderer(world.atlas, 16))
    return PackedConversations(world, conversation, pictures, 7, 50, 72, **shares, seed=0)


def test_rows_hold_the_pictures_of_their_scenes_in_reading_order(world, conversation):
    source = rows(world, conversation)
    batch = source(range(3))
    ids = conversation.ids
    assert int((batch["input_ids"] == ids["image"]).sum()) == 4 * len(batch["pixel_values"])
    shown = [scene for i in range(3) for _, scene in source.row(i)[1]]
    expected = to_pixel_values(Renderer(world.atlas, 16).render_batch(shown))
    assert torch.equal(batch["pixel_values"], expected) and batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_values"].is_contiguous()  # as pictures of files come; convolutions round by the layout
    assert torch.equal(source(range(1, 2))["input_ids"], batch["input_ids"][1:2])


def test_dropped_prompts_are_tokens_of_missing_text_and_as_long_as_prompts(world, conversation):
    batch = rows(world, conversation, drawing_share=1.0, text_drop=1.0)(range(2))
    ids = conversation.ids
    of_pictures = {ids[role] for role in ("image", "image_start", "image_end")}
    assert set(batch["input_ids"].flatten().tolist()) == {*of_pictures, ids["no_text"], ids["pad"]}
    assert set(batch["labels"].flatten().tolist()) == {*of_pictures, IGNORE}
    starts = (batch["input_ids"] == ids["image_start"]).nonzero()
    assert int(batch["position_ids"][tuple(starts[0])]) > 3  # not just the marks of a turn


# ---- the task -------------------------------------------------------------------------------------------------------


def make_model() -> CheersForConditionalGeneration:
    """In double precision, its zero-initialised parts open."""
    torch.manual_seed(0)
    model = CheersForConditionalGeneration(tiny_config()).double().eval()
    for name, parameter in model.named_parameters():
        if "adaLN_modulation" in name or "hi_gate" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def branching_batch() -> dict[str, torch.Tensor]:
    """A picture with two questions behind it, and a drawing."""
    row, answer = PackedRow(40, PAD), [False, False, False, True, True]
    row.add_branches(READ, [False] * 6, [([USER, 9, ASSISTANT, 10, END], answer), ([USER, 11, 3, 12, END], answer)])
    row.add([USER, 13, 14, ASSISTANT, *READ, END], [False] * 4 + [True] * 7)
    return stack_rows([row], with_mask=True)


def pictures(how_many: int) -> torch.Tensor:
    return torch.rand(how_many, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.double) * 2 - 1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_branch_and_a_sample_of_a_row_are_read_as_if_alone(attention):
    model = make_model()
    model.set_attn_implementation(attention)
    batch, pixels = branching_batch(), pictures(2)
    t, noise = torch.tensor([1.0, 0.4]).double(), torch.randn(2, 16, 4, 4, dtype=torch.double)
    ids = CheersTask(model, {}).mark_drawn(batch)["input_ids"]
    inputs = {"attention_mask": batch["attention_mask"], "position_ids": batch["position_ids"], "t": t, "noise": noise}
    together = model(ids, pixels, **inputs).last_hidden_state[0]
    first = [*range(6), *range(11, 16)]  # the picture, and the second question
    alone = model(ids[:, first], pixels[:1], t=t[:1], noise=noise[:1]).last_hidden_state[0]
    torch.testing.assert_close(together[first], alone)
    drawn = slice(16, 27)
    alone = model(ids[:, drawn], pixels[1:], t=t[1:], noise=noise[1:]).last_hidden_state[0]
    torch.testing.assert_close(together[drawn], alone)


@torch.no_grad()  # on a CPU it knows no gradients
@torch.compiler.set_stance("force_eager")  # a minute of compilation
def test_flex_attention_knows_branches():
    model, batch = make_model(), branching_batch()
    inputs = {"attention_mask": batch["attention_mask"], "position_ids": batch["position_ids"]}
    inputs |= {"t": torch.ones(2).double(), "noise": torch.zeros(2, 16, 4, 4).double()}
    expected = model(batch["input_ids"], pictures(2), **inputs).last_hidden_state
    model.set_attn_implementation("flex_attention")
    found = model(batch["input_ids"], pictures(2), **inputs).last_hidden_state
    torch.testing.assert_close(found, expected)


def test_pictures_that_are_targets_are_drawn_and_counted_apart():
    task, batch = CheersTask(make_model(), {"text": 1.0}), branching_batch()
    marked = task.mark_drawn(batch)
    assert (marked["input_ids"] == IMAGE).sum() == 4 and (marked["input_ids"] == DRAWN).sum() == 4
    assert marked["labels"][marked["labels"] != IGNORE].tolist() == [10, END, 12, END, START, END]
    assert task.count_targets(batch) == {"text": 6, "flow": 1}
    batch |= {"pixel_values": pictures(2)}
    once, again = (task.eval()(**batch) for _ in range(2))
    assert once == again and set(once) == {"loss", "text", "flow"}
    assert task.train()(**batch)["flow"] != once["flow"]
    sums = task.target_sums(batch, once)
    assert sums["text"].tolist() == [6 * float(once["text"]), 6] and float(sums["flow"][1]) == 1
    assert not any(p.requires_grad for p in task.model.image_tokenizer.parameters())


def test_alignment_holds_what_is_drawn_first_to_the_features_of_the_true_pictures():
    task, batch, pixels = CheersTask(make_model(), {}, 0.5).double().train(), branching_batch(), pictures(2)
    noise, t = torch.randn(2, 16, 4, 4, dtype=torch.double), torch.tensor([1.0, 0.4]).double()
    with torch.random.fork_rng():
        losses = task(pixel_values=pixels, t=t, noise=noise, **batch)
    losses["loss"].backward()
    outputs = task.model(**batch | task.mark_drawn(batch), pixel_values=pixels, t=t, noise=noise)
    features = task.alignment.vision_model(pixels[1:]).last_hidden_state
    variance, mean = torch.var_mean(features, -1, correction=0, keepdim=True)
    features = (features - mean) / (variance + 1e-5).sqrt()
    expected = (task.alignment.mlp(outputs.semantics) - features).square().mean()
    assert outputs.with_flow.tolist() == [False, True]
    torch.testing.assert_close(losses["alignment"].double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["loss"], outputs.loss + 0.5 * losses["alignment"])
    assert all(p.grad is None for p in task.alignment.vision_model.parameters())
    assert all(p.grad.any() for p in task.alignment.mlp.parameters())
    assert "alignment" not in task.eval()(pixel_values=pixels, t=t, noise=noise, **batch)


def test_alignment_is_with_pictures_where_siglip_reads_latents():
    config = tiny_config(decode_before_siglip=False)
    siglip = SiglipVisionModel(config.vision_config)
    model = CheersForConditionalGeneration.from_parts(config, None, copy.deepcopy(siglip), CheersVae(config.vae_config))
    task = CheersTask(model, {}, 1.0).train()
    seen = task.alignment.vision_model.embeddings.patch_embedding
    assert torch.equal(seen.weight, siglip.embeddings.patch_embedding.weight) and not seen.weight.requires_grad
    losses = task(**branching_batch(), pixel_values=pictures(2).float())
    losses["loss"].backward()
    assert losses["alignment"] > 0
    assert not any("pixel_embedding" in name for name in model.state_dict())
    recipe = SFT_PRESETS["scenes_64_cheers"]()
    with pytest.raises(UserError, match="SigLIP reads latents: .* train it with --alignment_weight 0"):
        cheers_family.make_task(CheersForConditionalGeneration(config), recipe)


def test_alignment_touches_its_weights_without_a_picture_too():
    task = CheersTask(make_model(), {}, 1.0).double().train()
    text = {"input_ids": torch.tensor([[USER, 9, 10, END]]), "labels": torch.tensor([[IGNORE, IGNORE, 10, END]])}
    losses = task(**text)
    losses["loss"].backward()
    assert losses["alignment"] == 0 and all(p.grad is not None for p in task.alignment.mlp.parameters())


@pytest.mark.parametrize("is_first_stage", [False, True])
def test_operations_of_a_step_are_those_that_torch_counts(is_first_stage):
    """But for the autoencoder's encoder, and for what the language model's mask hides."""
    model, batch, seen = make_model(), branching_batch(), pictures(2)
    if is_first_stage:
        freeze_language_model(model)
    task = CheersTask(model, {})
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as encoding:
        model.vision_tokenizer.encode(seen)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as step:  # it knows no flash attention on a CPU
        task(**batch, pixel_values=seen)["loss"].backward()
    counted = step.get_total_flops() - encoding.get_total_flops()
    assert task.flops_of(batch) == pytest.approx(counted, rel=0.05)


def test_times_of_training_may_lie_nearer_the_noise():
    task, batch = CheersTask(make_model(), {}, time_shift=0.4).double().train(), branching_batch()
    torch.manual_seed(0)
    t = task.shifted_times(batch, 2)["t"]
    torch.manual_seed(0)
    assert t[0] == 1 and t[1] == time_shift(torch.rand(2)[1], 0.4)  # the first is read
    assert CheersTask(make_model(), {}).shifted_times(batch, 2) == task.shifted_times(batch, 0) == {}
    given = {"t": torch.tensor([1.0, 0.9]).double(), "noise": torch.randn(2, 16, 4, 4).double()}
    losses = [task(pixel_values=pictures(2), **batch, **given)["flow"] for _ in range(2)]
    assert losses[0] == losses[1]


def test_weights_in_bf16_go_with_an_autoencoder_and_buffers_in_float32():
    """As DeepSpeed's bf16 engine leaves them."""
    task = CheersTask(make_model().float(), {})
    vae = {id(p) for p in task.model.image_tokenizer.parameters()}
    for parameter in task.parameters():
        if id(parameter) not in vae:
            parameter.data = parameter.data.bfloat16()
    outputs = task.train()(**branching_batch(), pixel_values=pictures(2).float())
    outputs["loss"].backward()
    assert torch.isfinite(outputs["loss"])


def test_latents_and_their_mixture_are_exact_under_autocast():
    """In bf16 a time near 1 would be off by more noise than is left."""
    model, pixels = make_model().float(), pictures(2).float()
    drawn, t, noise = torch.tensor([True, True]), torch.tensor([0.997, 0.3]), torch.randn(2, 16, 4, 4)
    seen = []
    model.vision_tokenizer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    exact = model.look(pixels, drawn, t, noise).targets
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.look(pixels, drawn, t, noise).targets, exact)
    assert torch.equal(*seen) and seen[0].dtype == torch.float32


def test_validation_sees_other_times_in_every_row_whatever_rows_share_a_batch():
    task, batch = CheersTask(make_model().eval(), {}), branching_batch()
    other = {name: value.clone() for name, value in batch.items()}
    other["input_ids"][0, 17] += 1
    both = {name: torch.cat([batch[name], other[name]]) for name in batch}
    first, second, together = map(task.fixed_noise, (batch, other, both))
    assert first["t"][0] == second["t"][0] == 1 and first["t"][1] != second["t"][1]
    for name, value in together.items():
        assert torch.equal(value, torch.cat([first[name], second[name]]))


def test_an_autoencoder_stays_precise_in_a_model_of_bf16(tiny_cheers):
    model, processor = unimllm.load(tiny_cheers, "cpu", dtype=torch.bfloat16)
    exact = unimllm.load(tiny_cheers, "cpu")[0]
    assert model.dtype == torch.bfloat16 and model.image_tokenizer.dtype == torch.float32
    pixels = pictures(1).float()
    assert torch.equal(model.image_tokenizer.encode(pixels), exact.image_tokenizer.encode(pixels))
    picture = processor.post_process_images(pixels)[0]
    question = {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "a dog"}]}
    inputs = processor([[question]])
    ids = torch.cat([inputs["input_ids"], torch.tensor([[model.config.image_start_token_id]])], 1)
    drawn = model.generate(ids, pixel_values=inputs["pixel_values"], generation_mode="image", num_steps=1)
    assert torch.isfinite(drawn).all() and drawn.dtype == torch.float32


def targets_of(task, micro_batches: list[dict]):
    counts = loop.count_targets(task, micro_batches)
    return loop.targets_of_step(counts, len(micro_batches), torch.device("cpu"))


def test_targets_of_a_step_are_counted_by_their_kinds(monkeypatch):
    monkeypatch.setattr(loop.dist, "get_world_size", lambda: 1)
    task = CheersTask(make_model(), {})
    text = {"input_ids": torch.tensor([[USER, 9, ASSISTANT, 10]]), "labels": torch.tensor([[-100, -100, -100, 10]])}
    assert targets_of(task, [branching_batch(), text]) == {"text": 3.5, "flow": 0.5}
    assert targets_of(task, [text, text]) == {"text": 1.0, "flow": 0.5}  # nothing drawn: 0 / 0.5 = 0
    one = Namespace(count_targets=lambda batch: 3)
    assert float(targets_of(one, [text, text])) == 3.0


@pytest.mark.parametrize("flow", [0, 2])
def test_a_loss_without_targets_is_not_told(flow, monkeypatch):
    """A step of texts alone has no flow loss; 0 would look like a perfect one."""

    class Engine:
        device, zero_optimization_stage = torch.device("cpu"), lambda self: 1

        def __call__(self, **_):
            return {name: torch.tensor(1.0) for name in ("loss", "text", "flow", "alignment")}

        def gradient_accumulation_steps(self):
            return 1

        def get_global_grad_norm(self):
            return 1.0

        def backward(self, loss):
            """No weights."""

        def step(self):
            """No weights."""

    monkeypatch.setattr(loop.dist, "get_world_size", lambda: 1)
    task = Namespace(count_targets=lambda batch: {"text": 3, "flow": flow}, kind_of_loss=CheersTask.kind_of_loss)
    values = loop.take_step(Engine(), task, iter([{}]), None, loop.Place(), loop.FaultLog())
    assert ("flow" in values) == ("alignment" in values) == bool(flow)
    assert {"loss", "text", "waited", "grad_norm"} <= set(values)


@pytest.mark.parametrize(
    ("freeze", "rate", "text", "flow"),
    [(lambda model: None, 5e-3, 0.2, 0.1), (freeze_language_model, 1e-2, 0.9, 0.05)], ids=["all", "first stage"],
)  # fmt: skip
def test_a_batch_of_scenes_is_learnt_by_heart(freeze, rate, text, flow, world, conversation):
    """Losses fall to so much of their beginning; in the first stage, where words stay, text by its marks alone."""
    torch.manual_seed(0)
    config = tiny_config()
    config.text_config.vocab_size, config.text_config.max_position_embeddings = len(conversation.tokenizer), 96
    for role in CHEERS_TOKENS:
        setattr(config, f"{role}_token_id", conversation.ids[role])
    model = CheersForConditionalGeneration(config)
    freeze(model)
    kept = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    task = CheersTask(model, {"text": 1.0}).train()
    batch = rows(world, conversation)(range(2))
    optimizer = torch.optim.Adam([p for p in task.parameters() if p.requires_grad], rate)
    seen = []
    for _ in range(70):
        torch.manual_seed(3)  # the same times and noise
        outputs = task(**batch, num_items={"text": 40.0, "flow": 3.0})
        optimizer.zero_grad()
        outputs["loss"].backward()
        optimizer.step()
        seen.append([float(outputs[part]) for part in ("text", "flow")])
    assert seen[-1][0] < text * seen[0][0] and seen[-1][1] < flow * seen[0][1]
    assert all(torch.equal(p, kept[name]) for name, p in model.named_parameters() if name in kept)


# ---- presets and plans ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "positions"), [(64, 16), (128, 64)])
def test_the_scenes_presets_are_the_other_family_s_but_for_their_pictures(size, positions):
    recipe, other = SFT_PRESETS[f"scenes_{size}_cheers"](), SFT_PRESETS[f"scenes_{size}"]()
    assert recipe.model.text_config.to_dict() == other.model.text_config.to_dict()
    assert recipe.model.vision_config.to_dict() == other.model.image_tokenizer_config.vision_config.to_dict()
    assert (recipe.num_scenes, recipe.world) == (other.num_scenes, other.world) and recipe.text_drop == 0.2
    assert recipe.model.vae_config.to_dict() == VAE_PRESETS[f"scenes_{size}_cheers"]().model.to_dict()
    assert recipe.model.num_positions == positions and 4 * positions == other.model.num_positions
    assert 4 * positions == recipe.model.latent_size**2 and recipe.world.image_size == size
    models = [build_on_meta(each) for each in (recipe, other)]
    assert type(models[0]) is CheersForConditionalGeneration
    for model, each in zip(models, (recipe, other), strict=True):
        assert f"{size} x {size} pixels" in language_model_plan("scenes", model, each, 8, None)


def test_the_paper_s_stages_have_a_plan_of_the_released_size():
    stages = {"align": PRETRAIN_PRESETS, "general": SFT_PRESETS, "refined": SFT_PRESETS, "sft": SFT_PRESETS}
    recipes = {stage: presets[f"cheers_1_5b_{stage}"]() for stage, presets in stages.items()}
    steps = [(r.train.max_steps, r.train.learning_rate, r.train.learning_rate_at(r.train.max_steps - 1)) for r in
             recipes.values()]  # fmt: skip
    assert [s[:2] for s in steps] == [(30_000, 1e-4), (60_000, 1e-4), (65_000, 4e-5), (30_000, 2e-5)]
    assert [last == rate for _, rate, last in steps] == [True, True, True, False]
    recipe = recipes["align"]
    model = build_on_meta(recipe)
    parts = {name: round(count(part) / 1e6, 1) for name, part in family_of(model.config).parts(model).items()}
    assert parts == {
        "language model": 1543.7, "SigLIP": 428.8, "compressor": 28.3, "decoder before SigLIP": 49.6,
        "flow head": 436.9, "image tokenizer": 84.0,
    }  # fmt: skip
    with torch.device("meta"):
        freeze_language_model(model)
        family_of(model.config).make_task(model, recipe)
    told = language_model_plan("align", model, recipe, 8, None)
    lines = {line[:28].strip(): line[28:].strip() for line in told.splitlines()}
    assert lines["picture"] == "512 x 512 pixels, 256 ids" and lines["image tokenizer"].endswith("frozen")
    assert lines["SigLIP"].endswith("frozen") and lines["flow head"].endswith("M  trained") and "time" not in lines
    assert lines["batch"].startswith("128 = 8 process(es) x 1 rows x 16 in turn")
    assert float(lines["pictures, 1 rows"].split()[0]) > 1


# ---- what a run starts from -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Namespace:
    """Folders of an autoencoder and of a SigLIP for each other."""
    folder, config = tmp_path_factory.mktemp("parts"), tiny_config()
    model = CheersForConditionalGeneration(config)
    model.image_tokenizer.save_pretrained(folder / "vae")
    SiglipVisionModel(config.vision_config).save_pretrained(folder / "teacher")
    return Namespace(vae=folder / "vae", teacher=folder / "teacher")


def test_a_new_model_takes_over_its_parts(parts, tiny_cheers):
    args = Namespace(preset="x", image_tokenizer=str(parts.vae), teacher=str(parts.teacher), init_from=None)
    vision = cheers_family.open_vision(args)
    model = cheers_family.build(tiny_config(), vision)
    for name, value in vision.vae.decoder.state_dict().items():
        assert torch.equal(model.vision_tokenizer.vae_decoder_projector.decoder.state_dict()[name], value)
    assert model.vision_tokenizer.vision_representation is vision.siglip
    args.image_tokenizer = str(tiny_cheers)  # a whole model has an autoencoder too
    expected = unimllm.load(tiny_cheers, "cpu")[0].image_tokenizer.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in cheers_family.open_vae(args).state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_tokenizer": "no/such/folder"}, "--image-tokenizer no/such/folder: no such folder"),
        ({"image_tokenizer": None}, "no checkpoint in runs/x/vae: .*train it with train/tokenizer.py --stage vae"),
        ({"image_tokenizer": "teacher"}, "holds a siglip_vision_model; CHEERS draws in the latents of a cheers_vae"),
        ({"teacher": None}, "--teacher: no checkpoint in runs/x/teacher"),
        ({"teacher": "vae"}, "--teacher: "),
    ],
)
def test_parts_that_are_none_are_one_line(changes, message, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = {"preset": "x", "init_from": None, "image_tokenizer": str(parts.vae), "teacher": str(parts.teacher)}
    changes = {name: str(getattr(parts, value or "", value)) if value else None for name, value in changes.items()}
    with pytest.raises(UserError, match=message) as told:
        cheers_family.open_vision(Namespace(**args | changes))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("preset", "options", "message"),
    [
        ("scenes_64", {"teacher": "x"}, "--teacher: an image tokenizer of codes has its SigLIP in it"),
        ("scenes_64_cheers", {"teacher": "x", "init_from": "y"}, "--teacher: the model of --init-from has its SigLIP"),
        ("scenes_64_cheers", {"codes": "x"}, "--codes: this family reads pictures"),
        ("scenes_64", {"time_shift": 0.4}, "--time_shift are for CHEERS"),
        ("scenes_64_cheers", {"lora_rank": 4}, "--lora_rank and --quantize_base are for models of codes"),
        ("scenes_64_cheers", {"attention": "flash_attention_2"}, "cannot let a picture see all of itself"),
        ("scenes_64_cheers", {"attention": "varlen"}, "cannot let a picture see all of itself"),
    ],
)
def test_options_of_the_other_family_are_one_line(preset, options, message):
    recipe = SFT_PRESETS[preset]()
    names = ("teacher", "init_from", "codes", "language_model", "image_tokenizer")
    args = Namespace(preset=preset, overrides={}, **dict.fromkeys(names) | options)
    for name in ("lora_rank", "attention", "time_shift"):
        setattr(recipe, name, options.get(name, getattr(recipe, name)))
    with pytest.raises(UserError, match=message):
        check_options(args, recipe)


def test_heads_follow_the_parts_unless_they_were_chosen():
    config, other = tiny_config(num_detail_heads=4, num_flow_key_value_heads=1), tiny_config()
    other.text_config.num_attention_heads = other.text_config.num_key_value_heads = 4
    other.vision_config.num_attention_heads = 3
    config.take_parts(other.text_config, other.vision_config, other.vae_config)
    assert config.flow_heads == (4, 4, 1)  # 1 was the parts' own, but chosen
    config.num_flow_key_value_heads = None
    assert config.flow_heads == (4, 4, 4)
    other.text_config.num_key_value_heads, config.num_detail_heads = 3, None  # SigLIP's 3, the language model's 4
    assert config.flow_heads == (4, 3, 1)
    model = CheersForConditionalGeneration(config)
    assert (model.config.num_semantic_heads, model.config.num_detail_heads) == (4, 3)
    assert model.config.num_flow_key_value_heads == 1
    other.vae_config.channel_multipliers = [1, 2, 4]
    with pytest.raises(ValueError, match="patch_size of vision_config is 4, but a latent position covers 8 pixels"):
        config.take_parts(other.text_config, other.vision_config, other.vae_config)


def test_the_first_stage_trains_what_lies_between_pictures_and_words(tiny_cheers):
    model = unimllm.load(tiny_cheers, "cpu")[0]
    freeze_language_model(model)
    task = CheersTask(model, {})
    trained = {name.split(".")[1:3][-1] for name, p in task.named_parameters() if p.requires_grad}
    flow_head = {name for name, _ in model.flow_head.named_children()}
    assert trained == {"und_projector", "model", *flow_head}  # "model": the language model's
    named = dict(task.named_parameters())
    trained = [name for name, p in named.items() if p.requires_grad and "language_model" in name]
    assert trained == ["model.language_model.model.embed_tokens.weight"]


def test_a_checkpoint_of_the_other_family_is_not_started_from(tiny_checkpoint):
    args = Namespace(preset="scenes_64_cheers", init_from=str(tiny_checkpoint), image_tokenizer=None, overrides={})
    with pytest.raises(UserError, match="holds a unimllm model, --preset scenes_64_cheers trains cheers: choose a"):
        start_model(args, SFT_PRESETS["scenes_64_cheers"](), None)


def test_a_trained_model_keeps_its_autoencoder(tiny_cheers, parts):
    options = {"init_from": str(tiny_cheers), "image_tokenizer": str(parts.vae), "overrides": {}}
    args = Namespace(preset="scenes_64_cheers", **options)
    with pytest.raises(UserError, match="draws in its own autoencoder's latents; leave it out"):
        start_model(args, SFT_PRESETS["scenes_64_cheers"](), None)


def test_pictures_are_prepared_as_the_checkpoint_has_them_and_drawn_ones_cropped(tiny_cheers, tmp_path, capsys):
    """Of the released model read on black, with another in the place of none."""
    processor = unimllm.load(tiny_cheers, "cpu")[1]
    folder = tmp_path / "released"
    shutil.copytree(tiny_cheers, folder)
    processor.image_processor.fit_on_black = processor.stand_in_picture = True
    processor.save_pretrained(folder)
    args = Namespace(preset="scenes_64_cheers", init_from=str(folder), image_tokenizer=None, overrides={})
    kept = start_model(args, SFT_PRESETS["scenes_64_cheers"](), None)[1]
    assert kept.image_processor.fit_on_black and kept.stand_in_picture and kept.num_positions == 4
    told = "pictures are prepared as the model of --init-from has them: fit_on_black, stand_in_picture"
    assert told in capsys.readouterr().out
    recipe = SFT_PRESETS["scenes_64_cheers"]()
    recipe.pad_to_square = True
    with pytest.raises(UserError, match="^--pad_to_square: the model of --init-from reads pictures onto black"):
        start_model(args, recipe, None)

    Image.new("RGB", (32, 16), "white").save(tmp_path / "wide.png")
    told = {"role": "user", "content": "<image>"}, {"role": "assistant", "content": "a wall"}
    lines = [{"image": "wide.png", "messages": told}, {"image": "wide.png", "caption": "a wall"}]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rendering = SampleTokenizer(kept.conversation, 64)
    pictures = cheers_family.sample_pictures(args, None, kept)
    options = DataOptions([str(tmp_path / "data.jsonl")], image_root=tmp_path)
    source = open_data(options, rendering, pictures, 64, 0.0, 0, 8, tmp_path / "index")[0]
    batch = source(range(1))
    is_drawn = batch["labels"][batch["input_ids"] == kept.conversation.ids["image"]].view(-1, 4)[:, 0] != IGNORE
    assert len(is_drawn) == len(batch["pixel_values"]) and set(is_drawn.tolist()) == {True, False}
    for picture, drawn in zip(batch["pixel_values"], is_drawn.tolist(), strict=True):
        assert picture[:, 0].eq(1 if drawn else -1).all() and picture[:, 8].eq(1).all()  # no bars around what is drawn


def test_words_behind_a_drawing_are_told_where_drawings_have_noise(tiny_cheers, tiny_checkpoint, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    turns = [("user", "a dog"), ("assistant", "<image>"), ("user", "<image>a dog"), ("assistant", "a dog")]
    told = [{"role": role, "content": text} for role, text in turns]
    lines = [{"messages": told[:n], "image": ["a.png"] * count} for n, count in ((2, 1), (4, 2))]
    lines.append({"messages": told[2:], "image": "a.png"})
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    index = open_samples(str(tmp_path / "data.jsonl"), None, None)
    for folder, numbers in ((tiny_cheers, [1]), (tiny_checkpoint, [])):
        processor = unimllm.load(folder, "cpu")[1]
        rendering = SampleTokenizer(processor.conversation, 64)
        found = survey_samples(index, rendering, lambda picture: None, "", strict=True)
        assert [number for number, *_ in found.findings] == numbers and (found.lengths > 0).all()
        assert ("words after a drawing: 1 used all the same" in report(index, found)) is bool(numbers)


def test_switches_without_weights_change_over_a_checkpoint_and_sizes_do_not(tiny_cheers, capsys):
    recipe = SFT_PRESETS["scenes_64_cheers"]()
    overrides = {"model.flow_loss_on_read_pictures": True, "model.inject_details": False, "model.compression": 1}
    options = {"init_from": str(tiny_cheers), "image_tokenizer": None, "overrides": overrides}
    config = start_model(Namespace(preset="scenes_64_cheers", **options), recipe, None)[0].config
    assert config.flow_loss_on_read_pictures and not config.inject_details and config.compression == 2
    told = capsys.readouterr().out
    assert "--model.flow_loss_on_read_pictures: False -> True, over the checkpoint's own\n" in told
    assert "--model.inject_details: True -> False, over the checkpoint's own\n" in told and "compression" not in told
    with pytest.raises(UserError, match="^--model.compression 1 is not to be had"):
        check_taken(overrides, config)
    del overrides["model.compression"]
    check_taken(overrides, config)
    assert not start_model(Namespace(preset="x", **options), recipe, None)[0].flow_head.inject_details


# ---- the programs ---------------------------------------------------------------------------------------------------


def losses(result: Ended) -> dict[int, str]:
    assert result.returncode == 0, result.stderr[-2000:]
    return {int(s): loss for s, loss in re.findall(r"step (\d+)/\d+ loss (\S+ text \S+ flow \S+)", result.stdout)}


def weights(output: Path) -> bytes:
    return (checkpoint.latest(output) / "model.safetensors").read_bytes()


@beside_train
@pytest.mark.timeout(3000)
def test_scenes_are_trained_on_from_nothing_and_resumed_bit_for_bit(tmp_path):
    program = TESTS / "cheers_scenes.py"
    straight = run_program(program, tmp_path / "parts", "--output-dir", tmp_path / "straight" / "sft")
    expected = losses(straight)
    assert list(expected) == [1, 2, 3] and "step 3/3 validation: scenes text" in straight.stdout
    assert re.search(r"validation: scenes text \S+ flow \S+\n", straight.stdout)
    stopped = tmp_path / "stopped" / "sft"
    shutil.copytree(tmp_path / "straight" / "sft", stopped)
    for step in (2, 3):
        shutil.rmtree(stopped / f"step-00000{step}")
    resumed = run_program(program, tmp_path / "parts", "--output-dir", stopped)
    assert "resuming from step-000001" in resumed.stdout
    assert losses(resumed) == {step: expected[step] for step in (2, 3)}
    assert weights(stopped) == weights(tmp_path / "straight" / "sft")
    model, processor = unimllm.load(tmp_path / "straight" / "sft", "cpu")
    assert unimllm.draw(model, processor, ["a photo of two dogs"], num_steps=2)[0].size == (16, 16)
    vae = CheersForConditionalGeneration.from_pretrained(checkpoint.latest(stopped)).image_tokenizer
    other = cheers_family.open_vae(Namespace(preset="x", image_tokenizer=str(tmp_path / "parts" / "vae")))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in vae.state_dict().items())


@beside_train
@pytest.mark.timeout(3000)
def test_a_llava_file_is_trained_on_under_zero_by_two_processes(tiny_cheers, tmp_path):
    data, settings = write_llava(tmp_path / "mine"), tmp_path / "settings.json"
    settings.write_text('{"zero_optimization": {"stage3_param_persistence_threshold": 0}}')  # else none is shared out
    command = [
        TESTS.parent / "train" / "sft.py", "--preset", "scenes_64_cheers", "--init-from", tiny_cheers, "--data", data,
        "--image-root", data.parent / "images", "--ratios", "2:2:1", "--max_length", 80, "--max-steps", 2,
        "--train.batch_size", 4, "--train.precision", "fp32", "--train.compile", "false", "--train.save_minutes", 0,
        "--train.num_threads", 1, "--train.picture_every", 0,
    ]  # fmt: skip
    told = {}
    for stage, options in ((2, []), (3, ["--deepspeed", settings])):
        options += ["--train.zero_stage", stage, "--output-dir"]
        output, stopped = tmp_path / f"whole-{stage}" / "sft", tmp_path / f"stopped-{stage}" / "sft"
        whole = losses(run_program(*command, *options, output, processes=2))
        assert list(whole) == [1, 2]
        shutil.copytree(output, stopped)
        shutil.rmtree(stopped / "step-000002")
        assert losses(run_program(*command, *options, stopped, processes=2)) == {2: whole[2]}
        assert weights(stopped) == weights(output)
        told[stage] = [float(loss) for step in whole.values() for loss in re.findall(r"\d+\.\d+", step)]
    assert told[3] == pytest.approx(told[2], abs=1e-3)

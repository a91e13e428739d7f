"""Training the autoencoder of CHEERS: its stage, the statistics of latents, its folder, its preset, mistakes."""

import math
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, SiglipVisionConfig, SiglipVisionModel

from semhitok.checkpoints import load_tokenizer
from semhitok.image_processing_semhitok import for_tokenizer
from semhitok.losses import PerceptualLoss, ReconstructionLosses
from semhitok.teacher import FrozenTeacher, Teacher
from unimllm import CheersConfig, CheersForConditionalGeneration
from unimllm.cheers.autoencoder import CheersVae, LatentStatistics, patch, unpatch
from unimllm.cheers.configuration_cheers import CheersVaeConfig
from unimllm.cheers.configuration_cheers import tiny_config as tiny_cheers
from unimllm.cheers.vae_stage import VaeStage, divergence
from unimllm.errors import UserError
from unimllm.image_tokenizer import load_image_tokenizer
from unimllm.training import vae_stages
from unimllm.training.config import TrainConfig
from unimllm.training.plan import build_on_meta, saved_bytes, tokenizer_plan
from unimllm.training.presets import VAE_PRESETS, TokenizerRecipe
from unimllm.training.presets.scenes import scenes_64_teacher


def tiny_vae(**changes) -> CheersVae:
    """16 x 16 pixels, 4 x 4 latent positions of 16 channels."""
    torch.manual_seed(0)
    sizes = {"channels": 8, "channel_multipliers": (1, 2), "num_blocks": 1, "latent_channels": 4, "num_groups": 0}
    return CheersVae(CheersVaeConfig(**(sizes | {"image_size": 16} | changes)))


def pictures(count: int) -> torch.Tensor:
    """Soft ones, (count, 3, 16, 16) in -1..1."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=16, mode="bilinear")


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory) -> Path:
    """A SigLIP of 16 pixels."""
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )
    folder = tmp_path_factory.mktemp("teacher")
    SiglipVisionModel(config).save_pretrained(folder)
    return folder


# ---- parts ----------------------------------------------------------------------------------------------------------


def test_the_divergence_by_hand():
    mean, variance = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.25])
    expected = 0.5 * (4 + 0.25 - 1 - math.log(0.25)) / 2  # the first is the standard normal itself
    assert float(divergence(mean, variance.log())) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (
            torch.zeros(1, 3, 15, 16),
            r"are \(1, 3, 15, 16\); pictures are \(B, 3, S, S\) with S a multiple of",
        ),
        (torch.zeros(3, 16, 16), "pictures are "),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "not floats in -1..1"),
    ],
)
def test_what_is_no_picture_is_refused(pictures, message):
    config = CheersVaeConfig(8, (1, 2), 1, 4, 2, num_groups=0, image_size=16)
    with pytest.raises(ValueError, match=message):
        CheersVae(config).encode(pictures)


def test_patches_and_back():
    latents = torch.arange(32.0).view(1, 2, 4, 4)
    patched = patch(latents, 2)
    assert patched[0, :, 0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23]  # channel, then row and column in the square
    assert torch.equal(unpatch(patched, 2), latents)


def test_statistics_are_those_of_all_batches_at_first_and_later_follow_the_last_ones():
    statistics, batches = LatentStatistics(3), torch.randn(4, 5, 3, 2, 2) * 3 + 1
    for batch in batches:
        statistics.update(batch)
    moments = batches.square().mean((1, 3, 4)) - batches.mean((1, 3, 4)).square()  # variance in each batch
    torch.testing.assert_close(statistics.running_mean, batches.mean((0, 1, 3, 4)))
    torch.testing.assert_close(statistics.running_var, moments.mean(0))
    statistics.num_batches_tracked.fill_(5000)
    before = statistics.running_mean.clone()
    statistics.update(torch.full((1, 3, 1, 1), 9.0))
    torch.testing.assert_close(statistics.running_mean, before + 0.01 * (9 - before))


def test_without_groups_there_are_no_norms_and_the_released_ones_keep_theirs():
    assert not any("norm" in name for name, _ in tiny_vae().named_parameters())
    assert "decoder.mid.attn_1.norm.weight" in tiny_vae(num_groups=4).state_dict()


# ---- the stage ------------------------------------------------------------------------------------------------------


def test_a_step_is_the_losses_of_a_sample_and_the_weighted_divergence():
    model = tiny_vae(pixels_from_zero=True)
    stage, pixels = VaeStage(model, ReconstructionLosses(), kl_weight=0.5), pictures(2)
    torch.manual_seed(3)
    losses = stage(pixels)
    torch.manual_seed(3)
    mean, log_variance = model.moments(pixels).chunk(2, 1)
    drawn = model.draw(mean + (0.5 * log_variance).exp() * torch.randn_like(mean))
    expected = ReconstructionLosses()(drawn, pixels, model.decoder.conv_out.weight)
    torch.testing.assert_close(losses["l1"], expected["l1"])
    torch.testing.assert_close(losses["kl"], divergence(mean, log_variance))
    torch.testing.assert_close(losses["loss"], expected["loss"] + 0.5 * losses["kl"])
    # The statistics are those of the means: what `encode` returns is normalised by them.
    z = model.encode(pixels)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(16), atol=1e-4, rtol=0)
    assert z.var((0, 2, 3), correction=0).max() <= 1 and int(model.bn.num_batches_tracked) == 1
    stage.eval()(pixels)
    assert int(model.bn.num_batches_tracked) == 1


def test_the_teacher_is_frozen_and_its_features_are_part_of_the_loss(teacher_folder):
    teacher = FrozenTeacher(Teacher(SiglipVisionModel.from_pretrained(teacher_folder), (0.2,) * 3, (0.3,) * 3))
    losses = ReconstructionLosses(perceptual=0.5, distance=PerceptualLoss(teacher, 2))
    stage = VaeStage(tiny_vae(), losses, kl_weight=0.0).train()
    assert not teacher.vision_model.training and stage.model.training
    pixels = pictures(2)
    seen = teacher.vision_model(((pixels + 1) / 2 - 0.2) / 0.3).last_hidden_state
    torch.testing.assert_close(teacher(pixels).last_hidden_state, seen)
    outputs = stage(pixels)
    outputs["loss"].backward()
    parts = outputs["l1"] + outputs["l2"] + outputs["edges"] + 0.5 * outputs["perceptual"]
    torch.testing.assert_close(outputs["loss"], parts)
    assert all(p.grad is not None for p in stage.model.parameters())
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("num_groups", [0, 4])
def test_a_batch_is_learnt_by_heart(num_groups):
    stage, pixels = VaeStage(tiny_vae(num_groups=num_groups), ReconstructionLosses(), kl_weight=1e-4), pictures(4)
    optimizer = torch.optim.Adam(stage.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        stage(pixels)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        error = (stage.model.decode(stage.model.encode(pixels)) - pixels).square().mean() / 4
    assert -10 * error.log10() > 25


# ---- the folder -----------------------------------------------------------------------------------------------------


def reconstruct(model: CheersVae) -> torch.Tensor:
    with torch.no_grad():
        return model.decode(model.encode(pictures(2)))


def test_a_saved_autoencoder_opens_alike_everywhere(tmp_path):
    model = tiny_vae()
    model.bn.update(torch.randn(8, 16, 4, 4) * 2 + 1)
    model.save_pretrained(tmp_path)
    for_tokenizer(model.config).save_pretrained(tmp_path)
    expected = reconstruct(model)
    assert torch.equal(reconstruct(AutoModel.from_pretrained(tmp_path)), expected)
    loaded, processor = load_image_tokenizer(str(tmp_path), "cpu")
    assert torch.equal(reconstruct(loaded), expected) and not loaded.training
    assert (loaded.config.image_size, loaded.config.num_positions) == (16, 16)
    assert processor.crop_size["height"] == AutoImageProcessor.from_pretrained(tmp_path).crop_size["height"] == 16
    with pytest.raises(UserError, match="holds no SemHiTok tokenizer; its model_type is 'cheers_vae'"):
        load_tokenizer(str(tmp_path), "cpu")


def test_the_autoencoder_of_a_whole_model_opens_by_itself(tmp_path):
    model = CheersForConditionalGeneration(tiny_cheers())
    model.save_pretrained(tmp_path)
    loaded, _ = load_image_tokenizer(str(tmp_path), "cpu")
    assert isinstance(loaded, CheersVae) and loaded.config.image_size == 16
    assert torch.equal(reconstruct(loaded), reconstruct(model.vision_tokenizer.vae_model))


def test_semhitok_opens_by_the_same_function(tokenizer_folder):
    loaded, _ = load_image_tokenizer(str(tokenizer_folder), "cpu")
    assert loaded.config.model_type == "semhitok"


# ---- the preset -----------------------------------------------------------------------------------------------------


def test_the_preset_fits_the_teacher_of_the_scenes_and_has_a_plan():
    recipe = VAE_PRESETS["scenes_64_cheers"]()
    vision = scenes_64_teacher().model.vision_config
    whole = CheersConfig(vision_config=vision, vae_config=recipe.model, num_detail_heads=10)
    assert (whole.latent_size, whole.num_positions) == (8, 16)
    task = vae_stages.make_task(build_on_meta(recipe.model), recipe, "vae")
    assert 1e6 < sum(p.numel() for p in task.parameters()) < 3e6
    plan = tokenizer_plan("scenes_64_cheers", "vae", task, recipe, num_processes=2, num_pictures=None)
    text = " ".join(plan.split())
    assert "64 x 64 pixels, 64 positions latents 32 channels" in text and "encoder 0.58 M trained" in text
    picture = torch.empty(1, 3, 64, 64, device="meta")
    latents = torch.empty(1, 8, 16, 16, device="meta")
    kept = saved_bytes(task.model.encoder, picture) + saved_bytes(task.model.decoder, latents)
    assert f"activations, 16 pictures {16 * 0.6 * kept / 2**30:.2f} GiB" in text


# ---- mistakes -------------------------------------------------------------------------------------------------------


def told(recipe: TokenizerRecipe, **options) -> str:
    """The one line with which the stage refuses to begin."""
    args = Namespace(preset="tiny", **{"init_from": None, "teacher": None, "overrides": {}} | options)
    with pytest.raises(UserError) as refused:
        vae_stages.check_start(args, recipe, "vae")
        vae_stages.make_task(vae_stages.start_model(args, recipe, "vae"), recipe, "vae", args)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def recipe_of(**changes) -> TokenizerRecipe:
    return TokenizerRecipe(TrainConfig(), tiny_vae().config, world=None, **changes)


def test_mistakes_are_told_in_one_line(teacher_folder, tokenizer_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "leave it out" in told(recipe_of(), teacher=str(teacher_folder))
    assert "run train/teacher.py first or name a SigLIP" in told(recipe_of(perceptual_weight=1.0))
    wider = recipe_of(perceptual_weight=1.0)
    wider.model.image_size = 32
    assert "reads 16 pixels and the autoencoder 32: name" in told(wider, teacher=str(teacher_folder))
    assert "holds a semhitok; CHEERS draws in the latents of" in told(recipe_of(), init_from=tokenizer_folder)
    assert "no such folder" in told(recipe_of(), init_from=tmp_path / "none")
    wrong = recipe_of()
    wrong.model.num_groups = 3
    assert "the model cannot be built" in told(wrong)
    with pytest.raises(ValueError, match="image_size 20 must be a multiple of 8"):
        CheersVaeConfig(image_size=20, channel_multipliers=(1, 2, 2))


def test_a_run_may_begin_from_an_autoencoder(tmp_path):
    model = tiny_vae()
    model.save_pretrained(tmp_path)
    args = Namespace(preset="tiny", init_from=tmp_path, teacher=None, overrides={})
    assert torch.equal(reconstruct(vae_stages.start_model(args, recipe_of(), "vae")), reconstruct(model))

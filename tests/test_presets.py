"""The tokenizer's presets at full size, built on the meta device, and the plan that --dry-run prints of them."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import SiglipVisionModel

from semhitok import SemHiTokModel, lpips_weights
from semhitok.configuration_semhitok import tiny_config
from semhitok.discriminator import AdversarialLoss
from semhitok.losses import ReconstructionLosses, teacher_distance
from semhitok.lpips_weights import LPIPS
from semhitok.stages import DecoderStage, JointStage, PixelStage, SemanticStage
from semhitok.vision import scale_patches
from unimllm.errors import UserError
from unimllm.training import config as config_module
from unimllm.training.config import TrainConfig
from unimllm.training.loop import checkpoint_activations
from unimllm.training.plan import (
    build_on_meta,
    count,
    count_trained,
    kept_for_backward,
    parts_of,
    saved_bytes,
    state_bytes,
    tokenizer_plan,
)
from unimllm.training.presets import (
    DECODER_PRESETS,
    JOINT_PRESETS,
    PIXEL_PRESETS,
    SEMANTIC_PRESETS,
    SFT_PRESETS,
    TEACHER_PRESETS,
    VAE_PRESETS,
)
from unimllm.training.presets.ablation import STEPS


def pixel_stage(model: SemHiTokModel) -> PixelStage:
    return PixelStage(model, ReconstructionLosses())


STAGES = {
    "semantic": (SemanticStage, SEMANTIC_PRESETS),
    "pixel": (pixel_stage, PIXEL_PRESETS),
    "decoder": (lambda model: DecoderStage(model, ReconstructionLosses()), DECODER_PRESETS),
}
PROGRAM = Path(__file__).parent.parent / "train" / "tokenizer.py"


def vit(dim_in: int, dim: int, layers: int, positions: int, dim_out: int) -> int:
    """Parameters of semhitok.transformer.Transformer, counted by hand."""
    block = 12 * dim**2 + 13 * dim  # norms 4 D; qkv 3 D^2 + 3 D; proj D^2 + D; MLP 8 D^2 + 5 D
    return dim_in * dim + dim + positions * dim + layers * block + 2 * dim + dim * dim_out + dim_out


def siglip(dim: int, layers: int, positions: int, patch: int) -> int:
    """Parameters of a SigLIP vision model, pooling head included."""
    block = 12 * dim**2 + 13 * dim
    embedding = 3 * patch**2 * dim + dim + positions * dim
    return embedding + (layers + 1) * block + 2 * dim + dim - 2 * dim  # the head: a block with one norm and a probe


@pytest.mark.parametrize(
    ("name", "positions", "K", "m"), [("semhitok_256", 256, 16384, 12), ("semhitok_384", 576, 24576, 8)]
)
def test_the_papers_sizes(name, positions, K, m):
    model = build_on_meta(PIXEL_PRESETS[name]().model)
    assert model.config.num_positions == positions and model.config.num_codes == K * m == 196_608
    counts = {part: count(module) for part, module in parts_of(pixel_stage(model)).items()}
    print(name, {part: f"{number / 1e6:.2f} M" for part, number in counts.items()})
    assert counts == {
        "SigLIP": siglip(1024, 24, positions, 16),
        "semantic encoder": vit(1024, 768, 4, positions, 32),
        "semantic codebook": K * 32,
        "semantic decoder": vit(32, 768, 4, positions, 1024),
        "pixel encoder": 3 * 16**2 * 768 + 768 + vit(768, 768, 12, positions, 8),
        "pixel codebook": m * 8 + K * 8 * 8 + K * 8,
        "pixel decoder": vit(40, 1024, 24, positions, 3 * 16**2),
    }


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["photos_128", "semhitok_256", "semhitok_384"])
def test_every_picture_preset_has_a_plan(name, stage):
    make_task, presets = STAGES[stage]
    recipe = presets[name]()
    task = make_task(build_on_meta(recipe.model))
    plan = tokenizer_plan(name, stage, task, recipe, num_processes=8, num_pictures=1_281_167)
    print(plan)
    assert recipe.world is None and f"--preset {name} --stage {stage} " in presets[name].__doc__
    assert recipe.model.num_positions in (256, 576) and f"{recipe.train.max_steps:,} = " in plan
    assert all(p.is_meta for p in task.parameters())
    trained = {part for part, module in parts_of(task).items() if count_trained(module)}
    assert (
        trained
        == {
            "semantic": {"semantic encoder", "semantic decoder"},
            "pixel": {"pixel encoder", "pixel codebook", "pixel decoder"},
            "decoder": {"pixel decoder"},
        }[stage]
    )


@pytest.mark.parametrize("stage", STAGES)
def test_scenes_of_128_pixels_have_a_plan(stage):
    make_task, presets = STAGES[stage]
    recipe = presets["scenes_128"]()
    plan = tokenizer_plan("scenes_128", stage, make_task(build_on_meta(recipe.model)), recipe, 8, None)
    assert "128 x 128 pixels, 256 positions" in plan and recipe.world.image_size == 128
    assert f"--preset scenes_128 --stage {stage}`" in presets["scenes_128"].__doc__
    teacher = TEACHER_PRESETS["scenes_128"]()
    assert recipe.model.vision_config.to_dict() == teacher.model.vision_config.to_dict()
    assert teacher.world == recipe.world == SFT_PRESETS["scenes_128"]().world


def test_the_plan_by_hand():
    recipe = PIXEL_PRESETS["semhitok_256"]()
    task = pixel_stage(build_on_meta(recipe.model))
    lines = tokenizer_plan("semhitok_256", "pixel", task, recipe, 4, 1_281_167).splitlines()
    text = "\n".join(" ".join(line.split()) for line in lines)
    assert "batch 256 = 4 process(es) x 32 pictures x 2 in turn; 65,536 positions" in text
    assert "steps 200,000 = 51,200,000 pictures = 40.0 epochs of 1,281,167" in text
    assert "SigLIP 315.96 M frozen" in text and "pixel decoder 303.40 M trained" in text
    assert "memory per GPU (estimate; ZeRO 0, fp32 weights, bf16 products)" in text
    with pytest.raises(UserError, match="must be a multiple"):
        tokenizer_plan("semhitok_256", "pixel", task, recipe, 3, None)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TrainConfig(precision="fp32"), [4000, 400, 800]),
        (TrainConfig(precision="autocast"), [4000, 200, 400, 800]),
        (TrainConfig(precision="fp32", zero_stage=1), [4000, 400, 300]),
        (TrainConfig(precision="fp32", zero_stage=2), [4000, 100, 300]),
        (TrainConfig(precision="fp32", zero_stage=3), [1000, 100, 300]),
        (TrainConfig(precision="bf16", zero_stage=2), [2000, 50, 300]),
        (TrainConfig(precision="bf16", zero_stage=2, offload_optimizer=True), [2000, 50]),
        (TrainConfig(precision="bf16"), [2000, 400, 200, 1200]),
        (TrainConfig(precision="bf16", zero_stage=2, batch_size=32, micro_batch_size=1), [2000, 100, 300]),
    ],
)
def test_memory_of_weights_gradients_and_optimiser_by_hand(config, expected):
    assert list(state_bytes(1000, 100, config, num_processes=4).values()) == expected


def test_a_plan_is_a_gpus_whatever_machine_makes_it(monkeypatch):
    """Without a GPU to ask, `auto` is autocast; with one it is what that GPU does; what was asked for stays."""
    recipe = SEMANTIC_PRESETS["photos_128"]()
    task = SemanticStage(build_on_meta(recipe.model))

    def planned(precision: str) -> str:
        recipe.train.precision = precision
        return tokenizer_plan("photos_128", "semantic", task, recipe, 1, None)

    monkeypatch.setattr(config_module, "has_fast_bf16", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert planned("auto") == planned("autocast") != planned("fp32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert planned("auto") == planned("fp32")
    assert recipe.train.precision == "fp32"  # as it was last set: a plan changes nothing


def test_no_preset_asks_for_what_only_some_machines_do_fast():
    presets = [preset for _, by_name in STAGES.values() for preset in by_name.values()]
    presets += [*JOINT_PRESETS.values(), *VAE_PRESETS.values(), *TEACHER_PRESETS.values(), *SFT_PRESETS.values()]
    assert {preset().train.precision for preset in presets} == {"auto", "bf16"}  # bf16: weights of 1.5 and 7 B


def test_activations_by_hand():
    net = nn.Sequential(nn.Linear(8, 5), nn.GELU(), nn.Linear(5, 2)).to("meta")
    # The input of each map and of the activation: 8 + 5 + 5 numbers for each of 3 rows.
    assert saved_bytes(net, torch.empty(3, 8, device="meta")) == 4 * 3 * (8 + 5 + 5)


def test_a_discriminator_is_in_the_plan():
    model = build_on_meta(tiny_config())
    with torch.device("meta"):
        losses = ReconstructionLosses(adversarial=AdversarialLoss(0.5, channels=8, num_halvings=1))
    task = PixelStage(model, losses)
    # 3 x 8 x 16 + 8; 8 x 16 x 16 and a norm of 2 x 16; 16 x 16 + 1
    assert count_trained(parts_of(task)["discriminator"]) == 392 + 2048 + 32 + 257
    extra = kept_for_backward(task, "pixel", False) - kept_for_backward(pixel_stage(model), "pixel", False)
    assert extra > 3 * 4 * 3 * 16 * 16  # three pictures at least


class FakeNetwork(nn.Module):
    """A distance as LPIPS's: frozen, (B, 3, S, S) twice -> (B, 1, 1, 1)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 1, bias=False).requires_grad_(False)

    def forward(self, predicted, target):
        return ((self.conv(predicted) - self.conv(target)) ** 2).mean((1, 2, 3), keepdim=True)


def test_perceptual_losses_are_in_the_plan(monkeypatch):
    monkeypatch.setattr(lpips_weights, "load_lpips", lambda weights: (FakeNetwork(), "vgg"))
    model = build_on_meta(tiny_config())
    with torch.device("meta"):
        tasks = [PixelStage(model, ReconstructionLosses(perceptual=weight, distance=distance))
                 for weight, distance in ((0.0, None), (0.5, teacher_distance(model)), (0.5, LPIPS(Path("vgg.pth"))))
                 ]  # fmt: skip
    none, teacher, lpips = (kept_for_backward(task, "pixel", False) for task in tasks)
    picture = torch.empty(1, 3, 16, 16, device="meta", requires_grad=True)
    assert teacher - none == saved_bytes(model.vision_model, picture)
    assert lpips - none == 4 * (3 + 5) * 16 * 16  # the input of its convolution, and what is squared
    assert count(parts_of(tasks[2])["LPIPS (vgg)"]) == 15 and "LPIPS (vgg)" not in parts_of(tasks[1])


def test_checkpointing_spares_what_the_plan_says():
    config = tiny_config(pixel_backbone="vit", pixel_layers=4, decoder_layers=4)
    task = pixel_stage(build_on_meta(config))
    block = task.model.pixel.decoder.transformer.blocks[0]
    x = torch.empty(1, config.num_positions, 16, device="meta", requires_grad=True)
    spared = kept_for_backward(task, "pixel", False) - kept_for_backward(task, "pixel", True)
    assert spared == 2 * (3 * saved_bytes(block, x) - 4 * x.nbytes)


def test_gradients_are_the_same_with_checkpointing():
    torch.manual_seed(0)
    task = pixel_stage(SemHiTokModel(tiny_config(pixel_backbone="vit"))).train()
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    runs, gradients = [], []
    task.model.pixel.decoder.transformer.blocks[0].mlp[0].register_forward_hook(lambda *_: runs.append(1))
    for _ in range(2):
        task.zero_grad()
        task(pixel_values=pictures)["loss"].backward()
        gradients.append([p.grad.clone() for p in task.parameters() if p.grad is not None])
        checkpoint_activations(task)
    assert len(runs) == 1 + 2  # once, then once more in the backward pass
    assert len(gradients[0]) == len(gradients[1]) > 20
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


def test_a_siglip_with_smaller_patches_sees_what_it_saw_before():
    torch.manual_seed(0)
    config = tiny_config().vision_config
    teacher = SiglipVisionModel(config).eval()
    pictures = torch.rand(2, 3, 8, 8)
    small = scale_patches(teacher, 4).eval()
    assert (small.config.image_size, small.config.patch_size) == (8, 4)
    enlarged = pictures.repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(
        small(pictures).last_hidden_state, teacher(enlarged).last_hidden_state, rtol=0, atol=1e-5
    )
    assert scale_patches(teacher, 8) is teacher
    with pytest.raises(ValueError, match="patches of 8 pixels; they cannot be made 3"):
        scale_patches(teacher, 3)


def test_the_program_plans_and_refuses_in_one_line(tmp_path):
    def call(*options):
        command = [sys.executable, str(PROGRAM), "--preset", "semhitok_256", "--stage", "pixel", *options]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    planned = call("--dry-run", "8", "--train.zero_stage", "2")
    assert planned.returncode == 0, planned.stderr
    assert "256 = 8 process(es) x 32 pictures x 1 in turn" in planned.stdout and "ZeRO 2" in planned.stdout
    refused = call()
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: --preset semhitok_256 trains on pictures: name a folder, .tar or .parquet files with --data\n"
    )
    assert list(tmp_path.iterdir()) == []


ABLATION = {  # of each tokenizer, the recipes of its stages in their order
    "pixel only": [PIXEL_PRESETS["ablation_pixel_only"]],
    "semantic only": [SEMANTIC_PRESETS["ablation_semantic_only"], DECODER_PRESETS["ablation_semantic_only"]],
    "shared vector": [JOINT_PRESETS["ablation_shared_vector"]],
    "shared index": [JOINT_PRESETS["ablation_shared_index"]],
    "joint": [JOINT_PRESETS["ablation"]],
    "phased": [SEMANTIC_PRESETS["ablation"], PIXEL_PRESETS["ablation"]],
}


def test_the_tokenizers_of_the_ablation_are_trained_alike():
    for name, presets in ABLATION.items():
        recipes = [preset() for preset in presets]
        for before, after in zip([None, *recipes[:-1]], recipes, strict=True):
            start = before.first_step + before.train.max_steps if before else 0
            assert after.first_step == start, name  # the pictures that follow
        assert recipes[-1].first_step + recipes[-1].train.max_steps == STEPS, name
        for recipe in recipes:
            shared = JOINT_PRESETS["ablation"]()
            assert recipe.model.num_codes == 4096 and recipe.model.num_positions == 64, name
            for field in ("conv_decoder_channels", "decoder_hidden_size", "semantic_dim", "pixel_dim", "ema_decay"):
                assert getattr(recipe.model, field) == getattr(shared.model, field), (name, field)
            shared.train.max_steps = recipe.train.max_steps
            shared.model, shared.first_step, shared.quantize_after = (
                recipe.model, recipe.first_step, recipe.quantize_after,
            )  # fmt: skip
            assert recipe == shared, name  # all else is equal


def test_the_joint_stage_has_a_plan():
    for name, preset in JOINT_PRESETS.items():
        recipe = preset()
        task = JointStage(build_on_meta(recipe.model), ReconstructionLosses())
        assert "ablation" in name or "Untrained." in preset.__doc__
        plan = tokenizer_plan(name, "joint", task, recipe, num_processes=1, num_pictures=None)
        assert "SigLIP" in plan and ("shared codebook" in plan) == ("shared" in name)
        trained = {part for part, module in parts_of(task).items() if count_trained(module)}
        assert trained - {"pixel codebook"} == {
            f"{b} {n}" for b in ("semantic", "pixel") for n in ("encoder", "decoder")
        }


@pytest.mark.parametrize("name", ["photos_128", "semhitok_256"])
def test_baselines_over_pictures_see_as_much_and_have_as_many_ids(name):
    joint, pixel = JOINT_PRESETS[name](), PIXEL_PRESETS[name]()
    assert joint.train.max_steps == SEMANTIC_PRESETS[name]().train.max_steps + pixel.train.max_steps
    assert f"--preset {name} --stage joint --teacher SIGLIP --data " in JOINT_PRESETS[name].__doc__
    for rival in ("shared_index", "shared_vector"):
        preset = JOINT_PRESETS[f"{name}_{rival}"]
        recipe = preset()
        assert f"--preset {name}_{rival} --stage joint --teacher SIGLIP --data " in preset.__doc__
        assert f"{recipe.model.num_codes:,} ids" in preset.__doc__
        sizes, expected = recipe.model.to_dict(), joint.model.to_dict()
        changed = {field for field in expected if sizes[field] != expected[field]}
        assert changed == {"model_type", "num_semantic_codes", "num_pixel_codes"}
        assert recipe.model.num_codes == joint.model.num_codes == pixel.model.num_codes
        assert dataclasses.replace(recipe, model=joint.model) == joint


def test_every_language_model_preset_comes_back_from_its_file():
    for name, preset in SFT_PRESETS.items():
        config = preset().model
        assert type(config).from_dict(config.to_dict()).to_dict() == config.to_dict(), name

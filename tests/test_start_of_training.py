"""What the training programs start from: checkpoints that do not fit or are damaged are told in one line."""

import json
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from conftest import load_program
from released_siglips import siglip_alone
from transformers import SiglipConfig, SiglipVisionModel

from semhitok import SemHiTokModel
from semhitok.checkpoints import load_tokenizer
from semhitok.configuration_semhitok import DECODER_SIZES, PIXEL_SIZES, tiny_config
from semhitok.convolution import conv_stem
from semhitok.losses import ReconstructionLosses
from semhitok.quantization import EMACodebook, PixelCodebook
from semhitok.stages import PixelStage, SemanticStage
from unimllm.cheers.autoencoder import CheersVae
from unimllm.cheers.configuration_cheers import CheersVaeConfig
from unimllm.errors import UserError
from unimllm.scenes.sources import check_size
from unimllm.scenes.text import train_text_tokenizer
from unimllm.training import checkpoint, picture_data, semhitok_stages, start_model, tokenizer
from unimllm.training.batches import Place
from unimllm.training.config import TrainConfig
from unimllm.training.loop import checkpoint_activations
from unimllm.training.overrides import check_taken
from unimllm.training.presets import DECODER_PRESETS, PIXEL_PRESETS, SEMANTIC_PRESETS, SFT_PRESETS, TokenizerRecipe
from unimllm.training.teacher import TeacherTask
from unimllm.training.validation import HeldOut

PROGRAMS = Path(__file__).parents[1] / "train"

pytestmark = pytest.mark.skipif(
    not PROGRAMS.is_dir(), reason="train/ is not beside the tests (they run on an installed package)"
)


def program(name: str) -> ModuleType:
    """A program of train/, imported under a name of its own."""
    return load_program(f"train/{name}.py")


def start(stage: str, sizes: dict | None = None, **options) -> SemHiTokModel:
    """The model that train/tokenizer.py starts a stage with."""
    args = Namespace(preset="tiny", **{"init_from": None, "teacher": None, "overrides": {}} | options)
    recipe = TokenizerRecipe(TrainConfig(), tiny_config(**sizes or {}), world=None)
    return semhitok_stages.start_model(args, recipe, stage)


def cut_off(folder: Path, copy: Path) -> Path:
    """A copy of a checkpoint whose weights end in the middle."""
    copy.mkdir()
    for path in folder.iterdir():
        data = path.read_bytes()
        (copy / path.name).write_bytes(data[: len(data) // 2] if path.suffix == ".safetensors" else data)
    return copy


# ---- options that something else decides ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        ("pixel", {"teacher": "a"}, "--teacher is for the first stage of a preset; the pixel stage has the SigLIP of"),
        ("decoder", {"teacher": "a"}, "--teacher is for the first stage of a preset"),
        ("semantic", {"teacher": "a", "init_from": "b"}, "--teacher and --init-from both name"),
        ("joint", {"teacher": "a", "init_from": "b"}, "--teacher and --init-from both name"),
    ],
)
def test_a_teacher_that_nothing_would_read_is_refused(stage, options, message):
    recipe = TokenizerRecipe(TrainConfig(), tiny_config(), world=None)
    args = Namespace(**{"teacher": None, "init_from": None} | options)
    with pytest.raises(UserError, match=message):
        semhitok_stages.check_start(args, recipe, stage)


def test_a_discriminator_is_not_shared_out():
    for weight, zero_stage in ((0.5, 2), (0.0, 3)):
        tokenizer.check_losses(TokenizerRecipe(TrainConfig(zero_stage=zero_stage), None, adversarial_weight=weight))
    with pytest.raises(UserError, match="^--adversarial_weight: ZeRO 3 .*; set --train.zero_stage 0, 1 or 2$"):
        tokenizer.check_losses(TokenizerRecipe(TrainConfig(zero_stage=3), None, adversarial_weight=0.5))


def test_options_without_effect_on_a_tokenizer_are_refused():
    with pytest.raises(UserError, match="^--train.compile: "):
        tokenizer.check_options(TokenizerRecipe(TrainConfig(compile=True), None))


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_of_mirrored_pictures_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=f"^--flip {share}: a share is from 0 to 1$"):
        TokenizerRecipe(TrainConfig(), None, flip=share).validate()


def test_what_is_about_pictures_alone_is_refused_with_scenes():
    args = Namespace(preset="a", data=[], validation_data=[], strict=False, dry_run=None, overrides={"flip": 0.0})
    with pytest.raises(UserError, match="^--flip is about --data, which is not given: scenes"):
        picture_data.check_places(args, TokenizerRecipe(TrainConfig(), None))
    args.data = [Path("pictures")]
    picture_data.check_places(args, TokenizerRecipe(TrainConfig(), None))


def test_a_model_without_blocks_to_run_twice_is_refused():
    task = torch.nn.ModuleDict({"model": CheersVae(CheersVaeConfig(8, (1, 2), 1, 4, 2, num_groups=0, image_size=16))})
    with pytest.raises(UserError, match="^--train.gradient_checkpointing: CheersVae cannot"):
        checkpoint_activations(task)


def test_codes_that_should_have_begun_before_a_break_begin_at_once():
    stage = SemanticStage(SemHiTokModel(tiny_config())).train()
    size = stage.model.config.image_size
    recipe = TokenizerRecipe(TrainConfig(batch_size=4), tiny_config(), quantize_after=3)
    prepare = tokenizer.before_step(stage, recipe, lambda indices: {"pixel_values": torch.randn(4, 3, size, size)})
    prepare(Place(2, 8))
    assert not bool(stage.model.semantic.codebook.initialized)
    prepare(Place(7, 28))
    assert bool(stage.model.semantic.codebook.initialized) and not tokenizer.starting_codebooks(stage)


def test_a_tokenizer_s_weights_stay_in_full_precision():
    tokenizer.check_losses(TokenizerRecipe(TrainConfig(precision="autocast"), None))
    with pytest.raises(UserError, match="^--train.precision bf16: a tokenizer's weights stay float32"):
        tokenizer.check_losses(TokenizerRecipe(TrainConfig(precision="bf16"), None))


@pytest.mark.parametrize(
    ("preset", "owner"),
    [("scenes_64_cheers", "scenes_64"), ("scenes_128_cheers", "scenes_128"), ("semhitok_256", "semhitok_256")],
)
def test_a_preset_s_teacher_may_be_another_one_s(preset, owner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"runs/{owner}/teacher: .*; run train/teacher.py first"):
        tokenizer.find_teacher(Namespace(preset=preset, teacher=None))


def test_a_teacher_whose_patches_are_scaled_is_told(tmp_path, capsys):
    siglip_alone(tmp_path)
    for patch_size, told in ((0, False), (8, False), (4, True)):
        teacher = tokenizer.open_teacher(Namespace(preset="x", teacher=str(tmp_path)), patch_size)
        assert teacher.vision_model.config.patch_size == (patch_size or 8)
        assert ("note: the preset scales its patches of 8 pixels to 4" in capsys.readouterr().out) is told


def test_where_there_is_no_meaning_to_learn_a_teacher_is_enough():
    flat = TokenizerRecipe(TrainConfig(), tiny_config(num_semantic_codes=1), world=None)
    args = Namespace(teacher="a", init_from=None)
    for stage, recipe in (("joint", TokenizerRecipe(TrainConfig(), tiny_config(), world=None)), ("pixel", flat)):
        semhitok_stages.check_start(args, recipe, stage)


def test_sizes_that_the_checkpoint_decides_are_refused_and_equal_ones_taken(tokenizer_folder, tmp_path):
    config = start("pixel", init_from=tokenizer_folder).config
    check_taken({"model.pixel_dim": 4, "model.conv_decoder_channels": (8, 8, 8), "train.max_steps": 3}, config)
    asked = {"num_pixel_codes": 5}
    check_taken({"model.num_pixel_codes": 5}, start("pixel", asked, init_from=tokenizer_folder).config)
    model, _ = load_tokenizer(str(tokenizer_folder), "cpu")
    model.pixel.codebook.initialized.fill_(True)
    model.save_pretrained(tmp_path / "with_codes")
    with pytest.raises(UserError, match="^--model.num_pixel_codes 5 is not to be had"):
        check_taken({"model.num_pixel_codes": 5}, start("decoder", asked, init_from=tmp_path / "with_codes").config)
    with pytest.raises(UserError, match="^--model.pixel_dim 8 is not to be had: the model .* has 4, from"):
        check_taken({"model.pixel_dim": 8}, config)
    with pytest.raises(UserError, match="^--model.vision_config.hidden_size 32 .* has 16, from"):
        check_taken({"model.vision_config.hidden_size": 32}, config)


def test_weights_of_losses_may_change_between_stages(tokenizer_folder):
    asked = {"model.pixel_commitment_weight": 0.5}
    config = start("pixel", init_from=tokenizer_folder, overrides=asked).config
    check_taken(asked, config)
    assert (config.pixel_commitment_weight, config.commitment_weight) == (0.5, tiny_config().commitment_weight)


# ---- sizes that cannot be -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "field", "value", "message"),
    [
        ("semhitok_256", "model.pixel_heads", "5", "hidden size (768) must be divisible by the number of heads (5)"),
        ("semhitok_256", "model.decoder_heads", "0", "cannot be built"),
        ("semhitok_256", "discriminator_channels", "12", "channels (12) must be a multiple of 8"),
        ("semhitok_256", "model.pixel_dim", "-3", "negative dimension -3"),
        ("photos_128", "model.conv_encoder_blocks", "[1, 1]", "conv_encoder_blocks has 2 entries; it needs 3, one for"),
        ("photos_128", "model.conv_decoder_blocks", "[1]", "conv_decoder_blocks has 1 entries; it needs 4"),
        ("photos_128", "model.conv_decoder_channels", "[8]", "conv_decoder_channels has 1 entries"),
    ],
)
def test_sizes_that_cannot_be_are_one_line(preset, field, value, message, monkeypatch, call):
    options = ["--preset", preset, "--stage", "pixel", "--dry-run", "1", f"--{field}={value}"]
    monkeypatch.setattr(sys, "argv", ["train/tokenizer.py", *options])
    assert message in call(SimpleNamespace(main=lambda _: program("tokenizer").main())).refusal()


def test_sizes_of_a_semantic_stage_are_not_the_teachers_fault(tokenizer_folder, tmp_path):
    SiglipVisionModel(tiny_config().vision_config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="^the model cannot be built: hidden size"):
        start("semantic", teacher=str(tmp_path), sizes={"semantic_heads": 3})


def test_scenes_of_another_size_than_is_read_are_refused(fake_world):
    check_size(fake_world, fake_world.image_size)
    with pytest.raises(UserError, match="but 20 x 20 are read: add --world.image_size 20"):
        check_size(fake_world, 20)


def test_a_stem_that_cannot_be_normalised_is_told():
    with pytest.raises(ValueError, match=r"stem_channels are \[8, 12, 16\]; each must be a multiple of 8"):
        conv_stem([8, 12, 16], 8, 16)


# ---- losses ---------------------------------------------------------------------------------------------------------


def test_lpips_is_loaded_only_where_it_weighs(monkeypatch, capsys):
    loaded = []

    class FakeLpips(torch.nn.Module):
        backbone = "vgg"

        def __init__(self, weights: Path):
            super().__init__()
            loaded.append(weights)

    monkeypatch.setattr(tokenizer, "LPIPS", FakeLpips)
    model = SemHiTokModel(tiny_config())

    def said(**weights) -> str:
        recipe = TokenizerRecipe(TrainConfig(), tiny_config(), world=None, **weights)
        task = semhitok_stages.make_task(model, recipe, "pixel")
        assert capsys.readouterr().out == ""  # --dry-run makes one too
        tokenizer.announce_losses(task, recipe)
        return capsys.readouterr().out

    assert said() == ""
    assert "lpips_weights are not used" in said(lpips_weights="vgg.pth") and not loaded
    assert said(perceptual_weight=0.5) == "perceptual loss: the teacher's features (no lpips_weights), weight 0.5\n"
    assert "LPIPS (vgg), weight 0.5" in said(perceptual_weight=0.5, lpips_weights="vgg.pth")
    assert loaded == [Path("vgg.pth")]


# ---- going on with a run --------------------------------------------------------------------------------------------


class Engine:
    """DeepSpeed's, where the parts do not fit."""

    optimizer = torch.optim.AdamW([torch.zeros(1)])

    def zero_optimization_stage(self) -> int:
        return 0

    def load_checkpoint(self, folder: str, tag: str):
        raise RuntimeError("Error(s) in loading state_dict for Task:\n\tMissing key(s): discriminator.0.weight")


def test_a_run_with_other_losses_is_not_resumed_and_says_which(tmp_path):
    before = {"adversarial_weight": 0.0, "model": {"pixel_dim": 8}, "train": {"max_steps": 5, "precision": "fp32"}}
    before |= {"flip": 0.5}
    (tmp_path / "run.json").write_text(json.dumps({"step": 5, "recipe": before, "world_size": 1}))
    (tmp_path / "deepspeed").mkdir()
    (tmp_path / "deepspeed" / "mp_rank_00_model_states.pt").touch()
    now = {"adversarial_weight": 0.5, "model": {"pixel_dim": 4}, "train": {"max_steps": 9, "precision": "bf16"}}
    now |= {"flip": 0.0}
    with pytest.raises(UserError) as caught:
        checkpoint.load(Engine(), tmp_path, now)
    assert str(caught.value) == (
        f"cannot resume from {tmp_path}: adversarial_weight was 0.0 and is 0.5; flip was 0.5 and is 0.0; "
        "model.pixel_dim was 8 and is 4; train.precision was fp32 and is bf16; "
        "take the options of that run, or another --output-dir"
    )
    with pytest.raises(UserError, match=r"for Task: Missing key\(s\): \S+; take the options .* if it is damaged"):
        checkpoint.load(Engine(), tmp_path, before)
    (tmp_path / "run.json").write_text(
        json.dumps({"step": 5, "recipe": {"train": {"precision": "auto"}}, "world_size": 1, "precision": "autocast"})
    )
    auto = {"train": {"precision": "auto"}}  # of which the text is the same on a machine that is not
    with pytest.raises(UserError, match="train.precision was autocast and is fp32; take the options of that run"):
        checkpoint.load(Engine(), tmp_path, auto, precision="fp32")
    with pytest.raises(UserError, match="if it is damaged"):
        checkpoint.load(Engine(), tmp_path, auto, precision="autocast")
    (tmp_path / "deepspeed" / "mp_rank_00_model_states.pt").unlink()
    with pytest.raises(UserError, match="holds no DeepSpeed state .*--init-from"):
        checkpoint.load(Engine(), tmp_path, before)


def test_a_run_whose_image_tokenizer_changed_is_not_resumed(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"step": 5, "recipe": {}, "apart": "0123"}))
    with pytest.raises(UserError, match=r"the image tokenizer is another \(4567\) than .* \(0123\)"):
        checkpoint.load(Engine(), tmp_path, {}, "4567")


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def test_a_stage_starts_with_the_weights_of_the_one_before(tokenizer_folder):
    drawn = []
    with torch.random.fork_rng():
        for load in (SemHiTokModel.from_pretrained, lambda folder: start("pixel", init_from=folder)):
            torch.manual_seed(0)
            model = load(tokenizer_folder)
            drawn.append((torch.rand(3).tolist(), model.state_dict()))
    assert drawn[0][0] == drawn[1][0]  # so what is drawn after loading, a new codebook for one, is as it always was
    assert all(torch.equal(value, drawn[0][1][name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("stage", ["semantic", "pixel", "decoder"])
def test_a_damaged_or_foreign_folder_to_start_from_is_one_line(stage, tokenizer_folder, tmp_path):
    with pytest.raises(UserError, match=r"^cannot load a tokenizer from [^\n]*cut[^\n]*$"):
        start(stage, init_from=cut_off(tokenizer_folder, tmp_path / "cut"))
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="bert holds no SemHiTok tokenizer; its model_type is 'bert'"):
        start(stage, init_from=tmp_path / "bert")
    with pytest.raises(UserError, match="^--init-from .*/no/such: no such folder"):
        start(stage, init_from=tmp_path / "no" / "such")


def test_a_stage_without_the_one_before_says_which(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no checkpoint in runs/tiny/semantic: .*; train --stage semantic first or"):
        start("pixel")


def test_sft_takes_the_newest_tokenizer_and_a_damaged_one_is_one_line(tokenizer_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nothing = dict.fromkeys(("init_from", "image_tokenizer", "language_model", "teacher"))
    nothing |= {"data": [], "overrides": {}}
    text_tokenizer = train_text_tokenizer(["a red apple"], vocab_size=300)

    def build(**options):
        args = Namespace(preset="tiny", **nothing | options)
        return start_model.start_model(args, SFT_PRESETS["scenes_64"](), text_tokenizer)[0]

    with pytest.raises(UserError, match="train it with train/tokenizer.py or name its folder"):
        build()
    with pytest.raises(UserError, match="^--image-tokenizer no/such/folder: no such folder"):
        build(image_tokenizer="no/such/folder")
    with pytest.raises(UserError, match="^--init-from no/such/folder: no such folder"):
        build(init_from=Path("no/such/folder"))
    Path("runs/tiny").mkdir(parents=True)
    Path("runs/tiny/pixel").symlink_to(tokenizer_folder)
    assert build().image_tokenizer.config.num_positions == 4
    cut_off(tokenizer_folder, Path("runs/tiny/decoder"))  # newer than pixel, so pixel is no way out
    with pytest.raises(UserError, match=r"^cannot load a tokenizer from runs/tiny/decoder[^\n]*$"):
        build()


def test_a_teacher_goes_on_with_its_stem_of_convolutions(tmp_path):
    teacher = program("teacher")
    width = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    vision = width | {"image_size": 16, "patch_size": 8, "stem_channels": [8, 8, 8]}
    text = width | {"vocab_size": 30, "max_position_embeddings": 8, "projection_size": 16}
    text |= {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    config = SiglipConfig(text_config=text, vision_config=vision)
    trained, task = TeacherTask(config, 3, 0.25), TeacherTask(config, 3, 0.25)
    trained.siglip.save_pretrained(tmp_path / "whole")
    teacher.load_siglip(task, tmp_path / "whole")
    expected = trained.siglip.state_dict()
    assert any("patch_embedding.layers" in name for name in expected)
    assert all(torch.equal(value, expected[name]) for name, value in task.siglip.state_dict().items())
    with pytest.raises(UserError, match=r"^cannot start from [^\n]*cut[^\n]*$"):
        teacher.load_siglip(task, cut_off(tmp_path / "whole", tmp_path / "cut"))
    wider = TeacherTask(SiglipConfig(text_config=text, vision_config=vision | {"stem_channels": [8, 8, 16]}), 3, 0.25)
    with pytest.raises(UserError, match=r"start from .* another shape \d+ tensors: .*patch_embedding.* \(not \("):
        teacher.load_siglip(wider, tmp_path / "whole")


def test_a_codebook_starts_at_the_pictures_of_several_steps():
    """Of this step and those after it until there are eight vectors for each code, this rank's share of each."""
    task = SimpleNamespace(
        model=SimpleNamespace(config=SimpleNamespace(num_positions=16)),
        codebooks=lambda: [EMACodebook(40, 3), PixelCodebook(40, 4, 3)],
        parameters=lambda: iter([torch.zeros(1)]),
    )
    recipe = TokenizerRecipe(TrainConfig(max_steps=9, batch_size=3, learning_rate=1e-3), None)

    def source(indices: range) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.tensor(indices)}

    # 320 vectors are wanted, a picture brings 16, a step 48
    found = tokenizer.start_pictures(task, recipe, source, 15)
    assert [batch.tolist() for batch in found] == [list(range(i, i + 3)) for i in range(15, 15 + 7 * 3, 3)]
    recipe.train.micro_batch_size = 1
    task.codebooks = lambda: [EMACodebook(4000, 3)]
    found = tokenizer.start_pictures(task, recipe, source, 15)
    assert torch.cat(found).tolist() == list(range(15, 15 + tokenizer.START_STEPS * 3)) and len(found[0]) == 1


def changed_parts(model: SemHiTokModel, stage: str, new_decoder: bool = False, **options) -> None:
    """The recipe's own sizes differ from the model's in m and in the decoder."""
    config = tiny_config(**{"num_pixel_codes": 5, "decoder_hidden_size": 32} | options)
    recipe = TokenizerRecipe(TrainConfig(), config, new_decoder=new_decoder)
    overrides = {f"model.{name}": value for name, value in options.items()}
    semhitok_stages.change_parts(model, Namespace(overrides=overrides), recipe, stage)


def test_a_pixel_branch_without_codes_becomes_the_recipe_s(capsys):
    model = SemHiTokModel(tiny_config())
    before = model.semantic.state_dict()
    changed_parts(model, "pixel", pixel_dim=6, pixel_codebook="free", conv_encoder_blocks=(0, 0, 2))
    assert model.pixel.codebook.table.shape == (10, 5, 6) and model.config.conv_encoder_blocks == [0, 0, 2]
    assert "the pixel branch is new: num_pixel_codes 5, pixel_codebook free, pixel_dim 6" in capsys.readouterr().out
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.semantic.state_dict().items())
    size = model.config.image_size
    stage = PixelStage(model, ReconstructionLosses()).train()
    pictures = torch.rand(4, 3, size, size) * 2 - 1
    stage.initialize_codebook([pictures])
    assert stage(pictures)["loss"].isfinite() and (model.encode(pictures)[..., 1] < 5).all()


def test_a_pixel_branch_with_codes_stays_but_for_what_is_asked(capsys):
    model = SemHiTokModel(tiny_config())
    model.pixel.codebook.initialized.fill_(True)
    parts = model.pixel.codebook, model.pixel.decoder
    changed_parts(model, "pixel")
    changed_parts(model, "decoder")
    assert (model.pixel.codebook, model.pixel.decoder) == parts and not capsys.readouterr().out
    changed_parts(model, "decoder", decoder_hidden_size=24)
    assert model.config.decoder_hidden_size == 24 and model.pixel.codebook is parts[0]
    changed_parts(model, "decoder", new_decoder=True)
    assert model.config.decoder_hidden_size == 32 and "a new decoder: " in capsys.readouterr().out
    changed_parts(model, "pixel", num_pixel_codes=7)
    assert model.pixel.codebook.num_codes == 7 and "new sub-codebooks: num_pixel_codes 7" in capsys.readouterr().out


def test_what_of_a_preset_is_not_used_is_told(capsys):
    own = tiny_config(pixel_codebook="affine", conv_encoder_blocks=[0, 0, 2], image_mean=(0.4, 0.5, 0.5))
    tokenizer.announce_unused(tiny_config(conv_encoder_blocks=(0, 0, 2)), own)
    assert not capsys.readouterr().out
    tokenizer.announce_unused(tiny_config(pixel_codebook="free", num_pixel_codes=5), own)
    told = "num_pixel_codes 5 (it has 3), pixel_codebook free (it has affine), conv_encoder_blocks "
    lead = "of the preset's model not used, for --init-from decides it: "
    assert capsys.readouterr().out.startswith(lead + told)


def test_stages_of_a_preset_follow_one_another_without_a_note(capsys):
    """The shipped presets: what a stage leaves is what the next one wants."""
    for name, semantic in SEMANTIC_PRESETS.items():
        for later in (PIXEL_PRESETS, DECODER_PRESETS):
            if name in later:
                recipe, config = later[name](), semantic().model
                parts = PIXEL_SIZES if later is PIXEL_PRESETS or not recipe.new_decoder else DECODER_SIZES
                for part in parts:
                    setattr(config, part, getattr(recipe.model, part))
                tokenizer.announce_unused(recipe.model, config)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(("num_held_out", "shown"), [(None, range(8)), (3, range(100, 103)), (50, range(100, 108))])
def test_tensorboard_shows_pictures_that_are_held_out_where_there_are_any(num_held_out, shown):
    """Above what the model makes of them, here their negatives."""
    model = SimpleNamespace(
        device=torch.device("cpu"), parameters=lambda: [], encode=lambda pictures: pictures, decode=lambda codes: -codes
    )

    def source_from(first: int):
        def source(indices: range) -> dict[str, torch.Tensor]:
            values = torch.tensor([first + i for i in indices]) / 127.5 - 1
            return {"pixel_values": values[:, None, None, None].expand(-1, 3, 2, 2)}

        return source

    held_out = {"pictures": HeldOut(source_from(100), num_held_out)} if num_held_out else {}
    recipe = TokenizerRecipe(TrainConfig(precision="fp32"), None)
    grid = tokenizer.reconstructions(model, recipe, source_from(0), held_out)()
    assert grid.shape == (4, 2 * len(shown), 3)
    assert grid[0, ::2, 0].tolist() == list(shown) and grid[3, ::2, 2].tolist() == [255 - i for i in shown]


@pytest.mark.parametrize(
    ("stage", "num_pictures", "told"),
    [  # tiny_config: 4 positions, 10 x 3 codes
        ("semantic", 2, "validation: 2 pictures x 4 positions = 8, so codes_used is at most that, of 10 codes\n"),
        ("semantic", 3, ""),
        ("pixel", 7, "validation: 7 pictures x 4 positions = 28, so codes_used is at most that, of 30 codes\n"),
        ("joint", 8, ""),
        ("decoder", 2, ""),
    ],
)
def test_few_validation_pictures_are_not_taken_for_few_codes(stage, num_pictures, told, capsys):
    tokenizer.announce_positions(tiny_config(), stage, {"pictures": HeldOut(None, num_pictures)})
    assert capsys.readouterr().out == told


def test_codes_begin_within_the_run_or_go_on(capsys):
    recipe = TokenizerRecipe(TrainConfig(max_steps=10, batch_size=3, learning_rate=1e-3), None, quantize_after=1000)
    codebook = EMACodebook(4, 3)
    task = SimpleNamespace(codebooks=lambda: [codebook])
    tokenizer.check_quantize_after(task, recipe, "pixel")
    assert recipe.quantize_after == 2
    assert capsys.readouterr().out == (
        "quantize_after 1,000 is not below the 10 steps of this run: codes begin after step 2\n"
    )
    codebook.initialize(torch.eye(3))
    tokenizer.check_quantize_after(task, recipe, "pixel")
    assert (
        capsys.readouterr().out == "the codes of --init-from go on from the first step: quantize_after 2 is not used\n"
    )


def note_run(folder: Path, step: int, **recipe) -> None:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"step": step, "recipe": {"train": {"max_steps": 9}} | recipe}))


def test_what_a_tokenizer_s_run_began_from_is_kept_and_another_beginning_told(tmp_path, capsys):
    """Also where it began from a run that was stopped; --init-from may name the run or its checkpoint."""
    first, other, run = tmp_path / "first", tmp_path / "other", tmp_path / "run"
    note_run(first / "step-000004", 4), note_run(other / "step-000009", 9)
    assert checkpoint.began_from(run, other) == str(other) and not capsys.readouterr().out
    assert checkpoint.began_from(run, None) is None and not capsys.readouterr().out
    for named in (first, first / "step-000004"):
        assert checkpoint.began_from(run, named) == str(named)
        assert "step-000004 was stopped at step 4 of 9" in capsys.readouterr().out
    note_run(run / "step-000002", 2, init_from=str(first))
    for named in (first, None):
        assert checkpoint.began_from(run, named) == str(first) and not capsys.readouterr().out
    assert checkpoint.began_from(run, other) == str(first)
    assert f"which began from {first}; {other} is not read" in capsys.readouterr().out

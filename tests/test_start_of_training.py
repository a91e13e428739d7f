"""What the training programs start from: checkpoints that do not fit or are damaged are told in one line."""

import importlib.util
import json
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import SiglipConfig

from semhitok import SemHiTokModel
from semhitok.configuration_semhitok import tiny_config
from unimllm.errors import UserError
from unimllm.training.config import TrainConfig
from unimllm.training.overrides import check_taken
from unimllm.training.presets import TokenizerRecipe
from unimllm.training.teacher import TeacherTask

PROGRAMS = Path(__file__).parents[1] / "train"

pytestmark = pytest.mark.skipif(
    not PROGRAMS.is_dir(), reason="train/ is not beside the tests (they run on an installed package)"
)


def program(name: str) -> ModuleType:
    """A program of train/, imported under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"train_{name}", PROGRAMS / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SemHiTokModel(tiny_config())
    folder = tmp_path_factory.mktemp("tokenizer")
    model.save_pretrained(folder)
    return folder


def start(stage: str, **options) -> SemHiTokModel:
    """The model that train/tokenizer.py starts a stage with."""
    args = Namespace(preset="tiny", **{"init_from": None, "teacher": None, "overrides": {}} | options)
    recipe = TokenizerRecipe(TrainConfig(), tiny_config(), world=None)
    return program("tokenizer").start_model(args, recipe, stage)


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
        ("pixel", {"teacher": "a"}, "--teacher is for --stage semantic; the pixel stage has the SigLIP of"),
        ("decoder", {"teacher": "a"}, "--teacher is for --stage semantic"),
        ("semantic", {"teacher": "a", "init_from": "b"}, "--teacher and --init-from both name"),
    ],
)
def test_a_teacher_that_nothing_would_read_is_refused(stage, options, message):
    with pytest.raises(UserError, match=message):
        program("tokenizer").check_start(Namespace(**{"teacher": None, "init_from": None} | options), stage)


def test_sizes_that_the_checkpoint_decides_are_refused_and_equal_ones_taken(tokenizer_folder):
    config = start("pixel", init_from=tokenizer_folder).config
    check_taken({"model.pixel_dim": 4, "model.conv_decoder_channels": (8, 8, 8), "train.max_steps": 3}, config)
    with pytest.raises(UserError, match="^--model.pixel_dim 8 is not to be had: the model .* has 4, from"):
        check_taken({"model.pixel_dim": 8}, config)
    with pytest.raises(UserError, match="^--model.vision_config.hidden_size 32 .* has 16, from"):
        check_taken({"model.vision_config.hidden_size": 32}, config)


def test_weights_of_losses_may_change_between_stages(tokenizer_folder):
    asked = {"model.pixel_commitment_weight": 0.5}
    config = start("pixel", init_from=tokenizer_folder, overrides=asked).config
    check_taken(asked, config)
    assert (config.pixel_commitment_weight, config.commitment_weight) == (0.5, tiny_config().commitment_weight)


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def test_a_stage_starts_with_the_weights_of_the_one_before(tokenizer_folder):
    expected = SemHiTokModel.from_pretrained(tokenizer_folder).state_dict()
    model = start("pixel", init_from=tokenizer_folder)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


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
    sft = program("sft")

    def build(**options):
        args = Namespace(preset="tiny", **{"init_from": None, "image_tokenizer": None} | options)
        return sft.build_model(args, sft.SFT_PRESETS["scenes_64"](), range(300))

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
    with pytest.raises(UserError, match="cannot start from .* is .*, not "):
        teacher.load_siglip(wider, tmp_path / "whole")

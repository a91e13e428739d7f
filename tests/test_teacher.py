"""Any released SigLIP as the teacher: every format of checkpoint, its own preprocessing, and what is refused."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from released_siglips import (
    FORMATS,
    MEAN,
    OPEN_CLIP,
    PICTURES,
    SQUARE,
    STD,
    TEXT,
    open_clip_folder,
    siglip_alone,
    spread,
)
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Siglip2VisionConfig,
    SiglipConfig,
    SiglipTextConfig,
    SiglipTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from semhitok import SemHiTokConfig, SemHiTokImageProcessor, SemHiTokModel
from semhitok.configuration_semhitok import as_vision_config, tiny_config
from semhitok.image_processing_semhitok import for_tokenizer, to_pixel_values
from semhitok.losses import ReconstructionLosses, teacher_distance
from semhitok.stages import PixelStage, SemanticStage
from semhitok.teacher import load_teacher, tokenizer_over


@pytest.fixture(params=FORMATS)
def released(request, tmp_path) -> tuple[Path, torch.Tensor]:
    """A checkpoint and the features that its own library computes of PICTURES."""
    torch.manual_seed(0)
    return tmp_path / "teacher", FORMATS[request.param](tmp_path / "teacher")


def test_features_are_the_original_models_and_survive_saving_bit_for_bit(released, tmp_path):
    folder, expected = released
    model = tokenizer_over(load_teacher(folder), tiny_config()).eval()
    pixel_values = to_pixel_values(PICTURES)
    with torch.no_grad():
        features = model.vision_features(pixel_values)
    assert expected.std() > 0.1 and not torch.allclose(expected[:, 0], expected[:, 1], atol=0.1)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)

    shutil.rmtree(folder)  # the tokenizer needs its teacher's folder no more
    model.save_pretrained(tmp_path / "tokenizer")
    loaded = AutoModel.from_pretrained(tmp_path / "tokenizer").eval()
    assert type(loaded.config.vision_config) is type(model.config.vision_config)
    with torch.no_grad():
        assert torch.equal(loaded.vision_features(pixel_values), features)
    assert torch.equal(loaded.encode(pixel_values), model.encode(pixel_values))


def test_the_stages_take_a_step_on_every_teacher(released):
    folder, _ = released
    model = tokenizer_over(load_teacher(folder), tiny_config())
    pixel_values = to_pixel_values(PICTURES)
    vision = {name: value.clone() for name, value in model.vision_model.state_dict().items()}
    pixel_losses = ReconstructionLosses(perceptual=1.0, distance=teacher_distance(model))
    for make_stage in (SemanticStage, partial(PixelStage, losses=pixel_losses)):
        stage = make_stage(model)
        stage.initialize_codebook([pixel_values])
        before = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer = torch.optim.SGD([p for p in stage.train().parameters() if p.requires_grad], lr=0.1)
        losses = stage(pixel_values)
        losses["loss"].backward()
        optimizer.step()
        assert torch.isfinite(losses["loss"])
        assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert losses["perceptual"] > 0
    assert all(torch.equal(vision[name], value) for name, value in model.vision_model.state_dict().items())


# ---- preprocessing --------------------------------------------------------------------------------------------------


def test_the_teachers_preprocessing_reaches_the_saved_tokenizer_and_its_processor(tmp_path):
    siglip_alone(tmp_path / "teacher")
    config = tokenizer_over(load_teacher(tmp_path / "teacher"), tiny_config()).config
    assert (config.image_mean, config.image_std, config.resample) == (MEAN, STD, 2)
    for_tokenizer(config).save_pretrained(tmp_path)
    processor = SemHiTokImageProcessor.from_pretrained(tmp_path)
    assert processor.resample == Image.Resampling.BILINEAR and processor.size["shortest_edge"] == 16
    # Pictures that need no resizing are in -1..1 still: they are the pixel branch's too.
    same = processor(list(PICTURES), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(same, to_pixel_values(PICTURES))


def test_a_mean_and_std_of_one_half_change_no_bit():
    torch.manual_seed(0)
    model = SemHiTokModel(tiny_config()).eval()
    pixel_values = to_pixel_values(PICTURES)
    with torch.no_grad():
        expected = model.vision_model(pixel_values).last_hidden_state
        assert torch.equal(model.vision_features(pixel_values), expected)


def test_renormalising_by_hand():
    """White in -1..1 is (1 - mean) / std, black is -mean / std."""
    model = SemHiTokModel(tiny_config(image_mean=MEAN, image_std=STD))
    seen = {}
    model.vision_model.forward = lambda pixel_values, **kwargs: seen.update(x=pixel_values)
    model.vision_outputs(torch.stack([torch.ones(3, 16, 16), -torch.ones(3, 16, 16)]))
    torch.testing.assert_close(seen["x"][0, :, 0, 0], torch.tensor([0.6 / 0.2, 0.5 / 0.3, 0.7 / 0.25]))
    torch.testing.assert_close(seen["x"][1, :, 0, 0], torch.tensor([-0.4 / 0.2, -0.5 / 0.3, -0.3 / 0.25]))


def test_without_preprocessing_siglips_own_is_assumed_and_said(tmp_path):
    siglip_alone(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    teacher = load_teacher(tmp_path)
    assert (teacher.image_mean, teacher.image_std, teacher.resample) == ((0.5,) * 3, (0.5,) * 3, 3)
    assert len(teacher.notes) == 1 and "no preprocessor_config.json: assuming" in teacher.notes[0]
    assert "24" in teacher.describe() and "mean 0.5, std 0.5, bicubic" in teacher.describe()


def test_open_clips_defaults_are_assumed_where_it_states_nothing(tmp_path):
    open_clip_folder(tmp_path)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP | {"preprocess_cfg": {"std": STD}}))
    teacher = load_teacher(tmp_path)
    assert teacher.image_mean[0] == pytest.approx(0.4814, abs=1e-4) and teacher.image_std == tuple(STD)
    assert "states no mean, interpolation" in teacher.notes[0]


def test_half_precision_is_loaded_as_float32(tmp_path):
    torch.manual_seed(0)
    model = spread(SiglipVisionModel(SiglipVisionConfig(**SQUARE))).half()
    model.save_pretrained(tmp_path)
    built = tokenizer_over(load_teacher(tmp_path), tiny_config()).eval()
    assert built.dtype == torch.float32 and built.vision_model.dtype == torch.float32
    pixel_values = to_pixel_values(PICTURES)
    with torch.no_grad():
        expected = model.float()(pixel_values).last_hidden_state
        torch.testing.assert_close(built.vision_features(pixel_values), expected, atol=1e-5, rtol=1e-5)


def test_a_size_that_no_patch_divides_shrinks_to_one_and_is_said(tmp_path):
    """As siglip-so400m-patch14-384: 27 patches of 14 pixels cover 378."""
    torch.manual_seed(0)
    model = spread(SiglipVisionModel(SiglipVisionConfig(**(SQUARE | {"image_size": 19}))))
    model.save_pretrained(tmp_path / "teacher")
    teacher = load_teacher(tmp_path / "teacher")
    assert "leaves 3 over: the tokenizer reads 16" in teacher.notes[-1]
    built = tokenizer_over(teacher, tiny_config()).eval()
    assert built.config.image_size == 16 and built(to_pixel_values(PICTURES)).reconstruction.shape == (3, 3, 16, 16)
    built.save_pretrained(tmp_path / "tokenizer")
    loaded = SemHiTokModel.from_pretrained(tmp_path / "tokenizer").eval()
    assert torch.equal(loaded.encode(to_pixel_values(PICTURES)), built.encode(to_pixel_values(PICTURES)))


def test_the_scenes_own_teacher_with_its_stem_loads_whole_and_alone(tmp_path):
    from unimllm.training.teacher import TeacherTask

    torch.manual_seed(0)
    vision = SQUARE | {"stem_channels": [8, 8, 8]}
    task = TeacherTask(SiglipConfig(text_config=TEXT, vision_config=vision), num_classes=3, caption_weight=1.0)
    siglip = spread(task.siglip)
    siglip.save_pretrained(tmp_path / "whole")
    siglip.vision_model.save_pretrained(tmp_path / "alone")
    pixel_values = to_pixel_values(PICTURES)
    for folder in ("whole", "alone"):
        model = tokenizer_over(load_teacher(tmp_path / folder), tiny_config()).eval()
        with torch.no_grad():
            expected = siglip.vision_model(pixel_values).last_hidden_state
            assert torch.equal(model.vision_features(pixel_values), expected)


# ---- what is refused ------------------------------------------------------------------------------------------------


def refusal(name: str | Path) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        load_teacher(name)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


def test_other_kinds_of_model_are_refused_by_name(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    others = {
        "clip_vision_model": CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=16, patch_size=8)),
        "bert": BertModel(BertConfig(**sizes, vocab_size=10)),
        "siglip_text_model": SiglipTextModel(SiglipTextConfig(**TEXT)),
        "semhitok": SemHiTokModel(tiny_config()),
    }
    for kind, model in others.items():
        model.save_pretrained(tmp_path / kind)
        assert f"holds a {kind} model; the teacher must be one of siglip" in refusal(tmp_path / kind)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    assert "holds neither config.json nor open_clip_config.json" in refusal(tmp_path)
    assert "is neither a folder nor a hub id" in refusal(tmp_path / "nowhere")
    assert "is neither a folder nor a hub id" in refusal("runs/no/teacher")
    assert "is no folder here, and" in refusal("nobody/no-such-siglip")
    (tmp_path / "config.json").write_text("{")
    assert "config.json of" in refusal(tmp_path) and "is no JSON" in refusal(tmp_path)


def test_damaged_weights_are_refused(tmp_path):
    siglip_alone(tmp_path)
    weights = tmp_path / "model.safetensors"
    state = load_file(weights)
    save_file({k: v for k, v in state.items() if not k.endswith("layers.1.mlp.fc1.bias")}, weights, {"format": "pt"})
    assert "the checkpoint lacks 1 tensors: " in refusal(tmp_path)
    name = next(name for name in state if name.endswith("layers.1.mlp.fc1.bias"))
    save_file(state | {name: state[name][:2].clone(), "more": torch.ones(1)}, weights, {"format": "pt"})
    told = refusal(tmp_path)  # a checkpoint may well hold more than is read
    assert told.endswith(f"layers.1.mlp.fc1.bias (2,) (not {tuple(state[name].shape)})") and "no place" not in told
    weights.write_bytes(b"cut off")
    assert "cannot load the SigLIP in" in refusal(tmp_path)
    weights.unlink()
    assert "no file named model.safetensors" in refusal(tmp_path)


@pytest.mark.parametrize("values", [{"image_std": [0.5, 0.0, 0.5]}, {"image_mean": [0.5, 0.5]}, {"image_mean": "half"}])
def test_impossible_preprocessing_is_refused(values, tmp_path):
    siglip_alone(tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | values))
    assert "needs one number per RGB channel" in refusal(tmp_path)


def with_vision(**changes) -> dict:
    vision = OPEN_CLIP["model_cfg"]["vision_cfg"] | changes
    return OPEN_CLIP | {"model_cfg": OPEN_CLIP["model_cfg"] | {"vision_cfg": vision}}


@pytest.mark.parametrize(
    ("settings", "tensors", "message"),
    [
        ({"model_cfg": {"vision_cfg": {"layers": 12, "width": 768}}}, {}, "vision tower is no timm model"),
        ({"model_cfg": None}, {}, "vision tower is no timm model"),
        (with_vision(timm_model_name="convnext_base"), {}, "vision tower is convnext_base"),
        (with_vision(timm_model_name="vit_base_patch8_siglip_gap_16"), {}, "only SigLIP's"),
        (with_vision(timm_model_name="vit_base_patch8_siglip_32"), {}, "it has 4 positions of 8 pixels"),
        (OPEN_CLIP, {"visual.head.proj.weight": torch.ones(2)}, "visual.head.proj.weight, which a SigLIP has not"),
        (OPEN_CLIP, {"visual.trunk.blocks.0.ls1.gamma": torch.ones(2)}, "blocks.0.ls1.gamma, which a SigLIP has not"),
        (OPEN_CLIP, {"visual.trunk.blocks.1.norm2.bias": None}, "lacks 1 tensors: encoder.layers.1.layer_norm2.bias"),
        (OPEN_CLIP, {"visual.trunk.attn_pool.q.bias": None}, "in_proj_bias (48,) (not (72,))"),
        (OPEN_CLIP, {"visual.trunk.pos_embed": None}, "it lacks visual.trunk.pos_embed"),
    ],
)
def test_towers_of_open_clip_that_cannot_be_converted_are_refused(settings, tensors, message, tmp_path):
    open_clip_folder(tmp_path)
    weights = tmp_path / "open_clip_model.safetensors"
    state = load_file(weights) | tensors
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, weights)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    assert message in refusal(tmp_path)


def test_damaged_open_clip_weights_are_refused(tmp_path):
    open_clip_folder(tmp_path)
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"cut off")
    assert "cannot read open_clip_model.safetensors" in refusal(tmp_path)
    (tmp_path / "open_clip_model.safetensors").unlink()
    assert "neither open_clip_model.safetensors nor open_clip_pytorch_model.bin" in refusal(tmp_path)


def test_a_config_of_another_model_is_no_vision_config():
    with pytest.raises(ValueError, match="vision_config is of a clip_vision_model model"):
        SemHiTokConfig(vision_config=CLIPVisionConfig())
    assert as_vision_config({"image_size": 32}).image_size == 32
    assert isinstance(as_vision_config({"model_type": "siglip2_vision_model"}), Siglip2VisionConfig)

"""The released CHEERS checkpoint: every name and shape at full size, and small ones there and back."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from unimllm import CheersForConditionalGeneration
from unimllm.cheers.configuration_cheers import released_config, tiny_config
from unimllm.cheers.weights import (
    check_shapes,
    config_from_released,
    config_to_released,
    own_name,
    released_name,
    released_shapes,
)
from unimllm.convert import main
from unimllm.errors import UserError

# Facts of the released model: how many tensors and numbers it has, and the SHA-256 of its sorted lines "name shape".
RELEASED_TENSORS = 1321
RELEASED_NUMBERS = 2_804_711_431  # without the statistics of latents
RELEASED_LINES = "0a951f21f8f1c959c96960b60b741abfea5fc0ce4cbd5832b1308cde55784e99"
RELEASED_SAMPLE = {
    "model.vision_representation.embeddings.patch_embedding.weight": (1152, 3, 16, 16),
    "model.vision_representation.encoder.layers.26.mlp.fc1.weight": (4304, 1152),
    "model.vision_representation.head.attention.in_proj_weight": (3456, 1152),
    "model.vae_model.encoder.down.2.block.0.nin_shortcut.weight": (512, 256, 1, 1),
    "model.vae_model.decoder.up.1.block.2.conv2.weight": (256, 256, 3, 3),
    "model.vae_model.bn.num_batches_tracked": (),
    "model.vae_decoder_projector.decoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
    "model.und_projector.mlp.2.weight": (1536, 4608),
    "model.time_embed.mlp_2.0.weight": (1152, 256),
    "model.gen_projector.diffusion_head_a.6.adaLN_modulation.1.weight": (9216, 1536),
    "model.gen_projector.diffusion_head_b.linear.weight": (4608, 1536),
    "model.hi_gate.gate.2.weight": (1, 1152),
    "model.hi_projector.diffusion_head_a.2.attn.k_proj.weight": (144, 1152),
    "model.language_model.layers.27.self_attn.k_proj.bias": (256,),
    "model.language_model.norm.weight": (1536,),
    "lm_head.weight": (151936, 1536),
}


@pytest.fixture(scope="module")
def full_size() -> CheersForConditionalGeneration:
    """The released sizes without memory."""
    with torch.device("meta"):
        return CheersForConditionalGeneration(released_config())


def test_every_released_tensor_has_its_place_at_full_size_and_no_other_is_wanted(full_size):
    shapes = released_shapes(full_size)
    assert RELEASED_SAMPLE.items() <= shapes.items()
    lines = sorted(f"{name} {shape}" for name, shape in shapes.items())
    assert len(lines) == RELEASED_TENSORS
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == RELEASED_LINES
    numbers = sum(t.numel() for name, t in full_size.state_dict().items() if ".bn." not in name)
    assert numbers == RELEASED_NUMBERS


def test_names_lead_there_and_back(full_size):
    names = full_size.state_dict().keys()
    assert all(own_name(released_name(name)) == name for name in names)
    assert own_name("model.pooler.weight") is None and released_name("lm_head.weight") is None


def test_faults_are_listed():
    wanted = {"a": (1,), "b": (2, 3), "c": ()}
    check_shapes(dict(wanted), wanted)
    with pytest.raises(ValueError, match=r"lacks 1 tensors: c; it has no place for 1 tensors: d; it has in another"):
        check_shapes({"a": (1,), "b": (3, 2), "d": ()}, wanted)


def released_settings() -> dict:
    vae = {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "z_channels": 8, "resolution": 16}
    text = {
        "vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 64, "tie_word_embeddings": True,
    }  # fmt: skip
    vision = {
        "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
        "patch_size": 4,
    }  # fmt: skip
    return {
        "model_type": "umm", "text_config": text, "vision_representation_config": vision, "vae_encoder_config": vae,
        "vae_decoder_config": vae,
    }  # fmt: skip


def test_an_empty_part_of_a_released_configuration_is_as_if_it_were_left_out():
    empty = dict.fromkeys(["text_config", "vision_representation_config", "vae_encoder_config"])
    assert config_from_released(empty).to_dict() == config_from_released({}).to_dict()


@pytest.mark.parametrize(
    ("name", "value"), [("rope_scaling", {"rope_type": "yarn", "factor": 4.0}), ("use_sliding_window", True)]
)
def test_a_language_model_that_would_be_read_as_another_is_refused(name, value):
    settings = released_settings()
    settings["text_config"][name] = value
    with pytest.raises(ValueError, match=f"^{name} of text_config would be lost"):
        config_from_released(settings)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A folder as the released one, small and random, in two files."""
    folder = tmp_path_factory.mktemp("released")
    settings = released_settings()
    with torch.device("meta"):
        shapes = released_shapes(CheersForConditionalGeneration(config_from_released(settings)))
    state = {name: torch.randn(shape).to(torch.bfloat16) for name, shape in shapes.items()}
    state |= {name: torch.tensor(7) for name in state if name.endswith("num_batches_tracked")}
    state |= {name: value.abs() for name, value in state.items() if name.endswith("running_var")}
    state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"].clone()
    names = sorted(state)
    save_file({n: state[n] for n in names[:100]}, folder / "model-00001-of-00002.safetensors")
    save_file({n: state[n] for n in names[100:]}, folder / "model-00002-of-00002.safetensors")
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "merges.txt").write_text("a b\n")
    return folder


def test_a_released_checkpoint_opens_as_ours_and_goes_back_bit_for_bit(released, tmp_path, capsys):
    main(["cheers", str(released), str(tmp_path / "ours")])
    assert "merges.txt" in capsys.readouterr().out
    model = AutoModel.from_pretrained(tmp_path / "ours", dtype="auto")
    assert model.dtype == torch.bfloat16 and model.config.extra_euler_step and model.config.tie_word_embeddings
    main(["cheers", str(tmp_path / "ours"), str(tmp_path / "back")])
    before = load_file(released / "model-00001-of-00002.safetensors")
    before |= load_file(released / "model-00002-of-00002.safetensors")
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert all(before[name].dtype == after[name].dtype for name in before)
    settings = json.loads((tmp_path / "back" / "config.json").read_text())
    wanted = released_settings()
    for part in ("text_config", "vision_representation_config", "vae_encoder_config", "vae_decoder_config"):
        assert wanted[part].items() <= settings[part].items()


def test_a_head_of_its_own_is_kept(released, tmp_path):
    source = tmp_path / "untied"
    source.mkdir()
    state = load_file(released / "model-00001-of-00002.safetensors")
    state |= load_file(released / "model-00002-of-00002.safetensors")
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    save_file(state, source / "model.safetensors")
    (source / "config.json").write_text((released / "config.json").read_text())
    main(["cheers", str(source), str(tmp_path / "ours")])
    model = AutoModel.from_pretrained(tmp_path / "ours", dtype="auto")
    assert torch.equal(model.get_output_embeddings().weight, state["lm_head.weight"])
    assert torch.equal(model.get_input_embeddings().weight, state["model.language_model.embed_tokens.weight"])


def test_missing_extra_and_misshapen_tensors_are_refused_with_their_names(released, tmp_path):
    state = load_file(released / "model-00001-of-00002.safetensors")
    del state["lm_head.weight"]
    state["model.und_projector.mlp.0.bias"] = torch.zeros(3)
    state["model.pooler.weight"] = torch.zeros(1)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((released / "config.json").read_text())
    with pytest.raises(UserError) as told:
        main(["cheers", str(tmp_path), str(tmp_path / "ours")])
    message = str(told.value)
    assert "lacks" in message and "lm_head.weight" in message and "\n" not in message
    assert "no place for 1 tensors: model.pooler.weight" in message
    assert "model.und_projector.mlp.0.bias (3,) (not (96,))" in message


def test_a_model_that_the_released_code_would_misread_is_refused(tmp_path):
    CheersForConditionalGeneration(tiny_config()).save_pretrained(tmp_path / "ours")
    with pytest.raises(UserError, match="num_semantic_layers, .*repeat_detail_positions.*pixels_from_zero") as told:
        main(["cheers", str(tmp_path / "ours"), str(tmp_path / "back")])
    assert "\n" not in str(told.value) and not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("", "extra_euler_step", False),
        ("", "leading_picture_is_causal", False),
        ("", "round_rotary_frequencies", False),
        ("", "decode_before_siglip", False),
        ("", "linear_details", True),
        ("", "flow_loss_on_read_pictures", False),
        ("", "image_token_id", 6),
        ("", "no_text_token_id", 8),
        ("", "num_semantic_heads", 4),
        ("", "num_detail_heads", 4),
        ("", "num_flow_key_value_heads", 2),
        ("vae_config", "channels", 64),
        ("text_config", "model_type", "qwen3"),
        ("text_config", "head_dim", 4),
        ("text_config", "rope_parameters", {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0}),
        ("text_config", "use_sliding_window", True),
        ("vision_config", "stem_channels", [8, 8]),
        ("vision_config", "vision_use_head", False),
    ],
)
def test_a_field_that_the_released_code_has_built_in_is_named(part, name, value):
    config = config_from_released(released_settings())
    config_to_released(config)
    setattr(getattr(config, part) if part else config, name, value)
    with pytest.raises(ValueError, match=rf"built in for {part}\.?{name}$"):
        config_to_released(config)


def test_a_conversion_that_broke_off_leaves_nothing_and_can_be_repeated(released, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    words = ["cheers", str(released), str(tmp_path / "ours")]
    with monkeypatch.context() as patch:
        patch.setattr("unimllm.convert.shutil.copy", full)  # the weights are written by then
        with pytest.raises(UserError, match="No space left"):
            main(words)
    assert not list(tmp_path.iterdir())
    main(words)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_damaged_weights_of_ours_are_told_in_one_line(tmp_path):
    ours = tmp_path / "ours"
    CheersForConditionalGeneration(tiny_config()).save_pretrained(ours)
    weights = ours / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot convert .*ours: ") as told:
        main(["cheers", str(ours), str(tmp_path / "back")])
    assert "\n" not in str(told.value) and [path.name for path in tmp_path.iterdir()] == ["ours"]


NORM = "language_model.model.norm.weight"


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        (
            {NORM: None, "flow_head.hi_gate.gate.2.bias": None},
            f"lacks 2 tensors: flow_head.hi_gate.gate.2.bias, {NORM};",
        ),
        ({f"more.{i}": torch.ones(1) for i in range(7)}, "has no place for 7 tensors: more.0, .*, more.4, ...$"),
        ({NORM: torch.ones(3)}, rf"has in another shape 1 tensors: {NORM} \(3,\) \(not \(16,\)\)$"),
    ],
)
def test_ours_must_fit_too(tmp_path, changes, wrong):
    ours = tmp_path / "ours"
    CheersForConditionalGeneration(tiny_config()).save_pretrained(ours)
    tensors = load_file(ours / "model.safetensors") | changes
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(tensors, ours / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"cannot convert .*ours: the checkpoint {wrong}") as told:
        main(["cheers", str(ours), str(tmp_path / "back")])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["cheers", "a"], "three words"),
        (["chers", "a", "b"], "did you mean 'cheers'"),
        (["cheers", "nowhere", "b"], "no config.json"),
        (["cheers", "nowhere", "."], "exists"),
    ],
)
def test_wrong_words_are_told_in_one_line(words, told):
    with pytest.raises(UserError, match=told):
        main(words)

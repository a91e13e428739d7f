"""The released CHEERS checkpoint as ours and back: one dict of names, strict both ways.

Released: config.json of model_type "umm" beside *.safetensors with 1,321 tensors. Names differ by their beginnings
alone; shapes, orders of elements and the precision stay as they are.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import Qwen2Config, SiglipVisionConfig

from semhitok.errors import first_line
from semhitok.misfit import misfit_of_shapes
from unimllm.cheers.configuration_cheers import RELEASED_QUIRKS, CheersConfig, CheersVaeConfig, released_config
from unimllm.cheers.modeling_cheers import CheersForConditionalGeneration

RELEASED_TYPE = "umm"
NAMES = {
    "model.vision_representation.": "vision_tokenizer.vision_representation.",
    "model.vae_model.": "vision_tokenizer.vae_model.",
    "model.vae_decoder_projector.": "vision_tokenizer.vae_decoder_projector.",
    "model.und_projector.": "vision_tokenizer.und_projector.",
    "model.time_embed.": "flow_head.time_embed.",
    "model.gen_projector.": "flow_head.gen_projector.",
    "model.hi_gate.": "flow_head.hi_gate.",
    "model.hi_projector.": "flow_head.hi_projector.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
"""Beginnings of names: released -> ours."""

HEAD, EMBEDDINGS = "lm_head.weight", "model.language_model.embed_tokens.weight"

# What the released configuration file leaves out, and what its code fixes.
TEXT_DEFAULTS = {
    "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "hidden_act": "silu", "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
}  # fmt: skip
TEXT_ROPE_THETA = 1e6
VISION_DEFAULTS = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 256, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    "attention_dropout": 0.0,
}  # fmt: skip
VAE_DEFAULTS = {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "z_channels": 32}
FIXED = (
    "compression", "num_semantic_layers", "num_detail_layers", "time_channels", "decode_before_siglip",
    "linear_details", "inject_details", *RELEASED_QUIRKS, "image_start_token_id", "image_end_token_id",
    "image_token_id", "image_gen_token_id", "no_text_token_id",
)  # fmt: skip
FIXED_VAE = ("num_groups", "pixels_from_zero", "latent_patch_size")
"""Fields of CheersConfig, and of its VAE's, that the released code has no choice in."""


def rename(name: str, names: dict[str, str]) -> str | None:
    """A tensor's name with another beginning; None where `names` has none of its beginnings."""
    for old, new in names.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return None


def own_name(released: str) -> str | None:
    return rename(released, NAMES)


def released_name(own: str) -> str | None:
    return rename(own, {new: old for old, new in NAMES.items()})


def released_shapes(model: CheersForConditionalGeneration) -> dict[str, tuple[int, ...]]:
    """Released names and shapes of a model's tensors; it may lie on the meta device."""
    return {released_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_shapes(found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    """ValueError lists the tensors that are missing, superfluous or of another shape."""
    if told := misfit_of_shapes(found, wanted):
        raise ValueError(f"the checkpoint {told}")


def config_from_released(settings: dict) -> CheersConfig:
    """Our configuration of a released config.json, with RELEASED_QUIRKS.

    Raises:
        ValueError: a language model with other rotary positions or attention than the released one's.
    """
    parts = ("text_config", "vision_representation_config", "vae_encoder_config")
    given_text, given_vision, given_vae = (settings.get(part) or {} for part in parts)
    if other := [name for name in ("rope_scaling", "use_sliding_window") if given_text.get(name)]:
        raise ValueError(f"{' and '.join(other)} of text_config would be lost; the released model has neither")
    text = {name: given_text.get(name, value) for name, value in TEXT_DEFAULTS.items()}
    vision = {name: given_vision.get(name, value) for name, value in VISION_DEFAULTS.items()}
    vae = VAE_DEFAULTS | given_vae
    rope = {"rope_type": "default", "rope_theta": given_text.get("rope_theta", TEXT_ROPE_THETA)}
    return released_config(
        text_config=Qwen2Config(**text, rope_parameters=rope, bos_token_id=151643, eos_token_id=151645),
        vision_config=SiglipVisionConfig(**vision),
        vae_config=CheersVaeConfig(
            channels=vae["ch"], channel_multipliers=vae["ch_mult"], num_blocks=vae["num_res_blocks"],
            latent_channels=vae["z_channels"], pixels_from_zero=True,
        ),
        num_semantic_heads=text["num_attention_heads"], num_detail_heads=vision["num_attention_heads"],
        num_flow_key_value_heads=text["num_key_value_heads"],
    )  # fmt: skip


def unlike_released(config: CheersConfig) -> list[str]:
    """Fields with other values than the released code has built in or takes from another part's configuration."""
    released, text, vision, vae = released_config(), config.text_config, config.vision_config, config.vae_config
    wanted = {name: getattr(released, name) for name in FIXED} | {
        "num_semantic_heads": text.num_attention_heads,
        "num_detail_heads": vision.num_attention_heads,
        "num_flow_key_value_heads": text.num_key_value_heads,
    }
    wanted_vae = {name: getattr(released.vae_config, name) for name in FIXED_VAE}
    wanted_vae["channels"] = vae.patched_channels  # the second stage's output is as wide as the VAE's first convolution
    other = [name for name, value in wanted.items() if getattr(config, name) != value]
    other += [f"vae_config.{name}" for name, value in wanted_vae.items() if getattr(vae, name) != value]
    head_dim, rope = text.hidden_size // text.num_attention_heads, getattr(text, "rope_parameters", None) or {}
    is_other = {  # some language models and SigLIPs lack such a field
        "text_config.model_type": text.model_type != released.text_config.model_type,
        "text_config.head_dim": (getattr(text, "head_dim", None) or head_dim) != head_dim,
        "text_config.rope_parameters": rope.get("rope_type", "default") != "default",
        "text_config.use_sliding_window": getattr(text, "use_sliding_window", False),
        "vision_config.stem_channels": getattr(vision, "stem_channels", None),
        "vision_config.vision_use_head": not getattr(vision, "vision_use_head", True),
    }
    return other + [name for name, value in is_other.items() if value]


def config_to_released(config: CheersConfig) -> dict:
    """A released config.json.

    Raises:
        ValueError: the released code would compute something else with these weights.
    """
    other = unlike_released(config)
    if other:
        raise ValueError(
            f"the released code cannot run this model; it has other values built in for {', '.join(other)}"
        )
    vae = config.vae_config
    sizes = {
        "ch": vae.channels, "ch_mult": vae.channel_multipliers, "num_res_blocks": vae.num_blocks,
        "z_channels": vae.latent_channels, "resolution": config.image_size,
    }  # fmt: skip
    text = {name: getattr(config.text_config, name) for name in TEXT_DEFAULTS}
    return {
        "architectures": ["Cheers"],
        "auto_map": {
            "AutoConfig": "configuration_umm.UMMConfig", "AutoModel": "modeling_umm.UMMModel",
            "AutoModelForCausalLM": "modeling_umm.Cheers",
        },
        "model_type": RELEASED_TYPE,
        "text_config": text | {"rope_theta": config.text_config.rope_parameters["rope_theta"]},
        "vision_representation_config": {name: getattr(config.vision_config, name) for name in VISION_DEFAULTS},
        "vae_encoder_config": sizes,
        "vae_decoder_config": sizes,
        "torch_dtype": str(config.dtype or torch.float32).removeprefix("torch."),
    }  # fmt: skip


def read_released(folder: Path) -> CheersForConditionalGeneration:
    """The model of a released checkpoint, in the precision it has; save it, and open that for use.

    Raises:
        ValueError: another configuration, a damaged file, or tensors that do not fit. One line.
    """
    config = config_from_released(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    with torch.device("meta"):
        model = CheersForConditionalGeneration(config)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no .safetensors")
    shapes, state = {}, {}
    try:
        for path in files:
            with safe_open(path, "pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        check_shapes(shapes, released_shapes(model))
        for path in files:
            with safe_open(path, "pt") as file:
                state |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # a damaged file raises nearly anything
        raise ValueError(f"{folder}: {first_line(error)}") from error
    tied = torch.equal(state[HEAD], state[EMBEDDINGS])
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied  # stored twice, trained as one
    model.load_state_dict({own_name(name): tensor for name, tensor in state.items()}, assign=True)
    return model


def write_released(model: CheersForConditionalGeneration, folder: Path) -> None:
    """Save a model as the released code reads it (configuration_umm.py and modeling_umm.py go beside it).

    Raises:
        ValueError: that code would compute something else.
    """
    settings = config_to_released(model.config)
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        released_name(name): (tensor.to(model.dtype) if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in model.state_dict().items()
    }
    state[HEAD] = state[HEAD].clone()  # tied, but stored twice
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

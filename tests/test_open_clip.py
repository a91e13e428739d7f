"""open_clip's SigLIP, converted, against open_clip and timm themselves, where they are installed (extra `clip`)."""

import pytest
import torch
from transformers import SiglipVisionModel

from semhitok.configuration_semhitok import tiny_config
from semhitok.open_clip_weights import TANH_GELU, TIMM_NAME, TRUNK, config_from_weights, convert
from semhitok.teacher import load_teacher, tokenizer_over

try:
    import open_clip
    import timm
    from open_clip.push_to_hf_hub import save_for_hf
    from timm.models.vision_transformer import VisionTransformer
except Exception as error:  # torchvision without its operators raises a RuntimeError
    pytest.skip(f"open_clip cannot be imported: {error}", allow_module_level=True)

NAMES = [name for name in timm.list_models("vit_*_siglip_*") if TIMM_NAME.fullmatch(name)]


class NoTextTokenizer:
    """What `save_for_hf` asks of a text tokenizer."""

    def save_pretrained(self, folder) -> None: ...


@pytest.fixture
def small_timm_model(monkeypatch):
    """timm builds a tower of 24 channels under the name of a SigLIP that has not been released."""
    name = "vit_base_patch8_siglip_16"

    def create(model_name: str, pretrained: bool = False, **kwargs) -> VisionTransformer:
        assert model_name == name
        sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 12, "class_token": False}
        return VisionTransformer(**sizes, **kwargs)

    monkeypatch.setattr(timm, "create_model", create)
    return name


@pytest.mark.parametrize("safe", [True, False])
def test_features_of_a_checkpoint_that_open_clip_saved(small_timm_model, safe, tmp_path):
    config = {
        "embed_dim": 24,
        "init_logit_bias": -10,
        "vision_cfg": {
            "image_size": 16, "timm_model_name": small_timm_model, "timm_pool": "map", "timm_proj": "none",
            "timm_model_pretrained": False,
        },
        "text_cfg": {"context_length": 8, "vocab_size": 30, "width": 24, "heads": 2, "layers": 1},
    }  # fmt: skip
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(**config).eval()
    with torch.no_grad():
        for name, parameter in model.visual.named_parameters():
            parameter.normal_(std=0.3 if name.endswith("weight") else 1.0)
    mean, std = (0.4, 0.5, 0.3), (0.2, 0.3, 0.25)
    open_clip.model.set_model_preprocess_cfg(model, {"mean": mean, "std": std, "interpolation": "bilinear"})
    save_for_hf(model, NoTextTokenizer(), config | {"custom_text": True}, tmp_path, safe_serialization=safe)
    tokenizer = tokenizer_over(load_teacher(tmp_path), tiny_config()).eval()
    assert tokenizer.config.resample == 2 and tokenizer.config.image_mean == list(mean)
    pictures = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        seen = (pictures - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        expected = model.visual.trunk.forward_features(seen)
        torch.testing.assert_close(tokenizer.vision_features(pictures * 2 - 1), expected, atol=1e-5, rtol=1e-5)
        pooled = tokenizer.vision_outputs(pictures * 2 - 1).pooler_output
        torch.testing.assert_close(pooled, model.visual(seen), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_siglip_of_timm_has_the_sizes_heads_and_activation_that_we_take(name):
    with torch.device("meta"):
        trunk = timm.create_model(name, num_classes=0, global_pool="map")
        state = {TRUNK + key: value for key, value in trunk.state_dict().items()}
        config = config_from_weights(name, state)
        model = SiglipVisionModel(config)
    shapes = {key: value.shape for key, value in convert(state).items()}
    assert shapes == {key: value.shape for key, value in model.state_dict().items()}
    block = trunk.blocks[0]
    assert config.num_attention_heads == block.attn.num_heads == trunk.attn_pool.num_heads
    assert config.layer_norm_eps == block.norm1.eps == trunk.norm.eps
    assert (name in TANH_GELU) == (type(block.mlp.act).__name__ == "GELUTanh")
    assert block.mlp.act.__class__ is trunk.attn_pool.mlp.act.__class__

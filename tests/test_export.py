"""Exporting: half the bytes, the same pictures' ids, float32 again after loading."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedConfig

from semhitok import SemHiTokModel
from unimllm import load
from unimllm.cheers.configuration_cheers import tiny_config as tiny_cheers
from unimllm.discrete.configuration_unimllm import tiny_config
from unimllm.errors import UserError
from unimllm.export import main


def test_an_exported_model_is_half_as_large_and_loads_as_float32(tiny_checkpoint, tmp_path, capsys):
    main(["--model", str(tiny_checkpoint), "--out-dir", str(tmp_path / "small")])
    assert "model.safetensors" in capsys.readouterr().out
    before, _ = load(tiny_checkpoint, "cpu")
    after, processor = load(tmp_path / "small", "cpu")
    assert after.dtype == torch.float32 and after.config.dtype == torch.float32
    size = [(folder / "model.safetensors").stat().st_size for folder in (tiny_checkpoint, tmp_path / "small")]
    assert size[1] < 0.7 * size[0]
    other = dict(after.named_parameters())
    for name, parameter in before.named_parameters():
        torch.testing.assert_close(other[name], parameter, rtol=1e-3, atol=1e-4)
    assert processor.num_positions == before.config.image_tokenizer_config.num_positions
    assert [p.name for p in tmp_path.iterdir()] == ["small"]


@pytest.mark.parametrize("config", [tiny_config(), tiny_cheers()])
def test_no_config_says_where_its_parts_lay(config, tmp_path):
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig):
            part._name_or_path = "/of/somebody/model"
    if hasattr(config, "image_tokenizer_config"):
        config.image_tokenizer_config.vision_config._name_or_path = "/of/somebody/siglip"
    config.save_pretrained(tmp_path)
    assert "somebody" not in (tmp_path / "config.json").read_text() and "somebody" not in str(config.to_dict())
    assert type(config).from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_weights_in_bfloat16_stay_so_and_their_image_tokenizer_is_float16(tiny_cheers, tmp_path):
    model, processor = load(tiny_cheers, "cpu", dtype="bfloat16")
    with torch.no_grad():
        large = model.language_model.get_decoder().norm.weight
        large[0] = 2.0**20  # float16 ends at 65504
    model.save_pretrained(tmp_path / "bf16")
    processor.save_pretrained(tmp_path / "bf16")
    main(["--model", str(tmp_path / "bf16"), "--out-dir", str(tmp_path / "small")])
    stored = load_file(tmp_path / "small" / "model.safetensors")
    kinds = {name: tensor.dtype for name, tensor in stored.items() if tensor.is_floating_point()}
    assert {kinds[name] for name in kinds if "vae_model" in name} == {torch.float16}
    assert {kinds[name] for name in kinds if "vae_model" not in name} == {torch.bfloat16}
    after = load(tmp_path / "small", "cpu", dtype="bfloat16")[0]
    others = dict(after.named_parameters())
    assert all(torch.equal(others[n], p) for n, p in model.named_parameters() if "vae_model" not in n)
    settings = json.loads((tmp_path / "small" / "config.json").read_text())
    assert settings["dtype"] == "bfloat16"
    model.float().save_pretrained(tmp_path / "bf16")
    with pytest.raises(UserError, match=r"^no export in float16: language_model.*norm.weight reaches 1.04858e\+06"):
        main(["--model", str(tmp_path / "bf16"), "--out-dir", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()


def test_a_decoder_of_the_same_codes_is_taken_and_another_refused(tiny_checkpoint, tmp_path):
    tokenizer = SemHiTokModel.from_pretrained(tiny_checkpoint)
    tokenizer.replace_decoder(decoder_hidden_size=24)
    tokenizer.save_pretrained(tmp_path / "wide")
    command = ["--model", str(tiny_checkpoint), "--out-dir", str(tmp_path / "out"), "--image-tokenizer"]
    main([*command, str(tmp_path / "wide")])
    exported = load(tmp_path / "out")[0]
    assert exported.config.image_tokenizer_config.decoder_hidden_size == 24
    wanted = tokenizer.pixel.decoder.state_dict()
    for name, value in exported.image_tokenizer.pixel.decoder.state_dict().items():
        torch.testing.assert_close(value, wanted[name].half().float())
    tokenizer.pixel.codebook.base.data += 1
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="makes other codes"):
        main([*command, str(tmp_path / "other")])

"""Exporting: half the bytes, the same pictures' ids, float32 again after loading."""

import pytest
import torch
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
            part._name_or_path = "/home/somebody/model"
    if hasattr(config, "image_tokenizer_config"):
        config.image_tokenizer_config.vision_config._name_or_path = "/home/somebody/siglip"
    config.save_pretrained(tmp_path)
    assert "somebody" not in (tmp_path / "config.json").read_text() and "somebody" not in str(config.to_dict())
    assert type(config).from_pretrained(tmp_path).to_dict() == config.to_dict()


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

"""LoRA: nothing changes at first, merged and adapted compute the same, an adapter is laid over its model again."""

import pytest
import torch

import unimllm
from unimllm.discrete.lora import add_lora, load_lora, merged_state, save_lora
from unimllm.discrete.modeling_unimllm import UniMLLMForConditionalGeneration
from unimllm.errors import UserError
from unimllm.training.language_model import train_image_tokens
from unimllm.training.sft import SftTask


@pytest.fixture
def adapted(tiny_checkpoint) -> UniMLLMForConditionalGeneration:
    """A model with LoRA as it is after some training: every trained number has moved."""
    model = UniMLLMForConditionalGeneration.from_pretrained(tiny_checkpoint)
    SftTask(model, {}).eval()
    ids = torch.tensor([[8, 9, 10, 11]])
    before = model(ids).logits
    add_lora(model.language_model, rank=2, alpha=0, dropout=0.1)
    train_image_tokens(model)
    model.eval()  # dropout included
    torch.testing.assert_close(model(ids).logits, before)
    torch.manual_seed(0)
    words = model.get_input_embeddings().weight
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter is words:
                words[model.config.image_token_rows] += 1
            elif parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    assert not torch.allclose(model(ids).logits, before, atol=1e-3)
    return model


def outputs(model) -> list[torch.Tensor]:
    offset = model.config.image_offset
    ids = torch.tensor([[8, 9, *model.config.image_token_rows, offset + 3, offset + 8]])
    labels = ids.clone()
    return [model(ids).logits, model(ids, labels=labels).loss]


def test_what_is_trained_is_lora_the_adapter_the_head_and_three_rows(adapted):
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    kinds = {"lora_" if ".lora_" in name else name.split(".")[0] for name in trained}
    assert kinds == {"lora_", "adapter", "image_head", "language_model"}
    whole = [name for name in trained if name.startswith("language_model.") and ".lora_" not in name]
    assert len(whole) == 1 and "embed_tokens" in whole[0]  # tied


def test_a_merged_checkpoint_needs_no_peft_and_an_adapter_lies_over_its_model(adapted, tiny_checkpoint, tmp_path):
    expected = outputs(adapted)
    adapted.save_pretrained(tmp_path, state_dict=merged_state(adapted))
    merged, report = UniMLLMForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    save_lora(adapted, tmp_path / "lora", str(tiny_checkpoint))
    laid, _ = unimllm.load(tmp_path / "lora", "cpu")
    assert {name for name, _ in laid.named_parameters()} == {name for name, _ in merged.named_parameters()}
    for model in (merged.eval(), laid):
        for value, wanted in zip(outputs(model), expected, strict=True):
            torch.testing.assert_close(value, wanted)


def test_adapters_that_do_not_fit_are_told(adapted, tiny_checkpoint, tmp_path):
    save_lora(adapted, tmp_path / "lora", str(tmp_path / "gone"))
    with pytest.raises(UserError, match="gone: no such folder"):
        unimllm.load(tmp_path / "lora", "cpu")
    weights = tmp_path / "lora" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(UserError, match="cannot lay the adapter"):
        load_lora(UniMLLMForConditionalGeneration.from_pretrained(tiny_checkpoint), tmp_path / "lora")
    with pytest.raises(UserError, match="LoRA finds nothing to adapt"):
        add_lora(torch.nn.Sequential(torch.nn.Linear(2, 2)), 2, 0, 0)

"""LoRA: nothing changes at first, merged and adapted compute the same, an adapter is laid over its model again."""

import copy
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from picture_files import picture
from PIL import Image

import unimllm
from unimllm import chat, generate
from unimllm.discrete.configuration_unimllm import UniMLLMConfig
from unimllm.discrete.lora import add_lora, load_lora, merged_state, save_lora
from unimllm.discrete.modeling_unimllm import UniMLLMForConditionalGeneration
from unimllm.errors import UserError
from unimllm.fingerprint import fingerprint, settings_fingerprint, weights_fingerprint
from unimllm.training.presets import SFT_PRESETS
from unimllm.training.sft import SftTask
from unimllm.training.start_model import choose_trained, start_model, train_image_tokens


@pytest.fixture(params=["tied", "untied"])
def base(request, tiny_checkpoint, tmp_path) -> Path:
    """A checkpoint whose head is or is not its embeddings."""
    if request.param == "tied":
        return tiny_checkpoint
    config = UniMLLMConfig.from_pretrained(tiny_checkpoint)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    shutil.copytree(tiny_checkpoint, tmp_path / "untied")
    torch.manual_seed(1)
    UniMLLMForConditionalGeneration(config).save_pretrained(tmp_path / "untied")
    return tmp_path / "untied"


@pytest.fixture
def adapted(base) -> UniMLLMForConditionalGeneration:
    """A model with LoRA as it is after some training: every trained number has moved."""
    model = UniMLLMForConditionalGeneration.from_pretrained(base)
    SftTask(model, {}).eval()
    ids = torch.tensor([[8, 9, 10, 11]])
    before = model(ids).logits
    add_lora(model.language_model, rank=2, alpha=0, dropout=0.1)
    train_image_tokens(model)
    model.eval()  # dropout included
    torch.testing.assert_close(model(ids).logits, before)
    torch.manual_seed(0)
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    with torch.no_grad():
        for parameter in model.parameters():
            if any(parameter is table for table in tables):
                parameter[model.config.picture_token_ids] += 1
            elif parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    assert not torch.allclose(model(ids).logits, before, atol=1e-3)
    return model


def outputs(model) -> list[torch.Tensor]:
    offset = model.config.image_offset
    marks = [i for i in model.config.picture_token_ids if i != model.config.image_token_id]
    ids = torch.tensor([[8, 9, *marks, offset + 3, offset + 8]])
    labels = ids.clone()
    return [model(ids).logits, model(ids, labels=labels).loss]


def test_what_is_trained_is_lora_the_adapter_the_head_and_three_rows(adapted):
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    kinds = {"lora_" if ".lora_" in name else name.split(".")[0] for name in trained}
    assert kinds == {"lora_", "adapter", "image_head", "language_model"}
    whole = [name for name in trained if name.startswith("language_model.") and ".lora_" not in name]
    assert len(whole) == (1 if adapted.config.text_config.tie_word_embeddings else 2)


def test_a_merged_checkpoint_needs_no_peft_and_an_adapter_lies_over_its_model(adapted, base, tmp_path):
    expected = outputs(adapted)
    adapted.save_pretrained(tmp_path / "merged", state_dict=merged_state(adapted))
    merged, report = UniMLLMForConditionalGeneration.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    save_lora(adapted, tmp_path / "lora", str(base))
    laid, _ = unimllm.load(tmp_path / "lora", "cpu")
    assert all(p.requires_grad for p in laid.language_model.parameters())  # a plain model again
    assert {name for name, _ in laid.named_parameters()} == {name for name, _ in merged.named_parameters()}
    for model in (merged.eval(), laid):
        for value, wanted in zip(outputs(model), expected, strict=True):
            torch.testing.assert_close(value, wanted)


def test_chat_and_generate_take_an_adapter(adapted, base, call, tmp_path):
    picture(9).save(tmp_path / "a.png")
    save_lora(adapted, tmp_path / "lora", str(base))
    adapted.save_pretrained(tmp_path / "merged", state_dict=merged_state(adapted))
    unimllm.load(base, "cpu")[1].save_pretrained(tmp_path / "merged")
    answers, drawn = [], []
    for model in (tmp_path / "lora", tmp_path / "merged"):
        asked = call(chat, "--model", model, "--device", "cpu", "--image", tmp_path / "a.png", "--question", "What?")
        words = ("--prompt", "a dog", "--out", tmp_path / "drawn.png", "--seed", 1)
        told = call(generate, *words, "--model", model, "--device", "cpu")
        assert asked.code == told.code == 0, asked.err + told.err
        answers.append(asked.out)
        drawn.append(np.asarray(Image.open(tmp_path / "drawn.png")).astype(int))
    assert answers[0] == answers[1] and abs(drawn[0] - drawn[1]).max() <= 1


def test_an_adapter_s_fingerprints_are_of_its_model_too(adapted, base, tmp_path):
    save_lora(adapted, tmp_path / "lora", str(shutil.copytree(base, tmp_path / "base")))
    weights, settings = weights_fingerprint(tmp_path / "lora"), settings_fingerprint(tmp_path / "lora")
    files = ("base/model", "lora/adapter_model", "lora/trained_in_full")
    assert weights == fingerprint(*(tmp_path / f"{file}.safetensors" for file in files))
    (tmp_path / "base" / "chat_template.jinja").write_text("another")
    assert weights_fingerprint(tmp_path / "lora") == weights and settings_fingerprint(tmp_path / "lora") != settings
    with (tmp_path / "base" / "model.safetensors").open("ab") as file:
        file.write(b"other weights")
    assert weights_fingerprint(tmp_path / "lora") != weights


def test_adapters_that_do_not_fit_are_told(adapted, tiny_checkpoint, tmp_path):
    save_lora(adapted, tmp_path / "lora", str(tmp_path / "gone"))
    with pytest.raises(UserError, match="gone: no such folder"):
        unimllm.load(tmp_path / "lora", "cpu")
    weights = tmp_path / "lora" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(UserError, match="cannot lay the adapter"):
        load_lora(UniMLLMForConditionalGeneration.from_pretrained(tiny_checkpoint), tmp_path / "lora")
    with pytest.raises(UserError, match="has no layers q_proj, k_proj, .* of 0"):
        add_lora(torch.nn.Sequential(torch.nn.Linear(2, 2)), 2, 0, 0)


def test_an_adapter_that_peft_saved_itself_is_laid_over_its_model_as_the_message_says(loaded, tmp_path):
    model, processor = copy.deepcopy(loaded[0]), loaded[1]
    plain = copy.deepcopy(model)
    config = peft.LoraConfig(
        r=2, target_modules=r".*language_model.*(q_proj|v_proj)", modules_to_save=["adapter", "image_head"]
    )
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(tmp_path / "mine")
    with pytest.raises(UserError, match="mine has no trained_in_full.safetensors: .* peft's own save_pretrained"):
        unimllm.load(tmp_path / "mine", "cpu")
    merged = peft.PeftModel.from_pretrained(plain, tmp_path / "mine").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    processor.save_pretrained(tmp_path / "merged")
    opened, ids = unimllm.load(tmp_path / "merged", "cpu")[0], torch.tensor([[8, 9, model.config.image_offset + 3, 10]])
    for part in ("logits", "loss"):
        found, wanted = (m(ids, labels=ids if part == "loss" else None)[part] for m in (opened, adapted.eval()))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_adapters_begin_as_the_run_s_seed_says(tiny_checkpoint):
    recipe = SFT_PRESETS["scenes_64"]()
    recipe.lora_rank = 2
    args = Namespace(preset="scenes_64", init_from=str(tiny_checkpoint), image_tokenizer=None, overrides={})

    def begin(seed: int, before: int) -> torch.Tensor:
        torch.manual_seed(before)
        recipe.train.seed = seed
        model, _ = start_model(args, recipe, None)
        choose_trained(model, recipe, None)
        return torch.cat([p.flatten() for name, p in model.named_parameters() if ".lora_A" in name])

    assert torch.equal(begin(seed=0, before=1), begin(seed=0, before=2))
    assert not torch.equal(begin(seed=0, before=1), begin(seed=3, before=1))

"""The models in other people's loops: casts, trainers, pipelines, other vocabularies."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments, pipeline

from semhitok import SemHiTokModel
from semhitok.configuration_semhitok import tiny_config as tiny_tokenizer_config
from unimllm.discrete.configuration_unimllm import tiny_config
from unimllm.discrete.modeling_unimllm import UniMLLMForConditionalGeneration
from unimllm.inference import load


@pytest.fixture
def model() -> UniMLLMForConditionalGeneration:
    torch.manual_seed(0)
    return UniMLLMForConditionalGeneration(tiny_config()).eval()


# ---- the image tokenizer inside ------------------------------------------------------------------------------------


def test_the_image_tokenizer_stays_frozen_when_it_is_loaded(tiny_checkpoint):
    model, report = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint, output_loading_info=True)
    assert not any(p.requires_grad for p in model.image_tokenizer.parameters())
    assert all(p.requires_grad for p in model.language_model.parameters()) and not report["missing_keys"]


@pytest.mark.parametrize("cast", ["half", "bfloat16", "to"])
def test_a_cast_leaves_the_codes_as_they_are(model, cast):
    pictures = torch.rand(8, 3, 16, 16) * 2 - 1
    ids, names = model.get_image_tokens(pictures), list(model.state_dict())
    arguments = [torch.bfloat16] if cast == "to" else []
    getattr(torch.nn.ModuleList([model]), cast)(*arguments)
    assert {p.dtype for p in model.image_tokenizer.parameters()} == {torch.float32}
    assert model.dtype == (torch.float16 if cast == "half" else torch.bfloat16)
    assert torch.equal(model.get_image_tokens(pictures), ids) and list(model.state_dict()) == names
    assert model(ids).logits.isfinite().all()
    model.double()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert {p.device.type for p in model.to("meta").parameters()} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_tokenizer_alone_works_in_half_precision(dtype):
    tokenizer = SemHiTokModel(tiny_tokenizer_config()).eval()
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    tokenizer.to(dtype)
    found = tokenizer.quantize(tokenizer.vision_features(pictures), pictures)
    vectors = tokenizer.code_vectors(found.codes)
    assert tokenizer.restore_features(*vectors).isfinite().all() and tokenizer.decode(found.codes).isfinite().all()


# ---- transformers' own programs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 2])
def test_the_trainer_of_transformers_divides_by_all_targets_of_a_step(model, tmp_path, at_once):
    """Micro-batches with different numbers of targets: the loss of the step is the mean over all of them."""
    ids = torch.randint(7, 40, (4, 12))
    labels = ids.masked_fill(torch.arange(12) < torch.tensor([[1], [4], [9], [2]]), -100)
    expected = model(ids, labels=labels).loss
    expected.backward()
    gradient = model.adapter.semantic[0].weight.grad, model.language_model.get_input_embeddings().weight.grad.clone()
    model.zero_grad()
    rows = [{"input_ids": i, "labels": row} for i, row in zip(ids, labels, strict=True)]
    seen = []

    class Watched(Trainer):
        def training_step(self, *arguments, **options):
            seen.append(super().training_step(*arguments, **options))
            return seen[-1]

    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=at_once,
        gradient_accumulation_steps=4 // at_once, learning_rate=0.0, max_grad_norm=0.0, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    gradients = []
    model.language_model.get_input_embeddings().weight.register_post_accumulate_grad_hook(
        lambda p: gradients.append(p.grad.clone())
    )
    Watched(model, arguments, train_dataset=rows).train()
    torch.testing.assert_close(gradients[-1], gradient[1])
    assert sum(seen).item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_pipeline_pads_on_the_left(tiny_checkpoint):
    model, processor = load(tiny_checkpoint, "cpu")
    assert processor.tokenizer.padding_side == "left"
    talk = pipeline("image-text-to-text", model=model, processor=processor, device="cpu")
    asked = ["What color is the apple?", "Is there a dog in the image?" * 2]
    chats = [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in asked]
    options = {"max_new_tokens": 4, "return_full_text": False, "generate_kwargs": {"do_sample": False}}
    together = [found[0]["generated_text"] for found in talk(text=chats, batch_size=2, **options)]
    alone = [talk(text=chat, **options)[0]["generated_text"] for chat in chats]
    assert together == alone


# ---- vocabulary and placeholders -----------------------------------------------------------------------------------


def test_the_vocabulary_can_grow(model):
    ids = torch.tensor([[8, 9, 10]])
    before, offset = model(ids).logits, model.config.image_offset
    model.resize_token_embeddings(offset + 8)
    assert model.config.image_offset == model.config.text_config.vocab_size == offset + 8
    logits = model(ids).logits
    assert logits.shape[-1] == offset + 8 and torch.equal(logits[..., :offset], before)
    pictures = torch.rand(1, 3, 16, 16) * 2 - 1
    assert model.get_image_tokens(pictures).min() >= offset + 8


def test_placeholders_without_a_picture_are_told(model):
    ids = torch.tensor([[8, model.config.image_token_id, 9]])
    with pytest.raises(ValueError, match="1 image placeholders but 0 pictures"):
        model(ids)
    with pytest.raises(ValueError, match="1 image placeholders but 0 pictures"):
        model.train()(ids, labels=ids)

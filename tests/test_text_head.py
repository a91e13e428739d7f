"""Logits of language models that do something behind their head."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
)

from semhitok import SemHiTokConfig
from unimllm import text_head
from unimllm.discrete.configuration_unimllm import tiny_config
from unimllm.discrete.modeling_unimllm import UniMLLMForConditionalGeneration
from unimllm.errors import UserError
from unimllm.text_head import check_text_head, text_logits

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
HEADS = SIZES | {"num_key_value_heads": 2}
CONFIGS = {
    "llama": LlamaConfig(**HEADS),
    "cohere": CohereConfig(**HEADS, logit_scale=0.0625),
    "granite": GraniteConfig(**HEADS, logits_scaling=8.0),
    "gemma2": Gemma2Config(**HEADS, head_dim=8, final_logit_softcapping=0.1),
    "gemma3": Gemma3TextConfig(**HEADS, head_dim=8),
    "neox": GPTNeoXConfig(**SIZES),
}


@pytest.fixture(params=CONFIGS)
def language_model(request):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval()


def test_logits_are_the_language_model_s_own(language_model):
    ids = torch.tensor([[1, 5, 9, 3, 2]])
    hidden = language_model.get_decoder()(ids).last_hidden_state
    wanted = language_model(ids).logits
    torch.testing.assert_close(text_logits(language_model, hidden), wanted)
    model = UniMLLMForConditionalGeneration.from_parts(tiny_config(), language_model, tiny_tokenizer()).eval()
    torch.testing.assert_close(model(ids).logits, wanted)
    check_text_head(language_model, "it")


def test_pictures_begin_as_large_as_words(language_model):
    """Gemma multiplies by the root of its width inside its embeddings."""
    model = UniMLLMForConditionalGeneration.from_parts(tiny_config(), language_model, tiny_tokenizer())
    words = model.embed(torch.arange(language_model.config.vocab_size)[None]).std()
    pictures = model.embed(
        model.config.image_offset + torch.arange(model.config.image_tokenizer_config.num_codes)[None]
    )
    assert 0.1 < pictures.std() / words < 10


def test_what_changes_its_logits_otherwise_is_refused(monkeypatch):
    model = AutoModelForCausalLM.from_config(CONFIGS["granite"]).eval()
    monkeypatch.setattr(text_head, "text_logits", lambda model, hidden: model.get_output_embeddings()(hidden))
    with pytest.raises(UserError, match="^--language-model mine: a granite changes its logits behind its head"):
        check_text_head(model, "mine")


def tiny_tokenizer():
    from semhitok.auto import build_tokenizer

    config: SemHiTokConfig = tiny_config().image_tokenizer_config
    return build_tokenizer(config).eval()

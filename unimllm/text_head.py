"""A language model's embeddings and head, for what is built over it: logits as its own `forward` makes them."""

import torch
from torch import nn
from transformers import PreTrainedModel

from unimllm.errors import UserError

TOLERANCE = 1e-2  # of the largest logit, for bfloat16


class WithLanguageModel:
    """Of a model over `language_model`: its embeddings and its head are that one's."""

    language_model: PreTrainedModel

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_output_embeddings(value)


def text_logits(language_model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Hidden states (..., H) -> (..., V), with what some models do to them behind their head.

    Cohere multiplies by `logit_scale`, Granite divides by `logits_scaling`, Gemma caps at `final_logit_softcapping`.
    """
    config = language_model.config
    logits = language_model.get_output_embeddings()(hidden)
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (scale := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / scale
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


@torch.no_grad()
def check_text_head(language_model: PreTrainedModel, name: str) -> None:
    """UserError where `text_logits` are not the model's own: it does something else behind its head.

    Costs a pass over four ids.
    """
    hidden = []
    hook = language_model.get_decoder().register_forward_hook(lambda *call: hidden.append(call[-1].last_hidden_state))
    try:
        wanted = language_model(torch.arange(4).unsqueeze(0), use_cache=False).logits.float()
    finally:
        hook.remove()
    if not wanted.isfinite().all():
        raise UserError(f"--language-model {name} computes numbers that are not finite; are its weights whole?")
    found = text_logits(language_model, hidden[0]).float()
    if not torch.allclose(found, wanted, rtol=0, atol=TOLERANCE * wanted.abs().max().item()):
        raise UserError(
            f"--language-model {name}: a {language_model.config.model_type} changes its logits behind its head in a "
            "way that is not known here; take another language model"
        )

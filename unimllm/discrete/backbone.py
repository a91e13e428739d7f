"""A pretrained language model under the unified one: its vocabulary grows by the image tokens, its old rows stay.

    text ids of the backbone | spare rows, if it has them | image tokens | image ids

Models are often saved with more rows than their tokenizer has tokens; the image tokens take the first spare ones.
"""

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from semhitok.errors import first_line
from semhitok.misfit import LOADING, misfit_of_report
from unimllm.chat_templates import CHAT_TEMPLATES
from unimllm.conversation import end_of_answer
from unimllm.distributed import print_once
from unimllm.errors import UserError
from unimllm.text_head import check_text_head
from unimllm.vocabulary import IMAGE_TOKENS, add_tokens

NEEDED = ("hidden_size", "num_attention_heads", "max_position_embeddings")  # of a language model's config
ENOUGH = 10_000, 8  # rows for their covariance, and rows for each of its H columns: the larger number counts


def load_backbone(name: str, chat_template: str | None = None, dtype: torch.dtype = torch.float32):
    """A causal language model and its text tokenizer, by folder or hub id.

    Args:
        name: whatever AutoModelForCausalLM and AutoTokenizer open.
        chat_template: a name of CHAT_TEMPLATES, or a template itself; None: the tokenizer's own.
        dtype: of the weights.

    Returns:
        (model, tokenizer); the tokenizer has a chat template and a padding token, and its end-of-text token is the one
        with which the template ends an answer.

    Raises:
        UserError: one of them cannot be loaded, has no chat template that can be used, or logits of its own kind; or
            see `check_decoder`.
    """
    tokenizer = load_text_tokenizer(name, chat_template)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, trust_remote_code=False, **LOADING)
    except Exception as error:  # of the hub, of damaged files
        raise UserError(f"--language-model {name}: {first_line(error)}") from error
    if told := misfit_of_report(report, is_whole=False):
        raise UserError(f"--language-model {name}: the checkpoint {told}")
    check_decoder(model, name)
    check_text_head(model, name)
    return model, tokenizer


def check_decoder(model: PreTrainedModel, name: str) -> None:
    """UserError where a model is not a decoder of text alone that looks back by attention, which is told apart by its
    parts, a state beside its cache (packed samples would see one another through it), or what its config lacks.
    """
    config, fault = model.config, ""
    missing = [field for field in NEEDED if getattr(config, field, None) is None]
    if config.get_text_config() is not config:
        fault = "holds a language model among other parts (text_config); save that alone and name its folder"
    elif getattr(model, "_is_stateful", False):
        fault = "has a state beside its attention or in its place"
    elif missing:
        fault = f"has no {', '.join(missing)} in its config"
    elif (width := model.get_input_embeddings().weight.shape[1]) != config.hidden_size:
        fault = f"has embeddings of {width} channels under layers of {config.hidden_size}"
    if fault:
        wanted = "a decoder-only model with attention is wanted, such as Qwen2, Qwen3, Llama or Mistral"
        raise UserError(f"--language-model {name} ({config.model_type}) {fault}; {wanted}")


def load_text_tokenizer(name: str, chat_template: str | None = None, **options):
    """The text tokenizer of `load_backbone` alone; `options` are of AutoTokenizer.from_pretrained."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)
    except Exception as error:  # of the hub, of damaged files, of tokenizers' own
        raise UserError(f"--language-model {name}: {first_line(error)}") from error
    if chat_template:
        tokenizer.chat_template = CHAT_TEMPLATES.get(chat_template, chat_template)
    if not tokenizer.chat_template:
        known = ", ".join(CHAT_TEMPLATES)
        raise UserError(f"the text tokenizer of {name} has no chat template: name one with --chat-template ({known})")
    end = end_of_answer(tokenizer)
    if end != tokenizer.eos_token:
        print_once(f"note: answers end with {end}, as the chat template has it, not with {tokenizer.eos_token}")
        tokenizer.eos_token = end
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def add_image_tokens(model: PreTrainedModel, tokenizer, image_tokens: dict[str, str] = IMAGE_TOKENS) -> list[int]:
    """Give tokenizer and model those of a family's tokens that they lack; every old row keeps its bits.

    A new row, of the embeddings and of an untied head, is drawn around the mean of the old ones with their covariance,
    so that the model takes it for a token among others (J. Hewitt, "Initializing New Word Embeddings for Pretrained
    Language Models", 2021). The head's bias, where there is one, gets the mean of the old.

    Returns:
        The ids of the new tokens, in their order; empty where the tokenizer had them all.
    """
    trained = max(tokenizer.get_vocab().values()) + 1  # rows behind it are spare: nobody has trained them
    new = add_tokens(tokenizer, image_tokens)
    old_rows = model.get_input_embeddings().num_embeddings
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > old_rows:
        model.resize_token_embeddings(needed, mean_resizing=False)
    tables = [model.get_input_embeddings().weight]
    head = model.get_output_embeddings()
    if head is not None and head.weight is not tables[0]:
        tables.append(head.weight)
    fresh = sorted({*new, *range(old_rows, needed)})
    old = slice(min(trained, old_rows))
    with torch.no_grad():
        for table in tables if fresh else []:
            table[fresh] = rows_like(table[old], len(fresh)).to(table)
        if fresh and getattr(head, "bias", None) is not None:
            head.bias[fresh] = head.bias[old].mean()
    return new


def rows_like(old: torch.Tensor, count: int) -> torch.Tensor:
    """`count` rows drawn from the normal distribution with the mean and the covariance of (V, H) rows.

    Of a large vocabulary, that of so many of its rows as are ENOUGH: all of them would take minutes on one thread.
    """
    old, enough = old.detach(), max(ENOUGH[0], ENOUGH[1] * old.shape[1])
    if len(old) > enough:
        old = old[torch.randperm(len(old))[:enough]]
    old = old.float()
    mean = old.mean(0)
    centred = old - mean
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(old))  # (H,), (H, H): never V x V
    spread = axes * variances.clamp(min=0).sqrt()  # a standard normal z gives z @ spread.T that covariance
    return mean + torch.randn(count, old.shape[1], device=old.device) @ spread.T


class OnlyRows:
    """Keeps the gradient of all rows but some at zero, so that training moves none of the others.

    With weight decay, AdamW would move them all the same: train such a table with none.

    Args:
        table: (V, H) weights.
        rows: that may be trained.
    """

    def __init__(self, table: nn.Parameter, rows: list[int]):
        self.rows = rows
        table.register_hook(self)

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        kept = torch.zeros_like(gradient)
        kept[self.rows] = gradient[self.rows]
        return kept
